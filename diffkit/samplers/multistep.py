r"""What multistep methods share: what they remember, and weights that integrate a polynomial exactly.

Such a method knows a function f at the last few times, and wants its integral over the coming step against a kernel k
that is known. With places v_j = (u_j - u_t) / (u_s - u_t), in whatever coordinate u,

    int_0^1 k(v) f(v) dv  ~  sum_j w_j f_j,    where  sum_j w_j v_j^i = m_i = int_0^1 k(v) v^i dv

for i = 0, 1, ... as far as there are values: the weights are exact for polynomials of a degree below their number, and
so p values give a method of order p. The m_i are the kernel's moments.

Those of k = 1 are 1 / (i + 1), which gives the methods of Adams. Exponential integrators (DPM-Solver++, UniPC, DEIS)
have k = H exp(-H (1 - v)); by parts, m_0 = 1 - e^{-H} and m_i = 1 - (i / H) m_{i-1}. Where H is small that cancels;
then the last is taken from the series

    m_i = i! sum_n (-1)^n H^{n+1} / (n + i + 1)!

and the others from it, downwards. In the terms of DPM-Solver (Lu et al. 2022, arXiv:2206.00927) this is
m_i = i! H phi_{i+1}(-H).

A value of the past is kept as a number times a tensor. u x_0 + w eps takes two passes over memory, x_t + (b / a)
pred one.
"""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from diffkit.estimate import GaussianEstimate, add

__all__ = [
    "History",
    "Scaled",
    "check_order",
    "exponential_moments",
    "lowered",
    "places",
    "remember",
    "scaled",
    "total",
    "weighed",
    "weights",
]

Scaled = tuple[float, Tensor]
"""A number times a tensor."""

History = tuple[tuple[float, dict[str, Scaled]], ...]
"""(time, value of every leaf), newest first."""

_TERMS = 18
"""Of the series: for |H| < 1 the next is below the rounding of float64."""


def check_order(order: int, highest: int) -> None:
    """Refuse an order that a method does not have."""
    if not 1 <= order <= highest:
        raise ValueError(f"got order = {order}; expected a whole number from 1 to {highest}")


def lowered(order: int, s: float, grid: Sequence[float]) -> int:
    """The order of the step to ``s`` where the end of the grid lowers it: 1 in the last step, 2 in that before.

    Without a grid it is as it was.
    """
    return min(order, sum(u <= s for u in grid) or order)


def scaled(estimate: GaussianEstimate, u: float, w: float) -> Scaled:
    """u x_0 + w eps, in one pass over memory."""
    on_x, on_pred = estimate.system.weights(u, w)
    if isinstance(on_x, Tensor) or isinstance(on_pred, Tensor):
        return 1.0, estimate.combine(u, w)
    if abs(on_x) < abs(on_pred):  # so that what multiplies a tensor is at most 1
        return on_pred, add(1.0, estimate.pred, on_x / on_pred, estimate.x_t)
    return on_x, add(1.0, estimate.x_t, on_pred / on_x, estimate.pred)


def total(terms: Iterable[Scaled]) -> Tensor:
    """The sum of the terms, in a new tensor."""
    (w, x), *rest = [term for term in terms if term[0] != 0.0]
    result = w * x
    for w, x in rest:
        result.add_(x, alpha=w)
    return result


def remember(before: History | None, t: float, values: dict[str, Scaled], count: int) -> History:
    """The history with ``values`` of time ``t`` in front, ``count`` entries at most."""
    return ((t, values), *(before or ())[: count - 1])


def weighed(weights: Sequence[float], history: History, name: str) -> list[Scaled]:
    """The values of leaf ``name`` in the history, times ``weights``, as far as there are such."""
    terms = []
    for w, (_, values) in zip(weights, history, strict=False):
        c, x = values[name]
        terms.append((w * c, x))
    return terms


def places(target: float, known: Sequence[float]) -> list[float]:
    """v_j of the ``known`` coordinates (newest first, from which the step starts) in a step to ``target``.

    A value at an infinite distance has no weight, so it and the older ones are left out; a step of infinite length
    keeps the newest alone, and is of first order.
    """
    start, *older = known
    found = [0.0]
    for u in older:
        v = (u - start) / (target - start)
        if not math.isfinite(v) or not math.isfinite(target):
            break
        found.append(v)
    return found


def weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The w_j of values at ``nodes``, given their moments: Vandermonde's system by Bjorck & Pereyra (1970)."""
    n = len(nodes)
    w = list(moments[:n])
    for k in range(n - 1):
        for i in range(n - 1, k, -1):
            w[i] -= nodes[k] * w[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            w[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, n - 1):
            w[i] -= w[i + 1]
    return w


def exponential_moments(rate: float, count: int) -> list[float]:
    """m_0, ..., m_{count-1} of the kernel H exp(-H (1 - v)), H being ``rate``, of either sign."""
    moments = [-math.expm1(-rate)]
    if abs(rate) >= 1.0:
        for i in range(1, count):
            moments.append(1.0 - i / rate * moments[-1])
    elif count > 1:
        below = [_series(rate, count - 1)]
        for i in range(count - 1, 1, -1):
            below.append((1.0 - below[-1]) * rate / i)
        moments += reversed(below)
    return moments


def _series(rate: float, i: int) -> float:
    term = value = rate / (i + 1)
    for n in range(1, _TERMS):
        term *= -rate / (n + i + 1)
        value += term
    return value
