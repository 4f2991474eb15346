"""The Fréchet distance, against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.frechet import frechet


def normals(mean: list[float], deviations: list[float], turn: Tensor) -> Tensor:
    """Features whose sample mean and covariance are exactly turn diag(deviations²) turn^T."""
    d = len(mean)
    corners = torch.tensor(np.array(np.meshgrid(*[[-1.0, 1.0]] * d)).reshape(d, -1).T)
    scale = math.sqrt((len(corners) - 1) / len(corners))
    return (corners * scale * torch.tensor(deviations)) @ turn.T + torch.tensor(mean)


def test_frechet_of_known_normals() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    x, y = normals([0, 1, 2], [1, 2, 0.5], turn), normals([0, 1, 5], [3, 2, 0], turn)
    assert frechet(x, y) == pytest.approx(9 + 4 + 0 + 0.25)
    assert frechet(y, x) == pytest.approx(9 + 4 + 0 + 0.25)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(9, 4, generator=generator, dtype=torch.float64) * torch.arange(1, 5) for _ in range(2))
    values = torch.linalg.eigvals(x.T.cov() @ y.T.cov()).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace() - 2 * values
    assert frechet(x, y) == pytest.approx(float(expected))


def test_frechet_of_fewer_samples_than_features() -> None:
    x, y = torch.tensor([[0.0, 0, 0], [2, 0, 0]]), torch.tensor([[0.0, 0, 0], [0, 2, 0]])
    assert frechet(x, y) == pytest.approx(2 + 2 + 2)  # means (1, 0) and (0, 1); variances 2 each, along other axes
    assert math.isnan(frechet(x[:1], y))
