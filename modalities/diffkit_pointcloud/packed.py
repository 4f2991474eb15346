"""A set of point clouds in one file: coordinates as 16-bit integers, of which a training step takes a few at random.

Normals (as bytes, to 1 / 127) and colours are there for all points of all clouds, or for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.files import whole
from diffkit_pointcloud.cloud import Cloud, normalise

__all__ = ["SPLITS", "Packed", "load", "pack", "save"]

SPLITS = ("train", "valid", "test")
STEPS = 32767
"""A coordinate in [-1, 1] is stored as a whole number of 1 / 32767: half of that, 1.5e-5, is the largest error."""


@dataclass(frozen=True, eq=False)
class Packed:
    """M clouds; cloud m owns the points ``offsets[m]:offsets[m + 1]``."""

    points: NDArray[np.int16]  # [A, 3], normalised
    offsets: NDArray[np.int64]  # [M + 1]
    frames: NDArray[np.float64]  # [M, 4] centre and scale of the original
    names: NDArray[np.str_]  # [M] where each came from
    captions: NDArray[np.str_]  # [M]
    categories: NDArray[np.str_]  # [M] empty where unknown
    splits: NDArray[np.uint8]  # [M] index into SPLITS
    credits: NDArray[np.str_]  # [M] author and licence, empty where unknown
    normals: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 3), np.int8))  # [A, 3], or [0, 3]
    colours: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))  # [A, 3], or [0, 3]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def count(self, m: int) -> int:
        """Points of cloud ``m``."""
        return int(self.offsets[m + 1] - self.offsets[m])

    def take(self, m: int, chosen: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
        """The chosen points of cloud ``m``, normalised."""
        own = self.points[self.offsets[m] : self.offsets[m + 1]]
        return own[chosen].astype(np.float32) / np.float32(STEPS)

    def take_normals(self, m: int, chosen: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32] | None:
        """Normals of the chosen points, of length 1; None where the set has none."""
        if not len(self.normals):
            return None
        own = self.normals[self.offsets[m] : self.offsets[m + 1]][chosen].astype(np.float32)
        unit: NDArray[np.float32] = own / np.linalg.norm(own, axis=1, keepdims=True).clip(min=1).astype(np.float32)
        return unit

    def take_colours(self, m: int, chosen: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.uint8] | None:
        """Colours of the chosen points; None where the set has none."""
        return self.colours[self.offsets[m] : self.offsets[m + 1]][chosen] if len(self.colours) else None

    def cloud(self, m: int, count: int | None = None) -> Cloud:
        """Cloud ``m``, normalised; its first ``count`` points, which are as good as any."""
        x, y, z, scale = (float(v) for v in self.frames[m])
        return Cloud(
            self.take(m, slice(count)),
            self.take_normals(m, slice(count)),
            self.take_colours(m, slice(count)),
            caption=str(self.captions[m]),
            category=str(self.categories[m]),
            transform=((x, y, z), scale),
        )

    def select(self, rows: Sequence[int] | NDArray[np.int64], count: int | None = None) -> Packed:
        """The set of clouds ``rows``, in that order, of their first ``count`` points."""
        rows = np.asarray(rows, dtype=np.int64)
        ends = [
            self.offsets[m + 1] if count is None else min(self.offsets[m] + count, self.offsets[m + 1]) for m in rows
        ]
        spans = [slice(self.offsets[m], end) for m, end in zip(rows, ends, strict=True)]
        flat = {name: getattr(self, name) for name in _FLAT}
        flat = {name: np.concatenate([v[:0], *(v[s] for s in spans)]) for name, v in flat.items()}
        offsets = np.cumsum([0, *(s.stop - s.start for s in spans)]).astype(np.int64)
        others = {name: getattr(self, name)[rows] for name in Packed.__dataclass_fields__ if name not in _OWN}
        return Packed(offsets=offsets, **flat, **others)

    def of(self, split: str) -> Packed:
        """The clouds of ``split``."""
        return self.select(np.flatnonzero(self.splits == SPLITS.index(split)))


_FLAT = ("points", "normals", "colours")
_OWN = (*_FLAT, "offsets")


def pack(
    clouds: Sequence[Cloud],
    names: Sequence[str],
    splits: Sequence[str],
    credits: Sequence[str] | None = None,
    normals: bool = False,
    colours: bool = False,
) -> Packed:
    """A set of clouds, each in its frame; the points of each are to stand in random order.

    Args:
        clouds, names, splits, credits: a row each.
        normals, colours: keep them; every cloud has some.

    Raises:
        ValueError: for a cloud that `normalise` refuses.
    """
    framed = [normalise(cloud) for cloud in clouds]
    points = [np.rint(cloud.points.astype(np.float64) * STEPS).astype(np.int16) for cloud in framed]
    return Packed(
        np.concatenate([np.zeros((0, 3), np.int16), *points]),
        np.concatenate([[0], np.cumsum([len(p) for p in points])]).astype(np.int64),
        np.array([(*cloud.transform[0], cloud.transform[1]) for cloud in framed], np.float64).reshape(-1, 4),
        np.array(names, dtype=np.str_),
        np.array([cloud.caption for cloud in framed], dtype=np.str_),
        np.array([cloud.category for cloud in framed], dtype=np.str_),
        np.array([SPLITS.index(split) for split in splits], dtype=np.uint8),
        np.array(credits or [""] * len(names), dtype=np.str_),
        np.concatenate([np.zeros((0, 3), np.int8), *(_bytes(c.normals) for c in framed if normals)]),
        np.concatenate([np.zeros((0, 3), np.uint8), *(c.colours for c in framed if colours and c.colours is not None)]),
    )


def _bytes(normals: NDArray[np.float32] | None) -> NDArray[np.int8]:
    assert normals is not None
    kept: NDArray[np.int8] = np.rint(np.nan_to_num(normals).clip(-1, 1) * 127).astype(np.int8)
    return kept


def save(packed: Packed, path: Path) -> None:
    """Write ``packed`` to ``path``, whole or not at all."""
    arrays: dict[str, Any] = {name: getattr(packed, name) for name in Packed.__dataclass_fields__}
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Packed:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Packed(**{name: file[name] for name in Packed.__dataclass_fields__ if name in file})
