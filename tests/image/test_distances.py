"""Distances between sets of pictures, against closed forms and sums by hand."""

import math
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit_image.distances import Eye, cached, kernel


def cubic(a: Tensor, b: Tensor) -> float:
    return float(((a * b).sum() / len(a) + 1) ** 3)


def unbiased(x: Tensor, y: Tensor) -> float:
    """The estimate as its sums are written."""
    within = np.mean([cubic(a, b) for a, b in permutations(x, 2)]) + np.mean(
        [cubic(a, b) for a, b in permutations(y, 2)]
    )
    return float(within - 2 * np.mean([cubic(a, b) for a, b in product(x, y)]))


def test_the_kernel_distance_is_its_sums() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) + n / 5 for n in (6, 4))
    value, error = kernel(x, y)
    assert value == pytest.approx(unbiased(x, y))
    without = np.array([unbiased(torch.cat([x[:k], x[k + 1 :]]), y) for k in range(6)])
    assert error == pytest.approx(math.sqrt(5 / 6 * ((without - without.mean()) ** 2).sum()))


def test_the_kernel_distance_of_points() -> None:
    a, b = torch.full((5, 2), 1.0), torch.full((3, 2), -1.0)  # k = 8 within and 0 between
    assert kernel(a, b) == (pytest.approx(8 + 8), pytest.approx(0, abs=1e-9))
    assert kernel(a, a)[0] == pytest.approx(0)


def test_the_kernel_distance_has_no_bias() -> None:
    """Two sets of one distribution: the mean over many is zero within its error, however small the sets are."""
    generator = torch.Generator().manual_seed(3)
    found = [kernel(*torch.randn(2, 5, 3, generator=generator, dtype=torch.float64))[0] for _ in range(2000)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(2000)
    assert min(found) < 0


def test_the_kernel_distance_of_known_distributions() -> None:
    """Of signs with equal chances and of zeros, in one dimension: E k = (8 + 0) / 2 within, 1 within, 1 between."""
    signs = torch.tensor([[1.0], [-1.0]]).repeat(1000, 1)
    value, _ = kernel(signs, torch.zeros(1000, 1))
    assert value == pytest.approx(4 + 1 - 2, rel=2e-3)


def test_the_error_falls_with_the_root_of_the_number() -> None:
    generator = torch.Generator().manual_seed(4)
    y = torch.randn(200, 4, generator=generator)
    small, large = (kernel(torch.randn(n, 4, generator=generator) + 0.3, y)[1] for n in (100, 1600))
    assert small / large == pytest.approx(4, rel=0.35)


def test_too_few_pictures() -> None:
    x = torch.zeros(2, 3)
    assert all(map(math.isnan, kernel(x[:1], x)))
    value, error = kernel(x, x)
    assert value == 0 and math.isnan(error)


def test_features_are_kept_for_their_eye_version_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    looked: list[int] = []

    def see(pixels: Tensor) -> Tensor:
        looked.append(len(pixels))
        return pixels.mean((2, 3))

    pixels = torch.linspace(-1, 1, 2 * 4 * 64 * 64).view(2, 4, 64, 64)
    first = cached("means", Eye("1", see), pixels)
    assert torch.equal(first, pixels.mean((2, 3))) and looked == [2]
    assert torch.equal(cached("means", Eye("1", see), pixels), first) and looked == [2]
    cached("means", Eye("2", see), pixels)
    cached("others", Eye("1", see), pixels)
    assert torch.equal(cached("means", Eye("1", see), pixels[:1]), first[:1])
    assert looked == [2, 2, 2, 1] and len(list((tmp_path / "image" / "features").iterdir())) == 4
