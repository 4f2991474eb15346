"""Orders of convergence, fitted on solutions known in closed form or to ten digits."""

import pytest
import torch
from torch import Tensor

from diffkit import registry
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.samplers import DDIM, DPMpp2M, Euler, Heun, Sampler
from diffkit.schedule import Cosine, RectifiedFlow, Schedule, VEKarras, VPLinear
from diffkit.space import Euclidean, Space, ZeroCentreOfMass
from diffkit.testing import Mixture
from diffkit.testing.drawing import convergence
from diffkit.testing.formulas import ragged
from diffkit.typing import Masks

SAMPLERS: list[tuple[Sampler, int]] = [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMpp2M(), 2)]
STEPS = (32, 64, 128)


def order(errors: Tensor) -> float:
    return float(torch.log2(errors[0] / errors[-1])) / (len(errors) - 1)


@pytest.mark.parametrize("schedule", registry.names("schedule"))
@pytest.mark.parametrize(("sampler", "expected"), SAMPLERS, ids=str)
def test_on_a_gaussian_mixture(sampler: Sampler, expected: int, schedule: str) -> None:
    """In y = x / alpha every schedule tells the same story: equal errors but for Heun, whose coordinate it chooses."""
    built = registry.build("schedule", schedule)
    errors = convergence(sampler, built, STEPS)
    assert abs(order(errors) - expected) < 0.15, f"errors {errors.tolist()} after {STEPS} steps"
    if built.coordinate == "ratio" or not isinstance(sampler, Heun):
        torch.testing.assert_close(errors, convergence(sampler, VEKarras(), STEPS), rtol=1e-5, atol=0)


def exact(y: Tensor, deviation: Tensor, before: float, after: float) -> Tensor:
    """The flow of N(0, deviation^2): y keeps its quantile as its variance falls from c^2 + r^2 to c^2 + s^2."""
    return y * ((deviation**2 + after**2) / (deviation**2 + before**2)).sqrt()


SETTINGS: dict[str, tuple[Space, tuple[int, ...], Tensor, Masks]] = {
    "ill-conditioned, 64-D": (Euclidean(), (64,), torch.logspace(-1, 1.5, 64, dtype=torch.float64), {}),
    "ragged, centred": (
        ZeroCentreOfMass(),
        (5, 3),
        torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64),
        {"x": ragged([5, 2, 3, 4])},
    ),
}


@pytest.mark.parametrize("schedule", [VPLinear(), VEKarras(), RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("sampler", "expected"), SAMPLERS, ids=str)
def test_on_normal_data_in_closed_form(sampler: Sampler, expected: int, name: str, schedule: Schedule) -> None:
    space, shape, deviation, mask = SETTINGS[name]
    process = Product({"x": Gaussian(schedule, space)})
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    denoise = Mixture.gaussian(zero, deviation.expand(1, *shape), torch.ones(1, dtype=torch.float64)).denoise(process)
    noisy, clean = 30.0, 0.1
    y = noisy * space.normal(Noise.of(0, 4), "y", (4, *shape), mask.get("x"), torch.float64)
    wanted = exact(y, deviation, noisy, clean)
    errors = []
    for n in STEPS:
        ratio = torch.logspace(torch.tensor(noisy).log10(), torch.tensor(clean).log10(), n + 1, dtype=torch.float64)
        times = schedule.time(-2 * torch.log(ratio))
        (first, _), (last, sigma) = schedule(times[0]), schedule(times[-1])
        found = sample(
            denoise, {}, sampler=sampler, times=times, noise=Noise.of(0, 4), start={"x": first * y}, mask=mask
        ).x["x"]
        torch.testing.assert_close(sigma / last, torch.tensor(clean).double(), rtol=1e-6, atol=0)
        errors.append((found / last - wanted).square().mean().sqrt())
    fitted = order(torch.stack(errors))
    assert abs(fitted - expected) < 0.25, f"errors {[float(e) for e in errors]} after {STEPS} steps, order {fitted:.2f}"
