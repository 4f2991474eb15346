"""Schedules against their papers' formulas, written out anew."""

import math

import numpy as np
import pytest
import torch

from diffkit.schedule import Cosine, RectifiedFlow, VEKarras, VPLinear, VPTable

T = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)


def test_table_is_the_cumulative_product() -> None:
    schedule = VPTable((0.1, 0.2, 0.5))
    alpha, sigma = schedule(torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64))
    torch.testing.assert_close(alpha.square(), torch.tensor([1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.5], dtype=torch.float64))
    torch.testing.assert_close(sigma.square(), torch.tensor([0, 0.1, 0.28, 0.64], dtype=torch.float64))
    between, _ = schedule(torch.tensor(0.5, dtype=torch.float64))  # log alpha is linear within a step
    assert math.isclose(float(between) ** 2, 0.9 * 0.8**0.5)


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        (VPTable.linear(), np.linspace(1e-4, 0.02, 1000)),
        (VPTable.scaled_linear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    ],
    ids=["linear", "scaled linear"],
)
def test_tables_of_released_models(schedule: VPTable, betas: np.ndarray) -> None:
    steps = np.arange(1, 1001)
    alpha, sigma = schedule(torch.from_numpy(steps / 1000))
    expected = np.cumprod(1 - betas)
    np.testing.assert_allclose(alpha.numpy() ** 2, expected, rtol=1e-11)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - expected, rtol=1e-11)


def test_linear_integrates_its_beta() -> None:
    fine = np.linspace(0, 1, 100_001)
    beta = 0.1 + 19.9 * fine
    total = np.concatenate([[0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(fine))])
    alpha, sigma = VPLinear()(T)
    np.testing.assert_allclose(alpha.numpy() ** 2, np.exp(-np.interp(T.numpy(), fine, total)), rtol=1e-8)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_cosine_is_equation_17() -> None:
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    alpha, sigma = Cosine()(T)
    torch.testing.assert_close(alpha**2, f, rtol=1e-10, atol=0)
    torch.testing.assert_close(sigma**2, 1 - f, rtol=1e-10, atol=0)


def test_exploding_is_the_spacing_of_edm() -> None:
    """Karras et al. (2022), equation 5 with sigma_min = 0: i/(N - 1) is 1 - t."""
    alpha, sigma = VEKarras(80.0, 7.0)(T)
    assert bool((alpha == 1).all())
    torch.testing.assert_close(sigma, (80 ** (1 / 7) + (1 - T) * (0 - 80 ** (1 / 7))) ** 7)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_shifts_the_log_snr(shift: float) -> None:
    """SD3, section 5.3.2: with t_m = shift t / (1 + (shift - 1) t) the log-SNR falls by 2 log shift everywhere."""
    alpha, sigma = RectifiedFlow(shift)(T)
    torch.testing.assert_close(sigma, shift * T / (1 + (shift - 1) * T))
    torch.testing.assert_close(alpha, 1 - sigma)
    lower = RectifiedFlow().log_snr(T) - 2 * math.log(shift)
    torch.testing.assert_close(RectifiedFlow(shift).log_snr(T), lower)


def test_table_time_is_found_by_bisection_to_the_last_digits() -> None:
    schedule = VPTable.linear(7)
    torch.testing.assert_close(schedule.time(schedule.log_snr(T)), T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("betas", [(), (0.1, 0.0), (0.1, 1.0), (0.5, -0.1)])
def test_a_table_that_is_none_is_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"got \d betas; expected at least one, each strictly between 0 and 1"):
        VPTable(betas)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_shift_that_is_none_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=r"got shift .*expected a number above 0"):
        RectifiedFlow(shift)
