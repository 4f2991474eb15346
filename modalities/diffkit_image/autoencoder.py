"""Autoencoders of pictures, those of diffusers: pixels to latents of a channel or sixteen, and back.

Any ``AutoencoderKL``, ``AutoencoderTiny`` or ``AutoencoderDC`` serves, from a folder that diffusers wrote, a run of
``diffkit train image/autoencoder``, or the Hugging Face Hub. Its latents are taken as they come, the mean where there
is a distribution (Rombach et al. 2022, arXiv:2112.10752; AutoencoderDC: Chen et al. 2024, arXiv:2410.10733): a model
standardises them by statistics of its own training set, and not by the ``scaling_factor`` of the configuration.

An autoencoder of three channels knows no opacity: it is shown pictures on white, and what it decodes is opaque.

    python -m diffkit_image.autoencoder RUN FOLDER

writes what a run trained as a folder that diffusers reads, in half precision.

Shape suffixes:
    B: batch    H, W: pixels    C: latent channels    h, w: places, a factor fewer than the pixels
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffkit.naming import require_known
from diffkit_image.libraries import from_diffusers

__all__ = ["CLASSES", "Autoencoder", "build", "export", "load", "main", "on_white"]

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
SHIPPED = Path(__file__).parent / "weights" / "emoji" / "autoencoder"
CONFIG, VAE = "config.json", "vae"
SAVED = "diffusion_pytorch_model.safetensors"
RECIPE, WEIGHTS = "recipe.yaml", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An autoencoder of diffusers, called in one way whatever its class.

    Args:
        network: of one of `CLASSES`.
    """

    network: Any

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.network).__name__

    @property
    def factor(self) -> int:
        """Pixels to a place, along a side."""
        if self.kind == "AutoencoderDC":
            return int(self.network.spatial_compression_ratio)
        blocks = "encoder_block_out_channels" if self.kind == "AutoencoderTiny" else "block_out_channels"
        return int(2 ** (len(self.network.config[blocks]) - 1))

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.network.config["latent_channels"])

    @property
    def colours(self) -> int:
        """Channels of what it decodes: 4 with opacity, 3 without."""
        return int(self.network.config["in_channels"])

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pixels (B, 4, H, W) in [-1, 1], colour premultiplied by opacity.

        Raises:
            ValueError: for sides that are not multiples of the factor.
        """
        return self.posterior(pixels)[0]

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the latents; no log-variance where the encoder has none."""
        if pixels.shape[-1] % self.factor or pixels.shape[-2] % self.factor:
            height, width = pixels.shape[-2:]
            raise ValueError(f"got pictures of {width} x {height}; expected sides that are multiples of {self.factor}")
        known = self.network.encode(self.shown(pixels))
        if self.kind == "AutoencoderKL":
            return known.latent_dist.mean, known.latent_dist.logvar
        return (known.latents if self.kind == "AutoencoderTiny" else known.latent), None

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 4, H, W) in about [-1, 1], or (B, 3, H, W) of an autoencoder without opacity."""
        pixels: Tensor = self.network.decode(latents).sample
        return pixels

    def shown(self, pixels: Tensor) -> Tensor:
        """What it sees of pixels (B, 4, H, W): all of them, or colours on white."""
        return pixels if self.colours == 4 else on_white(pixels)


def on_white(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) of (B, 4, H, W): what opacity leaves out is white, with c + (1 - a) in terms of [0, 1]."""
    return pixels if pixels.shape[1] == 3 else pixels[:, :3] - pixels[:, 3:] + 1


def build(kind: str, **config: Any) -> Autoencoder:
    """One with fresh weights; ``config`` are options of the class ``kind``.

    Raises:
        ValueError: for another class, or options that it does not take.
    """
    require_known("autoencoder", kind, CLASSES)
    try:
        return Autoencoder(from_diffusers(kind)(**config))
    except (TypeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(f"got options that {kind} does not take: {_line(error)}") from None


def load(name: str | Path | None = None) -> Autoencoder:
    """The autoencoder ``name`` in float32, ready for use and fixed.

    Args:
        name: none for the one that ships; a folder that diffusers wrote (or one with such a folder ``vae``), the
            folder of a run, or an id on the Hub.

    Raises:
        ValueError: if there is none, or it is of another class, pickled, cut short, or does not fit its configuration.
    """
    folder = SHIPPED if name is None else Path(name)
    for run in (folder / "model", folder):
        if (run / RECIPE).exists():
            return _fixed(_of_run(run))
    folder = folder if folder.exists() else _of_hub(str(name))
    for own in (folder, folder / VAE):
        if (own / CONFIG).exists() and "_class_name" in (config := _json(own / CONFIG)):
            return _fixed(_of_diffusers(own, config["_class_name"]))
    raise ValueError(f"got {name or folder}, which holds no autoencoder; expected a folder with {CONFIG} and weights")


def _fixed(found: Autoencoder) -> Autoencoder:
    found.network.float().eval().requires_grad_(False)
    return found


def _of_run(folder: Path) -> Autoencoder:
    try:
        codec = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))["codec"]
        found = build(codec["kind"], **codec["config"])
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"got {folder}, which holds no autoencoder; expected a run of image/autoencoder") from None
    try:
        found.network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"got {folder / WEIGHTS}, which does not hold its weights: {_line(error)}") from None
    return found


def _of_diffusers(folder: Path, kind: str) -> Autoencoder:
    require_known("autoencoder", kind, CLASSES)
    try:
        network, about = from_diffusers(kind).from_pretrained(
            str(folder),
            torch_dtype=torch.float32,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"got {folder}, whose weights cannot be read: {_line(error)} (expected safetensors; pickled weights are "
            "not loaded, as they can run code)"
        ) from None
    missing = [*about["missing_keys"], *about["mismatched_keys"]]
    if missing:
        raise ValueError(f"got {folder}, whose weights lack {len(missing)} that {CONFIG} asks for, first {missing[0]}")
    return Autoencoder(network)


def _of_hub(name: str) -> Path:
    """The folder of the cache with the files of a repository, or of its folder ``vae``, fetched where they are not."""
    files = [f"{place}{file}" for place in ("", f"{VAE}/") for file in (CONFIG, SAVED)]
    try:
        return Path(import_module("huggingface_hub").snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"got autoencoder '{name}'; expected a folder or the id of one on the Hugging Face Hub: {_line(error)}"
        ) from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"got {path}, which cannot be read: {_line(error)}") from None
    return found if isinstance(found, dict) else {}


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def export(autoencoder: Autoencoder, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a folder that diffusers reads; weights as ``dtype``. The autoencoder itself stays as it is."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in autoencoder.network.state_dict().items()}
    copy = type(autoencoder.network).from_config(autoencoder.network.config).to(dtype)
    copy.load_state_dict(state)
    copy.save_pretrained(folder, safe_serialization=True)


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m diffkit_image.autoencoder", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the folder of a run, or of diffusers, or an id on the Hub")
    parser.add_argument("folder", type=Path, help="to write")
    given = parser.parse_args(arguments)
    try:
        found = load(given.run)
        export(found, given.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    weights = sum(p.numel() for p in found.network.parameters())
    print(f"{given.folder}: {found.kind}, {weights:,} weights, factor {found.factor}, {found.channels} channels")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
