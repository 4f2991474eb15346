"""Silhouettes of ten animals, 10,000 of 28 x 28, from the PyPI package ``animal-shape-mnist`` by S. Mohammadi (MIT).

They lie in the package as pickles, which could run anything when they are read: of what a pickle may name, only the
three functions that make an array are let in.

A silhouette becomes black with its grey value as opacity, in the middle of 32 x 32. As some are there more than once, a
split is a hash of the pixels. 90 : 5 : 5.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffkit_image import readers
from diffkit_image.packed import Found

__all__ = ["ANIMALS", "array", "read"]

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
"""By their numbers."""
_PHRASINGS = ("{0}", "silhouette of {1}", "{1}", "shape of {1}", "black {0} silhouette")
_MAKERS = {
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
}
_SIDE = 32


def read(folder: Path) -> Iterator[Found]:
    """The silhouettes of the unpacked package, by their places in it."""
    files = folder / "animal_shape_mnist" / "data" / "Animal Shape"
    shapes, numbers = (array(files / f"animal_{name}_version_3.gz") for name in ("data", "label"))
    for n, (shape, number) in enumerate(zip(shapes, numbers, strict=True)):
        name = ANIMALS[int(number)]
        one = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        pixels = np.zeros((_SIDE, _SIDE, 4), np.uint8)
        pixels[2:-2, 2:-2, 3] = shape
        said = tuple(phrasing.format(name, one) for phrasing in _PHRASINGS)
        yield Found(f"{n:05d}", readers.split_of(shape.tobytes().hex()), Image.fromarray(pixels, "RGBA"), said, name)


def array(path: Path) -> NDArray[Any]:
    """The array of a pickle, which may hold nothing else.

    Raises:
        ValueError: if it does.
    """
    with gzip.open(path) as file:
        made = _Arrays(io.BytesIO(file.read())).load()
    if not isinstance(made, np.ndarray) or made.dtype.hasobject:
        raise ValueError(f"got {path.name} with something else than an array of numbers; fetch it again")
    return made


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _MAKERS:
            raise ValueError(
                f"got a pickle that asks for {module}.{name}; expected an array of numbers: fetch it again"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
