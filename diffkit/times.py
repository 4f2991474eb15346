"""Time distributions: at which times a training step looks at its samples.

A distribution is a frozen dataclass; the times of a step are a function of its noise, so a resumed run repeats
them. Register a new one in ``diffkit/registry.py``.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffkit.noise import Noise

__all__ = ["LogitNormal", "Times", "Uniform"]


class Times(Protocol):
    """Draws the times of one training step."""

    def __call__(self, noise: Noise, places: Tensor, total: int) -> Tensor:
        """Times (B,) in (0, 1).

        Args:
            noise: of the step, equal on all ranks.
            places: (B,) of the samples in the step's whole batch.
            total: samples of that batch.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Times even in (0, 1): one uniform draw a step, shifted by 1/B from sample to sample.

    That takes most of the variance of the loss over time away (Kingma et al. 2021, VDM, appendix I.1).
    """

    def __call__(self, noise: Noise, places: Tensor, total: int) -> Tensor:
        shift = noise.uniform("time", ())[:1]
        return ((shift + places / total) % 1).clamp(1e-4, 1 - 1e-4).float()


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(location + scale z), z normal quantiles of even times (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    location: float = 0.0
    scale: float = 1.0

    def __call__(self, noise: Noise, places: Tensor, total: int) -> Tensor:
        even = Uniform()(noise, places, total).double()
        z = torch.special.ndtri(even)
        return torch.sigmoid(self.location + self.scale * z).clamp(1e-4, 1 - 1e-4).float()
