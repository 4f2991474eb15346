"""Training of an autoencoder: its losses are known in closed form, and network and critic play two games."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.modality import Batch
from diffkit.noise import Noise
from diffkit_image.autoencoder_training import AutoencoderCodec, Critic, augment, divergence, planes

CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "latent_channels": 4,
    "encoder_block_out_channels": [4, 8, 16],
    "encoder_layers_per_block": [0, 1, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_block_out_channels": [4, 8, 16],
    "decoder_layers_per_block": [0, 1, 1],
    "decoder_qkv_multiscales": [[], [], []],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
KL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def codec(kind: str = "AutoencoderDC", **options: Any) -> AutoencoderCodec:
    torch.manual_seed(0)
    weights = {"square": 1.0, **options.pop("weights", {})}
    return AutoencoderCodec.of(
        kind, CONFIG if kind == "AutoencoderDC" else KL, weights=weights, critic_width=4, **options
    )


def discs(count: int = 4, side: int = 16) -> Tensor:
    """Of different colours and places, on nothing."""
    draws = Noise.of(0, count).uniform("discs", (5,)).float()
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = 4 + draws[:, :2] * (side - 8)
    within = ((y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2 < 16).float().unsqueeze(1)
    return torch.cat([draws[:, 2:, None, None] * within, within], 1) * 2 - 1


def batch_of(pixels: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch({"pixels": pixels}, {} if mask is None else {"pixels": mask}, Condition(), torch.arange(len(pixels)))


def test_terms_of_the_right_answer_vanish() -> None:
    assert set(map(float, codec()._terms(discs(), discs()).values())) == {0.0}


@pytest.mark.parametrize("off", [-0.25, 0.5])
def test_terms_of_one_colour_that_is_off_are_known(off: float) -> None:
    """On black and on white, two of seven planes; of opacity, all but the three of colours on black."""
    real = discs()
    for channel, share in ((0, 2 / 7), (3, 4 / 7)):
        made = real.clone()
        made[:, channel] += off
        terms = codec(weights={"scales": 0.5})._terms(made, real)
        assert float(terms["pixels"]) == pytest.approx(share * abs(off), rel=1e-5)
        assert float(terms["square"]) == pytest.approx(share * off**2, rel=1e-5)
        assert float(terms["scales"]) == pytest.approx(0.5 * share * abs(off), rel=1e-5)


def test_fine_errors_do_not_count_in_the_scales() -> None:
    real = discs()
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    made = real + 0.1 * ((-1.0) ** (x + y))
    terms = codec()._terms(made, real)
    assert float(terms["scales"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["pixels"]) == pytest.approx(0.1 * 4 / 7, rel=1e-5)  # on white, as much as opacity takes away


def test_planes_of_a_picture_without_opacity_are_its_colours() -> None:
    assert torch.equal(planes(discs()[:, :3]), discs()[:, :3])
    assert planes(discs()).shape[1] == 7


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 1.0), (0.0, 0.05), (-2.0, 0.3)])
def test_the_divergence_is_that_of_torch(mean: float, deviation: float) -> None:
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0))
    torch.testing.assert_close(divergence(torch.tensor(mean), torch.tensor(deviation)), expected)


@pytest.mark.parametrize("kind", ["AutoencoderDC", "AutoencoderKL"])
def test_training_lowers_the_loss(kind: str) -> None:
    trained, batch = codec(kind, shift=1), batch_of(discs())
    optimiser = torch.optim.AdamW(trained.network.parameters(), 3e-3)

    def total(step: int) -> Tensor:
        return torch.stack(list(trained.losses(batch, Noise.of(0, 4).fold(step), step).values())).sum()

    before = float(total(-1).detach())
    for step in range(30):
        optimiser.zero_grad()
        total(step).backward()
        optimiser.step()
    assert float(total(-1).detach()) < 0.7 * before


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_terms_are_weighed(weight: float) -> None:
    batch, noise = batch_of(discs()), Noise.of(0, 4)
    terms, plain = codec(weights={"pixels": weight}).losses(batch, noise, 0), codec().losses(batch, noise, 0)
    torch.testing.assert_close(terms["pixels"], weight * plain["pixels"])
    torch.testing.assert_close(terms["kl"], plain["kl"])


def test_losses_are_a_function_of_the_seed_and_the_items() -> None:
    trained, batch = codec(), batch_of(discs())
    again = [trained.losses(batch, Noise.of(seed, 4), 0)["pixels"] for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_a_validation_does_not_move_pictures() -> None:
    trained = codec(jitter=1e-6)
    trained.network.eval()
    found = [trained.losses(batch_of(discs()), Noise.of(seed, 4), 0)["pixels"] for seed in (0, 1)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_padding_is_transparent_whatever_stands_in_it() -> None:
    trained, pixels = codec(), discs()
    mask = (torch.arange(16) < 12).expand(4, 1, 16, 16)
    clean = torch.where(mask, pixels, -1.0)
    noisy = torch.where(mask, pixels, 7.0)
    losses = [
        trained.losses(batch_of(x, m), Noise.of(0, 4), 0) for x, m in ((clean, None), (clean, mask), (noisy, mask))
    ]
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name]) and torch.equal(losses[0][name], losses[2][name])


def test_the_network_and_the_critic_play_two_games() -> None:
    trained = codec(weights={"adversarial": 1.0})
    assert trained.critic is not None
    terms = trained.losses(batch_of(discs()), Noise.of(0, 4), 0)
    assert set(terms) == {"pixels", "square", "scales", "kl", "adversarial", "critic"}
    critic, network = list(trained.critic.parameters()), list(trained.network.parameters())

    def reaches(name: str, weights: list[torch.nn.Parameter]) -> bool:
        found = torch.autograd.grad(terms[name], weights, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.abs().max() > 0) for gradient in found)

    for name in terms:
        assert reaches(name, critic) == (name == "critic"), name
        assert reaches(name, network) == (name != "critic"), name


def test_a_critic_that_knows_nothing_loses_by_the_hinge() -> None:
    trained = codec(weights={"adversarial": 0.5})
    assert trained.critic is not None
    torch.nn.init.zeros_(trained.critic.score.weight)
    torch.nn.init.zeros_(trained.critic.score.bias)
    terms = trained.losses(batch_of(discs()), Noise.of(0, 4), 0)
    assert float(terms["adversarial"].detach()) == 0.5
    assert float(terms["critic"].detach()) == 2.0


def test_a_critic_scores_squares_of_eight_pixels() -> None:
    assert Critic(4, 4)(discs(2, 32)).shape == (2, 1, 4, 4)


def test_without_its_weight_there_is_no_critic() -> None:
    assert codec().critic is None
    assert "adversarial" not in codec().losses(batch_of(discs()), Noise.of(0, 4), 0)


def test_a_moved_picture_is_a_part_of_the_padded_one() -> None:
    """Every place and both mirrorings come up, all about as often."""
    real, shift, count = Noise.of(7, 1).uniform("pixels", (4, 8, 8)).float(), 1, 900
    found = augment(real.expand(count, -1, -1, -1), Noise.of(0, count), shift)
    padded = torch.full((4, 10, 10), -1.0)
    padded[:, 1:-1, 1:-1] = real[0]
    expected = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    expected += [view.flip(2) for view in expected]
    which = (found.unsqueeze(1) == torch.stack(expected)).flatten(2).all(2)
    assert which.any(1).all()
    assert int(which.sum(0).min()) > 25 and int(which.sum(0).max()) < 80  # 50, give or take 4 deviations


def test_a_moved_picture_does_not_depend_on_the_others() -> None:
    real = discs(6)
    both = augment(real, Noise.of(0, 6), 3)
    assert torch.equal(both[4:], augment(real[4:], Noise.of(0, 2, start=4), 3))


def test_without_a_shift_pictures_are_mirrored_alone() -> None:
    real = discs(32)
    found = augment(real, Noise.of(0, 32), 0)
    same, mirrored = ((found == x).flatten(1).all(1) for x in (real, real.flip(3)))
    assert (same | mirrored).all() and 5 < int(same.sum()) < 27


def test_an_unknown_term_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ValueError, match=r"got a weight of 'pixel'.*pixels"):
        codec(weights={"pixel": 1.0})


def test_the_divergence_of_the_jitter_is_constant() -> None:
    """So that it moves means alone."""
    assert float(divergence(torch.zeros(()), torch.tensor(0.05))) == pytest.approx(-math.log(0.05) - 0.49875)
