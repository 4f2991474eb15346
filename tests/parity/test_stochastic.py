"""Stochastic samplers, consistency sampling and image-to-image starts: sample for sample as diffusers and the papers.

The network, the tables and the noise are those of `test_diffusers`: the best denoiser of a Gaussian mixture in
float64, and for each step the draw that ours makes.
"""

import inspect
import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoiser
from diffkit.grid import Power, from_strength
from diffkit.noise import Noise
from diffkit.prediction import X0, Eps, Prediction, VPrediction
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample, start_at
from diffkit.samplers import EDM, Consistency, EulerAncestral, Heun, Sampler, SASolver
from diffkit.schedule import RectifiedFlow, Schedule, VEKarras, VPTable
from diffkit.testing import Exact, Mixture

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLE = VPTable.linear()
BATCH, SHAPE = 6, (2,)
PREDICTIONS: dict[str, Prediction] = {"epsilon": Eps(), "sample": X0(), "v_prediction": VPrediction()}
NOISE = Noise.of(3, BATCH)
UNIT = NOISE.fold("prior").normal("x", SHAPE, torch.float64)


def best(schedule: Schedule, prediction: Prediction) -> Exact:
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [1.5, -2.0]], dtype=torch.float64)
    deviations = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.7, 0.3]], dtype=torch.float64)
    mixture = Mixture.gaussian(means, deviations, torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64))
    return mixture.denoise(Product({"x": Gaussian(schedule, prediction=prediction)}))


def ours(sampler: Sampler, denoise: Any, times: Tensor, start: Tensor, noise: Noise = NOISE) -> Tensor:
    return sample(denoise, {}, sampler=sampler, times=times, noise=noise, start={"x": start}).x["x"]


def network(denoise: Exact, x: Tensor, t: Tensor | float) -> Tensor:
    return denoise.output({"x": x}, t, Condition(), {})["x"]


def exact_tables(scheduler: Any) -> Tensor:
    """Put the cumulative product in float64 into ``scheduler``; returns it."""
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(TABLE.betas, dtype=torch.float64), 0)
    return scheduler.alphas_cumprod


@pytest.fixture
def shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers draw what we draw: the noise of step 0, 1, 2 ..."""

    def numbers() -> Iterator[Tensor]:
        for step in range(1000):
            yield NOISE.fold("step", step).normal("x", SHAPE, torch.float64)

    stream = numbers()
    for module in ("scheduling_sasolver", "scheduling_lcm"):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: next(stream))


# ------------------------------------------------------------------------------------------- SA-Solver


def integral_of_order_2() -> type:
    """Their scheduler without its change of the weights of order 2, which are then the paper's integral."""
    theirs = diffusers.SASolverScheduler
    methods = {}
    for name in ("stochastic_adams_bashforth_update", "stochastic_adams_moulton_update"):
        source = textwrap.dedent(inspect.getsource(getattr(theirs, name)))
        assert source.count("order == 2") == 1, "theirs has changed; look at it anew"
        exec(source.replace("order == 2", "False"), vars(inspect.getmodule(theirs)), methods)
    return type("SASolverScheduler", (theirs,), methods)


def sa_solver(scheduler: Any, denoise: Exact, steps: int) -> tuple[Tensor, Tensor]:
    """Their sample, and the times of the grid: theirs ends at step 0, our t = 1 / 1000."""
    alphas = exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    whole = torch.cat([scheduler.timesteps, torch.zeros(1, dtype=torch.int64)])
    scheduler.sigmas = ((1 - alphas) / alphas).sqrt()[whole]
    times, x = (whole.double() + 1) / 1000, UNIT
    for k, step in enumerate(scheduler.timesteps):
        x = scheduler.step(network(denoise, x, times[k]), step, x).prev_sample
    return x, times


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (3, 1), (2, 3), (3, 3)])
@pytest.mark.usefixtures("shared_noise")
def test_sa_solver(predictor: int, corrector: int, tau: float, prediction: str) -> None:
    scheduler = integral_of_order_2()(
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda _: torch.tensor(tau, dtype=torch.float64),
        prediction_type=prediction,
        lower_order_final=False,
        timestep_spacing="leading",
    )
    denoise = best(TABLE, PREDICTIONS[prediction])
    theirs, times = sa_solver(scheduler, denoise, 12)
    got = ours(SASolver(predictor, corrector, tau), denoise, times, UNIT)
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("shared_noise")
def test_sa_solver_in_an_interval() -> None:
    """tau = 1 from step 200 to 800, as is their default."""
    scheduler = integral_of_order_2()(lower_order_final=False, timestep_spacing="leading")
    denoise = best(TABLE, Eps())
    scheduler.tau_func = lambda t: torch.tensor(float(200 <= t <= 800), dtype=torch.float64)
    theirs, times = sa_solver(scheduler, denoise, 12)
    got = ours(SASolver(2, 2, 1.0, (0.201, 0.801)), denoise, times, UNIT)
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------- LCM


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.usefixtures("shared_noise")
def test_lcm(steps: int, prediction: str) -> None:
    """Their boundary condition c_skip x_t + c_out x_0 is part of what our network predicts."""
    scheduler, inner = diffusers.LCMScheduler(prediction_type=prediction), best(TABLE, PREDICTIONS[prediction])
    exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])

    def consistent(x: dict[str, Tensor], t: Tensor, condition: Condition, mask: Any) -> dict[str, Tensor]:
        step = round(1000 * float(t[0])) - 1
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(step)
        estimate = inner(x, float(times[scheduler.timesteps.tolist().index(step)]), condition, mask)["x"]
        return {"x": skip * x["x"] + out * estimate.combine(1.0, 0.0)}  # type: ignore[union-attr]

    x = UNIT
    for k, step in enumerate(scheduler.timesteps.tolist()):
        x = scheduler.step(network(inner, x, times[k]), step, x).prev_sample
    denoise = Denoiser(consistent, Product({"x": Gaussian(TABLE, prediction=X0())}))
    torch.testing.assert_close(ours(Consistency(), denoise, times, UNIT), x, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------- EDM and k-diffusion


def karras(steps: int) -> list[float]:
    """Eq. 5 of the EDM paper, and 0."""
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]


def ratio_denoiser(denoise: Exact, y: Tensor, r: float) -> Tensor:
    """D(y; r) of a denoiser under `VEKarras`."""
    t = VEKarras().time_at(-2 * math.log(r))
    return denoise({"x": y}, t, Condition(), {})["x"].x0  # type: ignore[return-value]


@pytest.mark.parametrize("churn", [0.0, 5.0, 1000.0])
def test_edm_is_algorithm_2(churn: float) -> None:
    steps, S_tmin, S_tmax, S_noise = 18, 0.05, 50.0, 1.003
    denoise, ratios = best(VEKarras(), X0()), karras(18)
    gamma_of = min(churn / steps, math.sqrt(2) - 1)
    y = ratios[0] * UNIT
    for k, (r, r_next) in enumerate(pairwise(ratios)):
        gamma = gamma_of if S_tmin <= r <= S_tmax else 0.0
        r_hat = r * (1 + gamma)
        z = NOISE.fold("step", k).fold("churn").normal("x", SHAPE, torch.float64)
        y_hat = y + math.sqrt(r_hat**2 - r**2) * S_noise * z
        d = (y_hat - ratio_denoiser(denoise, y_hat, r_hat)) / r_hat
        y = y_hat + (r_next - r_hat) * d
        if r_next > 0:
            d_next = (y - ratio_denoiser(denoise, y, r_next)) / r_next
            y = y_hat + (r_next - r_hat) * (d + d_next) / 2
    times = VEKarras().time(-2 * torch.log(torch.tensor(ratios, dtype=torch.float64)))
    got = ours(EDM(gamma_of, S_tmin, S_tmax, S_noise), denoise, times, ratios[0] * UNIT)
    torch.testing.assert_close(got, y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", [TABLE, RectifiedFlow(3.0)], ids=["table", "flow"])
def test_edm_churns_in_the_ratio_under_any_schedule(schedule: Schedule) -> None:
    """The same ratios and the same draws give the same sample, after division by alpha."""
    ratios = torch.tensor(karras(18)[6:-1], dtype=torch.float64)
    results = []
    for kind in (VEKarras(), schedule):
        times = torch.cat([kind.time(-2 * torch.log(ratios)), torch.zeros(1, dtype=torch.float64)])
        results.append(ours(EDM(0.2), best(kind, VPrediction()), times, float(kind(times[0])[0] * ratios[0]) * UNIT))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-8)


def test_edm_without_churn_is_heun() -> None:
    """In the ratio coordinate; theirs is diffusers's HeunDiscrete, to which `test_diffusers` holds ours."""
    denoise, times = best(TABLE, Eps()), torch.linspace(1, 0, 13, dtype=torch.float64)
    torch.testing.assert_close(
        ours(EDM(0.0), denoise, times, UNIT), ours(Heun(), denoise, times, UNIT), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_is_k_diffusions(eta: float) -> None:
    denoise, ratios = best(VEKarras(), X0()), karras(18)
    y = ratios[0] * UNIT
    for k, (r, r_next) in enumerate(pairwise(ratios)):
        up = min(r_next, eta * math.sqrt(r_next**2 * (r**2 - r_next**2) / r**2))
        down = math.sqrt(r_next**2 - up**2)
        d = (y - ratio_denoiser(denoise, y, r)) / r
        y = y + (down - r) * d + up * NOISE.fold("step", k).normal("x", SHAPE, torch.float64)
    times = VEKarras().time(-2 * torch.log(torch.tensor(ratios, dtype=torch.float64)))
    torch.testing.assert_close(ours(EulerAncestral(eta), denoise, times, ratios[0] * UNIT), y, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------- where theirs is wrong


def one_normal(schedule: Schedule, prediction: Prediction) -> Exact:
    zero, deviation = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64)
    mixture = Mixture.gaussian(zero, deviation, torch.ones(1, dtype=torch.float64))
    return mixture.denoise(Product({"x": Gaussian(schedule, prediction=prediction)}))


@pytest.mark.usefixtures("shared_noise")
@pytest.mark.parametrize("steps", [8, 25])
def test_their_weight_of_order_2_in_sa_solver_errs_more(steps: int) -> None:
    """The slope's weight a h^2 / 2 in place of the integral: at tau = 0 more than 1.5 times our error."""
    scheduler = diffusers.SASolverScheduler(lower_order_final=False, timestep_spacing="trailing")
    scheduler.tau_func, denoise = lambda _: torch.zeros((), dtype=torch.float64), best(TABLE, Eps())
    theirs, times = sa_solver(scheduler, denoise, steps)
    fine = [torch.linspace(float(t), float(s), 9, dtype=torch.float64)[:-1] for t, s in pairwise(times)]
    exact = ours(Heun(), denoise, torch.cat([*fine, times[-1:]]), UNIT)
    wrong = [float((x - exact).square().mean().sqrt()) for x in (ours(SASolver(tau=0.0), denoise, times, UNIT), theirs)]
    assert wrong[1] > 1.5 * wrong[0], f"theirs is better now: {wrong}; drop this test"


def test_their_churn_is_not_taken_away() -> None:
    """EulerDiscrete adds the noise of a step after the network has been asked, so the network does not see it.

    Of data with deviation 1/2 the samples are too wide, the more the more churn; ours, by algorithm 2, are right.
    """
    n, steps, churn = 4000, 50, 10.0
    noise, denoise = Noise.of(5, n), one_normal(TABLE, Eps())
    unit = noise.fold("prior").normal("x", SHAPE, torch.float64)
    options = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    scheduler, generator = diffusers.EulerDiscreteScheduler(**options), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    y = unit * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for k, step in enumerate(scheduler.timesteps):
        output = network(denoise, scheduler.scale_model_input(y, step), times[k])
        y = scheduler.step(output, step, y, s_churn=churn, generator=generator).prev_sample
    got = ours(EDM(churn / steps), denoise, times, unit, noise)
    assert float(y.std()) > 0.52, "theirs is right now; drop this half"
    assert float(got.std()) == pytest.approx(0.5, abs=0.015)  # 2.7 standard errors of 8,000 numbers are 0.011


def their_strength(scheduler: Any, steps: int, strength: float) -> Tensor:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline

    scheduler.set_timesteps(steps)
    timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, strength, None
    )
    return timesteps


def test_issue_7651_strength_starts_at_the_wrong_noise() -> None:
    """Strength 0.8 is 80 % of the steps there, wherever those are: on their usual grid the noise of step 751."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    assert int(their_strength(scheduler, 20, 0.8)[0]) == 751, "theirs has changed; drop this half"
    tail = from_strength(Power()(20, TABLE), 0.8)
    assert tail[0] == pytest.approx(0.8) and len(tail) - 1 == 16


def their_leg(denoise: Exact, scheduler: Any, timesteps: Sequence[Tensor] | Tensor, y: Tensor) -> Tensor:
    for step in timesteps:
        output = network(denoise, scheduler.scale_model_input(y, step), (step.double() + 1) / 1000)
        y = scheduler.step(output, step, y).prev_sample
    return y


@pytest.mark.parametrize("start", [0.2, 0.5, 0.8])
def test_issue_5447_a_second_model_starts_at_the_wrong_noise(start: float) -> None:
    """One loop of Heun in two parts, as a base model and a refiner take it (``denoising_end`` and ``denoising_start``).

    The first part there ends with a predictor's step, uncorrected, to the time after the one at which the second
    begins. Ours is the loop in one part, to the bit.
    """
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
        StableDiffusionXLImg2ImgPipeline,
    )

    denoise = best(TABLE, Eps())
    whole, base, refiner = (
        diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing") for _ in range(3)
    )
    for scheduler in (whole, base, refiner):
        scheduler.set_timesteps(10)
    y = UNIT * (whole.sigmas[0] ** 2 + 1) ** 0.5
    early = [t for t in base.timesteps if t >= round(1000 - 1000 * start)]  # their line in the base's pipeline
    late, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(
        SimpleNamespace(scheduler=refiner), 10, None, None, denoising_start=start
    )
    split = their_leg(denoise, refiner, late, their_leg(denoise, base, early, y))
    off = (split - their_leg(denoise, whole, whole.timesteps, y)).abs().max()
    assert float(off) > 0.05, "theirs is right now; drop this half"
    times = Power()(10, TABLE)
    part = round(10 * start)
    handed = ours(Heun(), denoise, times[: part + 1], UNIT)
    assert torch.equal(ours(Heun(), denoise, times[part:], handed), ours(Heun(), denoise, times, UNIT))


def test_strength_that_is_no_binary_fraction_loses_a_step() -> None:
    """0.29 of 100 steps are 28 there, for 100 * 0.29 is 28.999999999999996."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    assert len(their_strength(scheduler, 100, 0.29)) == 28, "theirs is right now; drop this half"
    tail = from_strength(Power()(100, TABLE), 0.29)
    assert len(tail) - 1 == 29 and tail[0] == pytest.approx(0.29)


@pytest.mark.parametrize("strength", [0.03, 0.29, 0.5, 0.8, 1.0])
def test_a_start_has_the_noise_that_its_first_step_expects(strength: float) -> None:
    """Data of variance 1/4 noised to the start of the tail: the variance is that of the schedule there."""
    tail, n = from_strength(Power()(20, TABLE), strength), 20_000
    gaussian = Gaussian(TABLE)
    x0 = 0.5 * Noise.of(1, n).normal("data", (1,), torch.float64)
    x = start_at(Product({"x": gaussian}), {"x": x0}, tail[0], Noise.of(2, n))["x"]
    alpha, sigma = TABLE.at(tail[0])
    assert float(x.var()) == pytest.approx(alpha**2 * 0.25 + sigma**2, rel=0.04)
