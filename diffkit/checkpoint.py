"""Models on disk: safetensors, the resolved recipe, and a card. Nothing is unpickled.

    model.safetensors   weights (the averaged ones, where training averaged them); half precision in shipped models
    recipe.yaml         the resolved recipe, statistics included; plain data
    README.md           the card, with Hugging Face metadata in its head

A model's name is a folder, or a shipped model: "molecule/qm9" is the folder ``weights/qm9`` inside the adapter's
package, and "molecule" the one that ``weights/default`` names. A folder of another make, or a name on the Hub, that has
a ``model_index.json`` is offered to the installed adapters (`diffkit.modality.adopted`).
"""

import json
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit.codec import Part
from diffkit.files import whole
from diffkit.inventory import WEIGHTS, default_model, modality_names, shipped
from diffkit.modality import adopted
from diffkit.model import Model
from diffkit.naming import nearest

__all__ = ["find", "load", "save"]

RECIPE, CARD, INDEX = "recipe.yaml", "README.md", "model_index.json"


def save(model: Model | Part, folder: Path, card: str, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` into ``folder``, each file whole or not at all; floating-point weights as ``dtype``."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.network.state_dict().items()}
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    recipe = yaml.safe_dump(dict(model.recipe), sort_keys=False, allow_unicode=True)
    with whole(folder / WEIGHTS) as part:
        save_file(weights, part, metadata={"format": "pt"})
    for name, text in ((RECIPE, recipe), (CARD, card)):
        with whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def find(name: str) -> Path:
    """The folder of the model ``name``.

    Raises:
        ValueError: if there is none, with the shipped ones and the nearest name.
    """
    known = shipped()
    full = default_model(name) if name in modality_names() else None
    for folder in (known.get(full or name), Path(name), Path(name) / "model"):
        if folder is not None and (folder / WEIGHTS).exists():
            return folder
    raise ValueError(
        f"got model '{name}'; expected a folder with {WEIGHTS} or {INDEX}, a name on the Hub, or one of "
        f"{', '.join(known) or '(none is shipped)'}{nearest(name, known)}"
    )


def load(name: str | Path, device: torch.device | str = "cpu", options: Mapping[str, Any] | None = None) -> Model:
    """The model ``name`` on ``device``, in float32 and evaluation mode.

    Args:
        name: a folder, a shipped model, or a name on the Hub.
        device: where to.
        options: of its adapter, in place of those in its recipe's ``modality`` node.

    Raises:
        ValueError: if there is no such model, or its files are cut short, of another kind, or do not fit each other.
    """
    index = _index(str(name))
    if index is not None:
        model = Model.of(_with(adopted(str(name), index), options), str(name), options)
        model.network.to(device).eval().requires_grad_(False)
        return model
    folder = find(str(name))
    recipe = _with(_recipe(folder / RECIPE), options)
    if recipe.get("codec") is not None:
        raise ValueError(f"got {folder}, which holds a codec and draws no samples; a recipe names it under `modality`")
    known = next((known for known, place in shipped().items() if place == folder), str(name))
    model = Model.of(recipe, known, options)
    weights = _weights(folder / WEIGHTS)
    expected = {k: tuple(v.shape) for k, v in model.network.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    if found != expected:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise ValueError(
            f"got weights in {folder / WEIGHTS} that do not fit {RECIPE} beside them, first '{wrong[0]}': "
            f"{found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'none')}; copy both from one run"
        )
    model.network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    model.network.to(device).eval().requires_grad_(False)
    return model


def _with(recipe: Mapping[str, Any], options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {**recipe, "modality": {**recipe["modality"], **(options or {})}}


def _index(name: str) -> dict[str, Any] | None:
    """What the ``model_index.json`` of a model of another make says; None of one of ours, or if there is none."""
    folder = Path(name)
    if folder.is_file():
        raise ValueError(
            f"got the file {name}; expected a folder: a single file of Stable Diffusion's is written as one by "
            "diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    ours = (folder / WEIGHTS).exists() or name in shipped() or name.split("/")[0] in modality_names()
    path = folder / INDEX if folder.is_dir() or ours else _on_hub(name)
    if ours or path is None or not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        index = None
    if not isinstance(index, dict):
        raise ValueError(f"got {path}, which is not a JSON object; copy it again")
    return index


def _on_hub(name: str) -> Path | None:
    """The index of a model on the Hub, from its cache where it was fetched before; None if it cannot be had."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or find_spec("huggingface_hub") is None:
        return None
    hub = import_module("huggingface_hub")
    cached = hub.try_to_load_from_cache(name, INDEX)
    try:
        return Path(cached if isinstance(cached, str) else hub.hf_hub_download(name, INDEX))
    except (OSError, ValueError):
        return None


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"got a model folder without {path.name}; expected {path}: copy it from the run") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"got {path}, which is not YAML; copy it from the run again") from None
    if not isinstance(recipe, dict) or "modality" not in recipe:
        raise ValueError(f"got {path}, which is not a recipe; copy it from the run again")
    return recipe


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"got {path}, which is not a whole safetensors file ({error}); copy it again "
            "(pickled checkpoints are not loaded, as they can run code)"
        ) from None
