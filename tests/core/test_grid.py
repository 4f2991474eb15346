"""Time grids against their formulas."""

import math

import pytest
import torch

from diffkit.grid import Karras, LogSNR, Power
from diffkit.schedule import Cosine, RectifiedFlow, Schedule, VEKarras, VPLinear


def test_power() -> None:
    assert torch.equal(Power()(4, VPLinear()), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    assert torch.equal(Power(2.0)(4, VPLinear()), torch.tensor([1, 0.5625, 0.25, 0.0625, 0], dtype=torch.float64))


@pytest.mark.parametrize("schedule", [VEKarras(), RectifiedFlow(), Cosine()], ids=str)
def test_karras_is_equation_5(schedule: Schedule) -> None:
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = Karras()(18, schedule)
    alpha, noise = schedule(times[:-1])
    torch.testing.assert_close(noise / alpha, sigma, rtol=1e-8, atol=0)
    assert float(times[-1]) == 0.0


def test_karras_is_cut_to_what_a_schedule_has() -> None:
    schedule = VPLinear(0.1, 5.0)
    top = math.sqrt(math.expm1(0.5 * (0.1 + 5.0)))  # sigma/alpha at t = 1, about 3.4
    i = torch.arange(18, dtype=torch.float64)
    expected = (top ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - top ** (1 / 7))) ** 7
    alpha, sigma = schedule(Karras()(18, schedule)[:-1])
    torch.testing.assert_close(sigma / alpha, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow(), Cosine()], ids=str)
def test_log_snr_is_even(schedule: Schedule) -> None:
    times = LogSNR()(20, schedule)
    inner = schedule.log_snr(times[1:-1])
    torch.testing.assert_close(inner.diff(), inner.diff().mean().expand(18), rtol=1e-7, atol=0)
    assert float(times[0]) == 1.0
    assert float(times[-2]) == pytest.approx(0.001)
    assert float(times[-1]) == 0.0


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("grid", [Power(), LogSNR(), Karras()], ids=str)
def test_no_steps_are_refused(grid: Power, steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {steps} steps; expected at least 1"):
        grid(steps, VPLinear())
