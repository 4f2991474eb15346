"""A set of pictures in a folder: their pixels as bytes, one file for each size, and labels; opened, not read.

pixels-HxW.npy   uint8 (n, H, W, 4)  red, green, blue (not multiplied by it) and opacity
labels.npz       numbers of each picture
about.json       names, captions, categories, and what was left out
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffkit_image.record import Picture

__all__ = ["SPLITS", "Found", "Packed", "gather", "load", "save"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Found:
    """A picture of the size that it is to be kept in, and what is known of it.

    Args:
        name: where it came from.
        split: of `SPLITS`.
        image: of any mode that PIL makes RGBA of.
        captions: what may be said of it, the usual one first; none where nothing is known.
        category: its name, empty where it is not known.
    """

    name: str
    split: str
    image: Image.Image
    captions: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True, eq=False)
class Packed:
    """N pictures of some sizes."""

    pixels: tuple[NDArray[np.uint8], ...]  # of each size [n, H, W, 4]
    places: NDArray[np.int64]  # [N, 2] which of these, and which row of it
    category: NDArray[np.int32]  # [N] index into categories, -1 where unknown
    splits: NDArray[np.uint8]  # [N] index into SPLITS
    categories: tuple[str, ...]
    names: tuple[str, ...]  # N, where each came from
    captions: tuple[tuple[str, ...], ...]  # N, what may be said of each
    rejected: tuple[tuple[str, str], ...] = ()  # what could not be used, and why
    changed: tuple[tuple[str, str], ...] = ()  # what is not quite as it was, and how
    home: Path | None = field(default=None)  # where it lies

    def __len__(self) -> int:
        return len(self.places)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of each array of pixels."""
        return tuple((part.shape[1], part.shape[2]) for part in self.pixels)

    def of(self, split: str) -> NDArray[np.int64]:
        """The rows of ``split``."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def picture(self, n: int) -> Picture:
        """Picture ``n``."""
        group, row = self.places[n]
        number = self.category[n]
        return Picture(
            Image.fromarray(np.array(self.pixels[group][row]), "RGBA"),
            next(iter(self.captions[n]), ""),
            self.categories[number] if number >= 0 else "",
            self.names[n],
        )

    def tensors(self, rows: NDArray[np.int64]) -> Tensor:
        """float32 (B, 4, H, W) in [-1, 1], colour times opacity, of pictures of one size."""
        groups, places = self.places[rows].T
        return premultiplied(self.pixels[groups[0]][places])


def premultiplied(pixels: NDArray[np.uint8]) -> Tensor:
    """float32 (B, 4, H, W) in [-1, 1] of bytes (B, H, W, 4): what `record.to_tensor` makes of each."""
    shares = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(0, 3, 1, 2).float() / 255
    return torch.cat([shares[:, :3] * shares[:, 3:], shares[:, 3:]], 1) * 2 - 1


def gather(found: Iterable[Found], categories: Sequence[str] = (), home: Path | None = None) -> Packed:
    """Pictures as a set in memory. A category that is none of ``categories`` is numbered after them."""
    parts: dict[tuple[int, int], list[NDArray[np.uint8]]] = {}
    labels = _Labels(categories)
    for one in found:
        array = _bytes(one.image)
        rows = parts.setdefault(array.shape[:2], [])
        labels.add(one, list(parts).index(array.shape[:2]), len(rows))
        rows.append(array)
    return Packed(tuple(np.stack(rows) for rows in parts.values()), **labels.rows(), **labels.about(), home=home)


def save(
    found: Iterable[Found],
    folder: Path,
    categories: Sequence[str] = (),
    rejected: Sequence[tuple[str, str]] = (),
    changed: Sequence[tuple[str, str]] = (),
) -> None:
    """Write what `gather` makes of pictures to ``folder``, whole or not at all, one at a time.

    ``rejected`` and ``changed`` are looked at last, so that reading ``found`` may add to them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        about = _write(found, part, categories) | {"rejected": list(rejected), "changed": list(changed)}
        (part / "about.json").write_text(json.dumps(about), encoding="utf-8")
        part.chmod(0o755)
        if not folder.exists():  # another process may have been faster; theirs is the same
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(folder: Path) -> Packed:
    """What `save` wrote; pixels stay on the disk until they are asked for."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    with np.load(folder / "labels.npz", allow_pickle=False) as file:
        rows = {name: file[name] for name in ("places", "category", "splits")}
    pixels = [np.load(folder / f"pixels-{h}x{w}.npy", mmap_mode="r") for h, w in about["sizes"]]
    return Packed(
        tuple(pixels),
        **rows,
        categories=tuple(about["categories"]),
        names=tuple(about["names"]),
        captions=tuple(tuple(some) for some in about["captions"]),
        rejected=tuple((name, reason) for name, reason in about["rejected"]),
        changed=tuple((name, reason) for name, reason in about.get("changed", ())),
        home=folder,
    )


class _Labels:
    """What is known of pictures, as it is found."""

    def __init__(self, categories: Sequence[str]) -> None:
        self.numbers = {name: k for k, name in enumerate(categories)}
        self.places: list[tuple[int, int]] = []
        self.found: list[tuple[int, int, str, tuple[str, ...]]] = []

    def add(self, one: Found, group: int, row: int) -> None:
        number = self.numbers.setdefault(one.category, len(self.numbers)) if one.category else -1
        self.places.append((group, row))
        self.found.append((number, SPLITS.index(one.split), one.name, one.captions))

    def rows(self) -> dict[str, Any]:
        numbers, splits = [f[0] for f in self.found], [f[1] for f in self.found]
        return {
            "places": np.array(self.places, np.int64).reshape(-1, 2),
            "category": np.array(numbers, np.int32),
            "splits": np.array(splits, np.uint8),
        }

    def about(self) -> dict[str, Any]:
        names, captions = tuple(f[2] for f in self.found), tuple(f[3] for f in self.found)
        return {"categories": tuple(self.numbers), "names": names, "captions": captions}


def _write(found: Iterable[Found], folder: Path, categories: Sequence[str]) -> dict[str, Any]:
    """Pixels and labels; what is left to be written."""
    counts: dict[tuple[int, int], int] = {}
    labels = _Labels(categories)
    for one in found:
        array = _bytes(one.image)
        size = (array.shape[0], array.shape[1])
        with (folder / _file(size)).open("r+b" if size in counts else "wb") as file:
            row = counts.setdefault(size, 0)
            _head(file, row + 1, size)
            file.seek(0, 2)
            array.tofile(file)
        counts[size] = row + 1
        labels.add(one, list(counts).index(size), row)
    np.savez_compressed(folder / "labels.npz", **labels.rows())
    return {"sizes": list(counts), **labels.about()}


def _file(size: tuple[int, int]) -> str:
    return f"pixels-{size[0]}x{size[1]}.npy"


def _head(file: IO[bytes], count: int, size: tuple[int, int]) -> None:
    """The head of an .npy file, which has the same length whatever the count."""
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 4)}
    np.lib.format.write_array_header_1_0(file, about)


def _bytes(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGBA"), np.uint8)
