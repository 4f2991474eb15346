"""The denoiser over the places of a latent picture: what it must not depend on, and what it must."""

import pytest
import torch
from torch.nn import functional as F

from diffkit.condition import Condition
from diffkit_image.network import DiT

SMALL = {"channels": 3, "width": 32, "condition": 16, "hidden": 48, "layers": 2}
ALL = {"categories": 3, "words": 5, "text": 8}
GIVEN = {
    "category": torch.tensor([0.0, 2.0]),
    "words": torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]),
    "text": torch.ones(2, 8),
}


def network(**options):
    torch.manual_seed(0)
    module = DiT(**{**SMALL, **options})
    for p in module.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    return module.eval().requires_grad_(False)


def latents(tall=6, wide=4, batch=2):
    return torch.randn(batch, 3, tall, wide, generator=torch.Generator().manual_seed(1))


def said(module, x, t=None, condition=None, mask=None):
    time = torch.full((len(x),), 0.4) if t is None else t
    return module({"latent": x}, time, condition or Condition(), {} if mask is None else {"latent": mask})["latent"]


def test_at_first_it_says_nothing():
    assert not said(DiT(**SMALL).requires_grad_(False), latents()).any()


@pytest.mark.parametrize(("patch", "tall", "wide"), [(1, 8, 8), (1, 3, 7), (2, 8, 8), (2, 5, 7), (3, 1, 1)])
def test_pictures_of_any_size_keep_it_and_padding_changes_nothing(patch, tall, wide):
    """Patches that are padded in part are read as if the picture ended there."""
    module, x = network(patch=patch), latents(tall, wide)
    more = F.pad(x, (0, 4, 0, 5), value=torch.nan)
    real = F.pad(torch.ones(2, 1, tall, wide), (0, 4, 0, 5)).bool()
    got, alone = said(module, more, mask=real), said(module, x)
    assert alone.shape == x.shape and alone.isfinite().all()
    assert torch.allclose(got[..., :tall, :wide], alone, atol=1e-5)
    assert not torch.where(real, 0, got).any()
    assert torch.allclose(said(module, x, mask=real[..., :tall, :wide]), alone, atol=1e-6)


def test_a_patch_is_put_back_where_it_was_taken():
    module, x = network(patch=2), latents(5, 7)
    tokens = module._patches(x)
    assert tokens.shape == (2, 12, 12) and torch.equal(module._places(tokens, 5, 7), x)
    assert torch.equal(tokens[0, 5].reshape(2, 2, 3), x[0, :, 2:4, 2:4].permute(1, 2, 0))


def test_it_sees_the_whole_picture_and_where_in_it_a_place_is():
    module, x = network(), latents()
    changed = x.clone()
    changed[..., -1, -1] += 1
    assert ((said(module, changed) - said(module, x))[..., 0, 0].abs() > 1e-5).any()
    places = said(module, torch.zeros(1, 3, 6, 4))[0].flatten(1).T
    assert torch.pdist(places).min() > 1e-3


def test_the_middle_is_the_middle_whatever_the_size():
    module = network()
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(3))
    middle = module._where(grid, latents(5, 3), None)[0, 7]
    small = module._where(torch.zeros(1, 2), latents(1, 1), None)[0, 0]
    assert torch.allclose(middle, small, atol=1e-6)


def test_rows_and_columns_are_not_the_same():
    module, x = network(), latents(6, 6)
    assert not torch.allclose(said(module, x.mT).mT, said(module, x), atol=1e-2)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_time_per_place_that_is_the_same_everywhere_is_a_time_per_sample(patch):
    module, x = network(patch=patch), latents(5, 4)
    whole = said(module, x, torch.tensor([0.3, 0.6]))
    each = torch.tensor([0.3, 0.6]).reshape(2, 1, 1, 1).repeat(1, 1, 5, 4)
    assert torch.allclose(whole, said(module, x, each), atol=1e-5)
    assert torch.allclose(said(module, x, torch.tensor(0.3))[0], whole[0], atol=1e-5)
    each[:, :, :3] = 0
    assert not torch.allclose(said(module, x, each), whole, atol=1e-3)
    with pytest.raises(ValueError, match="one for all channels of a place"):
        said(module, x, torch.rand(2, 3, 5, 4))


def test_conditions_that_are_not_given_count_as_absent_whatever_they_hold():
    module, x = network(**ALL), latents()
    hidden = Condition(
        {name: torch.full_like(value, torch.nan) for name, value in GIVEN.items()},
        {name: torch.zeros(2).bool() for name in GIVEN},
    )
    assert torch.allclose(said(module, x, condition=hidden), said(module, x), atol=1e-6)


@pytest.mark.parametrize("name", GIVEN)
def test_every_condition_alone_and_beside_the_others_changes_what_it_says(name):
    module, x = network(**ALL), latents()
    alone = said(module, x, condition=Condition.of(**{name: GIVEN[name]}))
    assert ((alone - said(module, x)).abs().amax((1, 2, 3)) > 1e-3).all()
    every = Condition.of(**GIVEN)
    but = every.drop({name: torch.ones(2).bool()})
    assert ((said(module, x, condition=every) - said(module, x, condition=but)).abs().amax((1, 2, 3)) > 1e-3).all()


def test_words_are_the_sum_of_their_vectors_over_the_root_of_their_number():
    module = network(words=5)
    bag, none = torch.tensor([[1.0, 0, 1, 1, 1]]), torch.zeros(1, 3, 2, 2)
    got = module._condition(none, None, torch.tensor(0.5), Condition.of(words=bag))
    vectors = module.words.weight.T
    expected = module.time(torch.tensor([0.5])) + (vectors[0] + vectors[2] + vectors[3] + vectors[4]) / 2
    assert torch.allclose(got[0], expected, atol=1e-6)
    assert said(module, none, condition=Condition.of(words=torch.zeros(1, 5))).isfinite().all()


def test_conditions_of_one_sample_leave_the_others_alone():
    module, x = network(**ALL), latents()
    first = Condition({k: v[:1] for k, v in GIVEN.items()}, {k: torch.ones(1).bool() for k in GIVEN})
    both = said(module, x, condition=Condition.of(**GIVEN))
    assert torch.allclose(said(module, x[:1], condition=first), both[:1], atol=1e-5)


@pytest.mark.parametrize("name", ["category", "colour"])
def test_a_condition_that_it_does_not_know_is_refused(name):
    with pytest.raises(ValueError, match=f"got conditions \\['{name}'\\]; expected some of \\['words', 'text'\\]"):
        said(network(text=4, words=2), latents(), condition=Condition.of(**{name: torch.zeros(2)}))


def test_widths_are_multiples_of_a_heads():
    with pytest.raises(ValueError, match="multiple of 32"):
        DiT(**{**SMALL, "width": 40})
