"""Training of the vocoder: its losses vanish where it is right, and network and critics play two games."""

import math

import pytest
import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.modality import Batch
from diffkit.noise import Noise
from diffkit_audio.critics import Critics, PeriodCritic, SpectrumCritic
from diffkit_audio.mel import MelSettings, log_mel
from diffkit_audio.vocoder_training import VocoderCodec, crop

SETTINGS = MelSettings(rate=8000, n_fft=512, hop=128, bands=40, high=4000.0)
SMALL = {"width": 16, "hidden": 24, "layers": 1, "refinements": 1, "frames": 16, "critic_width": 2}


def codec(jitter: float = 0.0, **weights: float) -> VocoderCodec:
    torch.manual_seed(0)
    return VocoderCodec.of(SETTINGS, **SMALL, jitter=jitter, weights=weights)


def notes(count: int = 4, samples: int = 4096) -> Tensor:
    """Decaying tones of different pitches."""
    time = torch.arange(samples) / SETTINGS.rate
    hertz = 220 * 2 ** (torch.arange(count)[:, None] / 5)
    return 0.5 * (-3 * time).exp() * (2 * math.pi * hertz * time).sin()


def batch_of(wave: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch({"wave": wave}, {} if mask is None else {"wave": mask}, Condition(), torch.arange(len(wave)))


def test_losses_of_the_right_answer_vanish() -> None:
    trained, wave = codec(), notes(4, 16 * 128)
    exact = (trained.network.analyse(wave) + trained.network.floor).log()
    terms = trained._magnitude_terms(exact, wave, log_mel(wave, SETTINGS))
    assert set(terms) == {"log", "partials", "linear", "mel"}
    for name, value in terms.items():
        assert float(value) == pytest.approx(0, abs=1e-3), name


def test_terms_of_an_answer_that_is_too_loud_are_known() -> None:
    """Of amplitudes c times too large, where the floor does not count: log c, log c, c - 1, log c."""
    trained, wave = codec(), 0.3 * Noise.of(1, 2).normal("wave", (2048,))
    real = trained.network.analyse(wave)
    logs = (1.5 * real + trained.network.floor).log()
    terms = trained._magnitude_terms(logs, wave, log_mel(wave, SETTINGS))
    assert float(terms["log"]) == pytest.approx(math.log(1.5), rel=0.01)
    assert float(terms["partials"]) == pytest.approx(math.log(1.5), rel=0.01)
    assert float(terms["linear"]) == pytest.approx(0.5, rel=0.01)
    assert float(terms["mel"]) == pytest.approx(0.5 * math.log(1.5), rel=0.01)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_terms_are_weighed(weight: float) -> None:
    batch, noise = batch_of(notes()), Noise.of(0, 4)
    terms, plain = codec(log=weight).losses(batch, noise, 0), codec().losses(batch, noise, 0)
    torch.testing.assert_close(terms["log"], weight * plain["log"])
    torch.testing.assert_close(terms["mel"], plain["mel"])


def test_training_lowers_the_loss() -> None:
    trained, batch = codec(), batch_of(notes())
    optimiser = torch.optim.AdamW(trained.network.parameters(), 3e-3)

    def total(step: int) -> Tensor:
        return torch.stack(list(trained.losses(batch, Noise.of(0, 4).fold(step), step).values())).sum()

    before = float(total(-1).detach())
    for step in range(40):
        optimiser.zero_grad()
        total(step).backward()
        optimiser.step()
    assert float(total(-1).detach()) < 0.6 * before


def test_losses_are_a_function_of_the_seed_and_the_items() -> None:
    trained, batch = codec(0.1, spectral=1.0), batch_of(notes())
    again = [trained.losses(batch, Noise.of(seed, 4), 0) for seed in (0, 0, 1)]
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[0])
    assert not torch.equal(again[0]["log"], again[2]["log"])


def test_the_network_and_the_critics_play_two_games() -> None:
    trained = codec(adversarial=1.0, spectral=1.0)
    assert trained.critic is not None
    terms = trained.losses(batch_of(notes()), Noise.of(0, 4), 0)
    assert set(terms) == {"log", "partials", "linear", "mel", "spectral", "adversarial", "features", "critic"}
    critic, network = list(trained.critic.parameters()), list(trained.network.parameters())

    def reaches(name: str, weights: list[torch.nn.Parameter]) -> bool:
        found = torch.autograd.grad(terms[name], weights, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.abs().max() > 0) for gradient in found)

    for name in terms:
        assert reaches(name, critic) == (name == "critic"), name
        assert reaches(name, network) == (name != "critic"), name


def test_critics_that_know_nothing_lose_by_the_hinge() -> None:
    trained = codec(adversarial=0.5)
    assert trained.critic is not None
    for view in trained.critic.views:
        torch.nn.init.zeros_(view.score.parametrizations.weight.original0)
        torch.nn.init.zeros_(view.score.bias)
    terms = trained.losses(batch_of(notes()), Noise.of(0, 4), 0)
    assert float(terms["adversarial"].detach()) == 0.5
    assert float(terms["critic"].detach()) == 2.0


def test_without_its_weight_there_is_no_critic() -> None:
    assert codec().critic is None
    assert "adversarial" not in codec().losses(batch_of(notes()), Noise.of(0, 4), 0)


def test_a_period_critic_sees_columns_apart() -> None:
    """What changes in one sample of a period changes nothing in the other columns."""
    torch.manual_seed(0)
    critic, wave = PeriodCritic(5, 2), notes(1, 1003)
    changed = wave.index_fill(1, torch.arange(2, 1003, 5), 0.7)
    for a, b in zip(critic(wave), critic(changed), strict=True):
        other = [0, 1, 3, 4]
        assert torch.equal(a[..., other], b[..., other]) and not torch.equal(a[..., 2], b[..., 2])


def test_a_spectrum_critic_does_not_hear_the_sign() -> None:
    torch.manual_seed(0)
    critic = SpectrumCritic(256, 2)
    torch.testing.assert_close(critic(notes()), critic(-notes()))


def test_critics_hear_silence_and_have_gradients_there() -> None:
    wave = torch.zeros(1, 2048, requires_grad=True)
    torch.stack([view[-1].sum() for view in Critics(2)(wave)]).sum().backward()
    assert wave.grad is not None and wave.grad.isfinite().all()


def test_crops_are_parts_of_the_clip_and_of_the_silence_around_it() -> None:
    wave = torch.arange(1.0, 1001).expand(400, -1)
    found = crop(wave, 100, Noise.of(0, 400))
    first = found[:, -1] - 99  # what the first sample is, or would be
    for row, begin in zip(found, first.tolist(), strict=True):
        expected = torch.arange(begin, begin + 100).clamp(min=0)
        assert torch.equal(row, expected)
    assert first.min() >= 1 - 50 and 850 < first.max() <= 901
    assert 0.07 < float((first == 1).double().mean()) < 0.19  # one in eight, and the earliest of the others
    assert 0.07 < float((first < 1).double().mean()) < 0.18


def test_crops_of_a_short_clip_stay_with_it() -> None:
    wave = torch.cat([torch.arange(1.0, 151), torch.zeros(850)]).expand(64, -1)
    real = (torch.arange(1000) < 150).expand(64, -1)
    found = crop(wave, 100, Noise.of(0, 64), real)
    assert found[:, -1].min() > 0 and 140 < found.max() <= 150
    shorter = crop(wave[:, :60], 100, Noise.of(0, 64))
    assert shorter.shape == (64, 100) and (shorter.amax(1) > 0).all() and (shorter[:, -1] == 0).any()


def test_a_crop_does_not_depend_on_the_others() -> None:
    wave = Noise.of(3, 6).normal("wave", (500,))
    both, alone = crop(wave, 64, Noise.of(0, 6)), crop(wave[4:], 64, Noise.of(0, 2, start=4))
    assert torch.equal(both[4:], alone)


def test_an_unknown_term_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ValueError, match=r"got a weight of 'partial'.*partials"):
        codec(partial=1.0)
