r"""DEIS, the exponential integrator of eps (Zhang & Chen 2022, arXiv:2204.13902), one evaluation a step.

With rho = sigma / alpha the exact solution is x_s / alpha_s = x_t / alpha_t + int eps d rho. Through eps at the last
times goes a polynomial in a variable of one's choice, and rho is integrated over exactly; with h the rise of
log(alpha / sigma):

    x_s = (alpha_s / alpha_t) x_t + sigma_s sum_j w_j eps_j,    w_j = int_0^1 -h e^{h (1 - v)} l_j(v) dv

where l_j is Lagrange's polynomial of the j-th value. The variable may be

log_snr  in closed form (`diffkit.samplers.multistep` with H = -h), and the same under every schedule. It is what the
         paper's author gave to diffusers (pull request 1432).
time     tAB-DEIS of the paper. The moments are found by the rule of Gauss and Legendre, to 1e-12 where time is an
         analytic function of log-SNR (every schedule but the tables, whose rate changes at each of their steps).

In rho itself it would be `LMS` in the coordinate "ratio". Of first order (DDIM) are the first step, a step from pure
noise, and the last, to t = 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from diffkit.estimate import GaussianEstimate
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.samplers.base import Call, SamplerState
from diffkit.samplers.multistep import (
    check_order,
    exponential_moments,
    lowered,
    places,
    remember,
    scaled,
    total,
    weighed,
    weights,
)
from diffkit.schedule import Schedule
from diffkit.typing import State

__all__ = ["DEIS"]

Variable = Literal["log_snr", "time"]


@dataclass(frozen=True)
class DEIS:
    """The multistep exponential integrator of eps.

    Args:
        order: 1 (DDIM) to 3.
        over: the variable of the polynomial, "log_snr" or "time".
        lower_final: take the last steps at orders 2 and 1, as diffusers does in fewer than 15 steps.
    """

    order: int = 3
    over: Variable = "log_snr"
    lower_final: bool = False

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.over not in get_args(Variable):
            raise ValueError(f"got over = '{self.over}'; expected 'log_snr' (as in diffusers) or 'time' (tAB-DEIS)")

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        estimates = denoise(state.x, t)
        order = lowered(self.order, s, denoise.grid) if self.lower_final else self.order
        history = remember(state.memory, t, denoise.gaussian(lambda _, p, e: scaled(e, 0.0, 1.0), estimates), order)

        def step(name: str, process: Gaussian, estimate: GaussianEstimate) -> Tensor:
            (alpha_t, _), (alpha_s, sigma_s) = process.schedule.at(t), process.schedule.at(s)
            on_eps = self._weights(process.schedule, s, [u for u, _ in history])
            if len(on_eps) == 1:
                return estimate.combine(alpha_s, sigma_s)
            terms = weighed([sigma_s * w for w in on_eps], history, name)
            return total([(alpha_s / alpha_t, state.x[name]), *terms])

        x = denoise.jumps(state.x, estimates, t, s, noise) | denoise.gaussian(step, estimates)
        return SamplerState(x, estimates, history[: self.order - 1])

    def _weights(self, schedule: Schedule, s: float, times: Sequence[float]) -> list[float]:
        """Of eps at ``times``, newest first."""
        goal, *known = (schedule.log_snr_at(u) / 2 for u in (s, *times))
        h = goal - known[0]
        if self.over == "log_snr" or not math.isfinite(h):
            nodes = places(goal, known)
            return weights(nodes, exponential_moments(-h, len(nodes)))
        return weights(places(s, times), _moments_in_time(schedule, known[0], h, (times[0], s), len(times)))


def _moments_in_time(schedule: Schedule, start: float, h: float, times: tuple[float, float], count: int) -> list[float]:
    """int_0^1 -h e^{h (1 - v)} w(v)^i dv, w being how far time has gone where log(alpha / sigma) has gone the way v."""
    (v, weight), (t, s) = _gauss_legendre(), times
    gone = (schedule.time(2 * (start + h * v)) - t) / (s - t)
    kernel = -h * torch.exp(h * (1 - v)) * weight
    return [float((kernel * gone**i).sum()) for i in range(count)]


@cache
def _gauss_legendre(count: int = 32) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1), from the Jacobi matrix of Legendre's polynomials (Golub & Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    beside = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (1 + nodes) / 2, vectors[0] ** 2
