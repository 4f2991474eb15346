r"""The pitch of a clip, by a method that knows nothing of any model: SWIPE' on the spectrum of the whole clip.

A. Camacho and J. G. Harris 2008, "A sawtooth waveform inspired pitch estimator for speech and music", J. Acoust. Soc.
Am. 124(3), section III. A candidate f scores the product of the clip's spectrum, on a scale of equal hearing bands
(ERB), with a kernel of unit norm that is a cosine about f and about its prime multiples,

    K_f(g) = \cos(2\pi g / f)    for |g / f - h| < 1/4,  h in {1, 2, 3, 5, 7, ...}
             \cos(2\pi g / f)/2  for 1/4 < |g / f - h| < 3/4

times :math:`g^{-1/2}`. What lies between harmonics counts against f; prime multiples alone keep f/2, f/3, ... from
sharing its peaks. The best candidate is the pitch. Two departures: one window of 186 ms serves all candidates, and
amplitudes are summed over the clip as they are, not as their square roots, so that the loud part of a note says its
pitch. More of the real notes are read rightly so.

Where the strongest partials are an octave from the key, or are no harmonics at all, the estimate is not the key that
was played, and a model that plays rightly would be called wrong. `UNPITCHED` are the instruments of whose real training
notes fewer than half are estimated within 50 cents. Of the notes of all others 98.2 % are in the train split, 98.0 % in
the valid split and 98.4 % in the test split; fewest of shamisen (60 %, whose low notes have hardly a partial below the
fourth), harp (71 %) and nylon guitar (76 %), whose body sounds below the fundamental of high notes.

    python -c "from diffkit_audio.pitch import main; main()"

prints which share of the real notes is estimated within 50 cents, by family and by split.

    >>> t = torch.arange(22050) / 22050
    >>> [round(float(v), 1) for v in estimate((2 * math.pi * 440 * t).sin()[None], 22050)]
    [69.0]
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffkit.report import Metric
from diffkit_audio.instruments import FAMILIES, INSTRUMENTS, family_of

__all__ = ["UNPITCHED", "estimate", "pitched", "within"]

LOW, HIGH, STEP = 33.0, 98.0, 0.1
"""Candidates, as MIDI numbers: three semitones beyond the notes' range at either end, every 10 cents."""

TOP = 8000.0
"""Hz; what is above does not count."""

WINDOW, HOP = 4096 / 22050, 1024 / 22050
"""Seconds."""

UNPITCHED: Mapping[int, str] = {
    9: "glockenspiel: its loudest partials are at 5.3 and 8.0 times the first",
    14: "tubular bells: the loudest partials, at 2.9, 4.0 and 5.2 times the key, are of no series",
    16: "drawbar organ: sounds an octave below the key as well",
    17: "percussive organ: likewise",
    18: "rock organ: likewise",
    31: "guitar harmonics: sound two octaves above the key",
    47: "timpani: partials near 1, 1.5 and 2 times the key",
    55: "orchestra hit: a chord over several octaves",
    86: "fifths lead: two notes, a fourth apart",
    97: "soundtrack: two notes, a fifth apart",
    **{k: "percussive" for k in range(112, 120) if k != 114},  # steel drums have a fundamental
    **dict.fromkeys(range(120, 128), "sound effect"),
}
"""General MIDI programs (0 to 127) whose key is not their fundamental, and why. Drums are not pitched either."""


def pitched(program: int) -> bool:
    """Whether the estimate is the key, for a number in `diffkit_audio.instruments.INSTRUMENTS`."""
    return program < 128 and program not in UNPITCHED


def estimate(waves: Tensor, rate: int, batch_size: int = 64) -> Tensor:
    """The MIDI numbers (B,), with fractions, of waves (B, samples); NaN for silence and for what is not finite."""
    parts = waves.float().split(batch_size) if len(waves) else ()
    return torch.cat([torch.zeros(0), *(_best(*_strengths(part, rate)) for part in parts)])


def _best(strengths: Tensor, norms: Tensor) -> Tensor:
    """The MIDI number of the strongest candidate of each row (B, K), by a parabola.

    The kernels' norms fall with f, which moves a peak up by as much as 20 cents; so the parabola is laid through the
    largest product without the norms, within half a semitone.
    """
    near = torch.arange(-6, 7) + strengths.argmax(1, keepdim=True).clamp(6, strengths.shape[1] - 7)
    plain = (strengths * norms).gather(1, near)
    at = plain.argmax(1, keepdim=True).clamp(1, near.shape[1] - 2)
    a, b, c = (plain.gather(1, at + k).squeeze(1) for k in (-1, 0, 1))
    offset = ((a - c) / (2 * (a - 2 * b + c)).clamp(max=-1e-12)).clamp(-1, 1)
    number = LOW + STEP * (near.gather(1, at).squeeze(1) + offset)
    return torch.where(strengths.amax(1) > 0, number, torch.nan)


def _strengths(waves: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Of all candidates, (B, K), and the norms (K,) that their kernels had."""
    size, hop = 2 * round(WINDOW * rate / 2), round(HOP * rate)
    weights, kernels, norms = _kernels(rate, size)
    padded = F.pad(waves.nan_to_num(0, 0, 0), (size // 2, size // 2))
    spectrum = torch.stft(padded, size, hop, window=torch.hann_window(size), center=False, return_complex=True)
    bands = spectrum[:, : len(weights)].abs() * weights[:, None]  # (B, bins, frames)
    bands = (bands - 1e-3 * bands.amax((1, 2), keepdim=True)).clamp(min=0)
    mean = F.normalize(bands.sum(-1), dim=1)
    return torch.where(waves.isfinite().all(1, keepdim=True), mean @ kernels.T, 0.0), norms


def _primes(limit: int) -> list[int]:
    """1 and the primes up to ``limit``."""
    return [h for h in range(1, limit + 1) if all(h % q for q in range(2, h))]


@cache
def _kernels(rate: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The roots of the bins' widths (G,) in ERB, the kernels (K, G) times those, and the norms these had (K,)."""
    axis = torch.arange(int(min(TOP * size / rate, size / 2 - 1)), dtype=torch.float64) * (rate / size)
    width = torch.where(axis > 10, 1 / (axis + 229), 0).sqrt()
    candidates = 440 * 2 ** ((torch.arange(LOW, HIGH + STEP / 2, STEP, dtype=torch.float64) - 69) / 12)[:, None]
    ratio = axis / candidates
    wave = (2 * math.pi * ratio).cos()
    kernels = torch.zeros_like(ratio)
    for h in _primes(int(TOP / float(candidates[0]))):
        away = (ratio - h).abs()
        kernels += torch.where(away < 0.25, wave, torch.where(away < 0.75, wave / 2, 0))
    kernels *= width * axis.clamp(min=10).rsqrt()
    norms = kernels.clamp(min=0).norm(dim=1)
    return width.float(), (kernels / norms[:, None]).float(), norms.float()


def within(found: Tensor, asked: Sequence[float] | NDArray[Any], cents: float = 50.0) -> Metric:
    """The share of the MIDI numbers ``found`` (B,) that are as near to those ``asked`` for; NaN is not near."""
    near = (found - torch.as_tensor(asked, dtype=torch.float32)).abs() <= cents / 100
    return Metric(float(near.double().mean()) if len(near) else math.nan, len(near), "pitched clips", "share")


def main(every: int = 4) -> None:
    """Print how many of the real notes are estimated within 50 cents; of the train split, one in ``every``."""
    for split in ("train", "valid", "test"):
        notes = import_module("diffkit_audio.data").load(split, source="notes")
        rows = notes.rows[:: every if split == "train" else 1]
        rows = rows[~np.isnan(notes.packed.pitch[rows])]
        parts = np.array_split(rows, -(-len(rows) // 256))
        waves = (torch.from_numpy(notes.packed.waves[part].astype(np.float32)) for part in parts)
        found = torch.cat([estimate(wave, notes.packed.settings.rate) for wave in waves])
        _tell(split, notes.packed.instrument[rows], found, notes.packed.pitch[rows])


def _tell(split: str, programs: NDArray[Any], found: Tensor, keys: NDArray[Any]) -> None:
    known = np.array([pitched(k) for k in programs.tolist()])
    families = np.array([family_of(INSTRUMENTS[k]) for k in programs.tolist()])
    sets = {"pitched instruments": known} | {f"  {f}": known & (families == f) for f in FAMILIES}
    sets |= {f"  not pitched: {INSTRUMENTS[k]}": programs == k for k in UNPITCHED}
    sets |= {f"  pitched: {INSTRUMENTS[k]}": programs == k for k in sorted(set(programs[known].tolist()))}
    for name, rows in sets.items():
        share = within(found[rows], keys[rows])
        if share.n and (not name.startswith("  pitched") or share.value < 0.9):
            print(f"{split:6}{name:40}{share} of {share.n:,}", flush=True)
