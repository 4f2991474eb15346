"""The denoiser over patches of frames: what it must not depend on, and what it must."""

import pytest
import torch

from diffkit.condition import Condition
from diffkit_audio.network import PATCH, Spectrogram

SMALL = {"bands": 6, "width": 32, "condition": 16, "hidden": 48, "layers": 2}
ALL = {"instruments": 3, "scalars": ("pitch", "velocity", "duration"), "text": 8}
refined = pytest.mark.parametrize("refine", [(), (8, 12)], ids=["patches", "refined"])
GIVEN = {
    "instrument": torch.tensor([0.0, 2.0]),
    "pitch": torch.tensor([60.0, 61.0]),
    "velocity": torch.tensor([40.0, 120.0]),
    "duration": torch.tensor([0.25, 1.5]),
    "text": torch.ones(2, 8),
}


def network(**options):
    torch.manual_seed(0)
    module = Spectrogram(**{**SMALL, **options})
    for p in module.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    return module.eval().requires_grad_(False)


def frames(count=24, batch=2):
    return torch.randn(batch, count, 6, generator=torch.Generator().manual_seed(1))


def said(module, x, t=None, condition=None, mask=None):
    time = torch.full((len(x),), 0.4) if t is None else t
    return module({"mel": x}, time, condition or Condition(), {} if mask is None else {"mel": mask})["mel"]


@refined
def test_at_first_it_says_nothing(refine):
    assert not said(Spectrogram(**SMALL, refine=refine).requires_grad_(False), frames()).any()


@refined
@pytest.mark.parametrize("count", [24, 23, 21, 3])
def test_padding_changes_nothing(count, refine):
    """Patches that are padded in part are read as if the clip ended there."""
    module, x = network(refine=refine), frames(count)
    more = torch.cat([x, torch.full((2, 7, 6), torch.nan)], 1)
    real = torch.cat([torch.ones(2, count, 1), torch.zeros(2, 7, 1)], 1).bool()
    got, alone = said(module, more, mask=real), said(module, x)
    assert alone.shape == x.shape
    assert torch.allclose(got[:, :count], alone, atol=1e-5) and not got[:, count:].any()
    assert torch.allclose(said(module, x, mask=real[:, :count]), alone, atol=1e-6)


def test_it_hears_the_whole_clip_and_where_in_it_a_frame_is():
    module, x = network(), frames()
    changed = x.clone()
    changed[:, -1] += 1
    assert ((said(module, changed) - said(module, x))[:, 0].abs() > 1e-5).any()
    silence = torch.zeros(1, 24, 6)
    places = said(module, silence).reshape(6, PATCH, 6)
    assert torch.pdist(places.flatten(1)).min() > 1e-3


@refined
def test_a_time_per_frame_that_is_the_same_everywhere_is_a_time_per_sample(refine):
    module, x = network(refine=refine), frames(22)
    whole = said(module, x, torch.tensor([0.3, 0.6]))
    each = torch.tensor([0.3, 0.6]).reshape(2, 1, 1).repeat(1, 22, 1)
    assert torch.allclose(whole[:, :20], said(module, x, each)[:, :20], atol=1e-5)
    assert torch.allclose(whole, said(module, x, each), atol=1e-5)
    assert torch.allclose(said(module, x, torch.tensor(0.3))[0], whole[0], atol=1e-5)
    each[:, :5] = 0
    assert not torch.allclose(said(module, x, each), whole, atol=1e-3)


def test_every_number_is_refined_by_those_around_it_and_has_a_gain_of_its_own():
    module, x = network(refine=(8, 12)), frames()
    patches = network()
    patches.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("refine.")})
    more = said(module, x) - said(patches, x)
    assert (more.diff(dim=1).abs() > 1e-4).all() and (more.diff(dim=2).abs() > 1e-4).all()


def test_conditions_that_are_not_given_count_as_absent_whatever_they_hold():
    module, x = network(**ALL), frames()
    none = said(module, x)
    hidden = Condition(
        {name: torch.full_like(value, torch.nan) for name, value in GIVEN.items()},
        {name: torch.zeros(2).bool() for name in GIVEN},
    )
    assert torch.allclose(said(module, x, condition=hidden), none, atol=1e-6)


@pytest.mark.parametrize("name", GIVEN)
def test_every_condition_alone_and_beside_the_others_changes_what_it_says(name):
    module, x = network(**ALL), frames()
    alone = said(module, x, condition=Condition.of(**{name: GIVEN[name]}))
    assert ((alone - said(module, x)).abs().amax((1, 2)) > 1e-3).all()
    every = Condition.of(**GIVEN)
    but = every.drop({name: torch.ones(2).bool()})
    assert ((said(module, x, condition=every) - said(module, x, condition=but)).abs().amax((1, 2)) > 1e-3).all()


def test_conditions_of_one_sample_leave_the_others_alone():
    module, x = network(**ALL), frames()
    first = Condition({k: v[:1] for k, v in GIVEN.items()}, {k: torch.ones(1).bool() for k in GIVEN})
    both = said(module, x, condition=Condition.of(**GIVEN))
    assert torch.allclose(said(module, x[:1], condition=first), both[:1], atol=1e-5)


@pytest.mark.parametrize("name", ["instrument", "colour"])
def test_a_condition_that_it_does_not_know_is_refused(name):
    with pytest.raises(ValueError, match=f"got conditions \\['{name}'\\]; expected some of \\['text', 'pitch'\\]"):
        said(network(text=4, scalars=("pitch",)), frames(), condition=Condition.of(**{name: torch.zeros(2)}))


def test_widths_are_multiples_of_a_heads():
    with pytest.raises(ValueError, match="multiple of 32"):
        Spectrogram(**{**SMALL, "width": 40})


@pytest.mark.parametrize("refine", [(8,), (8, 12, 16)])
def test_the_refiner_has_two_widths(refine):
    with pytest.raises(ValueError, match=r"expected \[FINE, COARSE\]"):
        Spectrogram(**SMALL, refine=refine)
