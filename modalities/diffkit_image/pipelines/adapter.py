"""The adapter of a model in diffusers' format: any sampler, grid and guidance of diffkit on the weights that it has.

A picture is one leaf, ``latent`` (B, C, h, w), in the scale of the pipeline's own network. Its conditions are those of
`diffkit_image.pipelines.families`. The schedule and the prediction are read from its scheduler's configuration by
`diffkit.interop`; so is the grid of times, where diffusers' scheduler has one that is known, and otherwise it is even
down from the last step of the table (`diffkit.grid.Trailing`).

Pure noise has the size sigma that the schedule says. Some of diffusers' schedulers begin with noise of size 1 in its
place, 0.2 % more for Stable Diffusion's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit import registry
from diffkit.condition import Condition
from diffkit.grid import Trailing
from diffkit.interop import from_diffusers, grid_from_diffusers
from diffkit.modality import Batch, Dataset, Example, Modality, Request
from diffkit.naming import nearest
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.space import Euclidean
from diffkit.typing import State
from diffkit_image import asking, view
from diffkit_image.pipelines import lora
from diffkit_image.pipelines.families import FAMILIES, Family
from diffkit_image.pipelines.loading import PRECISIONS, opened, quiet, scheduler_config
from diffkit_image.pipelines.network import LEAF, PipelineNetwork
from diffkit_image.record import Picture, to_image, to_tensor

__all__ = ["Pipeline", "adopt"]

STEPS = 25


def adopt(name: str, index: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe of the pipeline ``name``, a folder or a Hub id; None of a kind that is not known here.

    Args:
        name: of the model.
        index: what its ``model_index.json`` says.
    """
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        return None
    family, config = FAMILIES[kind], scheduler_config(name)
    sampling = {"steps": STEPS, "sampler": "dpmpp_2m", "grid": family.grid or _grid(config), "batch_size": 1}
    return {
        "modality": {"name": "image", "pipeline": name, "index": dict(index)},
        "denoiser": {"input_scale": config["sigma_data"]} if "sigma_data" in config else {},
        "sampling": sampling | {"guidance": family.guidance},
    }


def _grid(config: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the scheduler's grid."""
    try:
        grid = grid_from_diffusers(config)
    except ValueError:
        grid = Trailing(int(config.get("num_train_timesteps", 1000)))
    name = next(name for name in registry.names("grid") if registry.lookup("grid", name) is type(grid))
    return {"name": name, **asdict(grid)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Pipeline(Modality):
    """The adapter. Its fields are a recipe's ``modality`` node.

    Args:
        pipeline: a folder, or the name of a model on the Hub.
        index: what its ``model_index.json`` says.
        size: WIDTHxHEIGHT in pixels of each sample, unless ``--condition size=WIDTHxHEIGHT`` asks for another; what
            the network was made for where empty.
        format: of the files that are written: png, jpg or webp.
        lora: files of low-rank changes of weights, each with its weight after a colon (1 where it has none), with
            commas between them.
        precision: of the weights: 32, 16 or bf16. The latents themselves stay in float32.
        channels_last: the network's memory format, quicker for some on a GPU.
        tiling: pictures are decoded tile by tile, for less memory.
        slicing: pictures are decoded one by one, for less memory.
        offload: weights stay in the host's memory and visit the GPU one by one (needs accelerate).

    Raises:
        ValueError: for an unknown format or precision.
    """

    pipeline: str
    index: Mapping[str, Any]
    size: str = ""
    format: str = "png"
    lora: str = ""
    precision: str = "32"
    channels_last: bool = False
    tiling: bool = False
    slicing: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        view.require_format(self.format)
        object.__setattr__(self, "precision", str(self.precision))
        if self.precision not in PRECISIONS:
            raise ValueError(f"got precision '{self.precision}'; expected one of {', '.join(PRECISIONS)}")
        if self.offload and find_spec("accelerate") is None:
            raise ValueError("got offload and no accelerate, which does it; install it with `pip install accelerate`")

    @cached_property
    def pipe(self) -> Any:
        """The pipeline of diffusers, opened when it is first asked for."""
        pipe = opened(self.pipeline, self.index, self.precision)
        for path, weight in lora.named(self.lora):
            lora.merge(pipe, path, weight)
        if self.channels_last:
            getattr(pipe, self.family.part).to(memory_format=torch.channels_last)
        if self.tiling:
            pipe.vae.enable_tiling()
        if self.slicing:
            pipe.vae.enable_slicing()
        return pipe

    @property
    def family(self) -> Family:
        """Of the pipeline."""
        return FAMILIES[self.index["_class_name"]]

    @property
    def factor(self) -> int:
        """Pixels to a latent, along a side."""
        return int(2 ** (len(self.pipe.vae.config.block_out_channels) - 1))

    # ------------------------------------------------------------------------------------------- records

    def dataset(self, split: str, **options: Any) -> Dataset:
        raise ValueError("got a diffusers pipeline to be trained; it draws samples alone: train the model of a recipe")

    def encode(self, record: Picture) -> Example:
        """Its latents, the mean of the autoencoder's; what does not fill whole latents is cut off around it."""
        step = self.factor * self.family.patch(self.pipe)
        pixels = to_tensor(view.on_white(record.image))[:3]
        tall, wide = (side // step * step for side in pixels.shape[1:])
        if not tall or not wide:
            raise ValueError(
                f"got a picture of {record.image.width}x{record.image.height} pixels; expected {step}x{step}"
            )
        top, left = (pixels.shape[1] - tall) // 2, (pixels.shape[2] - wide) // 2
        vae = self.pipe.vae
        with torch.no_grad():
            said = vae.encode(pixels[None, :, top : top + tall, left : left + wide].to(vae.device, vae.dtype))
        latent = (said.latent_dist.mean if hasattr(said, "latent_dist") else said.latents).float().cpu()
        shift, scale = self._moments(latent)
        return Example({LEAF: ((latent - shift) / scale)[0]})

    def decode(self, x: State, mask: State) -> list[Any]:
        """Pictures by the pipeline's own autoencoder; None where a pixel is not a number."""
        vae, latents = self.pipe.vae, x[LEAF].float()
        shift, scale = self._moments(latents)
        dtype = torch.float32 if vae.config.get("force_upcast") and vae.dtype is torch.float16 else vae.dtype
        if vae.dtype is not dtype:
            vae.to(dtype)  # its activations are too large for half precision
        with torch.no_grad():
            pixels = vae.decode((latents * scale + shift).to(dtype), return_dict=False)[0]
        return [Picture(to_image(p)) if bool(p.isfinite().all()) else None for p in pixels]

    def labelled(self, records: Sequence[Picture | None], condition: Condition) -> list[Any]:
        if "label" not in condition.values:
            return list(records)
        names = {number: name for name, number in self.pipe.labels.items()}
        numbers = condition.values["label"].where(condition.present["label"], -1).tolist()
        said = [names.get(number, str(number)) if number >= 0 else "" for number in numbers]
        return [record and replace(record, category=name) for record, name in zip(records, said, strict=True)]

    def _moments(self, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Mean and deviation of the autoencoder's latents, as its configuration has them."""
        config = self.pipe.vae.config
        factor = float(config.get("scaling_factor") or 1.0)
        mean, deviation = (config.get(f"latents_{name}") for name in ("mean", "std"))
        if mean is None or deviation is None:
            return float(config.get("shift_factor") or 0.0), 1 / factor
        shift, scale = (torch.tensor(v, device=like.device).reshape(-1, 1, 1) for v in (mean, deviation))
        return shift, scale / factor

    # ------------------------------------------------------------------------------------------ requests

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        values = dict(request.values)
        tall, wide = self._sides(values.pop("size", None))
        x = torch.zeros(count, int(self.pipe.vae.config.latent_channels), tall, wide)
        return Batch({LEAF: x}, {}, self._condition(count, request.prompt, values), noise.index)

    def _sides(self, said: str | None) -> tuple[int, int]:
        """Height and width of the latents."""
        if not (said or self.size):
            return self.family.sides(self.pipe)
        tall, wide = asking.size(said or str(self.size), self.factor * self.family.patch(self.pipe))
        return tall // self.factor, wide // self.factor

    def _condition(self, count: int, prompt: str | None, values: Mapping[str, str]) -> Condition:
        nothing = self._network.nothing()
        takes = sorted(({"label"} if not self.family.words else nothing.keys() - {"text", "pooled"}) | {"size"})
        for name in values:
            if name not in takes:
                raise ValueError(f"got the condition {name}; this model takes {', '.join(takes)}{nearest(name, takes)}")
        said = {k: torch.tensor([_number(k, v)]) for k, v in values.items() if k != "label"}
        words = prompt if self.family.words else values.get("label", prompt)
        if words is not None:
            said |= self._said(words)
        full = {k: said.get(k, v).expand(count, *v.shape[1:]).cpu() for k, v in nothing.items()}
        return Condition(full, {k: torch.full((count,), k in said) for k in full})

    def _said(self, words: str) -> dict[str, Tensor]:
        """The conditions of a prompt; what of it no encoder reads is said."""
        if words not in self._read:
            for left_out, limit in _cut(self.family.readers(self.pipe), words).items():
                warnings.warn(f"left out '{left_out}', as the encoder takes {limit} tokens of a prompt", stacklevel=2)
            with torch.no_grad(), quiet():
                self._read[words] = self.family.said(self.pipe, words)
        return self._read[words]

    @cached_property
    def _read(self) -> dict[str, dict[str, Tensor]]:
        """Prompts that were read before: a batch asks for the same one again."""
        return {}

    # --------------------------------------------------------------------------------------------- model

    def process(self, **options: Any) -> Product:
        """The process that the pipeline was trained with."""
        tall, wide = self._sides(None)
        patch = self.family.patch(self.pipe)
        schedule, prediction = from_diffusers(self.pipe.scheduler.config, length=tall * wide // patch**2)
        return Product({LEAF: Gaussian(schedule, Euclidean(), prediction)})

    def network(self, **options: Any) -> nn.Module:
        return self._network

    @cached_property
    def _network(self) -> PipelineNetwork:
        leaf = self.process().gaussian[LEAF]
        return PipelineNetwork(self.pipe, self.family, leaf.schedule, self.offload)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        raise ValueError("got a diffusers pipeline to be measured; expected a model with data to measure it by")

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        return view.save(samples, folder, self.format)


def _number(name: str, said: str) -> float:
    try:
        return float(said)
    except ValueError:
        raise ValueError(f"got {name}={said}; expected a number") from None


def _cut(readers: Sequence[tuple[Any, int]], words: str) -> dict[str, int]:
    """What of the words is beyond an encoder's limit, and that limit."""
    found = {}
    for tokenizer, limit in readers:
        with quiet():
            tokens = tokenizer(words, truncation=False).input_ids
        if len(tokens) > limit:
            found[tokenizer.decode(tokens[limit - 1 : -1], skip_special_tokens=True).strip()] = limit
    return found
