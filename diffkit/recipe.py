"""Recipes: Hydra YAML files that name all of a model and its training.

Components are named by their registry names, never by a Python path, so a recipe from a stranger's checkpoint runs no
code.
"""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffkit.inventory import recipe_folder, recipe_names
from diffkit.naming import nearest

__all__ = ["load"]


def load(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved recipe ``name`` with Hydra ``overrides`` such as ``training.steps=100``.

    Raises:
        ValueError: for an unknown recipe, with those that exist, or an override that does not fit.
    """
    known = recipe_names()
    if name not in known:
        raise ValueError(f"got recipe '{name}'; expected one of {', '.join(known)}{nearest(name, known)}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(recipe_folder()), version_base="1.3"):
            config = compose(name, list(overrides))
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"got overrides {list(overrides)} for recipe '{name}': {_first_line(error)}") from None
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2])
