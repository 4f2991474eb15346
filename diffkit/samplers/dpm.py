r"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): exponential integrators of x_0, deterministic and stochastic.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and e^{-h} = (alpha_t sigma_s) / (alpha_s sigma_t), the
probability-flow ODE (their eq. 8) at eta = 0, the reverse SDE at eta = 1, and what lies between have the exact solution

    x_s = (sigma_s / sigma_t) e^{-eta h} x_t + alpha_s int_0^1 H e^{-H (1 - v)} x_0(lambda_t + v h) dv
          + sigma_s sqrt(1 - e^{-2 eta h}) z,    H = (1 + eta) h

Any eta carries p(x_t | x_0) to p(x_s | x_0). The methods differ in the x_0 that they put under the integral.

    1S  a constant: `DDIM` at eta = 0, DDPM's posterior (`Ancestral`) at eta = 1; neither is here again
    2S  (algorithm 1, r = 1/2) the value half-way in lambda, found by a first-order step; two evaluations a step
    2M  (algorithm 2) the line through the last two values, at the middle of the step: (1 - e^{-H}) x_0(1/2)
    3M  the parabola through the last three values, and in the second step the line through two, integrated exactly
        (`diffkit.samplers.multistep`)

2M and 3M evaluate once a step. Their first step is of first order. So is a step from pure noise (lambda = -inf), whose
value the next step does not use either, and the last step, to t = 0 (lambda = inf).

Released codes of 3M (diffusers' and k-diffusion's, after the authors') weigh the second difference with half of what
Taylor's formula has, phi_3 x_0'' / 2 in place of phi_3 x_0''. That leaves a method of second order; this one is of
third.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor

from diffkit.estimate import Estimate, GaussianEstimate, add
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.samplers.base import Call, SamplerState, check_eta
from diffkit.samplers.multistep import exponential_moments, lowered, places, remember, scaled, total, weighed, weights
from diffkit.typing import State

__all__ = ["DPMpp2M", "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE"]


@dataclass(frozen=True)
class _Multistep:
    """2M and 3M at any eta."""

    order: int = field(default=2, init=False, repr=False)
    eta: float = field(default=0.0, init=False, repr=False)
    lower_final: bool = False

    def __post_init__(self) -> None:
        check_eta(self.eta, "eta")

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        estimates = denoise(state.x, t)
        order = lowered(self.order, s, denoise.grid) if self.lower_final else self.order
        history = remember(state.memory, t, denoise.gaussian(lambda _, p, e: scaled(e, 1.0, 0.0), estimates), order)

        def step(name: str, process: Gaussian, estimate: GaussianEstimate) -> Tensor:
            x_t, mask = state.x[name], denoise.mask.get(name)
            times = tuple(u for u, _ in history)
            address = (type(self), self.eta, s, times)
            kept, on_x0, fresh = process.schedule.recall(address, lambda: self._coefficients(process, s, times))
            terms = [(kept, x_t), *weighed(on_x0, history, name)]
            if fresh:
                terms.append((fresh, process.space.normal(noise, name, tuple(x_t.shape), mask, x_t.dtype)))
            return total(terms)

        x = denoise.jumps(state.x, estimates, t, s, noise) | denoise.gaussian(step, estimates)
        return SamplerState(x, estimates, history[: self.order - 1])

    def _coefficients(self, process: Gaussian, s: float, times: tuple[float, ...]) -> tuple[float, list[float], float]:
        """Of x_t, of the x_0 at ``times`` (newest first, the first of them t) and of fresh noise."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule.at(times[0]), process.schedule.at(s)
        goal, *known = (process.schedule.log_snr_at(u) / 2 for u in (s, *times))
        nodes, rate = places(goal, known), (1 + self.eta) * (goal - known[0])
        moments = exponential_moments(rate, len(nodes))
        if self.order == 2:
            moments = [moments[0], moments[0] / 2]
        kept, fresh = sigma_s / sigma_t, 0.0
        if self.eta > 0:
            ratio = alpha_t * sigma_s / (alpha_s * sigma_t)  # e^{-h}
            kept, fresh = kept * ratio**self.eta, sigma_s * math.sqrt(1 - ratio ** (2 * self.eta))
        if len(nodes) == 1:  # alpha_s m_0, also where alpha_s is 0 and m_0 infinite (up to pure noise)
            return kept, [alpha_s - kept * alpha_t], fresh
        return kept, [alpha_s * w for w in weights(nodes, moments)], fresh


@dataclass(frozen=True)
class DPMpp2M(_Multistep):
    """DPM-Solver++(2M): second order at one evaluation a step.

    Args:
        lower_final: take the last step at first order, also where it does not go to t = 0.
    """


@dataclass(frozen=True)
class DPMpp3M(_Multistep):
    """DPM-Solver++(3M): third order at one evaluation a step.

    Args:
        lower_final: take the last steps at orders 2 and 1, as diffusers does in fewer than 15 steps.
    """

    order: int = field(default=3, init=False, repr=False)


@dataclass(frozen=True)
class DPMpp2MSDE(_Multistep):
    """SDE-DPM-Solver++(2M).

    Args:
        eta: stochasticity, from 0 (DPM-Solver++(2M)) to 1 (the reverse SDE).
        lower_final: take the last step at first order, also where it does not go to t = 0.
    """

    eta: float = 1.0


@dataclass(frozen=True)
class DPMpp3MSDE(_Multistep):
    """SDE-DPM-Solver++(3M), as k-diffusion has it but for the half of the second difference.

    Args:
        eta: stochasticity, from 0 (DPM-Solver++(3M)) to 1 (the reverse SDE).
        lower_final: take the last steps at orders 2 and 1, as diffusers does in fewer than 15 steps.
    """

    order: int = field(default=3, init=False, repr=False)
    eta: float = 1.0


@dataclass(frozen=True)
class DPMpp2S:
    """DPM-Solver++(2S): second order at two evaluations a step.

    The stage is half-way in the lambda of the first real-valued leaf; one under another schedule has it elsewhere, and
    extrapolates from there (algorithm 1's r). Classes jump to the stage and on from it.
    """

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        first, m = denoise(state.x, t), _middle(denoise.process, t, s)
        if m is None:
            return SamplerState(denoise.bridge(state.x, first, t, s, noise), first)
        stage = denoise.bridge(state.x, first, t, m, noise.fold("stage"))
        second = denoise(stage, m)
        x = denoise.gaussian(lambda k, p, e: _two_stages(p, e, second[k], (t, m, s)), first)
        return SamplerState(denoise.jumps(stage, second, m, s, noise) | x, first)


def _middle(product: Product, t: float, s: float) -> float | None:
    """The time half-way in lambda, where there is one."""
    for process in product.gaussian.values():
        middle = (process.schedule.log_snr_at(t) + process.schedule.log_snr_at(s)) / 2
        return process.schedule.time_at(middle) if math.isfinite(middle) else None
    return None


def _two_stages(process: Gaussian, first: GaussianEstimate, second: Estimate, times: tuple[float, ...]) -> Tensor:
    assert isinstance(second, GaussianEstimate)
    (alpha_t, sigma_t), _, (alpha_s, sigma_s) = (process.schedule.at(u) for u in times)
    start, middle, goal = (process.schedule.log_snr_at(u) / 2 for u in times)
    nodes, whole = places(goal, (start, middle)), exponential_moments(goal - start, 1)[0]
    if len(nodes) < 2:
        return first.combine(alpha_s, sigma_s)
    now, later = weights(nodes, (whole, whole / 2))
    ratio = sigma_s / sigma_t
    return add(
        1.0, first.combine(ratio * alpha_t + alpha_s * now, ratio * sigma_t), 1.0, second.combine(alpha_s * later, 0.0)
    )
