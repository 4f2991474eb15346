"""UniPC sample for sample against diffusers; how, see `tests/parity/common.py`.

Given its sigmas in float64 theirs runs in float64 throughout. Theirs lowers its order towards the end of the grid;
ours does where it is asked to, and is of first order only in the step to t = 0 elsewhere. So all orders are compared
to t = 0, and, with the lowering turned off, to the table's first step.
"""

import numpy as np
import pytest
import torch
from parity.common import (
    PREDICTIONS,
    TABLE,
    UNIT,
    best,
    exact_tables,
    on_ratios,
    one_normal,
    ours,
    theirs,
    time_of_ratios,
    times_of,
)

from diffkit.prediction import Velocity
from diffkit.samplers import UniPC
from diffkit.schedule import RectifiedFlow

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_to_the_first_step_of_the_table(order: int, variant: str, prediction: str) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type=prediction,
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    denoise, alphas = best(TABLE, PREDICTIONS[prediction]), exact_tables(scheduler)
    scheduler.set_timesteps(12)
    ratios = torch.cat([((1 - alphas) / alphas).sqrt()[scheduler.timesteps], ((1 - alphas) / alphas).sqrt()[:1]])
    torch.testing.assert_close(scheduler.sigmas.double(), ratios, rtol=1e-3, atol=1e-6)
    scheduler.sigmas = ratios
    times = torch.cat([times_of(scheduler.timesteps)[:-1], torch.tensor([1e-3], dtype=torch.float64)])
    got = ours(UniPC(order, variant), denoise, times, UNIT)
    torch.testing.assert_close(got, theirs(scheduler, denoise, times), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_to_the_data(order: int, steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order)
    denoise, alphas = best(TABLE, PREDICTIONS["epsilon"]), exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([((1 - alphas) / alphas).sqrt()[scheduler.timesteps], torch.zeros(1).double()])
    times = times_of(scheduler.timesteps)
    torch.testing.assert_close(
        ours(UniPC(order, lower_final=True), denoise, times, UNIT),
        theirs(scheduler, denoise, times),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_of_a_flow(order: int, variant: str, shift: float, lower: bool) -> None:
    """To the last of their sigmas before 0, at which "bh1" is NaN; they begin at 1 - 10^-6."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        lower_order_final=lower,
        use_flow_sigmas=True,
        flow_shift=shift,
        prediction_type="flow_prediction",
    )
    denoise = best(RectifiedFlow(), Velocity())
    scheduler.set_timesteps(12)
    scheduler.sigmas = times = scheduler.sigmas[:-1].double()
    scheduler.timesteps = scheduler.timesteps[:-1]
    got = ours(UniPC(order, variant, lower), denoise, times, UNIT)
    torch.testing.assert_close(got, theirs(scheduler, denoise, times), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------ where theirs is wrong


def test_b_of_h_is_infinite_in_their_last_step() -> None:
    """With "bh1" they multiply B(h) = inf by no difference at all: 0 times infinity."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_type="bh1")
    scheduler.set_timesteps(40)
    times, denoise = times_of(scheduler.timesteps), one_normal(TABLE, PREDICTIONS["epsilon"])
    assert bool(torch.isnan(theirs(scheduler, denoise, times)).all()), "theirs is right now; drop this half"
    alpha, sigma = TABLE.at(float(times[0]))
    got = ours(UniPC(variant="bh1"), denoise, times, UNIT)
    torch.testing.assert_close(got, UNIT * 0.5 / (alpha**2 * 0.25 + sigma**2) ** 0.5, rtol=0, atol=0.05)


def test_issue_14411_one_step_of_a_stretched_grid_is_nan() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", shift_terminal=0.1
    )
    with np.errstate(all="ignore"):
        scheduler.set_timesteps(1)
    assert bool(torch.isnan(scheduler.sigmas).any()), "theirs is right now; drop this half"
    one = ours(UniPC(), best(RectifiedFlow(), Velocity()), torch.tensor([1.0, 0.0]), UNIT)
    mean = torch.tensor([0.4 * -2 + 0.3 * 1 + 0.3 * 1.5, 0.3 * 1 + 0.3 * -2], dtype=torch.float64)
    torch.testing.assert_close(one, mean.expand(UNIT.shape))


def test_no_order_is_lost_before_the_end() -> None:
    """Theirs takes the last steps at orders 2 and 1, though only the very last is of infinite length."""
    denoise = one_normal(RectifiedFlow(), Velocity())
    ratios = torch.cat([torch.logspace(1.5, -2, 9, dtype=torch.float64), torch.zeros(1).double()])
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=3, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    on_ratios(scheduler, ratios)
    times = time_of_ratios(RectifiedFlow(), ratios)
    alpha, sigma = RectifiedFlow().at(float(times[0]))
    exact = UNIT * 0.5 / (alpha**2 * 0.25 + sigma**2) ** 0.5
    mine, other = (ours(UniPC(3), denoise, times, UNIT) - exact), (theirs(scheduler, denoise, times) - exact)
    assert float(mine.square().mean()) < float(other.square().mean())
