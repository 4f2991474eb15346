"""What a round trip loses is measured rightly."""

import math

import pytest
import torch
from torch import Tensor

from diffkit.noise import Noise
from diffkit_image.autoencoder import Autoencoder, build
from diffkit_image.autoencoder import on_white as white
from diffkit_image.round_trip import comparison, figures, measure, ratio


def picture(seed: int, height: int = 16, width: int = 16) -> Tensor:
    shares = Noise.of(seed, 1).uniform("pixels", (4, height, width)).float()[0]
    return torch.cat([shares[:3] * shares[3:], shares[3:]]) * 2 - 1


@pytest.mark.parametrize("off", [0.02, 0.2])
def test_a_ratio_is_ten_times_the_logarithm_of_that_of_squares(off: float) -> None:
    real = torch.zeros(2, 4, 8, 8)
    expected = 20 * math.log10(2 / off)
    torch.testing.assert_close(ratio(real + off, real), torch.full((2,), expected))
    assert ratio(real, real).tolist() == [100.0, 100.0]


def test_what_is_made_is_clipped_first() -> None:
    real = torch.ones(1, 3, 4, 4)
    assert float(ratio(real + 5, real)) == 100.0


def test_opacity_that_is_off_shows_on_white_and_not_on_black() -> None:
    real = torch.zeros(1, 4, 8, 8)
    real[:, :3] -= 0.5
    made = real.clone()
    made[:, 3] += 0.2
    found = {name: float(value) for name, value in measure(made, real).items()}
    known = 20 * math.log10(2 / 0.2)
    assert found["on black"] == 100.0
    assert found["on white"] == pytest.approx(known, abs=1e-3)
    assert found["of opacity"] == pytest.approx(known, abs=1e-3)
    assert found["PSNR"] == pytest.approx(known - 10 * math.log10(4 / 7), abs=1e-3)


def test_a_picture_without_opacity_has_one_ratio() -> None:
    real = white(picture(0).unsqueeze(0))
    assert set(measure(real, real)) == {"PSNR"}


def small() -> Autoencoder:
    torch.manual_seed(0)
    levels = {"block_out_channels": [8, 8], "norm_num_groups": 4, "mid_block_add_attention": False}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    found = build("AutoencoderKL", in_channels=4, out_channels=4, latent_channels=4, **blocks, **levels)
    found.network.eval()
    return found


def test_figures_are_means_over_pictures_of_any_sizes() -> None:
    autoencoder = small()
    pictures = {0: picture(0), 1: picture(1, 8, 24), 2: picture(2)}
    found = figures(pictures, autoencoder)
    alone = [figures({n: pixels}, autoencoder)["PSNR"].value for n, pixels in pictures.items()]
    assert found["PSNR"].value == pytest.approx(sum(alone) / 3, abs=1e-3)
    assert found["PSNR"].n == 3 and found["numbers to a latent"].value == 4.0
    assert min(alone) <= found["PSNR, 90 % above"].value + 1e-3 <= found["PSNR"].value + 1e-2


def test_a_comparison_shows_pictures_above_what_comes_back() -> None:
    assert comparison([picture(n) for n in range(3)], small()).size == (288, 192)
