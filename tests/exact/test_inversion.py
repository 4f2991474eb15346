"""From data to noise and back: on normal data and a mixture, whose paths are known."""

import pytest
import torch
from torch import Tensor

from diffkit import registry
from diffkit.inversion import invert
from diffkit.noise import Noise
from diffkit.prediction import X0, Score
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.samplers import DDIM, EDM, Ancestral, Consistency, DPMpp2M, Heun, Restart, Sampler, SASolver
from diffkit.schedule import Cosine, RectifiedFlow, Schedule, VEKarras, VPLinear
from diffkit.space import ZeroCentreOfMass
from diffkit.testing import Mixture, mixed
from diffkit.testing.compare import agree
from diffkit.testing.formulas import ragged

SCHEDULES = [VPLinear(), VEKarras(), RectifiedFlow(), Cosine()]


def grid(schedule: Schedule, steps: int, noisy: float = 30.0, clean: float = 0.02) -> Tensor:
    """Even in the logarithm of the ratio, and 0."""
    ratios = torch.logspace(torch.tensor(noisy).log10(), torch.tensor(clean).log10(), steps, dtype=torch.float64)
    return torch.cat([schedule.time(-2 * torch.log(ratios)), torch.zeros(1, dtype=torch.float64)])


def plane(schedule: Schedule, prediction: object = None) -> tuple[Mixture, Product, Tensor]:
    """A mixture in the plane, its process, and some of its data."""
    options = {} if prediction is None else {"prediction": prediction}
    mixture = Mixture(mixed().mixture.weights, {"x": mixed().mixture.leaves["x"]})
    process = Product({"x": Gaussian(schedule, **options)})  # type: ignore[arg-type]
    return mixture, process, mixture.draw(process, Noise.of(4, 8), {})["x"]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("sampler", "order"), [(DDIM(), 1), (Heun(), 2), (EDM(0.0), 2), (DPMpp2M(), 2)], ids=str)
def test_of_normal_data_it_finds_the_noise_with_the_samplers_order(
    sampler: Sampler, order: int, schedule: Schedule
) -> None:
    """x keeps its quantile: of N(0, c^2) the noise behind x_0 is x_0 sqrt(alpha^2 c^2 + sigma^2) / c."""
    deviation = torch.tensor([[0.3, 1.0, 2.0]], dtype=torch.float64)
    process = Product({"x": Gaussian(schedule)})
    denoise = Mixture.gaussian(torch.zeros(1, 3).double(), deviation, torch.ones(1).double()).denoise(process)
    x0 = deviation * Noise.of(0, 4).normal("x", (3,), torch.float64)
    errors = []
    for steps in (32, 64, 128):
        times = grid(schedule, steps)
        alpha, sigma = schedule(times[0])
        exact = x0 * (alpha**2 * deviation**2 + sigma**2).sqrt() / deviation
        found = invert(denoise, {"x": x0}, times, sampler=sampler)["x"]
        errors.append(float(((found - exact) / sigma).square().mean().sqrt()))
    assert errors[-1] < 0.1 and errors[0] / errors[1] > 0.8 * 2**order < 1.25 * errors[1] / errors[2], errors


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "adaptive", "edm", "sa_solver"])
def test_a_round_trip_on_a_mixture_comes_back(name: str) -> None:
    quiet = {"edm": {"gamma": 0.0}, "sa_solver": {"tau": 0.0}, "adaptive": {"rtol": 1e-6, "atol": 1e-6}}
    sampler = registry.build("sampler", {"name": name, **quiet.get(name, {})})
    mixture, process, x0 = plane(RectifiedFlow())
    denoise, errors = mixture.denoise(process), []
    for steps in (40, 160):
        times = grid(RectifiedFlow(), steps, clean=1e-3)
        start = invert(denoise, {"x": x0}, times, sampler=sampler)
        back = sample(denoise, {}, sampler=sampler, times=times, noise=Noise.of(0, 8), start=start).x["x"]
        errors.append(float((back - x0).square().mean().sqrt()))
    if name == "adaptive":
        assert max(errors) < 1e-5, errors
    else:
        assert errors[0] / errors[1] > (3 if name == "ddim" else 12), errors


@pytest.mark.parametrize("prediction", [X0(), Score(), None], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_it_starts_at_data_whatever_the_prediction(schedule: Schedule, prediction: object) -> None:
    """At t = 0 x_0 and score say nothing, and eps is 0/0."""
    mixture, process, x0 = plane(schedule, prediction)
    found = invert(mixture.denoise(process), {"x": x0}, grid(schedule, 20))["x"]
    expected = invert(plane(schedule)[0].denoise(plane(schedule)[1]), {"x": x0}, grid(schedule, 20))["x"]
    agree(found, expected, f"{schedule}, {prediction}", atol=1e-7 * float(expected.abs().max()))


def test_the_first_step_errs_by_the_fourth_power() -> None:
    """Of N(0, c^2) y_1 = y_0 sqrt(1 + r^2 / c^2): twice the ratio, sixteen times the error."""
    process = Product({"x": Gaussian(VEKarras())})
    denoise = Mixture.gaussian(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), torch.ones(1).double()).denoise(
        process
    )
    errors = []
    for r in (0.05, 0.1, 0.2):
        times = [VEKarras().time_at(-2 * torch.log(torch.tensor(r)).item()), 0.0]
        r = VEKarras().at(times[0])[1]
        errors.append(abs(float(invert(denoise, {"x": torch.ones(1, 1).double()}, times)["x"]) - (1 + r * r) ** 0.5))
    assert errors[1] / errors[0] == pytest.approx(16, rel=0.1) == errors[2] / errors[1]


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "adaptive"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_up_to_pure_noise(name: str, schedule: Schedule) -> None:
    """Where alpha may be 0, and the ratio infinite: finite, and of the size of noise."""
    mixture, process, x0 = plane(schedule)
    times = torch.cat([torch.ones(1, dtype=torch.float64), grid(schedule, 30, clean=1e-2)])
    found = invert(mixture.denoise(process), {"x": x0}, times, sampler=registry.build("sampler", name))["x"]
    assert 0.4 < float(found.std()) / schedule.at(1.0)[1] < 1.6


def test_it_keeps_masks_and_spaces() -> None:
    space, mask = ZeroCentreOfMass(), ragged([4, 2, 3])
    process = Product({"x": Gaussian(RectifiedFlow(), space)})
    means = Noise.of(0, 2).normal("m", (4, 3), torch.float64)
    mixture = Mixture.gaussian(means, torch.full((2, 1, 1), 0.5).double(), torch.tensor([0.5, 0.5]).double())
    x0 = mixture.draw(process, Noise.of(1, 3), {"x": mask})
    found = invert(mixture.denoise(process), x0, grid(RectifiedFlow(), 12), sampler=Heun(), mask={"x": mask})["x"]
    assert not bool(found[~mask.expand(3, 4, 3)].any())
    agree(found.sum(1), 0.0, "the centre of mass", atol=1e-10)
    alone = invert(mixture.denoise(process), {"x": x0["x"][1:2, :2]}, grid(RectifiedFlow(), 12), sampler=Heun())["x"]
    agree(alone, found[1:2, :2], "a sample alone, without padding", atol=1e-10)


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(0.5), EDM(), SASolver(), Restart(), Consistency()], ids=lambda s: type(s).__name__
)
def test_noise_cannot_be_taken_back(sampler: Sampler) -> None:
    mixture, process, x0 = plane(VPLinear())
    with pytest.raises(ValueError, match=r"got a sampler that draws noise; expected a deterministic one.*use ddim"):
        invert(mixture.denoise(process), {"x": x0}, grid(VPLinear(), 20), sampler=sampler)


def test_noise_cannot_be_taken_back_of_leaves_that_are_made_in_parts() -> None:
    mixture, process, x0 = plane(VPLinear())
    with pytest.raises(ValueError, match="got a sampler that draws noise"):
        invert(mixture.denoise(process), {"x": x0[:1].expand(20_000, -1)}, grid(VPLinear(), 2), sampler=Ancestral())


def test_what_else_is_refused() -> None:
    case, (mixture, process, x0) = mixed(), plane(RectifiedFlow())
    denoise = mixture.denoise(process)
    with pytest.raises(ValueError, match=r"got categorical leaves \['c'\]; expected real-valued.*start_at"):
        invert(case.denoise, case.noise(2), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"got a grid whose last step is from t = 0.9 to 0.*finer near the data"):
        invert(denoise, {"x": x0}, [1.0, 0.9, 0.0])
    with pytest.raises(ValueError, match=r"expected them to fall"):
        invert(denoise, {"x": x0}, [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"got values that are not finite"):
        invert(denoise, {"x": torch.full_like(x0, torch.nan)}, [1.0, 0.5, 0.1])
