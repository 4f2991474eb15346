"""Embeddings of numbers: shapes, distinctness, and the null vector."""

import math

import pytest
import torch

from diffkit.nn.embeddings import FourierFeatures, ScalarEmbedding, TimeEmbedding


def test_fourier_features_are_cosines_and_sines_of_the_stated_frequencies():
    features = FourierFeatures(4, low=0.5, high=2.0)(torch.tensor(0.25))
    angles = torch.tensor([0.5, 2.0]) * 2 * math.pi * 0.25
    torch.testing.assert_close(features, torch.cat([angles.cos(), angles.sin()]))


@pytest.mark.parametrize("width", [0, 3, -2])
def test_an_odd_or_empty_width_is_refused(width):
    with pytest.raises(ValueError, match=f"got width {width}"):
        FourierFeatures(width, low=1.0, high=2.0)


@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (3, 5, 5)])
def test_time_of_any_shape_gains_one_axis(shape):
    assert TimeEmbedding(8)(torch.rand(shape)).shape == (*shape, 8)


def test_time_per_element_is_time_per_sample_repeated():
    embed, t = TimeEmbedding(8), torch.tensor([0.2, 0.7])
    torch.testing.assert_close(embed(t.unsqueeze(1).expand(2, 4)), embed(t).unsqueeze(1).expand(2, 4, 8))


def test_all_times_have_codes_of_their_own():
    codes = TimeEmbedding(8)[0](torch.linspace(0, 1, 1001))
    distance = torch.cdist(codes, codes) + 10 * torch.eye(1001)
    assert distance.min() > 0.1


def test_an_absent_scalar_gives_the_null_vector_whatever_it_holds():
    embed = ScalarEmbedding(8)
    out = embed(torch.tensor([1.0, torch.nan, 7.0]), torch.tensor([True, False, False]))
    assert torch.equal(out[1:], embed.null.expand(2, 8))
    assert not torch.equal(out[0], embed.null)


def test_nan_in_an_absent_scalar_does_not_reach_the_gradient():
    embed = ScalarEmbedding(8)
    embed(torch.tensor([1.0, torch.nan]), torch.tensor([True, False])).sum().backward()
    assert all(p.grad.isfinite().all() for p in embed.parameters())
    assert embed.null.grad.abs().sum() > 0
