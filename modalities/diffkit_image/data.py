"""Pictures as tensors: public sets, the shipped sample, and a person's own files.

An example has the leaf ``latent`` float32 (C, h, w), what an autoencoder makes of the picture, standardised by the
statistics' ``mean`` and ``scale`` of each channel. Its conditions are ``category`` (a number: its place in the
statistics' list), ``words`` (1 for each word of the statistics' ``vocabulary`` that is said of it, else 0) and ``text``
(the vector of a caption), NaN where unknown. With ``pixels`` it has the leaf ``pixels`` float32 (4, H, W) in [-1, 1]
instead, colour times opacity, and no conditions.

Of a training example another caption is chosen each time; ``words`` and ``text`` are of the same one. In half of them
each word is left out with probability 0.3, as people say less than captions do. Those of the other splits are always
the same: all words of the first caption.

Pictures of one batch may differ in size: each stands at the start of its row and its column, and the rest is masked.

Everything measured is measured on the train split, whichever split is loaded.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.condition import Condition
from diffkit.modality import Batch, Example
from diffkit.naming import require_known
from diffkit_image import captions, latents
from diffkit_image.latents import Encoder, Latents
from diffkit_image.packed import SPLITS, Packed, premultiplied
from diffkit_image.readers import Shape
from diffkit_image.record import Picture
from diffkit_image.sources import SOURCES, cached, own, public, sample

__all__ = ["CONDITIONS", "ImageDataset", "load", "measure", "multi_hot"]

CONDITIONS = ("category", "words", "text")
VOCABULARY = 4096
"""Words at most."""
NAMES = 4096
"""Names at most."""
LEFT_OUT = 0.3
"""Probability of a word, in half of the examples."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A map-style dataset of the pictures of one split.

    A run that was taken up again sees other captions of the same pictures than the unbroken one would have.

    Attributes:
        packed: the pictures of all splits.
        rows: those of this one.
        statistics: of the train split; see :func:`measure`.
        latents: of all pictures; examples are pixels without them.
        conditions: those that examples carry.
        training: whether captions are drawn at random.
        encoder: of captions.
    """

    packed: Packed
    rows: NDArray[np.int64]
    statistics: Mapping[str, Any]
    latents: Latents | None = None
    conditions: tuple[str, ...] = CONDITIONS[:2]
    training: bool = False
    encoder: str = "minilm"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"got picture {index} of {len(self)}")
        batch = self.batch([index])
        known, absent = batch.condition, torch.tensor(float("nan"))
        values = {k: torch.where(known.present[k][0], v[0], absent) for k, v in known.values.items()}
        x, mask = ({k: v[0] for k, v in leaves.items()} for leaves in (batch.x, batch.mask))
        return Example(x, mask, values)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Examples at once, with a mask."""
        rows, index = self.rows[list(indices)], torch.as_tensor(list(indices))
        if self.latents is None:
            x, mask = _padded(
                [premultiplied(part) for part in self._parts(rows, self.packed.pixels)], self._order(rows)
            )
            return Batch({"pixels": x}, {"pixels": mask}, Condition(), index)
        mean, scale = (torch.tensor(self.statistics[name]).view(-1, 1, 1) for name in ("mean", "scale"))
        parts = [torch.from_numpy(part.astype(np.float32)) for part in self._parts(rows, self.latents.parts)]
        x, mask = _padded([(part - mean) / scale for part in parts], self._order(rows))
        # Seeded from torch's generator, which every worker and every run has its own state of.
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if self.training else None
        return Batch({"latent": x}, {"latent": mask}, self._condition(rows, rng), index)

    @cached_property
    def groups(self) -> NDArray[np.int64] | None:
        """(len,) a number for the size of each example, where there are several: batches are then of one size."""
        groups: NDArray[np.int64] = self.packed.places[self.rows, 0]
        return groups if len(np.unique(groups)) > 1 else None

    def records(self, index: int) -> Picture:
        """Picture ``index``."""
        return self.packed.picture(int(self.rows[index]))

    def _parts(self, rows: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """What the arrays of each size have of ``rows``, by size and then in their order."""
        groups, places = self.packed.places[rows].T
        return [arrays[group][places[groups == group]] for group in np.unique(groups)]

    def _order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in ``rows`` what `_parts` gives one after the other belongs."""
        return np.argsort(self.packed.places[rows, 0], kind="stable")

    def _condition(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> Condition:
        said = self._said.chosen(rows, rng)
        values = {name: self._values(name, rows, said, rng) for name in self.conditions}
        present = {k: ~torch.isnan(v if v.ndim == 1 else v[:, 0]) for k, v in values.items()}
        return Condition({k: torch.nan_to_num(v) for k, v in values.items()}, present)

    def _values(
        self, name: str, rows: NDArray[np.int64], said: NDArray[np.int64], rng: np.random.Generator | None
    ) -> Tensor:
        if name == "category":
            return torch.from_numpy(self._numbers[self.packed.category[rows]])
        if name == "text":
            return torch.from_numpy(self._vectors[said])
        return torch.from_numpy(self._bags.chosen(said, rng))

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        """The statistics' number of each category of the set; last NaN, for what is unknown."""
        places = {name: k for k, name in enumerate(self.statistics["categories"])}
        return np.array([*(places.get(name, np.nan) for name in self.packed.categories), np.nan], np.float32)

    @cached_property
    def _said(self) -> _Said:
        return _Said.of(self.packed.captions)

    @cached_property
    def _bags(self) -> _Bags:
        return _Bags.of(self._said.distinct, self.statistics["vocabulary"])

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        """Of the distinct captions; last NaN."""
        from diffkit.text import embedded

        return embedded([*self._said.distinct, ""], self.encoder)


@dataclass(frozen=True, eq=False)
class _Said:
    """The captions of a set, each once."""

    distinct: tuple[str, ...]  # V
    said: NDArray[np.int64]  # indices of the captions of all pictures
    offsets: NDArray[np.int64]  # [N + 1] those of picture n are said[offsets[n] : offsets[n + 1]]

    @staticmethod
    def of(written: Sequence[Sequence[str]]) -> _Said:
        distinct = sorted({caption for some in written for caption in some})
        numbers = {caption: k for k, caption in enumerate(distinct)}
        said = [numbers[caption] for some in written for caption in some]
        return _Said(tuple(distinct), np.array(said, np.int64), np.cumsum([0, *(len(some) for some in written)]))

    def chosen(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.int64]:
        """(B,) one of each picture's captions, the first without ``rng``; -1 where there is none."""
        first, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        drawn = 0 if rng is None else (rng.random(len(rows)) * count).astype(np.int64)
        places = np.minimum(first + drawn, max(len(self.said) - 1, 0))
        return np.where(count > 0, self.said[places] if len(self.said) else -1, -1)


@dataclass(frozen=True, eq=False)
class _Bags:
    """The known words of captions."""

    ids: tuple[NDArray[np.int64], ...]  # V
    width: int

    @staticmethod
    def of(distinct: Sequence[str], vocabulary: Sequence[str]) -> _Bags:
        places = {word: k for k, word in enumerate(vocabulary)}
        found = ([places[word] for word in captions.words(caption) if word in places] for caption in distinct)
        return _Bags(tuple(np.array(ids, np.int64) for ids in found), len(vocabulary))

    def chosen(self, said: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.float32]:
        """(B, width) ones at the words of captions; NaN where there is none, or no known word."""
        bags = np.zeros((len(said), self.width), np.float32)
        for bag, caption in zip(bags, said, strict=True):
            ids = self.ids[caption] if caption >= 0 else np.zeros(0, np.int64)
            if rng is not None and len(ids) > 1 and rng.random() < 0.5:
                kept = rng.random(len(ids)) >= LEFT_OUT
                ids = ids[kept] if kept.any() else ids
            bag[ids if len(ids) else slice(None)] = 1 if len(ids) else np.nan
        return bags


def multi_hot(text: str, vocabulary: Sequence[str]) -> Tensor:
    """float32 (len(vocabulary),): 1 for each word that the text has, else 0; all NaN if it has none of them."""
    bags = _Bags.of([text], vocabulary)
    return torch.from_numpy(bags.chosen(np.zeros(1, np.int64), None))[0]


def load(
    split: str,
    source: str | None = None,
    path: str | Path | None = None,
    dataset: str | None = None,
    size: int | None = None,
    limit: int = 20_000,
    balance: float = 0.0,
    pixels: bool = False,
    conditions: Sequence[str] = CONDITIONS[:2],
    autoencoder: str | Path | None = None,
    encoder: str = "minilm",
    statistics: Mapping[str, Any] | None = None,
) -> ImageDataset:
    """The pictures of one split; of a split that has none, those that are trained on, with a warning.

    Args:
        split: "train", "valid" or "test".
        source: "sample" (shipped), "noto", "clipart" or "animals" (fetched and converted at the first use).
        path: a folder or a file of one's own to read in place of the source; what cannot be used is a warning.
        dataset: one of the `datasets` library, by name or folder, in place of both: see `diffkit_image.hub`.
        size: of the pictures: the side of a square of about their area; by default the source's own, or 64.
        limit: rows of such a one that are read.
        balance: 0 for every picture once in a pass over the training data, 1 for as many of each category; between
            them a category of n pictures has a share in proportion to n^(1 - balance).
        pixels: whether examples are pixels, for an autoencoder, and not latents.
        conditions: those that examples carry, of `CONDITIONS`; "text" needs the ``text`` extra.
        autoencoder: a folder or a Hub id; by default the one that ships.
        encoder: of captions, as `diffkit.text` names it.
        statistics: of a model, whose scale, categories and words are to be kept; by default they are measured.

    Raises:
        ValueError: for names that do not exist, or a set without pictures to train on.
    """
    require_known("split", split, SPLITS)
    for name in conditions:
        require_known("condition", name, CONDITIONS)
    if not 0 <= balance <= 1:
        raise ValueError(f"got balance {balance}; expected a number from 0 (as they are) to 1 (categories evenly)")
    known = None if pixels else latents.open_autoencoder(autoencoder)
    said = dataset or path or source
    shape = None if size is None and said == source else _shape(size, known)
    packed = _whole(source, path, dataset, limit, shape)
    train, rows = packed.of("train"), packed.of(split)
    if not len(train):
        raise ValueError(f"got {said}, none of whose {len(packed)} pictures is for training; add more")
    if not len(rows):
        warnings.warn(f"{said} has no pictures for {split}; those for training are used", stacklevel=2)
    made = None if known is None else latents.encoded(packed, known)
    return ImageDataset(
        packed,
        _balanced(packed, train, balance) if split == "train" else rows if len(rows) else train,
        statistics or measure(packed, train, made),
        made,
        () if pixels else tuple(conditions),
        split == "train",
        encoder,
    )


def _shape(size: int | None, autoencoder: Encoder | None) -> Shape:
    """Of pictures of about that size: sides that are an even number of latents, if there are as many."""
    side, factor = size or Shape.side, 8 if autoencoder is None else autoencoder.factor
    return Shape(side, 2 * factor if side >= 2 * factor else factor)


def _whole(source: str | None, path: str | Path | None, dataset: str | None, limit: int, shape: Shape | None) -> Packed:
    """Every split of a set; what became of a person's files is said once for all splits."""
    if dataset is not None or path is not None:
        wanted = shape or Shape()
        found, said = own(Path(str(path)), wanted) if dataset is None else public(dataset, wanted, limit)
        _say(said)
        return found
    if source is None:
        raise ValueError("got no data; expected data.path=FOLDER of pictures, data.dataset=NAME or data.source=NAME")
    require_known("source", source, ("sample", *SOURCES))
    return sample(shape) if source == "sample" else cached(source, shape)


@lru_cache
def _say(said: str) -> None:
    if said:
        warnings.warn(said, stacklevel=4)


def _balanced(packed: Packed, rows: NDArray[np.int64], balance: float) -> NDArray[np.int64]:
    """The rows, those of rare categories several times."""
    numbers = packed.category[rows] + 1
    counts = np.bincount(numbers)
    times = np.rint((counts.max() / np.maximum(counts, 1)) ** balance).astype(np.int64)
    return np.repeat(rows, times[numbers])


def measure(packed: Packed, rows: NDArray[np.int64], made: Latents | None = None) -> dict[str, Any]:
    """What a model must know of its training pictures, ``rows``, as plain numbers and lists.

    Returns:
        ``categories``: names, in the order of their numbers.
        ``vocabulary``: the words of captions in alphabetical order, at most the 4,096 most frequent.
        ``names``: for each category, what its pictures are called: distinct, at most 4,096 in all.
        ``sizes``: [height, width, how many] of the pictures, the most frequent first.
        ``mean`` and ``scale``: of each channel of the latents, where there are any.
    """
    sizes = Counter(packed.sizes[group] for group in packed.places[rows, 0])
    moments = {} if made is None else dict(zip(("mean", "scale"), made.moments(packed.places[rows]), strict=True))
    return {
        "categories": list(packed.categories),
        "vocabulary": _vocabulary(packed.captions[n] for n in rows),
        "names": _names(packed, rows),
        "sizes": [[height, width, count] for (height, width), count in sizes.most_common()],
        **moments,
    }


def _names(packed: Packed, rows: NDArray[np.int64]) -> list[list[str]]:
    """The usual captions as far as their first comma, by category; the first ones where they are many."""
    found = dict.fromkeys(
        (int(packed.category[n]), packed.captions[n][0].split(", ")[0]) for n in rows.tolist() if packed.captions[n]
    )
    kept = list(found)[:NAMES]
    return [[name for number, name in kept if number == category] for category in range(len(packed.categories))]


def _vocabulary(written: Iterable[Sequence[str]]) -> list[str]:
    counts = Counter(word for some in written for word in {w for caption in some for w in captions.words(caption)})
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:VOCABULARY]
    return sorted(frequent)


def _padded(parts: Sequence[Tensor], order: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Leaf (B, C, H, W) and mask (B, 1, H, W) of parts of one size each, whose rows belong at ``order``."""
    if len(parts) == 1:
        return parts[0], torch.ones_like(parts[0][:, :1], dtype=torch.bool)
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    x = parts[0].new_zeros((len(order), parts[0].shape[1], height, width))
    mask = torch.zeros((len(order), 1, height, width), dtype=torch.bool)
    start = 0
    for part in parts:
        rows = torch.from_numpy(order[start : start + len(part)])
        x[rows, :, : part.shape[2], : part.shape[3]] = part
        mask[rows, :, : part.shape[2], : part.shape[3]] = True
        start += len(part)
    return x, mask
