"""What samplers do with each kind of leaf. Their orders and distributions are in tests/exact and tests/conformance."""

import pytest
import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.estimate import Estimates
from diffkit.noise import Noise
from diffkit.samplers import DDIM, Ancestral, Call, DPMpp2M, Euler, Heun, Sampler
from diffkit.testing import mixed
from diffkit.typing import Masks, State, Time

CASE = mixed()
T, S = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
CALL = Call(CASE.denoise, Condition(), {})


@pytest.mark.parametrize(
    ("sampler", "eta"),
    [
        (DDIM(0.3, 0.0), 0.0),
        (DDIM(0.0, 0.4), 0.4),
        (DDIM(0.0), 1.0),
        (Ancestral(), 1.0),
        (Euler(0.2), 0.2),
        (Heun(0.0), 0.0),
        (Heun(), 1.0),
        (DPMpp2M(0.0), 0.0),
        (DPMpp2M(), 1.0),
    ],
    ids=str,
)
def test_classes_take_their_bridge_with_their_own_stochasticity(sampler: Sampler, eta: float) -> None:
    """From the estimate that began the step, whatever is done with the real leaves."""
    x, noise = CASE.noise(200), Noise.of(1, 200)
    said = CALL(x, T)["c"]
    drawn = {e: CASE.process["c"].bridge(x["c"], said, T, S, noise, "c", eta=e) for e in (0.0, 0.2, 0.4, 1.0)}
    assert all(not torch.equal(drawn[a], drawn[b]) for a in drawn for b in drawn if a != b)
    state = sampler.update(sampler.init(x), T, S, CALL, noise)
    assert torch.equal(state.x["c"], drawn[eta])
    again = sampler.update(state, S, S / 2, CALL, noise)  # with a history
    assert torch.equal(
        again.x["c"], CASE.process["c"].bridge(state.x["c"], CALL(state.x, S)["c"], S, S / 2, noise, "c", eta=eta)
    )


@pytest.mark.parametrize(
    ("sampler", "eta"), [(DDIM(0.3, 0.0), 0.3), (DDIM(), 0.0), (Ancestral(), 1.0), (Euler(), 0.0)], ids=str
)
def test_one_step_methods_are_a_bridge_of_the_real_leaf(sampler: Sampler, eta: float) -> None:
    x, noise = CASE.noise(5), Noise.of(1, 5)
    expected = CASE.process["x"].bridge(x["x"], CALL(x, T)["x"], T, S, noise, "x", eta=eta)
    assert torch.equal(sampler.update(sampler.init(x), T, S, CALL, noise).x["x"], expected)


class Counted:
    """A denoiser that notes the times it is asked at."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.process = CASE.process

    def __call__(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Estimates:
        assert isinstance(t, Tensor)
        self.times.append(float(t))
        return CASE.denoise(x_t, t, condition, mask)


@pytest.mark.parametrize(
    ("sampler", "s", "expected"),
    [
        (DDIM(), 0.2, [0.7]),
        (DPMpp2M(), 0.2, [0.7]),
        (Heun(), 0.2, [0.7, 0.2]),
        (Heun(), 0.0, [0.7]),  # the slope at t = 0 is not needed, and for some predictions not defined
    ],
    ids=str,
)
def test_evaluations_of_a_step(sampler: Sampler, s: float, expected: list[float]) -> None:
    counted = Counted()
    x, to = CASE.noise(2), torch.tensor(s, dtype=torch.float64)
    state = sampler.update(sampler.init(x), T, to, Call(counted, Condition(), {}), Noise.of(0, 2))
    assert counted.times == expected
    t, estimates = state.history[0]
    assert float(t) == 0.7
    assert torch.equal(estimates["x"].x0, CALL(x, T)["x"].x0)
