"""LoRA files: low-rank changes of a pipeline's weights (Hu et al. 2021, arXiv:2106.09685), merged when it is opened.

    W <- W + weight (alpha / rank) B A

A file is read by diffusers, which knows the spellings of the tools that write them, and merged here, so that the result
does not depend on what else is installed; kinds of another formula (DoRA, rank-stabilised) are left to `peft`. A layer
that a file names and the pipeline does not have is an error: the file is of another kind of model.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit_image.pipelines.loading import quiet

__all__ = ["merge", "named"]

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
DOWN = re.compile(r"(\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(\.default)?\.weight$")
UP = {".lora_A": ".lora_B", ".lora_down": ".lora_up"}


def named(text: str) -> Iterator[tuple[Path, float]]:
    """Files and weights of ``FILE[:WEIGHT],FILE[:WEIGHT]``."""
    for one in filter(None, text.split(",")):
        found = re.fullmatch(r"(.+?)(?::(-?\d+(?:\.\d+)?))?", one.strip())
        assert found is not None
        yield Path(found[1]), float(found[2] or 1)


def merge(pipe: Any, path: Path, weight: float) -> None:
    """Add ``weight`` times the changes in the file to the pipeline's weights.

    Raises:
        ValueError: for what is no safetensors file of LoRA weights, or one of another kind of model.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"got LoRA {path}; expected a .safetensors file that exists (pickled ones are not loaded, as they can run "
            "code)"
        )
    if not hasattr(pipe, "lora_state_dict"):
        raise ValueError(f"got LoRA {path} for a pipeline that diffusers knows none for, {type(pipe).__name__}")
    tensors, alphas, said = _read(pipe, path)
    if _needs_peft(tensors, said):
        _by_peft(pipe, path, weight)
        return
    pairs = _pairs(tensors, alphas, said, path)
    if not pairs:
        raise ValueError(f"got LoRA {path}, in which there are no pairs of LoRA weights; expected another file")
    known = {part: _layers(pipe, part) for part in PARTS}
    for (part, name), change in pairs.items():
        layer = known.get(part, {}).get(name)
        if layer is None:
            raise ValueError(
                f"got LoRA {path} for '{part}.{name}', which this pipeline does not have; is it of another?"
            )
        _add(layer, weight * change, path, name)


def _needs_peft(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> bool:
    """Whether the formula above is not that of the file."""
    own = any(v for k, v in said.items() if k.endswith(("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")))
    return own or any("dora_scale" in k or "lora_magnitude_vector" in k for k in tensors)


def _by_peft(pipe: Any, path: Path, weight: float) -> None:
    if find_spec("peft") is None:
        raise ValueError(f"got LoRA {path}, of a kind that needs peft; install it with `pip install peft`")
    try:
        with quiet():
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="merged")
            pipe.fuse_lora(lora_scale=weight, adapter_names=["merged"])
            pipe.unload_lora_weights()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ValueError(f"got LoRA {path}, which does not fit: {' '.join(str(error).split())[:300]}") from None


def _read(pipe: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, float], Mapping[str, Any]]:
    """Tensors, alphas, and what the file says of itself."""
    beside: dict[str, Any] = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    if type(pipe).__name__ == "FluxPipeline":
        beside["return_alphas"] = True
    try:
        with quiet():
            said = pipe.lora_state_dict(
                path.parent, weight_name=path.name, use_safetensors=True, return_lora_metadata=True, **beside
            )
    except Exception as error:  # whatever the libraries raise for a broken file
        raise ValueError(f"got LoRA {path}, which cannot be read: {' '.join(str(error).split())[:300]}") from None
    return said[0], {k: float(v) for k, v in ((said[1] if len(said) > 2 else None) or {}).items()}, said[-1] or {}


def _pairs(
    tensors: Mapping[str, Tensor], alphas: Mapping[str, float], said: Mapping[str, Any], path: Path
) -> dict[tuple[str, str], Tensor]:
    """(part, layer) -> (alpha / rank) B A."""
    known = {_place(k.removesuffix(".alpha")): v for k, v in alphas.items()}
    found: dict[tuple[str, str], Tensor] = {}
    for key, down in tensors.items():
        end = DOWN.search(key)
        if end is None:
            continue
        other = key[: end.start()] + re.sub("down$", "up", UP.get(end[1], end[1])) + (end[2] or "") + ".weight"
        place, rank = _place(key), len(down)
        if other not in tensors:
            raise ValueError(f"got LoRA {path} with '{key}' and no '{other}'; expected both: copy it again")
        scale = known.get(place, _alpha(said, place[0], rank)) / rank
        up = tensors[other].float()
        found[place] = scale * (up.flatten(1) @ down.float().flatten(1)).reshape(len(up), *down.shape[1:])
    return found


def _alpha(said: Mapping[str, Any], part: str, rank: int) -> float:
    """That of a part, where the file tells how it was trained."""
    return float(said.get(f"{part}.lora_alpha", rank)) * rank / float(said.get(f"{part}.r", rank))


def _place(key: str) -> tuple[str, str]:
    """The part, and the layer with underscores for points, as some tools write it."""
    stem = DOWN.sub("", key).replace(".processor.", ".")
    part, _, layer = stem.partition(".")
    flat = re.sub("_to_out$", "_to_out_0", layer.replace(".", "_"))
    if part.startswith("text_encoder"):  # whose attention diffusers spells as the network's
        flat = re.sub("_to_([qkv]|out)(_0)?$", r"_\1_proj", flat)
    return part, flat


def _layers(pipe: Any, part: str) -> dict[str, Tensor]:
    """The weights of a part's linear layers and convolutions, by their names with underscores for points."""
    found: dict[str, Tensor] = {}
    network = getattr(pipe, part, None)
    for name, layer in network.named_modules() if network is not None else ():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            flat = name.replace(".", "_")
            found |= {flat: layer.weight, f"text_model_{flat}": layer.weight}  # the name that encoders had within CLIP
    return found


@torch.no_grad()
def _add(weight: Tensor, change: Tensor, path: Path, name: str) -> None:
    if change.numel() != weight.numel() or len(change) != len(weight):
        raise ValueError(
            f"got LoRA {path} with a change of shape {tuple(change.shape)} for '{name}'; expected "
            f"{tuple(weight.shape)}: is it of another model?"
        )
    weight.add_(change.reshape(weight.shape).to(weight.device, weight.dtype))
