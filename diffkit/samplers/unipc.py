r"""UniPC, the unified predictor and corrector, on x_0 (Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2).

With the notation of `diffkit.samplers.dpm` (eta = 0) both are

    x_s = (sigma_s / sigma_t) x_t + alpha_s sum_j w_j x_0j

The predictor (UniP-p) has the last p values of x_0, the corrector (UniC-p) that at s as well. It costs no evaluation:
x_0 at s is what the next step asks for anyway, and the x_s that was predicted is corrected before that step leaves from
it. The last state stays as it was predicted. The order is p + 1 (theorem 3.1), though for p = 3 the start, with fewer
values, costs an error of order h^3 once.

The weights of theorem 3.1 and corollary 3.2 are those that integrate the polynomial through the values exactly
(`diffkit.samplers.multistep`), and B(h) drops out of them. Only where a single difference of values is left, in UniP-2
and UniC-1, do the authors, and diffusers, take 1/2 for its weight in place of the exact one, times

    B_1(h) = h  ("bh1")      or      B_2(h) = e^h - 1  ("bh2"; 1 - e^{-h} for x_0)

which leaves the order as it is. As in all exponential methods, steps from pure noise and to t = 0 are of first order.
A step that left from pure noise is corrected with B_2, as B_1 is infinite there. The step before the last extrapolates
over the longest way in log-SNR that there is; ``lower_final`` takes it at second order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from diffkit.estimate import GaussianEstimate, add
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.samplers.base import Call, SamplerState
from diffkit.samplers.multistep import (
    History,
    Scaled,
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

__all__ = ["UniPC"]

Variant = Literal["bh1", "bh2"]


@dataclass(frozen=True)
class _Memory:
    """Of the step before: the x that it left from, and the values of x_0 that it knew."""

    x: dict[str, Scaled]
    known: History


@dataclass(frozen=True)
class UniPC:
    """UniPC-p: order p + 1 at one evaluation a step.

    Args:
        order: p of the predictor and of the corrector, 1 to 3.
        variant: B(h), "bh1" or "bh2".
        lower_final: take the last steps at orders 2 and 1, as diffusers does.
    """

    order: int = 2
    variant: Variant = "bh2"
    lower_final: bool = False

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.variant not in get_args(Variant):
            raise ValueError(f"got variant = '{self.variant}'; expected 'bh1' (B = h) or 'bh2' (B = e^h - 1)")

    def init(self, x: State) -> SamplerState:
        return SamplerState(x)

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        estimates = denoise(state.x, t)
        order = lowered(self.order, s, denoise.grid) if self.lower_final else self.order
        now, before = denoise.gaussian(lambda _, p, e: scaled(e, 1.0, 0.0), estimates), state.memory

        def corrected(name: str, process: Gaussian, estimate: GaussianEstimate) -> Scaled:
            if before is None:
                return 1.0, state.x[name]
            return _sum(self._terms(process, t, before, name, now[name]))

        x_t = denoise.gaussian(corrected, estimates)
        memory = _Memory(x_t, remember(None if before is None else before.known, t, now, order))
        x_s = denoise.gaussian(lambda k, p, e: total(self._terms(p, s, memory, k)), estimates)
        return SamplerState(denoise.jumps(state.x, estimates, t, s, noise) | x_s, estimates, memory)

    def _terms(
        self, process: Gaussian, s: float, memory: _Memory, name: str, ahead: Scaled | None = None
    ) -> list[Scaled]:
        """Those of x_s, from x_t at the newest time of the memory, and from x_0 at s where that is given."""
        known, (size, x_t) = memory.known, memory.x[name]
        (_, sigma_t), (alpha_s, sigma_s) = process.schedule.at(known[0][0]), process.schedule.at(s)
        times = tuple(u for u, _ in known)
        address = (type(self), self.order, self.variant, s, times, ahead is not None)
        found = process.schedule.recall(address, lambda: self._weights(process.schedule, s, times, ahead is not None))
        on_x0 = [alpha_s * w for w in found]
        first = [(sigma_s / sigma_t * size, x_t)]
        if ahead is not None:
            first.append((on_x0.pop(0) * ahead[0], ahead[1]))
        return first + weighed(on_x0, known, name)

    def _weights(self, schedule: Schedule, s: float, times: Sequence[float], ahead: bool) -> list[float]:
        """Of x_0 at ``times``, newest first; before them, of that at ``s`` where it is ``ahead``."""
        goal, *known = (schedule.log_snr_at(u) / 2 for u in (s, *times))
        h, nodes = goal - known[0], places(goal, known)
        if ahead:
            nodes.insert(0, 1.0)
        if len(nodes) != 2:
            return weights(nodes, exponential_moments(h, len(nodes)))
        whole = exponential_moments(h, 1)[0]
        bend = h if self.variant == "bh1" and math.isfinite(h) else whole
        return weights(nodes, (whole, bend / 2))


def _sum(terms: Sequence[Scaled]) -> Scaled:
    """As one number times a tensor: a pass over memory less than `total` takes."""
    (size, x), (w, y), *rest = sorted(terms, key=lambda term: -abs(term[0]))
    result = add(1.0, x, w / size, y)
    for w, y in rest:
        result.add_(y, alpha=w / size)
    return size, result
