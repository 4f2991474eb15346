"""How far two sounds are apart: in their spectra at several resolutions, where phases, which are not heard, are left
out, and in pitch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fft import irfft, rfft

__all__ = ["cents", "convergence", "distance", "period"]

WINDOWS = (512, 1024, 2048)
"""Samples; the hop is a quarter."""
SILENCE = 1e-4
"""An amplitude below which differences do not count; a sine of amplitude 1 has 1."""
SPAN = 8192
"""Samples of a sound, the loudest, whose pitch is measured."""
PERIODIC = 0.8
"""The autocorrelation from which on a sound has a pitch."""


def distance(made: Tensor, real: Tensor) -> Tensor:
    """(B,) mean of |log |made| - log |real|| over bins, frames and three windows, of waves (B, S).

    With `convergence`, the multi-resolution distance of Yamamoto, Song & Kim 2020 (arXiv:1910.11480), eqs. 4 to 6.
    """
    return _over_windows(made, real, lambda a, b: ((a + SILENCE).log() - (b + SILENCE).log()).abs().mean((1, 2)))


def convergence(made: Tensor, real: Tensor) -> Tensor:
    """(B,) norm of the difference of magnitudes over that of the real ones, the mean over three windows."""
    return _over_windows(made, real, lambda a, b: (a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)).clamp(min=1e-2))


def _over_windows(made: Tensor, real: Tensor, apart: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([apart(_magnitudes(made, n), _magnitudes(real, n)) for n in WINDOWS]).mean(0)


def _magnitudes(wave: Tensor, n: int) -> Tensor:
    window = torch.hann_window(n, device=wave.device, dtype=wave.dtype)
    return torch.stft(wave, n, n // 4, window=window, return_complex=True).abs() * (4 / n)


def cents(made: Tensor, real: Tensor, near: float) -> float:
    """By how much ``made`` (S,) is higher than ``real`` (S,), whose period is near so many samples; NaN if it has none.

    Each is compared with itself where it is loudest.
    """
    found, sure = period(real, near)
    if sure < PERIODIC:
        return math.nan
    return 1200 * math.log2(found / period(made, near)[0])


def period(wave: Tensor, near: float) -> tuple[float, float]:
    """Samples of a period of (S,), within half a semitone of ``near``, and the autocorrelation there, at most about 1.

    The first peak of the autocorrelation says where the fourth is, and that where the sixteenth is, as far as a tenth
    of a second goes: the place of a late one is the period times its number, and its error that much smaller.
    """
    energy = wave.square().cumsum(0)
    start = int((energy[SPAN:] - energy[:-SPAN]).argmax()) if len(wave) > SPAN else 0
    window = torch.hann_window(min(SPAN, len(wave)), dtype=torch.float64, device=wave.device)
    part = wave[start : start + SPAN].double() * window
    likeness = _autocorrelation(part) / _autocorrelation(window).clamp(min=1e-3)
    likeness = likeness / likeness[0].clamp(min=1e-12)
    found, value, reach = near, 0.0, 0.03 * near + 1
    for multiple in (1, 4, 16):
        if multiple > 1 and multiple * found > len(window) / 4:
            break
        place, value = _peak(likeness, multiple * found, reach)
        found, reach = place / multiple, 2.0
    return found, value


def _autocorrelation(x: Tensor) -> Tensor:
    """At lags up to half the length."""
    found: Tensor = irfft(rfft(x, 2 * len(x)).abs().square())
    return found[: len(x) // 2]


def _peak(values: Tensor, about: float, reach: float) -> tuple[float, float]:
    """The place of the largest value, by the parabola through it and its neighbours, and that value."""
    low = min(max(1, math.ceil(about - reach)), len(values) - 3)
    high = min(max(low + 1, math.floor(about + reach) + 1), len(values) - 1)
    best = low + int(values[low:high].argmax())
    left, middle, right = values[best - 1 : best + 2].tolist()
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    shift = max(-1.0, min(1.0, shift))
    return best + shift, middle - 0.25 * (left - right) * shift
