"""Times are even, within (0, 1), and a function of the step's noise."""

import pytest
import torch

from diffkit import registry
from diffkit.noise import Noise
from diffkit.times import LogitNormal, Times, Uniform

ALL = [registry.build("times", name) for name in registry.names("times")]


def draw(times: Times, seed: int, total: int = 64) -> torch.Tensor:
    return times(Noise(seed, torch.zeros(total, dtype=torch.int64)), torch.arange(total), total)


@pytest.mark.parametrize("times", ALL, ids=lambda t: type(t).__name__)
def test_times_are_float32_in_the_open_interval_and_repeat_with_the_seed(times: Times) -> None:
    for seed in range(20):
        t = draw(times, seed)
        assert t.dtype == torch.float32
        assert t.min() > 0 and t.max() < 1
        assert torch.equal(t, draw(times, seed))
    assert not torch.equal(draw(times, 0), draw(times, 1))


@pytest.mark.parametrize("times", ALL, ids=lambda t: type(t).__name__)
def test_a_share_of_the_batch_has_its_share_of_the_times(times: Times) -> None:
    noise = Noise(5, torch.zeros(8, dtype=torch.int64))
    shares = [times(noise, torch.arange(8) * 2 + rank, 16) for rank in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(), draw(times, 5, 16))


def test_uniform_times_of_a_batch_are_evenly_spaced_and_those_of_many_uniform() -> None:
    t = draw(Uniform(), 0).sort().values
    assert torch.allclose(t.diff(), torch.tensor(1 / 64), atol=1e-5)
    first = torch.stack([draw(Uniform(), seed)[0] for seed in range(2000)]).sort().values
    assert (first - torch.linspace(0, 1, 2000)).abs().max() < 0.04  # Kolmogorov-Smirnov, p < 0.005


def test_logit_normal_times_have_normal_logits() -> None:
    logits = torch.cat([draw(LogitNormal(-0.5, 0.8), seed) for seed in range(50)]).logit()
    assert logits.mean() == pytest.approx(-0.5, abs=0.02)
    assert logits.std() == pytest.approx(0.8, abs=0.02)
    assert ((logits + 0.5).abs() < 0.8).float().mean() == pytest.approx(0.6827, abs=0.01)
