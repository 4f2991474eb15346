r"""From data to noise: the deterministic path of sampling, walked the other way (DDIM inversion; Song et al. 2021,
arXiv:2010.02502, 4.3).

The probability-flow ODE has one path through every point, so the noise that leads to given data is found by solving
it from t = 0 to t = 1. A sampler's ``update`` takes its two times as they come, and a deterministic one goes up as
well as down, with the same order.

**The first step.** At t = 0 many predictions say nothing, and eps = (x - alpha x_0) / sigma is 0/0. It need not be
asked there: in y = x / alpha over r = sigma / alpha the slope is eps = -r grad log p(y), which vanishes with r. So
Heun's method from slope 0 is

    y_1 = y_0 + r_1 (0 + eps(y_0, r_1)) / 2

with an error of r_1^4 where the density of the data is smooth at the scale of r_1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import GaussianEstimate, add
from diffkit.grid import check_times
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.samplers import DDIM
from diffkit.samplers.base import Call, Sampler, SamplerState
from diffkit.typing import Masks, State

__all__ = ["invert"]


@dataclass(frozen=True)
class _Silent(Noise):
    """Noise that nobody may draw."""

    def fold(self, *tokens: int | str) -> "Noise":
        return self

    def bits(self, leaf: str, shape: tuple[int, ...], first: Sequence[int] = ()) -> Tensor:
        raise ValueError(
            "got a sampler that draws noise; expected a deterministic one, for noise that was added cannot be "
            "taken back: use ddim, heun or dpmpp_2m, or set eta, gamma or tau to 0"
        )


@torch.no_grad()
def invert(
    denoise: Denoise,
    x0: State,
    times: Tensor | Sequence[float],
    *,
    sampler: Sampler | None = None,
    condition: Condition | None = None,
    mask: Masks | None = None,
) -> dict[str, Tensor]:
    """The state at the first of ``times`` from which `diffkit.sample.sample` comes to ``x0`` at the last.

    Args:
        denoise: a denoiser, guided or not.
        x0: real-valued leaves at the last of the times, data if that is 0.
        times: those of the sampling, falling; they are walked backwards.
        sampler: a deterministic one; DDIM if None.
        condition, mask: as for sampling.

    Raises:
        ValueError: for categorical leaves, a sampler that draws noise, a first step from t = 0 to where the noise
            outweighs the data, or a result that is not finite.
    """
    if denoise.process.categorical:
        raise ValueError(
            f"got categorical leaves {sorted(denoise.process.categorical)}; expected real-valued ones alone: classes "
            "jump at random and have no path, so corrupt them instead (diffkit.sample.start_at)"
        )
    grid = check_times(times)[::-1]
    call = Call(denoise, condition or Condition(), mask or {})
    sampler = sampler or DDIM()
    silent = _Silent(0, torch.arange(len(next(iter(x0.values())))))
    state = sampler.init(denoise.process.project(x0, call.mask))
    for t, s in pairwise(grid):
        state = _first(call, sampler, state.x, s) if t == 0 else sampler.update(state, t, s, call, silent)
    x = denoise.process.project(state.x, call.mask)
    if not all(bool(torch.isfinite(v).all()) for v in x.values()):
        raise ValueError(
            "got values that are not finite on the way to the noise; expected finite numbers: use a higher precision, "
            "or a grid whose first times stay away from t = 1"
        )
    return x


def _first(call: Call, sampler: Sampler, x0: State, s: float) -> SamplerState:
    """The step from t = 0."""
    _check_first(call.process, s)

    def up(name: str, process: Gaussian, estimate: GaussianEstimate) -> Tensor:
        alpha, sigma = process.schedule.at(s)
        return add(alpha, x0[name], sigma / 2, estimate.eps)

    scaled = {k: p.schedule.at(s)[0] * x0[k] for k, p in call.process.gaussian.items()}
    return sampler.init(call.gaussian(up, call(scaled, s)))


def _check_first(process: Product, s: float) -> None:
    for leaf in process.gaussian.values():
        alpha, sigma = leaf.schedule.at(s)
        if sigma > alpha:
            raise ValueError(
                f"got a grid whose last step is from t = {s:.4g} to 0, where the noise outweighs the data; expected "
                "less: take more steps, or a grid that is finer near the data, such as log_snr"
            )
