r"""How numbers enter a network: times and scalar conditions as vectors.

A number :math:`v` becomes :math:`[\cos 2\pi f_k v, \sin 2\pi f_k v]` over frequencies :math:`f_k` in
geometric progression (Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Tancik et al. 2020, arXiv:2006.10739), then
a small MLP mixes them. Both embeddings take any shape and add one axis at its end, so a time per sample and
a time per element are the same call.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["FourierFeatures", "ScalarEmbedding", "TimeEmbedding"]


class FourierFeatures(nn.Module):
    """Cosines and sines of a number: (...) -> (..., width) float32.

    Args:
        width: number of features, even.
        low: lowest frequency, in periods per unit.
        high: highest frequency.

    Raises:
        ValueError: if ``width`` is odd or not positive.
    """

    frequencies: Tensor

    def __init__(self, width: int, low: float, high: float) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"got width {width}; expected a positive even number, half cosines and half sines")
        exponents = torch.linspace(math.log(low), math.log(high), width // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        angle = 2 * math.pi * value.float().unsqueeze(-1) * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Time in [0, 1] as a vector: (...) -> (..., width).

    The slowest wave spends a quarter of its period on [0, 1], so no two times share a code; the fastest
    resolves steps of 1/200.
    """

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__(
            FourierFeatures(features, low=0.25, high=100.0),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )


class ScalarEmbedding(nn.Module):
    """A scalar condition as a vector, with a learned vector for "not given": (B,) -> (B, width).

    Values are expected standardised (mean 0, variance 1 over the training data): the waves cover about ten
    standard deviations without repeating.
    """

    def __init__(self, width: int, features: int = 32) -> None:
        super().__init__()
        self.given = nn.Sequential(
            FourierFeatures(features, low=0.05, high=2.0),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.null = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, value: Tensor, present: Tensor) -> Tensor:
        """Embed ``value`` (B,) where ``present`` (B,) is True; an absent value may hold anything, NaN too."""
        given = self.given(torch.where(present, value, torch.zeros_like(value)))
        return torch.where(present.unsqueeze(-1), given, self.null.to(given.dtype))
