"""Critics of sound, against which a vocoder can be trained: is this wave real?

Two views of it, as in Vocos (Siuzdak 2023, arXiv:2306.00814): samples that lie a period apart (HiFi-GAN; Kong, Kim &
Bae 2020, arXiv:2010.05646), for several periods, and magnitudes of spectra (UnivNet; Jang et al. 2021,
arXiv:2106.07889), for several windows. Each gives a map of scores and the features that led to it.

Shape suffixes:
    B: batch    S: samples    P: a period
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["Critics", "PeriodCritic", "SpectrumCritic"]

PERIODS = (2, 3, 5, 7, 11)
"""Primes: their multiples overlap least."""
WINDOWS = (512, 1024, 2048)


class Critics(nn.Module):
    """One critic for each period and each window.

    Args:
        width: channels of the first layers.
    """

    def __init__(self, width: int = 16, periods: Sequence[int] = PERIODS, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.views = nn.ModuleList(
            [*(PeriodCritic(period, width) for period in periods), *(SpectrumCritic(n, width) for n in windows)]
        )

    def forward(self, wave: Tensor) -> list[list[Tensor]]:
        """Of (B, S), the features of each view; its last are the scores."""
        return [view(wave) for view in self.views]


class PeriodCritic(nn.Module):
    """Sees (B, S) as pictures of ceil(S / P) rows of P samples, and looks along the columns."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 1), (3, 1), padding=(2, 0))) for i, o in pairwise(widths)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Features and scores."""
        missing = -wave.shape[-1] % self.period
        return _through(self.layers, self.score, F.pad(wave, (0, missing)).reshape(len(wave), 1, -1, self.period))


class SpectrumCritic(nn.Module):
    """Sees the logarithm of the magnitudes of windows of ``n_fft`` samples, a quarter of which is the hop."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        widths = (1, width, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (9, 3), (2, 1), padding=(4, 1))) for i, o in pairwise(widths)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Features and scores."""
        window = torch.hann_window(self.n_fft, device=wave.device)
        spectrum = torch.stft(wave, self.n_fft, self.n_fft // 4, window=window, return_complex=True)
        magnitude = spectrum.abs() * (4 / self.n_fft)
        return _through(self.layers, self.score, (magnitude + 1e-4).log().unsqueeze(1))


def _through(layers: nn.ModuleList, score: nn.Module, x: Tensor) -> list[Tensor]:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        features.append(x)
    return [*features, score(x)]
