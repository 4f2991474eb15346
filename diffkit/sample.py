"""The only sampling loop.

    x_T ~ prior;  for each (t, s) of the grid: state = sampler.update(state, t, s, denoise, noise)

The noise of step k is ``noise.fold("step", k)``, so a sample depends on the seed, its number and the
settings, and on nothing else. ``on_step`` sees every step and may stop the loop; ``record`` keeps them all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import CategoricalEstimate, Estimates
from diffkit.grid import check_times
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.samplers.base import Call, Sampler
from diffkit.typing import Masks, Shapes, State

__all__ = ["Sample", "Step", "sample"]


@dataclass(frozen=True)
class Step:
    """One step of the loop: from ``x_t`` at ``t``, where the estimates were made, to time ``s``."""

    index: int
    t: float
    s: float
    x_t: State
    estimates: Estimates


@dataclass(frozen=True)
class Sample:
    """What the loop returns.

    Args:
        x: the leaves at the last time, in their spaces.
        t: that time; above 0 where the loop was stopped early.
        steps: every step, where it was asked to record them.
    """

    x: State
    t: float
    steps: tuple[Step, ...] = field(default=())


def _identity(steps: Iterable[Any]) -> Iterable[Any]:
    return steps


@torch.no_grad()
def sample(
    denoise: Denoise,
    shapes: Shapes,
    *,
    sampler: Sampler,
    times: Tensor | Sequence[float],
    noise: Noise,
    condition: Condition | None = None,
    mask: Masks | None = None,
    start: State | None = None,
    on_step: Callable[[Step], bool | None] | None = None,
    record: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = _identity,
) -> Sample:
    """Draw samples.

    Args:
        denoise: a denoiser, guided or not.
        shapes: (B, ...) of every leaf; ignored where ``start`` is given.
        sampler: see `diffkit.samplers`.
        times: falling within [0, 1]; see `diffkit.grid`. Pure noise is of the size that it has at the first of them.
        noise: the noise of these B samples.
        condition: what is asked of each sample.
        mask: what of each leaf is real.
        start: x at the first of the times; pure noise if None.
        on_step: called after each step; True ends the loop there.
        record: keep every step.
        progress: wraps the iterable of steps, e.g. ``tqdm``.

    Raises:
        ValueError: for a grid that does not fall within [0, 1], or a result that is not finite.
    """
    grid = check_times(times)
    call = Call(denoise, condition or Condition(), mask or {})
    process = denoise.process
    if start is None:
        x = _pure_noise(process, shapes, grid[0], noise.fold("prior"), call.mask)
    else:
        x = process.project(start, call.mask)
    state, kept, last = sampler.init(x), [], float(grid[0])
    for k, (t, s) in enumerate(progress(list(pairwise(grid)))):
        before, state = state.x, sampler.update(state, t, s, call, noise.fold("step", k))
        step = Step(k, float(t), float(s), before, state.history[0][1])
        kept += [step] if record else []
        last = float(s)
        if on_step is not None and on_step(step):
            break
    x = process.project(state.x, call.mask)
    _check_finite(x, state.history[0][1] if state.history else {})
    return Sample(x, last, tuple(kept))


def _pure_noise(process: Product, shapes: Shapes, t: Tensor, noise: Noise, mask: Masks) -> dict[str, Tensor]:
    x = process.prior(shapes, noise, mask)
    size = {k: p.schedule(t)[1] / p.schedule(torch.ones_like(t))[1] for k, p in process.gaussian.items()}
    return x | {k: ratio * x[k] for k, ratio in size.items()}


def _check_finite(x: State, estimates: Estimates) -> None:
    """Classes are finite whatever the network said, so for those leaves what it said last is looked at."""
    said = {k: e.logits.exp() for k, e in estimates.items() if isinstance(e, CategoricalEstimate)}
    for name, leaf in (dict(x) | said).items():
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise ValueError(
                f"got values that are not finite in leaf '{name}'; expected finite numbers: the network diverged, "
                "so use its EMA weights, a higher precision, or a grid that stays away from t = 1"
            )
