"""Point clouds as tensors: public sets, the shipped sample, and a person's own files.

An example has the leaf ``points`` float32 (N, 3), in the frame of `diffkit_pointcloud.cloud.normalise`, with three more
columns for normals and three for colours where those are asked for (`features`), and the
conditions ``category``, a number, NaN where unknown, and ``text``, the vector of its caption. Where ``given`` is a
condition too, a part of every second training example is given as it is (`diffkit_pointcloud.crop`).
A training example is another random part of its cloud's points each time it is asked for, stretched and mirrored at
random; those of the other splits are always the same part, as they are.

Everything measured is measured on the train split, whichever split is loaded.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit import text
from diffkit.modality import Example
from diffkit.naming import require_known
from diffkit_pointcloud import packed as packing
from diffkit_pointcloud.augment import mixed, stretched, warped
from diffkit_pointcloud.cloud import Cloud, normalise, rows
from diffkit_pointcloud.crop import cropped
from diffkit_pointcloud.packed import SPLITS, Packed
from diffkit_pointcloud.sources import SOURCES, cached

__all__ = ["OTHER", "SAMPLE", "CloudDataset", "features", "from_features", "load", "measure"]

SAMPLE = Path(__file__).parent / "sample" / "furniture.npz"
"""Clouds of the furniture that ship with the package."""
CONDITIONS = ("category", "text", "given")
OTHER = "other"
"""The category of what belongs to none of those that are counted."""


@dataclass(frozen=True, eq=False)
class CloudDataset:
    """A map-style dataset of the clouds of one split.

    A run that was taken up again sees other points of the same clouds than the unbroken one would have seen.

    Attributes:
        packed: the clouds.
        statistics: of the train split; see :func:`measure`.
        points: how many of a cloud's points an example has, if it has as many.
        conditions: those that examples carry.
        stretch: training examples are stretched along each axis by a factor within 1 ± this, and mirrored
            (x to -x) half of the time; None for neither, and the same points each time.
        crop: of how many training examples a part is given, from 0 to 1.
        warp, mix: how much training examples are warped, below 0.45, and how many of them are mixed of two shapes;
            `diffkit_pointcloud.augment` says how.
    """

    packed: Packed
    statistics: Mapping[str, Any]
    points: int = 2048
    conditions: tuple[str, ...] = ("category",)
    stretch: float | None = None
    crop: float = 0.0
    warp: float = 0.0
    mix: float = 0.0
    text: NDArray[np.float32] | None = None  # a row for each cloud's caption, where "text" is a condition

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"got cloud {index} of {len(self)}")
        cloud, given = self._points(index), None
        if self.crop and self.stretch is not None:
            points, given = self._cropped(cloud.points)
            cloud = replace(cloud, points=points)
        points = features(cloud, self.statistics)
        mask = torch.ones(len(points), 1, dtype=torch.bool)
        known = {} if given is None else {"points": torch.from_numpy(given).unsqueeze(1)}
        return Example({"points": torch.from_numpy(points)}, {"points": mask}, self._condition(index), known)

    def _cropped(self, points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        return cropped(points, rng) if rng.random() < self.crop else (points, np.zeros(len(points), dtype=bool))

    def _points(self, index: int) -> Cloud:
        if self.stretch is None:
            return self.packed.cloud(index, self.points)
        # Seeded from torch's generator, which every worker and every run has its own state of.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        whole = self.packed.cloud(index)
        if self.mix and rng.random() < self.mix:
            whole = mixed(whole, self.packed.cloud(self._like(index, rng)), rng)
        chosen = rng.choice(len(whole.points), min(self.points, len(whole.points)), replace=False)
        whole = stretched(whole, self.stretch, rng)
        # The frame is that of all points: a part's is smaller.
        if not self.warp and not self.mix:
            return rows(replace(whole, points=(whole.points / np.abs(whole.points).max()).astype(np.float32)), chosen)
        return rows(normalise(warped(whole, self.warp, rng) if self.warp else whole), chosen)

    def _like(self, index: int, rng: np.random.Generator) -> int:
        """A shape of the same category; itself where that is unknown or the rest."""
        name = self.packed.categories[index]
        alike = np.flatnonzero(self.packed.categories == name)
        return index if name in ("", OTHER) else int(rng.choice(alike))

    def _condition(self, index: int) -> dict[str, Tensor]:
        known: Sequence[str] = self.statistics["categories"]
        name = str(self.packed.categories[index])
        values = {"category": torch.tensor(float(known.index(name)) if name in known else float("nan"))}
        if self.text is not None:
            values["text"] = torch.from_numpy(self.text[index])
        return {name: values[name] for name in self.conditions if name in values}

    def records(self, index: int) -> Cloud:
        """Cloud ``index``, of as many points as an example has."""
        return self.packed.cloud(index, self.points)


def features(cloud: Cloud, statistics: Mapping[str, Any]) -> NDArray[np.float32]:
    """The leaf of a cloud: (N, 3 to 9), its points and, as the model has them, normals and colours from -1 to 1.

    Raises:
        ValueError: for a cloud without what the model has.
    """
    parts: list[NDArray[Any]] = [cloud.points]
    for name, values in (("normals", cloud.normals), ("colours", cloud.colours)):
        if statistics.get(name):
            if values is None:
                raise ValueError(f"got a cloud without {name}; expected some, as the model has them")
            parts.append(values if name == "normals" else values.astype(np.float32) / 127.5 - 1)
    return np.concatenate(parts, 1).astype(np.float32) if len(parts) > 1 else cloud.points


def from_features(leaf: NDArray[np.float32], statistics: Mapping[str, Any]) -> Cloud:
    """The cloud of a leaf: the inverse of `features`; normals come out at length 1, and colours as bytes."""
    points, normals, colours, place = np.ascontiguousarray(leaf[:, :3]), None, None, 3
    if statistics.get("normals"):
        said, place = leaf[:, 3:6], 6
        normals = (said / np.linalg.norm(said, axis=1, keepdims=True).clip(min=1e-9)).astype(np.float32)
    if statistics.get("colours"):
        colours = np.rint((np.nan_to_num(leaf[:, place : place + 3]) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return Cloud(points, normals, colours)


def load(
    split: str,
    source: str | None = None,
    path: str | Path | None = None,
    points: int = 2048,
    categories: int = 10,
    others: bool = True,
    stretch: float = 0.1,
    crop: float = 0.5,
    warp: float = 0.0,
    mix: float = 0.0,
    normals: bool = False,
    colours: bool = False,
    conditions: Sequence[str] = ("category",),
    statistics: Mapping[str, Any] | None = None,
) -> CloudDataset:
    """The clouds of one split.

    Args:
        split: "train", "valid" or "test".
        source: "sample" (shipped), or "furniture" (fetched and converted at the first use).
        path: a folder, a zip or a file of one's own to read in place of the source; what cannot be used is a warning.
        points: of each example.
        categories: how many of the largest categories have a number of their own.
        others: whether the clouds of the rest are there too, as the category "other".
        stretch: by how much training examples are stretched, at most.
        crop: of how many training examples a part is given, where "given" is a condition.
        warp: how much training examples are warped, at least 0 and below 0.45.
        mix: how many training examples are mixed of two shapes of a category, from 0 to 1.
        normals, colours: whether the leaf has them; shapes without are left out.
        conditions: those that examples carry: "category", "text", the caption's vector (the ``text`` extra), and
            "given", a part of the points.
        statistics: of a model, whose categories are to be kept; by default they are measured.

    Raises:
        ValueError: for names that do not exist, or a file without clouds.
    """
    require_known("split", split, SPLITS)
    for name, value, most in (("crop", crop, 1.0), ("mix", mix, 1.0), ("stretch", stretch, 0.9), ("warp", warp, 0.44)):
        if not 0 <= value <= most:
            raise ValueError(f"got data.{name}={value}; expected a number from 0 to {most:g}")
    for name in conditions:
        require_known("condition", name, CONDITIONS)
    whole = _whole(source, path, normals, colours)
    found = statistics or measure(whole.of("train"), categories, others) | {
        name: True for name, wanted in (("normals", normals), ("colours", colours)) if wanted
    }
    whole = _sorted_into(whole, found["categories"], others or not found["categories"])
    if not (whole.splits == SPLITS.index("train")).any():
        raise ValueError(f"got {path or source}, none of whose {len(whole)} clouds is for training; add more")
    part = whole.of(split)
    words = text.embedded(part.captions.tolist()) if "text" in conditions else None
    share = crop if "given" in conditions else 0.0
    bent = stretch if split == "train" else None
    return CloudDataset(part, found, points, tuple(conditions), bent, share, warp, mix, words)


def _whole(source: str | None, path: str | Path | None, normals: bool, colours: bool) -> Packed:
    """Every split of a set."""
    if path is not None:
        return _read_files(Path(path), normals, colours)
    if source is None:
        raise ValueError("got neither data.path nor data.source; expected data.path=FOLDER, a file or a zip of shapes")
    require_known("source", source, ("sample", *SOURCES))
    if source != "sample":
        return cached(source, normals or colours)
    if normals or colours:
        raise ValueError("got data.normals or data.colours of the shipped sample, which has none; take another source")
    return packing.load(SAMPLE)


@lru_cache(maxsize=1)
def _read_files(path: Path, normals: bool, colours: bool) -> Packed:
    """A person's files: parsed, and complained of, once for all splits."""
    from diffkit_pointcloud.readers import read

    packed, report = read(path, normals, colours)
    if report.rejected:
        warnings.warn(str(report), stacklevel=4)
    return packed


def _sorted_into(packed: Packed, categories: Sequence[str], others: bool) -> Packed:
    """The clouds of ``categories``; the rest as "other", or left out."""
    named = np.isin(packed.categories, [name for name in categories if name != OTHER])
    kept = packed if others else packed.select(np.flatnonzero(named))
    known = np.isin(kept.categories, categories)
    rest = OTHER if OTHER in categories else ""
    return replace(kept, categories=np.where(known, kept.categories, rest))


def measure(train: Packed, categories: int = 10, others: bool = True) -> dict[str, Any]:
    """What a model must know of its training clouds, as plain numbers and lists.

    Returns:
        ``categories``: the largest ones' names, largest first, and "other" where there is a rest and ``others``.
        ``counts``: how many clouds each has.
    """
    counted = Counter(str(name) for name in train.categories if name not in ("", OTHER))
    largest = sorted(counted, key=lambda name: (-counted[name], name))[:categories]
    rest = len(train) - sum(counted[name] for name in largest)
    names = [*largest, OTHER] if others and rest and largest else largest
    return {"categories": names, "counts": [counted.get(name, rest) for name in names]}
