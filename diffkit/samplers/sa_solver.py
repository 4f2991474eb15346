r"""SA-Solver: stochastic Adams predictor and corrector (Xue et al. 2023, arXiv:2309.05019).

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and a constant stochasticity tau over the step, the
solution of the paper's family of SDEs in terms of x_0 is (its section 4, a = 1 + tau^2)

    x_s = kept x_t + alpha_s int a exp(a (lambda - lambda_s)) x_0(lambda) dlambda + sigma_s sqrt(1 - exp(-2 tau^2 h)) z
    kept = sigma_s / sigma_t exp(-tau^2 h)

tau = 0 is the probability-flow ODE, tau = 1 the reverse SDE. x_0 is replaced by a polynomial in lambda through the
estimates at hand: those of t and before (predictor, eq. 15) or that of s as well (corrector, eq. 18, with the same
z). The integrals of its monomials, on v = (lambda_s - lambda) / h from 0 to 1 and with c = a h, are moments

    J_k = int_0^1 c exp(-c v) v^k dv,        J_k = (k J_{k-1} - c exp(-c)) / c,        J_{k-1} = (c J_k + c exp(-c)) / k

The first recursion is stable for large c, the second for small. A step costs one evaluation: x_t is corrected when
the estimate at t is there, as the next step begins. At the ends lambda is infinite, and the polynomial is the
constant that remains: the estimate of t for a step to t = 0 and from alpha = 0.

The authors' code, and diffusers with it, gives the slope of order 2 the weight alpha_s a h^2 / 2 in place of the
integral, which is the same to O(h^3) and grows without bound in long steps. Here it is the integral.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffkit.estimate import GaussianEstimate, add
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.samplers.base import Call, SamplerState
from diffkit.samplers.multistep import total
from diffkit.typing import State

__all__ = ["SASolver"]

Known = tuple[tuple[float, dict[str, Tensor]], ...]
"""Times with the x_0 that was estimated there, newest first."""


@dataclass(frozen=True)
class Last:
    """What is remembered of the step before: enough to take it again.

    Args:
        t: where it began.
        base: kept x_t and its noise.
        tau: its stochasticity.
        known: the estimates it was made of.
    """

    t: float
    base: dict[str, Tensor]
    tau: float
    known: Known


@dataclass(frozen=True)
class SASolver:
    """SA-Solver.

    Args:
        predictor: estimates that a step is made of, 1 to 3: the order at tau = 0.
        corrector: estimates that it is corrected with, 0 (it is not) to 3.
        tau: stochasticity, from 0 (the ODE).
        interval: (low, high) times, ends included, at which a step is stochastic; the others follow the ODE.
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.predictor not in (1, 2, 3) or self.corrector not in (0, 1, 2, 3):
            raise ValueError(
                f"got orders {self.predictor} and {self.corrector}; expected a predictor of 1 to 3 and a corrector "
                "of 0 to 3"
            )
        low, high = self.interval
        if self.tau < 0 or not 0 <= low <= high <= 1:
            raise ValueError(
                f"got tau = {self.tau} in {self.interval}; expected tau >= 0 in an interval 0 <= low <= high <= 1"
            )

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        estimates = denoise(state.x, t)
        now = denoise.gaussian(lambda _, process, e: e.x0, estimates)
        last: Last | None = state.memory
        known: Known = ((t, now), *(last.known if last else ()))
        x_t = dict(state.x)
        if last and self.corrector:
            x_t |= {k: _sum(p, last, known[: self.corrector], t, k) for k, p in denoise.process.gaussian.items()}
        tau = self.tau if self.interval[0] <= t <= self.interval[1] else 0.0

        def base(name: str, process: Gaussian, _: GaussianEstimate) -> Tensor:
            kept, fresh = _weights(process, t, s, tau)
            if tau == 0.0 or s == 0.0:
                return kept * x_t[name]
            shape, mask = tuple(x_t[name].shape), denoise.mask.get(name)
            return add(kept, x_t[name], fresh, process.space.normal(noise, name, shape, mask, x_t[name].dtype))

        most = max(self.predictor, self.corrector) - 1
        begun = Last(t, denoise.gaussian(base, estimates), tau, known[:most])
        x = denoise.jumps(state.x, estimates, t, s, noise) | {
            k: _sum(p, begun, known[: self.predictor], s, k) for k, p in denoise.process.gaussian.items()
        }
        return SamplerState(x, estimates, begun)


def _weights(process: Gaussian, t: float, s: float, tau: float) -> tuple[float, float]:
    """What is kept of x_t, and the size of the noise."""
    sigma_t, sigma_s = process.schedule.at(t)[1], process.schedule.at(s)[1]
    if tau == 0.0:
        return sigma_s / sigma_t, 0.0
    h = (process.schedule.log_snr_at(s) - process.schedule.log_snr_at(t)) / 2
    return sigma_s / sigma_t * math.exp(-(tau**2) * h), sigma_s * math.sqrt(max(-math.expm1(-2 * tau**2 * h), 0.0))


def _sum(process: Gaussian, step: Last, known: Known, s: float, name: str) -> Tensor:
    """x_s: the base of the step and its integral over the polynomial through ``known``."""
    (alpha_t, _), (alpha_s, _) = process.schedule.at(step.t), process.schedule.at(s)
    kept, _ = _weights(process, step.t, s, step.tau)
    whole = alpha_s - kept * alpha_t  # the weight of a constant, which survives where lambda does not
    ends = [process.schedule.log_snr_at(t) / 2 for t in (step.t, s)]
    h = ends[1] - ends[0]
    shares = [1.0]
    if math.isfinite(h):
        places = [(ends[1] - process.schedule.log_snr_at(t) / 2) / h for t, _ in known]
        finite = [v for v in places if math.isfinite(v)]
        shares = _shares(finite, moments((1 + step.tau**2) * h, len(finite)))
    terms = [(whole * share, x0[name]) for share, (_, x0) in zip(shares, known, strict=False)]
    return total([(1.0, step.base[name]), *terms])


def moments(c: float, count: int) -> list[float]:
    """J_0, J_1 ... of the module's text, divided by J_0."""
    end = c * math.exp(-c)
    if abs(c) > 3:
        found = [-math.expm1(-c)]
        for k in range(1, count):
            found.append((k * found[-1] - end) / c)
    else:
        found = [0.0]
        for k in range(30, 0, -1):  # an error at the top is c^30 / 30! of itself at the bottom
            found.insert(0, (c * found[0] + end) / k)
    return [j / found[0] for j in found[:count]]


def _shares(places: Sequence[float], values: Sequence[float]) -> list[float]:
    """The weight of each of Lagrange's polynomials through ``places``, given those of 1, v, v^2 ..."""
    shares = []
    for i, here in enumerate(places):
        polynomial = [1.0]
        for j, other in enumerate(places):
            if j != i:
                shifted = [0.0, *polynomial], [*(-other * p for p in polynomial), 0.0]
                polynomial = [(a + b) / (here - other) for a, b in zip(*shifted, strict=True)]
        shares.append(sum(p * v for p, v in zip(polynomial, values, strict=True)))
    return shares
