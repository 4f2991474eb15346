"""A person's own pictures: a file, or a folder of them at any depth.

``.png``, ``.jpg``, ``.webp``, ``.gif``, ``.bmp`` and ``.tiff`` are read, in any mode: they become RGBA of 8 bits,
turned as their metadata says. Of an animated one the first frame is taken, CMYK is converted without a profile, 16 bits
become 8: each is said. A picture takes the size of `diffkit_image.buckets` whose ratio is the nearest to its own.

What is said of a file comes from ``metadata.csv`` or ``metadata.jsonl`` in its folder or above, by ``file_name``:
``text`` and ``category``; or from a file of the same name that ends in ``.txt``. The folder that a file lies in, below
the one that was given, is its category, and its text where there is no other. Folders ``train``, ``valid`` (or
``validation``, ``val``) and ``test`` at the top are splits; without them files are split by a hash of their names.

What cannot be used is named with its reason, and the rest is used. Nothing usable is an error.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffkit import folders
from diffkit.folders import reasons
from diffkit_image import buckets
from diffkit_image.packed import Found

__all__ = ["SUFFIXES", "Report", "Shape", "decode", "fingerprint", "read", "split_of", "splits"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the files that are read."""
SHORTEST, RATIO = 8, 4
"""Pixels of a picture's shorter side at least; its longer side to the shorter one at most."""
FOLDERS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
_GREY = {"I;16", "I;16L", "I;16B", "I;16N", "I"}


@dataclass(frozen=True)
class Shape:
    """The sizes that pictures get: about the area of a square of ``side``, in multiples of ``multiple``."""

    side: int = 64
    multiple: int = 16

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture in the size that suits it best."""
        known = buckets.sizes(self.side, self.multiple)
        return buckets.fitted(image, buckets.nearest(image.height, image.width, known))


@dataclass
class Report:
    """What came of the files: names and reasons of those left out, and of those that were changed."""

    path: str
    used: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        said = f"{self.path}: {self.used} of {self.used + len(self.rejected)} pictures used"
        said += f"; left out: {reasons(self.rejected)}" if self.rejected else ""
        return f"{said}; used, but: {reasons(self.changed)}" if self.changed else said


def read(path: Path, shape: Shape, report: Report) -> Iterator[Found]:
    """The pictures in ``path`` by the names of their files; what is to be said of them is added to ``report``.

    Raises:
        ValueError: if nothing there can be used, with the reasons.
        FileNotFoundError: if there is nothing there.
    """
    files = _files(path)
    pictures = [name for name, file in files.items() if file.suffix.lower() in SUFFIXES]
    known, groups = folders.metadata(files, report.rejected), dict(zip(pictures, splits(pictures), strict=True))
    for name in pictures:
        try:
            image, note = decode(files[name])
            label = _described(name, known.get(name, {}), files)
        except (ValueError, OSError) as error:
            report.rejected.append((name, str(error)))
            continue
        report.used += 1
        report.changed += [(name, note)] if note else []
        yield Found(name, groups[name], shape.fit(image), **label)
    if not report.used:
        rejected = report.rejected
        found = f"none of {len(rejected)} files usable: {reasons(rejected)}" if rejected else "no picture in it"
        raise ValueError(f"got {path} with {found}; expected files that end in {', '.join(SUFFIXES)}")


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of all files in ``path``: the same as long as they are."""
    return folders.fingerprint(path, _files(path))


def _files(path: Path) -> dict[str, Path]:
    """Pictures, texts and metadata, by their names below ``path``."""
    return folders.files(path, SUFFIXES, "pictures", beside=[".txt"])


# Pixels


def decode(content: Path | bytes) -> tuple[Image.Image, str]:
    """A picture of a file, RGB or RGBA of 8 bits, and what was done to it that is to be said, else nothing.

    Raises:
        ValueError: for one that cannot be used, with the reason.
    """
    if not (len(content) if isinstance(content, bytes) else content.stat().st_size):
        raise ValueError("is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                _require_usable(image.width, image.height)
                note = _said(image)
                return _eight_bits(ImageOps.exif_transpose(image)), note
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(_too_large(str(error))) from None
        except (_Unusable, MemoryError) as error:
            raise ValueError(str(error) or "takes more memory than there is") from None
        except Exception as error:  # a decoder that is given bad data may raise anything
            reason = "it is none that is known" if isinstance(error, UnidentifiedImageError) else str(error)
            raise ValueError(f"cannot be read as a picture ({reason.strip(' .') or type(error).__name__})") from None


class _Unusable(Exception):
    """A picture that can be read and not used."""


def _require_usable(width: int, height: int) -> None:
    if min(width, height) < SHORTEST:
        raise _Unusable(f"has {width}x{height} pixels; expected at least {SHORTEST} along each side")
    if max(width, height) > RATIO * min(width, height):
        raise _Unusable(f"has {width}x{height} pixels; expected sides of at most {RATIO} : 1: crop it")


def _too_large(said: str) -> str:
    found = re.search(r"(\d+) pixels", said)
    count = f"{int(found[1]) / 1e6:.0f} million" if found else "too many"
    return f"has {count} pixels; expected at most {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million: make it smaller"


def _said(image: Image.Image) -> str:
    frames = getattr(image, "n_frames", 1)
    notes = [f"has {frames} frames (the first is used)"] if frames > 1 else []
    notes += ["is CMYK (converted without a profile)"] if image.mode == "CMYK" else []
    notes += ["has more than 8 bits (8 are kept)"] if image.mode in {*_GREY, "F"} else []
    return ", ".join(notes)


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGBA where it has transparency, else RGB."""
    if image.mode in {*_GREY, "F"}:
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise _Unusable("has values that are not finite")
        top = 1.0 if image.mode == "F" else 65535.0
        if values.min() < 0 or values.max() > top:
            raise _Unusable(f"has values from {values.min():g} to {values.max():g}; expected 0 to {top:g}")
        return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8), "L").convert("RGB")
    transparent = image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info
    if image.mode in {"RGBa", "La"}:
        image = image.convert(image.mode.upper())
    return image.convert("RGBA" if transparent else "RGB")


# What is said of it


def _described(name: str, about: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """The labels of a picture, from its row in the metadata, its text and the folder that it lies in."""
    at = PurePosixPath(name)
    folders = at.parent.parts
    folder = "" if not folders or (len(folders) == 1 and folders[0] in FOLDERS) else folders[-1]
    beside = files.get(at.with_suffix(".txt").as_posix())
    text = str(about.get("text") or "").strip() or (_line(beside) if beside else "")
    category = str(about.get("category") or folder).strip()
    caption = text or category.replace("_", " ")
    return {"captions": (caption,) if caption else (), "category": category}


def _line(file: Path) -> str:
    return " ".join(file.read_text(encoding="utf-8-sig", errors="replace").split())


def splits(names: Sequence[str]) -> list[str]:
    """The split of each file: by its folder where there are such, else by the hash of its name, 90 : 5 : 5.

    If that leaves none to validate, the group next to it is taken; if none to train on, all are for training.
    """
    tops = [FOLDERS.get(PurePosixPath(name).parts[0]) if "/" in name else None for name in names]
    if "train" in tops:
        return [top or "train" for top in tops]
    places = [_bucket(PurePosixPath(name).with_suffix("").as_posix()) for name in names]
    below = sorted({place for place in places if place < 90})
    if not below:
        return ["train" for _ in names]
    last = 90 if any(90 <= place < 95 for place in places) or len(below) < 2 else below[-1]
    return [_group(place, last) for place in places]


def split_of(name: str) -> str:
    """The split of what has a name, from its hash. 90 : 5 : 5."""
    return _group(_bucket(name))


def _group(place: int, last: int = 90) -> str:
    return "train" if place < last else "valid" if place < 95 else "test"


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) % 100
