"""DEIS, LMS, iPNDM and PNDM sample for sample against diffusers; how, see `tests/parity/common.py`."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from parity.common import (
    NOISE,
    PREDICTIONS,
    TABLE,
    UNIT,
    best,
    exact_sigmas,
    exact_tables,
    in_ratio_space,
    network,
    one_normal,
    ours,
    theirs,
    times_of,
)

from diffkit.prediction import Eps, VPrediction
from diffkit.samplers import DEIS, IPNDM, LMS, Call, Heun
from diffkit.schedule import VPLinear

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [3, 12])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int, steps: int, prediction: str, lower: bool) -> None:
    """Theirs cannot go to t = 0 (log rho is infinite there), and ends at the table's first step."""
    scheduler = diffusers.DEISMultistepScheduler(
        solver_order=order, prediction_type=prediction, lower_order_final=lower
    )
    denoise, alphas = best(TABLE, PREDICTIONS[prediction]), exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    ratios = ((1 - alphas) / alphas).sqrt()
    scheduler.sigmas = torch.cat([ratios[scheduler.timesteps], ratios[:1]])
    times = torch.cat([times_of(scheduler.timesteps)[:-1], torch.tensor([1e-3], dtype=torch.float64)])
    got = ours(DEIS(order, lower_final=lower), denoise, times, UNIT)
    torch.testing.assert_close(got, theirs(scheduler, denoise, times), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The `scale_model_input` function")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order: int, prediction: str) -> None:
    options = {"beta_start": 0.0001, "beta_end": 0.02, "timestep_spacing": "leading", "prediction_type": prediction}
    scheduler, denoise = diffusers.LMSDiscreteScheduler(**options), best(TABLE, PREDICTIONS[prediction])
    alphas = exact_tables(scheduler)
    scheduler.set_timesteps(20)
    exact_sigmas(scheduler, alphas)
    expected = in_ratio_space(scheduler, denoise, order=order)
    got = ours(LMS(order), denoise, times_of(scheduler.timesteps), UNIT)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 20])
def test_ipndm(steps: int) -> None:
    """Theirs has one schedule, a circle, and predicts v; it is put on another's points, in float64."""
    scheduler, denoise = diffusers.IPNDMScheduler(), best(VPLinear(), VPrediction())
    times = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    scheduler.alphas, scheduler.betas = VPLinear()(times)
    scheduler.timesteps = torch.arange(steps)
    torch.testing.assert_close(
        ours(IPNDM(), denoise, times, UNIT), theirs(scheduler, denoise, times), rtol=0, atol=1e-9
    )


def test_pndm() -> None:
    """Theirs, without Runge and Kutta's steps: Heun's first step, at one evaluation more, and then iPNDM."""
    options: dict[str, Any] = {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "leading"}
    scheduler, denoise = diffusers.PNDMScheduler(**options), best(TABLE, Eps())
    exact_tables(scheduler)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(20)
    assert len(scheduler.timesteps) == 21 and len(torch.unique(scheduler.timesteps)) == 20  # their issue 9090
    x = UNIT
    for step in scheduler.timesteps:
        x = scheduler.step(network(denoise, x, (step.double() + 1) / 1000), step, x).prev_sample
    call, sampler, heun = Call(denoise), IPNDM(), Heun()
    (t, s), *rest = pairwise(times_of(scheduler.timesteps).tolist())
    start = sampler.init({"x": UNIT})
    state = replace(sampler.update(start, t, s, call, NOISE), x=heun.update(start, t, s, call, NOISE).x)
    for t, s in rest:
        state = sampler.update(state, t, s, call, NOISE)
    torch.testing.assert_close(state.x["x"], x, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------ where theirs is wrong


@pytest.mark.parametrize("sampler", [DEIS(), LMS(), IPNDM()], ids=str)
def test_all_of_ours_go_to_the_data(sampler: Any) -> None:
    """Theirs of DEIS refuses ``final_sigmas_type="zero"`` or leaves noise of the table's first step behind."""
    times, denoise = torch.linspace(1, 0, 101, dtype=torch.float64), one_normal(TABLE, Eps())
    alpha, sigma = TABLE.at(1.0)
    exact = UNIT * 0.5 / (alpha**2 * 0.25 + sigma**2) ** 0.5
    torch.testing.assert_close(ours(sampler, denoise, times, UNIT), exact, rtol=0, atol=0.02)


def test_issue_11347_pndm_takes_the_wrong_previous_step_on_uneven_grids_as_well() -> None:
    """Its error does not fall with twice the steps; that of iPNDM does."""
    denoise = one_normal(TABLE, Eps())

    def errors(steps: int) -> list[float]:
        scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="linspace")
        exact_tables(scheduler)
        scheduler.set_timesteps(steps)
        times, x = times_of(scheduler.timesteps), UNIT
        for step in scheduler.timesteps:
            x = scheduler.step(network(denoise, x, (step.double() + 1) / 1000), step, x).prev_sample
        alpha, sigma = TABLE(times[0])
        exact = UNIT * 0.5 / (alpha**2 * 0.25 + sigma**2).sqrt()
        return [float((v - exact).square().mean().sqrt()) for v in (ours(IPNDM(), denoise, times, UNIT), x)]

    (few, wrong), (many, still_wrong) = errors(150), errors(300)
    assert many < few and many < 0.005, "ours converges"
    assert still_wrong > 0.9 * wrong > 2 * many, f"theirs is right now: {wrong}, {still_wrong}; drop this test"
