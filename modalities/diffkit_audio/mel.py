r"""Log-mel spectrograms, and the way back by Griffin-Lim.

A wave :math:`y` of :math:`T h` samples becomes :math:`T` frames of :math:`M` numbers,

    mel = \log \max(F\, |STFT(y)|, floor)

with a Hann window of ``n_fft`` samples, a hop of :math:`h`, and :math:`F` the triangles of equal width on the HTK mel
scale with Slaney's normalisation, so that bands are densities. Frame :math:`k` is centred at sample :math:`k h`;
the wave is reflected at its ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from diffkit_audio.torchaudio import functional, transforms

__all__ = ["MelSettings", "griffin_lim", "log_mel", "lower_silence", "match", "raise_silence"]

SILENT = 1e-3
"""What is so little above the floor is at it, as half precision has it."""
MOST = 2.0
"""The logarithm of the largest gain, and of the smallest, that one correction gives a band."""


@dataclass(frozen=True)
class MelSettings:
    """How sound becomes a spectrogram; a model's checkpoint keeps them.

    Args:
        rate: samples per second.
        n_fft: samples of a window.
        hop: samples between frames.
        bands: mel bands M, from ``low`` to ``high`` Hz.
        floor: least amplitude, which is silence; a sine of amplitude 1 has about 1 in its band.
    """

    rate: int = 22050
    n_fft: int = 2048
    hop: int = 256
    bands: int = 128
    low: float = 20.0
    high: float = 11025.0
    floor: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise ValueError(
                f"got mel bands from {self.low} to {self.high} Hz; "
                f"expected them within 0 and {self.rate / 2}, half the rate"
            )
        if self.hop < 1 or self.n_fft < 2 * self.hop:
            raise ValueError(f"got n_fft={self.n_fft} and hop={self.hop}; expected windows of at least two hops")

    def frames(self, seconds: float) -> int:
        """The number of frames of a clip of this length."""
        return max(1, round(seconds * self.rate / self.hop))


def log_mel(wave: Tensor, settings: MelSettings) -> Tensor:
    """(..., samples) to (..., frames, bands), in natural logarithms; samples beyond the last whole hop are left out.

    Raises:
        ValueError: for a wave shorter than half a window, which cannot be reflected at its ends.
    """
    if wave.shape[-1] <= settings.n_fft // 2:
        raise ValueError(f"got {wave.shape[-1]} samples; expected more than half a window, {settings.n_fft // 2}")
    window = torch.hann_window(settings.n_fft, device=wave.device, dtype=wave.dtype)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(flat, settings.n_fft, settings.hop, window=window, center=True, return_complex=True).abs()
    frames = spectrum[..., : wave.shape[-1] // settings.hop].mT @ filters(settings).to(wave)
    return frames.clamp(min=settings.floor).log().reshape(*wave.shape[:-1], *frames.shape[1:])


def lower_silence(mel: Tensor, settings: MelSettings, gap: float) -> Tensor:
    """``mel`` with what is at the floor put ``gap`` below it, so that no model takes what is nearly silent for silence.

    Most of a spectrogram of notes is exactly at the floor, and sound that fades away comes as near to it as one likes:
    without a gap, what a model draws there is a hiss.
    """
    return torch.where(mel <= math.log(settings.floor) + SILENT, mel - gap, mel) if gap else mel


def raise_silence(mel: Tensor, settings: MelSettings, gap: float) -> Tensor:
    """What `lower_silence` was given, where ``mel`` is within half a gap of what it gave."""
    floor = math.log(settings.floor)
    return torch.where(mel < floor - gap / 2, floor, mel.clamp(min=floor)) if gap else mel


@cache
def filters(settings: MelSettings) -> Tensor:
    """The bands' triangles, (n_fft / 2 + 1, bands)."""
    made: Tensor = functional.melscale_fbanks(
        settings.n_fft // 2 + 1, settings.low, settings.high, settings.bands, settings.rate, "slaney", "htk"
    )
    return made * (settings.rate / settings.n_fft) * (4 / settings.n_fft)  # the sum of a Hann window is n_fft / 2


def griffin_lim(mel: Tensor, settings: MelSettings, iterations: int = 60) -> Tensor:
    """A wave (B, frames * hop) whose spectrogram is near ``mel`` (B, frames, bands).

    The bands are spread by the non-negative pseudo-inverse of the triangles and phases are found by the fast
    Griffin-Lim iteration (Perraudin, Balazs and Søndergaard 2013).
    """
    spread = torch.linalg.pinv(filters(settings)).to(mel)
    magnitude = (mel.exp() @ spread).clamp(min=0).mT
    magnitude = torch.cat([magnitude, magnitude[..., -1:]], dim=-1)
    length = mel.shape[1] * settings.hop
    invert = transforms.GriffinLim(
        settings.n_fft, iterations, hop_length=settings.hop, power=1.0, rand_init=False, length=length
    )
    wave: Tensor = invert.to(mel.device)(magnitude)
    return wave


@torch.no_grad()
def match(wave: Tensor, mel: Tensor, settings: MelSettings, corrections: int = 8) -> Tensor:
    """``wave`` (B, T * hop), made to have the log-mel spectrogram ``mel`` (B, T, M) as nearly as a sound can.

    A bin's gain is the mean of those that its bands ask for, weighed by its share in them.
    """
    if wave.shape[-1] <= settings.n_fft // 2:  # too short to be analysed again
        return wave
    window = torch.hann_window(settings.n_fft, device=wave.device, dtype=wave.dtype)
    bands = filters(settings).to(wave)
    shares = (bands / bands.sum(1, keepdim=True).clamp(min=1e-8)).T
    for _ in range(corrections):
        spectrum = torch.stft(wave, settings.n_fft, settings.hop, window=window, center=True, return_complex=True)
        now = (spectrum[..., :-1].abs().mT @ bands).clamp(min=settings.floor).log()
        gain = ((mel - now).clamp(-MOST, MOST) @ shares).exp().mT
        gain = torch.cat([gain, gain[..., -1:]], -1)
        wave = torch.istft(
            spectrum * gain, settings.n_fft, settings.hop, window=window, center=True, length=wave.shape[-1]
        )
    return wave
