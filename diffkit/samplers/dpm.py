r"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order at one evaluation a step.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, the exact solution of the ODE for a constant x_0
is x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_0. The estimate of the step before
gives the slope of x_0 over lambda:

    D = x_0(t) + (h / (2 (lambda_t - lambda_before))) (x_0(t) - x_0(before))

The first step has no estimate before it. Where lambda is infinite (pure noise, or the last step to t = 0) the
step is of first order, as it must be.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.estimate import Estimates, GaussianEstimate
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.samplers.base import Call, SamplerState, check_eta
from diffkit.typing import State

__all__ = ["DPMpp2M"]


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M) for Gaussian leaves.

    Args:
        categorical_eta: stochasticity of the categorical leaves, from 0 (fewest changes) to 1 (D3PM).
    """

    categorical_eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.categorical_eta, "categorical_eta")

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: Tensor, s: Tensor, denoise: Call, noise: Noise) -> SamplerState:
        estimates = denoise(state.x, t)
        x = denoise.bridge(state.x, estimates, t, s, noise, 0.0, self.categorical_eta)
        if state.history:
            ahead = {k: _extrapolate(p, k, estimates, t, s, state) for k, p in denoise.process.gaussian.items()}
            x = x | {k: _step(p, state.x[k], ahead[k], t, s) for k, p in denoise.process.gaussian.items()}
        return SamplerState(x, ((t, estimates),))


def _extrapolate(
    process: Gaussian, name: str, estimates: Estimates, t: Tensor, s: Tensor, state: SamplerState
) -> Tensor:
    """D, the estimate of x_0 half a step ahead."""
    before, previous = state.history[0]
    now, then = estimates[name], previous[name]
    assert isinstance(now, GaussianEstimate) and isinstance(then, GaussianEstimate)
    lambda_s, lambda_t, lambda_before = (process.schedule.log_snr(u) / 2 for u in (s, t, before))
    weight = (lambda_s - lambda_t) / (2 * (lambda_t - lambda_before))
    weight = torch.where(torch.isfinite(weight), weight, 0.0)
    return now.x0 + weight * (now.x0 - then.x0)


def _step(process: Gaussian, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.coefficients(t, x_t), process.coefficients(s, x_t)
    ratio = sigma_s / sigma_t
    return ratio * x_t + (alpha_s - alpha_t * ratio) * x0
