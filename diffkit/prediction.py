r"""What a network predicts, as one row of a 2x2 system.

With x_t = alpha x_0 + sigma eps, every prediction in use is linear in the same two unknowns,

    [ x_t  ]   [ alpha  sigma ] [ x_0 ]
    [ pred ] = [   a      b   ] [ eps ]

so one solve serves all of them. With det = alpha b - sigma a (Cramer's rule):

    x_0 = (b x_t - sigma pred) / det        eps = (alpha pred - a x_t) / det

A new prediction is a frozen dataclass with ``row``. Where det vanishes, the network's output says nothing
about the data (eps at pure noise, score and x_0 at no noise); ``solve`` raises for times given as
plain numbers.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["EDM", "X0", "Eps", "Prediction", "Score", "VPrediction", "Velocity", "solve"]


class Prediction(Protocol):
    """A row (a, b): pred = a x_0 + b eps."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) where the schedule stands at (alpha, sigma)."""
        ...


@dataclass(frozen=True)
class X0:
    """The clean data."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(alpha)


@dataclass(frozen=True)
class Eps:
    """The noise (Ho et al. 2020, arXiv:2006.11239)."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True)
class VPrediction:
    """v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma, alpha


@dataclass(frozen=True)
class Velocity:
    """eps - x_0, the velocity of rectified flow towards noise (Liu et al. 2022, arXiv:2209.03003)."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True)
class Score:
    """grad log p_t(x_t) = -eps / sigma (Song et al. 2021, arXiv:2011.13456)."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), -1 / sigma


@dataclass(frozen=True)
class EDM:
    """The preconditioned output F of Karras et al. (2022, table 1, eq. 7), for data of deviation ``sigma_data``.

    D = c_skip x + c_out F in the coordinate x = x_t / alpha at noise level r = sigma / alpha; solving
    D = x_0 for F gives a row like the others, so no sampler knows of preconditioning.
    """

    sigma_data: float = 0.5

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # F = ((1 - c_skip) x_0 - c_skip r eps) / c_out with r = sigma/alpha, multiplied out so that alpha may be 0.
        size = torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        return sigma / (self.sigma_data * size), -alpha * self.sigma_data / size


def solve(prediction: Prediction, pred: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(x_0, eps) from a network's output, all tensors broadcasting together.

    Raises:
        ValueError: where ``alpha`` and ``sigma`` are 0-d CPU tensors (a sampler's) and the system is singular.
    """
    a, b = prediction.row(alpha, sigma)
    det = alpha * b - sigma * a
    plain = det.ndim == 0 and det.device.type == "cpu" and not torch.compiler.is_compiling()
    if plain and (float(det) == 0.0 or not math.isfinite(float(det))):
        raise ValueError(
            f"got {prediction} at alpha = {float(alpha):g}, sigma = {float(sigma):g}, where it does not determine "
            "x_0 and eps; use a V, Velocity or X0 prediction, or a time grid that leaves this end out"
        )
    return (b * x_t - sigma * pred) / det, (alpha * pred - a * x_t) / det
