"""Real pictures, and which of them stand beside which samples: of the same name, of the same category, or the nearest.

Pictures are seen 64 pixels wide and high, smaller or larger ones resized, with nothing around.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffkit_image.judge import SIDE
from diffkit_image.packed import Packed
from diffkit_image.record import Picture, to_tensor
from diffkit_image.spread import key, plain

__all__ = ["Real", "matched", "nearest", "seen", "twins", "usable"]

CHUNK = 1024
"""Pictures that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Real:
    """Real pictures: a set, and which of its rows these are."""

    packed: Packed
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, packed: Packed, *splits: str) -> "Real":
        """Those of some splits."""
        return cls(packed, np.concatenate([packed.of(split) for split in splits]))

    def __len__(self) -> int:
        return len(self.rows)

    def category(self, row: int) -> str:
        """That of one row of the set; empty where it is not known."""
        number = int(self.packed.category[row])
        return self.packed.categories[number] if number >= 0 else ""

    def name(self, row: int) -> str:
        """What one row of the set is called, without its skin tone."""
        return plain(next(iter(self.packed.captions[row]), ""))

    def pictures(self) -> list[Picture]:
        """All of them."""
        return [self.packed.picture(row) for row in self.rows.tolist()]

    def chunks(self) -> list["Real"]:
        """Parts of at most 1,024 pictures."""
        count = -(-len(self) // CHUNK)
        return [replace(self, rows=rows) for rows in np.array_split(self.rows, count)] if count else []

    def seen(self) -> Tensor:
        """All of them, as `seen` gives pictures."""
        found = torch.zeros(len(self), 4, SIDE, SIDE)
        sizes = self.packed.places[self.rows, 0]
        for size in np.unique(sizes):
            some = np.flatnonzero(sizes == size)
            found[some] = _fitted(self.packed.tensors(self.rows[some]))
        return found

    def evened(self, most: int) -> "Real":
        """At most ``most`` of each category, from all over it."""
        kinds: dict[str, list[int]] = {}
        for row in self.rows.tolist():
            kinds.setdefault(self.category(row), []).append(row)
        kept = [rows[k] for rows in kinds.values() for k in _evenly(len(rows), most)]
        return replace(self, rows=np.array(sorted(kept), np.int64))


def _evenly(length: int, count: int) -> list[int]:
    """At most ``count`` numbers under ``length``: the middles of equal parts."""
    few = min(count, length)
    return [(2 * k + 1) * length // (2 * few) for k in range(few)]


def usable(picture: Picture | None) -> bool:
    """Whether a sample is a picture at all: something of it can be seen."""
    return picture is not None and picture.image.convert("RGBA").getchannel("A").getbbox() is not None


def seen(pictures: Sequence[Picture]) -> Tensor:
    """Pictures as the judges see them, (B, 4, 64, 64) in [-1, 1], colour times opacity."""
    found = [torch.zeros(0, 4, SIDE, SIDE), *(_fitted(to_tensor(picture.image)[None]) for picture in pictures)]
    return torch.cat(found)


def _fitted(pixels: Tensor) -> Tensor:
    """(B, 4, H, W) so that the longer side is 64 pixels, with nothing on both sides of the other."""
    height, width = pixels.shape[2:]
    size = [max(round(side * SIDE / max(height, width)), 1) for side in (height, width)]
    if size != [height, width]:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    down, right = (SIDE - side for side in size)
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2), value=-1.0)


def matched(samples: Sequence[Picture | None], known: Real) -> tuple[list[int], Real]:
    """Numbers of samples, and the real picture of each one's category: each taken once, as far as they go.

    Samples whose category is not known have any, evenly.
    """
    left: dict[str, list[int]] = {"": [known.rows[k] for k in reversed(_evenly(len(known), len(samples)))]}
    for row in reversed(_mixed(known)):
        if known.category(row):
            left.setdefault(known.category(row), []).append(row)
    found = {}
    for number, one in enumerate(samples):
        if one is not None and left.get(one.category):
            found[number] = left[one.category].pop()
    return list(found), replace(known, rows=np.array(list(found.values()), np.int64))


def _mixed(known: Real) -> list[int]:
    """Rows in an order in which the first of every name come before the second of any."""
    times: Counter[str] = Counter()
    turns = []
    for row in known.rows.tolist():
        name = known.name(row) or str(row)
        times[name] += 1
        turns.append((times[name], row))
    return [row for _, row in sorted(turns)]


def twins(samples: Sequence[Picture | None], train: Real) -> Real:
    """For each sample a training picture of its name, else of its category, else any: in turn."""
    known: dict[Any, list[int]] = {None: train.rows.tolist()}
    for row in _mixed(train):
        known.setdefault(key(train.name(row)), []).append(row)
        known.setdefault(train.category(row), []).append(row)
    turn: Counter[Any] = Counter()
    found = []
    for one in samples:
        asked = next(k for k in (one and key(one.caption), one and one.category, None) if k in known)
        found.append(known[asked][turn[asked] % len(known[asked])])
        turn[asked] += 1
    return replace(train, rows=np.array(found, np.int64))


def nearest(pixels: Tensor, train: Real) -> tuple[Tensor, NDArray[np.int64]]:
    """The least difference (B,) of pictures (B, 4, 64, 64) to training pictures, in levels of 255, and their rows (B,).

    Infinite where there is no training picture.
    """
    small = _small(pixels)
    best, rows = torch.full((len(small),), math.inf), np.full(len(small), -1, np.int64)
    for part in train.chunks():
        value, index = torch.cdist(small, _small(part.seen())).min(1)
        closer = value < best
        best[closer], rows[closer.numpy()] = value[closer], part.rows[index[closer].numpy()]
    return best * (127.5 / math.sqrt(small.shape[1])), rows


def _small(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, 2).flatten(1)
