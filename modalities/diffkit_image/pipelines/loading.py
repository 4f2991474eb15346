"""Pipelines of diffusers from their folders: safetensors alone, and every part looked at before it is used.

A folder has an index, ``model_index.json``, which names the class of each part, and a folder for each. Parts are made
of the classes that diffusers and transformers have; a folder's own code is never run. `diffusers` and `transformers`
are imported when a pipeline is opened, for they take seconds.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from diffkit.torchaudio import mend
from diffkit_image.pipelines.families import FAMILIES

__all__ = ["PRECISIONS", "opened", "quiet", "require_diffusers", "scheduler_config"]

PRECISIONS = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
LIBRARIES = ("diffusers", "transformers")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZERS = ("Tokenizer", "TokenizerFast")
VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model", "vocab.txt")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def require_diffusers() -> None:
    """Refuse to go on without what reads pipelines."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"got a diffusers pipeline and no {' and '.join(missing)}; install them with `pip install 'diffkit[image]'`"
        )


def opened(name: str, index: Mapping[str, Any], precision: str) -> Any:
    """The pipeline of diffusers in the folder, or of the Hub id, ``name``, in evaluation mode.

    Args:
        name: of the model.
        index: what its ``model_index.json`` says.
        precision: of its weights, one of `PRECISIONS`.

    Raises:
        ValueError: for a part that is missing, cut short, pickled, or of other shapes than its configuration says.
    """
    require_diffusers()
    dtype = PRECISIONS[precision]
    used = {k: v for k, v in index.items() if isinstance(v, list) and None not in v and k not in UNUSED}
    with quiet():
        kind = getattr(import_module("diffusers"), index["_class_name"])
        folder = _folder(name, kind)
        for part in (part for part, place in used.items() if place[1].endswith(TOKENIZERS)):
            _check_tokenizer(folder / part)
        models = {
            part: _part(folder / part, place[0], place[1], dtype) for part, place in used.items() if _is_model(place)
        }
        left_out = {part: None for part in UNUSED[:3] if part in index}
        try:
            pipe = kind.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False, **models, **left_out)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"got {folder}, which diffusers cannot open: {_line(error)}") from None
    pipe.set_progress_bar_config(disable=True)
    _check_latents(pipe, folder)
    return pipe


def scheduler_config(name: str) -> dict[str, Any]:
    """What the pipeline's ``scheduler_config.json`` says.

    Raises:
        ValueError: if it is not there, or no JSON.
    """
    require_diffusers()
    path = Path(name) / SCHEDULER
    if not Path(name).is_dir():
        path = Path(import_module("huggingface_hub").hf_hub_download(name, SCHEDULER))
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"got a pipeline without a readable {path} ({_line(error)}); copy it again") from None
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """The two libraries say nothing but errors; what matters of it is said by us."""
    mend()
    bars = [import_module(f"{name}.utils.logging") for name in LIBRARIES]
    loggers = [logging.getLogger(name) for name in (*LIBRARIES, "huggingface_hub")]
    levels, shown = [logger.level for logger in loggers], [bar for bar in bars if bar.is_progress_bar_enabled()]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for bar in shown:
            bar.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for bar in shown:
            bar.enable_progress_bar()


def _folder(name: str, kind: Any) -> Path:
    """Where the pipeline lies, fetched from the Hub unless it is there."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(kind.download(name, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise ValueError(f"got {name}, which could not be fetched from the Hub: {_line(error)}") from None


def _is_model(place: Any) -> bool:
    return not place[1].endswith(("Scheduler", *TOKENIZERS))


def _part(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """A network, with all of its weights."""
    if library not in LIBRARIES or not hasattr(import_module(library), kind):
        raise ValueError(
            f"got the part '{folder.name}' of class {library}.{kind}; expected a class of {' or '.join(LIBRARIES)}: "
            "code that comes with a model is not run"
        )
    _check_files(folder)
    options: dict[str, Any] = {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    try:
        network, said = getattr(import_module(library), kind).from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            variant=_variant(folder),
            **options,
        )
    except Exception as error:  # whatever the libraries raise for a broken file
        raise ValueError(f"got {folder}, which cannot be read ({_line(error)}); copy or download it again") from None
    _check_weights(folder, said)
    return network.eval().requires_grad_(False)


def _check_tokenizer(folder: Path) -> None:
    """Without its vocabulary it would be opened all the same, and know no word."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise ValueError(
            f"got {folder} without a vocabulary; expected one of {', '.join(VOCABULARIES)}: copy or download the part "
            "again"
        )


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise ValueError(
            f"got a pipeline without {folder.name}/config.json; expected {folder}: copy or download the part again"
        )
    if next(folder.glob("*.safetensors"), None) is not None:
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        raise ValueError(
            f"got pickled weights {folder / pickled[0]}, which can run code; expected safetensors: if you trust them, "
            "convert the folder once with diffusers' from_pretrained(FOLDER, use_safetensors=False) and "
            "save_pretrained(NEW_FOLDER)"
        )
    raise ValueError(f"got {folder} without weights; expected a .safetensors file: copy or download the part again")


def _variant(folder: Path) -> str | None:
    """The variant "fp16", where a folder has no other weights."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if all(".fp16" in name for name in names) else None


def _check_weights(folder: Path, said: Mapping[str, Any]) -> None:
    wrong = sorted(said.get("mismatched_keys") or [], key=str)
    if wrong:
        key, found, expected = wrong[0]
        raise ValueError(
            f"got '{key}' of shape {tuple(found)} in {folder}; expected {tuple(expected)}, as config.json beside it "
            "says: copy both from one model"
        )
    missing = sorted(said.get("missing_keys") or [])
    if missing:
        raise ValueError(
            f"got {folder} without '{missing[0]}' ({len(missing)} tensors are missing); expected all that its "
            "config.json names: copy or download it again"
        )


def _check_latents(pipe: Any, folder: Path) -> None:
    """A network that takes more than latents wants an image or a mask beside them."""
    taken, made = FAMILIES[type(pipe).__name__].channels(pipe), pipe.vae.config.latent_channels
    if taken != made:
        raise ValueError(
            f"got a network of {taken} channels and an autoencoder of {made} in {folder}; expected equal numbers: "
            "networks that take an image or a mask beside the latents (inpainting) are not known here"
        )
    if getattr(getattr(pipe, "unet", None), "config", {}).get("time_cond_proj_dim") is not None:
        raise ValueError(
            f"got a network that is told its guidance (time_cond_proj_dim) in {folder}; expected one that is not: "
            "distilled networks of this kind are not known here"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
