r"""What a set of generated clips is worth, each figure with the number it was counted over.

- *FD-...*: the Fréchet distance of normal distributions fitted to the features of the clips and of training notes,
  :math:`|\mu_1 - \mu_2|^2 + tr(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})` (D. Dowson and B. Landau 1982; of
  sound, K. Kilgour et al. 2019, arXiv:1812.08466). What follows the dash says whose features: "notes" are
  `classifier`'s, "aisfx" those of the package of that name. It is no "FAD", falls with the number of clips, and
  compares with nothing of other features, clips or numbers;
- *family*, *instrument*: the share of clips that the classifier takes for what was asked for;
- *pitch within 50 cents*: the share of clips of pitched instruments whose `pitch` is what was asked for;
- *nearest note*: the difference, in dB over all frames and bands, between a clip's log-mel spectrogram and that of the
  nearest training note of the instrument asked for: the median, and the lowest twentieth, where copies show first.

Clips are heard for two seconds, with silence after those that are shorter. Beside the model stand real notes that were
not trained on (the *floor*: as many, each of the instrument and about the pitch of one sample), and the same notes
after they have been a spectrogram and a wave again: what that alone costs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.frechet import frechet
from diffkit.report import Metric, Metrics
from diffkit_audio import pitch
from diffkit_audio.classifier import SETTINGS, Classifier
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import family_of
from diffkit_audio.mel import log_mel
from diffkit_audio.spread import has_pitch
from diffkit_audio.torchaudio import functional

__all__ = ["Ear", "Notes", "evaluate", "heard", "matched", "nearest", "usable", "with_floor"]

FRAMES = SETTINGS.frames(2.0)
SAMPLES = FRAMES * SETTINGS.hop
REFERENCE = 2000
"""Training notes, at most, whose features a Fréchet distance is measured to."""

Ear = Callable[[Tensor], Tensor]
"""Features (B, F) of waves (B, samples) at the classifier's rate."""


@dataclass(frozen=True, eq=False)
class Notes:
    """Real clips: arrays with a row for each, on the disk or in memory, and which of their rows these are.

    Args:
        waves: int16 (N, samples).
        mel: log-mel spectrograms (N, 172, 128) by the classifier's settings; None where a model's are others.
        rate: of the waves.
        names: N instruments.
        pitches: (N,), NaN where there is none.
        rows: numbers under N.
    """

    waves: Any
    mel: Any
    rate: int
    names: Sequence[str]
    pitches: NDArray[Any]
    rows: NDArray[Any]

    @classmethod
    def of(cls, packed: Any, *splits: str) -> "Notes":
        """Those of some splits of a `diffkit_audio.packed.Packed`."""
        names = [packed.instruments[k] if k >= 0 else "" for k in packed.instrument.tolist()]
        rows = np.concatenate([packed.of(split) for split in splits])
        mel = packed.mel if packed.settings == SETTINGS and packed.mel.shape[1] == FRAMES else None
        return cls(packed.waves, mel, packed.settings.rate, names, packed.pitch, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, row: int) -> Clip:
        """That of one row of the arrays."""
        key = float(self.pitches[row])
        wave = self.waves[row].astype(np.float32) / 32767
        return Clip(wave, self.rate, instrument=self.names[row], pitch=None if math.isnan(key) else round(key))

    def heard(self) -> Tensor:
        """All of them, as `heard` gives clips."""
        return heard([self.clip(row) for row in self.rows.tolist()])

    def mels(self) -> Tensor:
        """Their spectrograms (B, 172, 128)."""
        return _mels(self.heard()) if self.mel is None else torch.from_numpy(self.mel[self.rows].astype(np.float32))

    def among(self, names: set[str], count: int | None = None) -> "Notes":
        """Those of the instruments, or all where none is of any; at most ``count``, evenly spread."""
        rows = np.array([row for row in self.rows.tolist() if self.names[row] in names], np.int64)
        rows = rows if len(rows) else self.rows
        return replace(self, rows=rows[_evenly(len(rows), count or len(rows))])


def _evenly(length: int, count: int) -> NDArray[Any]:
    """At most ``count`` numbers under ``length``."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)


def usable(clip: Clip | None) -> bool:
    """Whether a sample is a sound at all: numbers, and not all of them zero."""
    return clip is not None and bool(np.isfinite(clip.wave).all()) and bool(np.any(clip.wave))


def heard(clips: Sequence[Clip]) -> Tensor:
    """Their first two seconds at the classifier's rate, (B, 44032), with silence after shorter ones."""
    waves = torch.zeros(len(clips), SAMPLES)
    for row, clip in zip(waves, clips, strict=True):
        wave = torch.from_numpy(np.ascontiguousarray(clip.wave[: round(2.1 * clip.rate)], np.float32))
        wave = functional.resample(wave, clip.rate, SETTINGS.rate)[:SAMPLES]
        row[: len(wave)] = wave
    return waves


def _mels(waves: Tensor) -> Tensor:
    """Log-mel spectrograms (B, 172, 128) of what was `heard`."""
    parts = [log_mel(part, SETTINGS) for part in waves.split(64)] if len(waves) else []
    return torch.cat([torch.zeros(0, FRAMES, SETTINGS.bands), *parts])


def nearest(mels: Tensor, names: Sequence[str], train: Notes) -> Tensor:
    """The least difference in dB (B,) to a training note of the same instrument; NaN where there is none of it."""
    found = torch.full((len(names),), math.nan)
    for name in sorted(set(names)):
        rows = [row for row, other in enumerate(names) if other == name]
        known = replace(train, rows=np.array([row for row in train.rows.tolist() if train.names[row] == name], int))
        if len(known):
            found[rows] = torch.cdist(mels[rows].flatten(1), known.mels().flatten(1)).amin(1)
    return found * (20 / math.log(10) / math.sqrt(mels[:1].numel() or 1))


def matched(samples: Sequence[Clip], notes: Notes) -> list[Clip]:
    """A real note for each sample: of its instrument and next to its pitch, each taken once as far as they go.

    For samples without an instrument any will do, evenly spread; of an instrument that ``notes`` have not, there is
    none.
    """
    every: dict[str, list[int]] = {"": notes.rows[_evenly(len(notes), len(samples))].tolist()}
    for row in notes.rows.tolist():
        if notes.names[row]:
            every.setdefault(notes.names[row], []).append(row)
    left, found = {name: list(rows) for name, rows in every.items()}, []
    for name, key in ((sample.instrument, sample.pitch) for sample in samples if sample.instrument in every):
        rows = left[name] = left[name] or list(every[name])
        away = np.nan_to_num(np.abs(notes.pitches[rows] - (math.nan if key is None else key)))
        found.append(notes.clip(rows.pop(int(away.argmin()))))
    return found


def asked_for(clips: Sequence[Clip], probabilities: Tensor, classifier: Classifier) -> Metrics:
    """Shares of clips that are taken for what they were asked to be; nothing where no instrument is known."""
    known = [row for row, clip in enumerate(clips) if clip.instrument in classifier.names]
    if not known:
        return {}
    said, of = probabilities[known], "clips of instruments the classifier knows"
    names = [clips[row].instrument for row in known]
    family = [a == family_of(b) for a, b in zip(classifier.families(said), names, strict=True)]
    instrument = [a == b for a, b in zip(classifier.instruments(said), names, strict=True)]
    return {
        "family": Metric(sum(family) / len(known), len(known), of, "share"),
        "instrument": Metric(sum(instrument) / len(known), len(known), of, "share"),
    }


def in_tune(clips: Sequence[Clip], waves: Tensor) -> Metrics:
    """The share of the pitched clips that are in tune; nothing where there is none."""
    rows = [row for row, clip in enumerate(clips) if clip.pitch is not None and has_pitch(clip.instrument)]
    if not rows:
        return {}
    keys = [float(clips[row].pitch or 0) for row in rows]
    return {"pitch within 50 cents": pitch.within(pitch.estimate(waves[rows], SETTINGS.rate), keys)}


@dataclass(frozen=True, eq=False)
class Reference:
    """What clips are compared with: training notes, and the features that each ear has of some of them."""

    train: Notes
    features: Mapping[str, Tensor]
    ears: Mapping[str, Ear]
    classifier: Classifier

    @classmethod
    def of(cls, train: Notes, classifier: Classifier, ears: Mapping[str, Ear], count: int = REFERENCE) -> "Reference":
        """With the features of at most ``count`` notes."""
        some = train.among(set(), count)
        features = {name: ear(some.heard()) for name, ear in ears.items()}
        return cls(train, {"notes": classifier.hear(some.mels())[0]} | features, ears, classifier)


def evaluate(samples: Sequence[Clip], reference: Reference) -> Metrics:
    """Every figure of ``samples`` by name; ``instrument`` and ``pitch`` of each are what was asked for."""
    clips = [clip for clip in samples if usable(clip)]
    valid = Metric(len(clips) / len(samples) if samples else math.nan, len(samples), "clips drawn", "share")
    if not clips:
        return {"usable": valid}
    waves, classifier = heard(clips), reference.classifier
    mels = _mels(waves)
    features, probabilities = classifier.hear(mels)
    seen = {"notes": features} | {name: ear(waves) for name, ear in reference.ears.items()}
    distances = nearest(mels, [clip.instrument for clip in clips], reference.train)
    distances = distances[~distances.isnan()]
    return {
        "usable": valid,
        **{f"FD-{k}": Metric(frechet(v, reference.features[k]), len(clips), "clips") for k, v in seen.items()},
        **asked_for(clips, probabilities, classifier),
        **in_tune(clips, waves),
        **_least(distances),
    }


def _least(distances: Tensor) -> Metrics:
    if not len(distances):
        return {}
    low, middle = (Metric(float(distances.quantile(q)), len(distances), "clips", "dB") for q in (0.05, 0.5))
    return {"nearest note": middle, "nearest note/5 %": low}


def with_floor(
    samples: Sequence[Clip],
    held_out: Notes,
    train: Notes,
    classifier: Classifier,
    again: Callable[[Sequence[Clip]], Sequence[Clip]] | None = None,
    ears: Mapping[str, Ear] | None = None,
) -> dict[str, Metrics]:
    """`evaluate` of the samples, and of as many real notes, before and after they were spectrograms.

    Args:
        again: clips encoded and decoded; without it that column is left out.
        ears: feature nets besides the classifier, by name.
    """
    reference = Reference.of(train.among({clip.instrument for clip in samples}), classifier, ears or {})
    real = matched(samples, held_out)
    sets: dict[str, Sequence[Clip]] = {"model": samples}
    if real and again is not None:
        sets["held-out, encoded and decoded"] = again(real)
    if real:
        sets["held-out (floor)"] = real
    return {name: evaluate(clips, reference) for name, clips in sets.items()}
