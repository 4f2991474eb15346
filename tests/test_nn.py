"""Embeddings of numbers, and the transformer: shapes, distances, masks, and the null vector."""

import math

import pytest
import torch

from diffkit.nn.embeddings import FourierFeatures, ScalarEmbedding, TimeEmbedding
from diffkit.nn.transformer import Attention, Block, Mixer, axial, rotary


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


def test_rotary_attention_sees_distances_alone():
    """Shifting all positions changes nothing; stretching them does."""
    torch.manual_seed(0)
    attention, x, places = Attention(64).double(), torch.randn(2, 9, 64).double(), torch.arange(9)
    first = attention(x, rotary(places).double())
    torch.testing.assert_close(attention(x, rotary(places + 5).double()), first, atol=1e-6, rtol=1e-6)
    assert (attention(x, rotary(places * 2).double()) - first).abs().max() > 1e-3


def test_the_angle_of_position_one_is_one_radian_at_first():
    cos, sin = rotary(torch.tensor([0, 1]), width=4)
    torch.testing.assert_close(cos, torch.tensor([[1.0, 1.0], [math.cos(1), math.cos(0.01)]]))
    torch.testing.assert_close(sin, torch.tensor([[0.0, 0.0], [math.sin(1), math.sin(0.01)]]))


def test_on_a_plane_half_of_the_pairs_turn_with_each_axis():
    places = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    cos, sin = axial(places, width=8, base=100.0)
    angles = torch.tensor([[3.0, 0.3, 0.0, 0.0], [0.0, 0.0, 5.0, 0.5]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    with pytest.raises(ValueError, match="got width 6; expected a multiple of 4"):
        axial(places, width=6)


def test_axial_attention_sees_shifts_along_both_axes_alone():
    torch.manual_seed(0)
    attention, x = Attention(64).double(), torch.randn(2, 12, 64).double()
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0))
    first = attention(x, axial(places).double())
    torch.testing.assert_close(
        attention(x, axial(places + torch.tensor([5, -2])).double()), first, atol=1e-6, rtol=1e-6
    )
    assert (attention(x, axial(places.flip(1)).double()) - first).abs().max() > 1e-3


def test_a_mixer_does_nothing_at_first_and_then_adds():
    mixer, c = Mixer(8), torch.randn(3, 1, 8)
    assert torch.equal(mixer(c), c)
    torch.nn.init.normal_(mixer.narrow.weight)
    hidden = torch.nn.functional.silu(mixer.widen(torch.nn.functional.layer_norm(c, (8,))))
    torch.testing.assert_close(mixer(c), c + hidden @ mixer.narrow.weight.T)


def test_attention_without_positions_is_softmax_of_normalised_products():
    torch.manual_seed(0)
    attention, x = Attention(32), torch.randn(1, 5, 32)
    q, k, v = attention.inward(x).chunk(3, dim=-1)
    q, k = (y / (y.square().mean(-1, keepdim=True)).sqrt() for y in (q, k))
    expected = attention.out((q @ k.mT / 32**0.5).softmax(-1) @ v)
    torch.testing.assert_close(attention(x, rotary(torch.zeros(5))), expected, atol=1e-5, rtol=1e-5)


def test_a_block_does_not_look_at_what_is_not_real():
    torch.manual_seed(0)
    block, x, turn = Block(32, 64), torch.randn(2, 6, 32), rotary(torch.arange(6))
    real = torch.tensor([True] * 4 + [False] * 2).expand(2, 1, 1, 6)
    still = torch.zeros(2, 1, 192)
    alone = block(x[:, :4], still, turn[:, :4])
    torch.testing.assert_close(block(x, still, turn, real)[:, :4], alone, atol=1e-5, rtol=1e-5)


def test_attention_of_a_width_that_is_no_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="got width 40; expected a multiple of 32"):
        Attention(40)
