r"""Heun's second-order method (Karras et al. 2022, arXiv:2206.00364, algorithm 1).

The ODE is solved in the schedule's own coordinate: y = x_t / scale over the coordinate u,

    ratio:  scale = alpha,          u = sigma / alpha,            dy/du = eps
    flow:   scale = alpha + sigma,  u = sigma / (alpha + sigma),  dy/du = eps - x_0

An Euler step gives a trial state at s, and the step is taken again with the mean of both slopes. The last step,
to t = 0, has no second slope. Categorical leaves take their bridge from the first evaluation, so the second
one sees all leaves at time s. Two evaluations a step.
"""

from dataclasses import dataclass

from torch import Tensor

from diffkit.estimate import Estimate, GaussianEstimate
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.samplers.base import Call, SamplerState, check_eta
from diffkit.typing import State

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """Heun's method for Gaussian leaves.

    Args:
        categorical_eta: stochasticity of the categorical leaves, from 0 (fewest changes) to 1 (D3PM).
    """

    categorical_eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.categorical_eta, "categorical_eta")

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: Tensor, s: Tensor, denoise: Call, noise: Noise) -> SamplerState:
        first = denoise(state.x, t)
        x = denoise.bridge(state.x, first, t, s, noise, 0.0, self.categorical_eta)
        leaves = denoise.process.gaussian
        if float(s) > 0 and leaves:
            second = denoise(x, s)
            x = x | {k: _step(p, state.x[k], first[k], second[k], t, s) for k, p in leaves.items()}
        return SamplerState(x, ((t, first),))


def _step(process: Gaussian, x_t: Tensor, first: Estimate, second: Estimate, t: Tensor, s: Tensor) -> Tensor:
    assert isinstance(first, GaussianEstimate) and isinstance(second, GaussianEstimate)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.coefficients(t, x_t), process.coefficients(s, x_t)
    eps, x0 = (first.eps + second.eps) / 2, (first.x0 + second.x0) / 2
    if process.schedule.coordinate == "flow":
        scale_t, scale_s = alpha_t + sigma_t, alpha_s + sigma_s
        return scale_s * (x_t / scale_t + (sigma_s / scale_s - sigma_t / scale_t) * (eps - x0))
    return alpha_s * (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * eps)
