"""Clips as tensors: public sets, the shipped sample, and a person's own files.

An example has the leaf ``mel`` float32 (T, bands), a log-mel spectrogram standardised by the two numbers ``mean`` and
``scale`` of the statistics, and the conditions ``instrument`` (a number: its place in the statistics' list),
``pitch``, ``velocity``, ``duration`` and ``text`` (the vector of a caption), NaN where unknown.
With ``waveforms`` it has the leaf ``wave`` float32 (samples,) instead, and no conditions.

Half of the training examples are whole clips; the others are the beginning of one, of any multiple of four frames from
44 on, so that a model learns every length. Each time another one of a clip's captions is chosen. Those of the other
splits are always the same: whole, with their first caption.

Everything measured is measured on the train split, whichever split is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
from diffkit_audio import captions
from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings, lower_silence
from diffkit_audio.packed import SPLITS, STEPS, Packed
from diffkit_audio.readers import Report
from diffkit_audio.sources import SOURCES, cached, own, sample

__all__ = ["CONDITIONS", "ClipDataset", "load", "measure"]

CONDITIONS = ("instrument", "pitch", "velocity", "duration", "text")
PATCH, SHORTEST = 4, 44
"""Frames: training lengths are multiples of one, from the other on."""
USUAL = 16
"""Quantiles that stand for how often something has which value."""


@dataclass(frozen=True, eq=False)
class ClipDataset:
    """A map-style dataset of the clips of one split.

    A run that was taken up again sees other lengths and captions of the same clips than the unbroken one would have.

    Attributes:
        packed: the clips of all splits.
        rows: those of this one.
        statistics: of the train split; see :func:`measure`.
        conditions: those that examples carry.
        training: whether lengths and captions are drawn at random.
        waveforms: whether examples are waves.
        encoder: of captions.
        gap: below the floor, where silence stands; see `diffkit_audio.mel.lower_silence`.
    """

    packed: Packed
    rows: NDArray[np.int64]
    statistics: Mapping[str, Any]
    conditions: tuple[str, ...] = CONDITIONS[:4]
    training: bool = False
    waveforms: bool = False
    encoder: str = "minilm"
    gap: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"got clip {index} of {len(self)}")
        batch = self.batch([index])
        real = batch.mask["wave" if self.waveforms else "mel"][0].flatten()
        x = {name: leaf[0, real] for name, leaf in batch.x.items()}
        mask = {name: leaf[0, real] for name, leaf in batch.mask.items()}
        absent = torch.tensor(float("nan"))
        known = batch.condition
        values = {k: torch.where(known.present[k][0], v[0], absent) for k, v in known.values.items()}
        return Example(x, mask, values)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Examples at once, all as long as the set's longest clip, with a mask."""
        rows, index = self.rows[list(indices)], torch.as_tensor(list(indices))
        if self.waveforms:
            hop = self.packed.settings.hop
            wave = torch.from_numpy(self.packed.waves[rows].astype(np.float32) / np.float32(STEPS))
            real = torch.arange(wave.shape[1]) < torch.from_numpy(self.packed.frames[rows] * hop).unsqueeze(1)
            return Batch({"wave": wave}, {"wave": real}, Condition(), index)
        # Seeded from torch's generator, which every worker and every run has its own state of.
        rng = np.random.default_rng(int(torch.randint(2**62, ()))) if self.training else None
        mel = torch.from_numpy(self.packed.mel[rows].astype(np.float32))
        real = (torch.arange(mel.shape[1]) < torch.from_numpy(self._lengths(rows, rng)).unsqueeze(1)).unsqueeze(-1)
        mel = lower_silence(mel, self.packed.settings, self.gap)
        mel = torch.where(real, (mel - self.statistics["mean"]) / self.statistics["scale"], 0)
        return Batch({"mel": mel}, {"mel": real}, self._condition(rows, rng), index)

    def _lengths(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.int64]:
        whole: NDArray[np.int64] = self.packed.frames[rows].astype(np.int64)
        if rng is None:
            return whole
        last = np.maximum(whole // PATCH, 1)
        part = PATCH * rng.integers(np.minimum(SHORTEST // PATCH, last), last + 1)
        return np.where(rng.random(len(rows)) < 0.5, whole, np.minimum(part, whole))

    def _condition(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> Condition:
        values = {name: self._values(name, rows, rng) for name in self.conditions}
        present = {k: ~torch.isnan(v if v.ndim == 1 else v[:, 0]) for k, v in values.items()}
        return Condition({k: torch.nan_to_num(v) for k, v in values.items()}, present)

    def _values(self, name: str, rows: NDArray[np.int64], rng: np.random.Generator | None) -> Tensor:
        if name == "text":
            return self._texts.chosen(rows, rng)
        if name == "instrument":
            return torch.from_numpy(self._numbers[self.packed.instrument[rows]])
        values: NDArray[np.float32] = getattr(self.packed, name)[rows]
        return torch.from_numpy(values)

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        """The statistics' number of each instrument of the set; last NaN, for what is unknown."""
        places = {name: k for k, name in enumerate(self.statistics["instruments"])}
        return np.array([*(places.get(name, np.nan) for name in self.packed.instruments), np.nan], np.float32)

    @cached_property
    def _texts(self) -> Texts:
        return Texts.of(self.packed, self.encoder)

    def records(self, index: int) -> Clip:
        """Clip ``index``."""
        return self.packed.clip(int(self.rows[index]))


@dataclass(frozen=True, eq=False)
class Texts:
    """The captions of a set, as vectors."""

    vectors: NDArray[np.float32]  # [V, width], the last NaN
    said: NDArray[np.int64]  # indices of the captions of all clips
    offsets: NDArray[np.int64]  # [N + 1] those of clip n are said[offsets[n] : offsets[n + 1]]

    @staticmethod
    def of(packed: Packed, encoder: str) -> Texts:
        """What may be said of each clip of a set."""
        from diffkit.text import embedded

        written = [captions.write(packed.label(n)) for n in range(len(packed))]
        distinct = sorted({caption for some in written for caption in some})
        numbers = {caption: k for k, caption in enumerate(distinct)}
        vectors = embedded([*distinct, ""], encoder)
        said = [numbers[caption] for some in written for caption in some]
        return Texts(vectors, np.array(said, np.int64), np.cumsum([0, *(len(some) for some in written)]))

    def chosen(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> Tensor:
        """(B, width): one of each clip's, the first without ``rng``; NaN where there is none."""
        first, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        drawn = 0 if rng is None else (rng.random(len(rows)) * count).astype(np.int64)
        places = np.minimum(first + drawn, max(len(self.said) - 1, 0))
        ids = np.where(count > 0, self.said[places] if len(self.said) else -1, -1)
        return torch.from_numpy(self.vectors[ids])


def load(
    split: str,
    source: str | None = None,
    path: str | Path | None = None,
    seconds: float = 2.0,
    waveforms: bool = False,
    conditions: Sequence[str] = CONDITIONS[:4],
    mel: MelSettings | None = None,
    encoder: str = "minilm",
    statistics: Mapping[str, Any] | None = None,
    gap: float = 0.0,
) -> ClipDataset:
    """The clips of one split.

    Args:
        split: "train", "valid" or "test".
        source: "sample" (shipped), "notes" or "speech" (fetched and converted at the first use).
        path: a folder or a file of one's own to read in place of the source; what cannot be used is a warning.
        seconds: of the longest example; a longer file gives several.
        waveforms: whether examples are waves, for a vocoder, and not spectrograms.
        conditions: those that examples carry, of `CONDITIONS`; "text" needs the ``text`` extra.
        mel: how sound becomes a spectrogram.
        encoder: of captions, as `diffkit.text` names it.
        statistics: of a model, whose scale and instruments are to be kept; by default they are measured.
        gap: in natural logarithms, by which silence is lowered; see `diffkit_audio.mel.lower_silence`.

    Raises:
        ValueError: for names that do not exist, or a file without clips.
    """
    require_known("split", split, SPLITS)
    for name in conditions:
        require_known("condition", name, CONDITIONS)
    packed = _whole(source, path, mel or MelSettings(), seconds)
    rows = packed.of("train")
    if not len(rows):
        raise ValueError(f"got {path or source}, none of whose {len(packed)} clips is for training; add more")
    return ClipDataset(
        packed,
        packed.of(split),
        statistics or measure(packed, rows),
        () if waveforms else tuple(conditions),
        split == "train",
        waveforms,
        encoder,
        gap,
    )


def _whole(source: str | None, path: str | Path | None, settings: MelSettings, seconds: float) -> Packed:
    """Every split of a set."""
    frames = settings.frames(seconds)
    if path is not None:
        return _read_files(Path(path), settings, frames)
    if source is None:
        raise ValueError("got neither data.path nor data.source; expected data.path=FOLDER, or a file, of sound")
    require_known("source", source, ("sample", *SOURCES))
    return sample(settings, frames) if source == "sample" else cached(source, settings, frames)


@lru_cache(maxsize=1)
def _read_files(path: Path, settings: MelSettings, frames: int) -> Packed:
    """A person's files: complained of once for all splits."""
    packed = own(path, settings, frames)
    if packed.rejected:
        used = len({name.rpartition("#")[0] for name in packed.names})
        warnings.warn(str(Report(path, used, packed.rejected)), stacklevel=4)
    return packed


def measure(packed: Packed, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What a model must know of its training clips, ``rows``, as plain numbers and lists.

    Returns:
        ``mean`` and ``scale``: of the log-mel spectrograms, over all bands and real frames.
        ``instruments``: names, in the order of their numbers.
        ``ranges``: of each, the lowest and the highest pitch that it has in any split; empty for one without pitch.
        ``usual``: velocities and durations, `USUAL` of each, as frequent as in the data; those that it has.
    """
    count = packed.frames[rows].sum() * packed.settings.bands
    mean, square = packed.moments[rows].sum(0) / count
    return {
        "mean": float(mean),
        "scale": float(max(square - mean**2, 1e-12) ** 0.5),
        "instruments": list(packed.instruments),
        "ranges": [_range(packed.pitch[packed.instrument == k]) for k in range(len(packed.instruments))],
        "usual": {
            name: _usual(values[~np.isnan(values)])
            for name, values in {"velocity": packed.velocity[rows], "duration": packed.duration[rows]}.items()
            if not np.isnan(values).all()
        },
    }


def _usual(values: NDArray[np.float32]) -> list[float]:
    quantiles = np.quantile(values, (np.arange(USUAL) + 0.5) / USUAL, method="nearest")
    return [round(float(v), 4) for v in quantiles]


def _range(pitches: NDArray[np.float32]) -> list[int]:
    known = pitches[~np.isnan(pitches)]
    return [int(known.min()), int(known.max())] if len(known) else []
