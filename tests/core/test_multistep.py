"""The weights of multistep methods against integrals that are known, their ends, and what they refuse."""

import math
from itertools import pairwise

import pytest
import torch

from diffkit import registry
from diffkit.estimate import GaussianEstimate
from diffkit.noise import Noise
from diffkit.prediction import System
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.samplers import DDIM, Call
from diffkit.samplers.multistep import exponential_moments, lowered, places, scaled, total, weights
from diffkit.schedule import Cosine, RectifiedFlow, Schedule
from diffkit.testing import Mixture
from diffkit.testing.compare import refused


@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.3, 0.999, 1.001, 4.0, 25.0, -1e-3, -0.999, -1.5, -12.0])
def test_moments_are_the_integrals(rate: float) -> None:
    """Against Simpson's rule on 20,000 intervals, whose error at these rates is below 1e-12 of the value."""
    v = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    simpson = torch.tensor([4.0, 2.0] * 10_000, dtype=torch.float64)[:-1]
    simpson = torch.cat([torch.ones(1).double(), simpson, torch.ones(1).double()]) / 60_000
    kernel = rate * torch.exp(-rate * (1 - v)) * simpson
    wanted = [float((kernel * v**i).sum()) for i in range(4)]
    for count in (1, 2, 3, 4):
        assert exponential_moments(rate, count) == pytest.approx(wanted[:count], rel=1e-10)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.7], [1.0, 0.0], [0.0, -1.0, -2.5], [1.0, 0.0, -0.2, -3.0]], ids=str)
def test_weights_are_exact_for_polynomials(nodes: list[float]) -> None:
    moments = exponential_moments(0.8, 4)
    found = weights(nodes, moments)
    for power in range(len(nodes)):
        assert sum(w * v**power for w, v in zip(found, nodes, strict=True)) == pytest.approx(moments[power], rel=1e-12)


def test_the_weights_of_equal_steps_are_those_of_adams_and_bashforth() -> None:
    found = weights([0.0, -1.0, -2.0, -3.0], [1.0, 1 / 2, 1 / 3, 1 / 4])
    assert found == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-13)


def test_the_end_of_the_grid_lowers_the_order() -> None:
    grid = (1.0, 0.7, 0.4, 0.2, 0.0)
    assert [lowered(3, s, grid) for s in grid[1:]] == [3, 3, 2, 1]
    assert [lowered(2, s, grid[:-1]) for s in grid[1:-1]] == [2, 2, 1]
    assert lowered(3, 0.2, ()) == 3


@pytest.mark.parametrize("name", ["deis", "dpmpp_2m", "dpmpp_3m"])
def test_the_last_step_of_a_sampler_that_sees_the_end_is_ddim(name: str) -> None:
    """Of a grid that ends in the noise, where nothing else lowers the order."""
    means = torch.tensor([[-2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    mixture = Mixture.gaussian(means, torch.full((2, 2), 0.5).double(), torch.tensor([0.25, 0.75]).double())
    times, noise = (0.9, 0.7, 0.5, 0.3, 0.1), Noise.of(0, 3)
    call = Call(mixture.denoise(Product({"x": Gaussian(Cosine())})), grid=times)
    sampler = registry.build("sampler", {"name": name, "lower_final": True})
    state = sampler.init({"x": noise.normal("x", (2,), torch.float64)})
    for t, s in pairwise(times):
        expected = DDIM().update(state, t, s, call, noise).x["x"]
        plain = registry.build("sampler", name).update(state, t, s, call, noise).x["x"]
        state = sampler.update(state, t, s, call, noise)
    torch.testing.assert_close(state.x["x"], expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain, expected)


def test_what_is_infinitely_far_has_no_place() -> None:
    assert places(2.0, [1.0, 0.0, -1.0]) == [0.0, -1.0, -2.0]
    assert places(2.0, [1.0, -math.inf, -math.inf]) == [0.0]
    assert places(math.inf, [1.0, 0.0]) == [0.0]
    assert places(2.0, [-math.inf]) == [0.0]


@pytest.mark.parametrize(
    "system", [System(0.6, 0.8, 0.0, 1.0), System(1e-3, 1.0, 1.0, 0.0), System(0.0, 1.0, -1.0, 0.0)]
)
def test_a_scaled_value_is_the_value(system: System) -> None:
    x, pred = (Noise.of(0, 3).normal(k, (4,), torch.float64) for k in "xp")
    estimate = GaussianEstimate(x, pred, system)
    for u, w in ((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)):
        torch.testing.assert_close(total([scaled(estimate, u, w)]), estimate.combine(u, w), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("name", ["dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "deis"])
def test_one_step_from_pure_noise_goes_to_the_mean(name: str, schedule: Schedule) -> None:
    means = torch.tensor([[-2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    mixture = Mixture.gaussian(means, torch.full((2, 2), 0.5).double(), torch.tensor([0.25, 0.75]).double())
    denoise = mixture.denoise(Product({"x": Gaussian(schedule)}))
    sampler = registry.build("sampler", name)
    drawn = sample(denoise, {"x": (3, 2)}, sampler=sampler, times=[1.0, 0.0], noise=Noise.of(0, 3)).x["x"]
    torch.testing.assert_close(drawn.double(), torch.tensor([0.25, 2.25]).double().expand(3, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "deis", "order": 4},
        {"name": "deis", "over": "u"},
        {"name": "lms", "order": 0},
        {"name": "ipndm", "order": 5},
        {"name": "unipc", "order": 4},
        {"name": "unipc", "variant": "bh3"},
        {"name": "dpmpp_2m_sde", "eta": 1.5},
        {"name": "dpmpp_3m_sde", "eta": -0.1},
    ],
    ids=str,
)
def test_what_is_refused(node: dict[str, object]) -> None:
    refused(lambda: registry.build("sampler", node), str(node))
