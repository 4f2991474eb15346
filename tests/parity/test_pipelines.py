"""Pipelines that diffusers makes, saves and runs itself, and what diffkit draws with them from the same noise.

The pipelines are tiny and their weights random; everything is in float32. Their schedulers round their tables and times
to float32, ours are in float64. Where theirs begin with noise of another size, they are given it in ours.
"""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from parity import tiny
from torch import Tensor

from diffkit import checkpoint, registry
from diffkit.grid import Explicit
from diffkit.guidance import ClassifierFree
from diffkit.interop import grid_from_diffusers
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit.sample import sample
from diffkit.samplers import DDIM, Euler
from diffkit.samplers.dpm import DPMpp2M
from diffkit.schedule import VPTable

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PROMPT, NEGATIVE = "a red cat", "blurry"
COUNT, STEPS = 2, 6
NEAR = 1e-4


@cache
def saved(kind: str) -> tuple[Any, Path]:
    """Theirs, and the folder to which it was saved."""
    folder = Path(mkdtemp())
    pipe = getattr(tiny, kind)(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "model")
    return pipe, folder / "model"


@cache
def loaded(kind: str) -> Model:
    return checkpoint.load(saved(kind)[1])


def config(kind: str) -> Any:
    """Of the scheduler that was saved; that of theirs is exchanged here."""
    modality: Any = loaded(kind).modality
    return modality.pipe.scheduler.config


def asked(kind: str) -> tuple[Request, Request]:
    """What is asked for, and what is steered away from."""
    if kind == "dit":
        return Request(None, {"label": "207"}), Request()
    return Request(PROMPT, {}), Request(NEGATIVE)


def ours(kind: str, sampler: Any, times: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(pure noise at the first time, the latents)."""
    model, noise = loaded(kind), Noise.of(5, COUNT)
    wanted, avoided = (model.modality.layout(COUNT, noise, request) for request in asked(kind))
    shape = {"latent": tuple(wanted.x["latent"].shape)}
    sigma = model.denoiser.process.gaussian["latent"].schedule.at(float(times[0]))[1]
    start = sigma * noise.fold("prior").normal("latent", shape["latent"][1:])
    negative = avoided.condition.null() if kind == "dit" else avoided.condition
    denoise = ClassifierFree(scale, negative)(model.denoiser)
    drawn = sample(
        denoise, shape, sampler=sampler, times=times, noise=noise, condition=wanted.condition, start={"latent": start}
    )
    return start, drawn.x["latent"]


def theirs(kind: str, scheduler: Any, start: Tensor, scale: float, steps: int = STEPS) -> Tensor:
    pipe = saved(kind)[0]
    pipe.scheduler = scheduler
    if kind == "dit":
        in_ratios = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
        return step_by_step(pipe, start, scale) if in_ratios else by_label(pipe, start, scale)
    words = {"prompt": [PROMPT] * COUNT, "negative_prompt": [NEGATIVE] * COUNT, "num_inference_steps": steps}
    if kind != "flux":
        found: Tensor = pipe(**words, latents=start, guidance_scale=scale, output_type="latent").images
        return found
    packed = pipe._pack_latents(start, *start.shape)
    side = start.shape[-1] * pipe.vae_scale_factor
    packed = pipe(**words, latents=packed, true_cfg_scale=scale, output_type="latent", height=side, width=side).images
    found = pipe._unpack_latents(packed, side, side, pipe.vae_scale_factor)
    return found


def by_label(pipe: Any, start: Tensor, scale: float) -> Tensor:
    """Their pipeline takes no latents and returns none: the noise is put in its place, and the latents are caught."""
    caught = []
    module = __import__("diffusers.pipelines.dit.pipeline_dit", fromlist=["randn_tensor"])
    draw, decode = module.randn_tensor, pipe.vae.decode
    module.randn_tensor = lambda **_: start
    pipe.vae.decode = lambda z: caught.append(z) or decode(z)
    try:
        pipe([207] * COUNT, guidance_scale=scale, num_inference_steps=STEPS)
    finally:
        module.randn_tensor, pipe.vae.decode = draw, decode
    return caught[0] * pipe.vae.config.scaling_factor


def step_by_step(pipe: Any, start: Tensor, scale: float) -> Tensor:
    """Their scheduler and their network. Their pipeline of DiT steps from the input of the network, which it scaled."""
    pipe.scheduler.set_timesteps(STEPS)
    y, labels = start, torch.tensor([207] * COUNT + [1000] * COUNT)
    for t in pipe.scheduler.timesteps:
        x = torch.cat([pipe.scheduler.scale_model_input(y, t)] * 2)
        with torch.no_grad():
            said = pipe.transformer(x, timestep=t.expand(2 * COUNT), class_labels=labels).sample[:, : y.shape[1]]
        wanted, rest = said.chunk(2)
        y = pipe.scheduler.step(rest + scale * (wanted - rest), t, y).prev_sample
    return y


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """To 1e-4, of latents that are neither nothing nor out of what float32 can tell apart."""
    assert 0.1 < float(expected.std()) < 30
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR)


SAMPLERS: dict[str, tuple[str, Any]] = {
    "DDIM": ("DDIMScheduler", DDIM()),
    "Euler": ("EulerDiscreteScheduler", Euler()),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", DPMpp2M()),
}


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion_v", "stable_diffusion_xl", "dit"])
def test_tables(kind: str, method: str) -> None:
    name, sampler = SAMPLERS[method]
    options = {"clip_sample": False, "set_alpha_to_one": True} if method == "DDIM" else {}
    spacing = "leading" if method == "DDIM" else "linspace"
    scheduler = getattr(diffusers, name).from_config(config(kind), timestep_spacing=spacing, **options)
    schedule = loaded(kind).denoiser.process.gaussian["latent"].schedule
    assert isinstance(schedule, VPTable)
    times = grid_from_diffusers(scheduler.config)(STEPS, schedule)
    start, found = ours(kind, sampler, times, 7.5)
    scheduler.set_timesteps(STEPS)
    size = 1.0
    if method == "Euler":  # it goes in x / alpha, and all but the pipeline of DiT enlarge the noise for it
        size = schedule.at(float(times[0]))[0] * (1.0 if kind == "dit" else float(scheduler.init_noise_sigma))
    assert_equal(found, theirs(kind, scheduler, start / size, 7.5))


def test_a_table_that_ends_in_pure_noise() -> None:
    scheduler = diffusers.DDIMScheduler.from_config(config("stable_diffusion_2"))
    schedule = loaded("stable_diffusion_2").denoiser.process.gaussian["latent"].schedule
    times = grid_from_diffusers(scheduler.config)(STEPS - 1, schedule)
    start, found = ours("stable_diffusion_2", DDIM(), times, 7.5)
    assert_equal(found, theirs("stable_diffusion_2", scheduler, start, 7.5, STEPS - 1))


def test_the_last_step_of_stable_diffusion() -> None:
    """The first model's scheduler stops a step before the data (``set_alpha_to_one`` is False): at 1 / T."""
    scheduler = diffusers.DDIMScheduler.from_config(config("stable_diffusion"), set_alpha_to_one=False, steps_offset=1)
    schedule = loaded("stable_diffusion").denoiser.process.gaussian["latent"].schedule
    times = grid_from_diffusers(scheduler.config)(STEPS, schedule)
    times = Explicit((*times[:-1].tolist(), 1 / 1000))(STEPS, schedule)
    start, found = ours("stable_diffusion", DDIM(), times, 7.5)
    assert_equal(found, theirs("stable_diffusion", scheduler, start, 7.5))


@pytest.mark.parametrize("kind", ["stable_diffusion_3", "flux"])
def test_flows(kind: str) -> None:
    model = loaded(kind)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config(kind))
    times = model_grid(model)(STEPS, model.denoiser.process.gaussian["latent"].schedule)
    start, found = ours(kind, Euler(), times, 3.0)
    assert_equal(found, theirs(kind, scheduler, start, 3.0))


def model_grid(model: Model) -> Any:
    return registry.build("grid", model.recipe["sampling"]["grid"])


class Exact:
    """Their solver of flows, without the rounding of the network's times to whole numbers."""

    def __new__(cls, **options: Any) -> Any:
        class Solver(diffusers.DPMSolverMultistepScheduler):  # type: ignore[misc,name-defined]
            def set_timesteps(self, *arguments: Any, **more: Any) -> None:
                super().set_timesteps(*arguments, **more)
                self.timesteps = 1000 * self.sigmas[:-1]

        return Solver(**options)


@pytest.mark.parametrize("kind", ["stable_diffusion_3"])
def test_flows_by_a_multistep_method(kind: str) -> None:
    scheduler = Exact(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    scheduler.set_timesteps(STEPS)
    schedule = loaded(kind).denoiser.process.gaussian["latent"].schedule
    sigmas = scheduler.sigmas.double()
    times = schedule.time(2 * torch.log((1 - sigmas) / sigmas))
    start, found = ours(kind, DPMpp2M(), times, 3.0)
    assert_equal(found, theirs(kind, scheduler, start, 3.0))
