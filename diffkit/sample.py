"""The only sampling loop.

    x_T ~ prior;  for each (t, s) of the grid: state = sampler.update(state, t, s, denoise, noise)

The noise of step k is ``noise.fold("step", k)``, so a sample depends on the seed, its number and the
settings, and on nothing else. ``on_step`` sees every step and may stop the loop; ``record`` keeps them all.

Nothing in the loop (`walk`) waits for the device or breaks the graph of ``torch.compile``. So whether all numbers are
finite is asked once, at its end. If they are not, the loop is walked again, step by step, to say where it went wrong:
being a function of its arguments, it goes wrong at the same place.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import CategoricalEstimate, Estimates, GaussianEstimate
from diffkit.grid import check_times
from diffkit.jumps import Jump, Posterior
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.samplers.base import Call, Sampler, SamplerState
from diffkit.typing import Masks, Shapes, State

__all__ = ["Sample", "Step", "sample", "start_at", "walk"]


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


def walk(
    call: Call,
    sampler: Sampler,
    x: State,
    grid: Sequence[float],
    noise: Noise,
    each: Callable[[Step, SamplerState], bool] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = _identity,
) -> SamplerState:
    """The loop itself: the state after the last step.

    Args:
        call: the denoiser.
        sampler: see `diffkit.samplers`.
        x: the leaves at the first time.
        grid: times.
        noise: the noise of these samples.
        each: called with every step and the state after it; True ends the loop there.
        progress: wraps the iterable of steps.
    """
    call, state = replace(call, grid=tuple(grid)), sampler.init(x)
    for k, (t, s) in enumerate(progress(list(pairwise(grid)))):
        before, state = state.x, SamplerState(state.x, None, state.memory)  # the last estimates' memory is free again
        state = sampler.update(state, t, s, call, noise.fold("step", k))
        if each is not None and each(Step(k, t, s, before, state.estimates or {}), state):
            break
    return state


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
    jump: Jump | None = None,
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
        jump: the rule of the categorical leaves, see `diffkit.jumps`; `Posterior` if None.
        start: x at the first of the times; pure noise if None.
        on_step: called after each step; True ends the loop there.
        record: keep every step.
        progress: wraps the iterable of steps, e.g. ``tqdm``.

    Raises:
        ValueError: for a grid that does not fall within [0, 1], or a result that is not finite.
    """
    grid = check_times(times)
    process = denoise.process
    call = Call(denoise, condition or Condition(), mask or {}, jump or Posterior())
    for leaf in process.leaves.values():
        leaf.schedule.prepare(grid)
    if start is None:
        start = _pure_noise(process, shapes, grid[0], noise.fold("prior"), call.mask)
    first = process.project(start, call.mask)
    kept: list[Step] = []
    broken: list[Tensor] = []
    last = grid[0]

    def each(step: Step, state: SamplerState) -> bool:
        nonlocal last
        last = step.s
        broken.extend(_unheard(step.estimates))
        if record:
            kept.append(step)
        return on_step is not None and bool(on_step(step))

    x = process.project(walk(call, sampler, first, grid, noise, each, progress).x, call.mask)
    broken += [~torch.isfinite(v.sum()) for v in x.values() if v.is_floating_point()]  # quicker than a look at all
    if any(bool(flag) for flag in broken):
        _find_fault(call, sampler, first, grid, noise)
    return Sample(x, last, tuple(kept))


def start_at(process: Product, x0: State, t: float, noise: Noise, mask: Masks | None = None) -> dict[str, Tensor]:
    """Data noised to time ``t``, a ``start`` for `sample` on a grid that begins there (image to image).

    See `diffkit.grid.from_strength` for such a grid. None of the loop's draws repeats this noise.
    """
    return process.corrupt(x0, float(t), noise.fold("start"), mask or {})


def _pure_noise(process: Product, shapes: Shapes, t: float, noise: Noise, mask: Masks) -> dict[str, Tensor]:
    x = process.prior(shapes, noise, mask)
    size = {k: p.schedule.at(t)[1] / p.schedule.at(1.0)[1] for k, p in process.gaussian.items()}
    return x | {k: ratio * x[k] for k, ratio in size.items()}


def _unheard(estimates: Estimates) -> list[Tensor]:
    """Where a network says NaN of classes, as 0-d flags on its device: a drawn class is finite whatever was said."""
    return [torch.isnan(e.logits).any() for e in estimates.values() if isinstance(e, CategoricalEstimate)]


def _find_fault(call: Call, sampler: Sampler, x: State, grid: Sequence[float], noise: Noise) -> None:
    """Raise the error that says at which step and in which leaf the numbers stopped to be finite."""

    def each(step: Step, state: SamplerState) -> bool:
        said = {k: e.pred if isinstance(e, GaussianEstimate) else e.logits.exp() for k, e in step.estimates.items()}
        for what, leaves in (("from the network", said), ("after the step", state.x)):
            for name, leaf in leaves.items():
                if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                    raise ValueError(
                        f"got values that are not finite {what} in leaf '{name}' at step {step.index} of "
                        f"{len(grid) - 1} (t = {step.t:.4g}); expected finite numbers: the network diverged, "
                        "so use its EMA weights, a higher precision, or a grid that stays away from t = 1"
                    )
        return False

    walk(call, sampler, x, grid, noise, each)
    raise ValueError("got values that are not finite in one run and none in the next; expected a deterministic network")
