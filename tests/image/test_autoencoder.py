"""Autoencoders: diffusers' own, from folders, and what they are shown."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit.noise import Noise
from diffkit_image.autoencoder import Autoencoder, build, export, load, main, on_white

CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "latent_channels": 3,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": [8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8],
        "num_encoder_blocks": [1, 1, 1],
        "num_decoder_blocks": [1, 1, 1],
        "latent_channels": 5,
    },
    "AutoencoderDC": {
        "encoder_block_out_channels": [4, 8, 8, 8],
        "encoder_layers_per_block": [0, 1, 1, 1],
        "encoder_qkv_multiscales": [[], [], [], []],
        "decoder_block_out_channels": [4, 8, 8, 8],
        "decoder_layers_per_block": [0, 1, 1, 1],
        "decoder_qkv_multiscales": [[], [], [], []],
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "latent_channels": 4,
    },
}
FACTORS, CHANNELS = {"AutoencoderKL": 2, "AutoencoderTiny": 4, "AutoencoderDC": 8}, {"KL": 3, "Tiny": 5, "DC": 4}
KINDS = pytest.mark.parametrize("kind", list(CONFIGS))


def small(kind: str, colours: int = 4) -> Autoencoder:
    torch.manual_seed(0)
    found = build(kind, in_channels=colours, out_channels=colours, **CONFIGS[kind]) if kind != "AutoencoderDC" else None
    found = found or build(kind, in_channels=colours, **CONFIGS[kind])
    found.network.eval().requires_grad_(False)
    return found


def pixels(count: int = 2, height: int = 16, width: int = 24) -> Tensor:
    """Premultiplied: no colour is above its opacity."""
    shares = Noise.of(0, count).uniform("pixels", (4, height, width)).float()
    return torch.cat([shares[:, :3] * shares[:, 3:], shares[:, 3:]], 1) * 2 - 1


@KINDS
@pytest.mark.parametrize("colours", [3, 4])
def test_latents_are_a_factor_smaller_and_pixels_come_back_in_their_size(kind: str, colours: int) -> None:
    found = small(kind, colours)
    assert (found.factor, found.channels, found.colours) == (
        FACTORS[kind],
        CHANNELS[kind.removeprefix("Autoencoder")],
        colours,
    )
    latents = found.encode(pixels())
    assert latents.shape == (2, found.channels, 16 // found.factor, 24 // found.factor)
    assert found.decode(latents).shape == (2, colours, 16, 24)


@KINDS
def test_a_picture_does_not_depend_on_the_others(kind: str) -> None:
    found, both = small(kind), pixels(3)
    torch.testing.assert_close(found.encode(both)[1:2], found.encode(both[1:2]))


@KINDS
def test_latents_are_those_of_diffusers(kind: str) -> None:
    found, x = small(kind), pixels()
    given = found.network.encode(x, return_dict=False)[0]
    expected = given.mode() if kind == "AutoencoderKL" else given
    assert torch.equal(found.encode(x), expected)
    assert torch.equal(found.decode(expected), found.network.decode(expected, return_dict=False)[0])


@KINDS
def test_only_a_distribution_has_a_variance(kind: str) -> None:
    mean, log_variance = small(kind).posterior(pixels())
    assert (log_variance is not None) == (kind == "AutoencoderKL")
    assert log_variance is None or log_variance.shape == mean.shape


def test_colours_on_white_are_known() -> None:
    """Half of red is pink, nothing is white, and what is opaque stays as it is; in [0, 1], premultiplied."""
    given = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 1.0]])
    expected = torch.tensor([[1.0, 0.5, 0.5], [1.0, 1.0, 1.0], [0.2, 0.4, 0.6]])
    found = on_white((given * 2 - 1)[:, :, None, None])
    torch.testing.assert_close(found[..., 0, 0] / 2 + 0.5, expected)
    assert torch.equal(on_white(found), found)


@KINDS
def test_an_autoencoder_without_opacity_is_shown_pictures_on_white(kind: str) -> None:
    found, x = small(kind, 3), pixels()
    torch.testing.assert_close(found.encode(x), found.encode(on_white(x)))


@KINDS
def test_sides_that_are_no_multiples_of_the_factor_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"got pictures of 25 x 16; .* multiples of {FACTORS[kind]}"):
        small(kind).encode(pixels(1, 16, 25))


@KINDS
def test_a_folder_of_diffusers_is_read_whole(kind: str, tmp_path: Path) -> None:
    found, x = small(kind), pixels()
    found.network.save_pretrained(tmp_path / "vae")
    for place in (tmp_path, tmp_path / "vae"):
        again = load(place)
        assert again.kind == kind
        assert not any(p.requires_grad for p in again.network.parameters()) and not again.network.training
        assert torch.equal(again.encode(x), found.encode(x))


@KINDS
def test_what_is_exported_is_half_as_large_and_nearly_the_same(kind: str, tmp_path: Path) -> None:
    found, x = small(kind), pixels()
    found.network.save_pretrained(tmp_path / "whole")
    assert main([str(tmp_path / "whole"), str(tmp_path / "half")]) == 0
    weights = load_file(tmp_path / "half" / "diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert all(p.dtype == torch.float32 for p in found.network.parameters())
    torch.testing.assert_close(load(tmp_path / "half").encode(x), found.encode(x), atol=1e-2, rtol=1e-2)


@KINDS
def test_a_run_is_read_by_its_recipe(kind: str, tmp_path: Path) -> None:
    found, x = small(kind), pixels()
    config = CONFIGS[kind] | {"in_channels": 4} | ({} if kind == "AutoencoderDC" else {"out_channels": 4})
    (tmp_path / "model").mkdir()
    save_file(found.network.state_dict(), tmp_path / "model" / "model.safetensors")
    recipe = {"modality": {"name": "image"}, "codec": {"kind": kind, "config": config, "jitter": 0.1}}
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for place in (tmp_path, tmp_path / "model"):
        assert torch.equal(load(place).encode(x), found.encode(x))


def saved(folder: Path) -> Path:
    small("AutoencoderDC").network.save_pretrained(folder)
    return folder


def test_a_class_that_is_not_known_is_refused(tmp_path: Path) -> None:
    config = json.loads((saved(tmp_path) / "config.json").read_text()) | {"_class_name": "AutoencoderKLWan"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="got autoencoder 'AutoencoderKLWan'; expected one of AutoencoderKL,"):
        load(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), tmp_path / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"weights cannot be read.*expected safetensors"):
        load(tmp_path)


def test_weights_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="weights cannot be read"):
        load(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["encoder.conv_out.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 .* first encoder\.conv_out\.weight"):
        load(tmp_path)


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which holds no autoencoder"):
        load(tmp_path)


def test_a_run_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("modality: {name: image}\ncodec: null\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no autoencoder; expected a run of image/autoencoder"):
        load(tmp_path)


def test_a_repository_on_the_hub_is_read_from_the_cache(tmp_path: Path) -> None:
    """In a process of its own, which knows no network: the cache's folder is read when the library is imported."""
    kept = tmp_path / "models--someone--pictures"
    saved(kept / "snapshots" / "0a1b" / "vae")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0a1b")
    ask = "from diffkit_image.autoencoder import load; print(load('someone/pictures').kind)"
    known = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ask], env=known, capture_output=True, text=True)
    assert done.stdout.split() == ["AutoencoderDC"], done.stderr


def test_what_is_no_name_on_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got autoencoder 'no/such/folder'; expected a folder or the id of one"):
        load("no/such/folder")


def test_options_that_a_class_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match="got options that AutoencoderDC does not take"):
        build("AutoencoderDC", widths=[8, 8])
    with pytest.raises(ValueError, match="did you mean 'AutoencoderDC'"):
        build("AutoencoderDB")


def test_a_wrong_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: got ")


def test_export_leaves_the_autoencoder_as_it_is(tmp_path: Path) -> None:
    found = small("AutoencoderDC")
    before = {k: v.clone() for k, v in found.network.state_dict().items()}
    export(found, tmp_path, torch.bfloat16)
    assert all(torch.equal(v, before[k]) for k, v in found.network.state_dict().items())
