"""What is installed: modalities, shipped models and recipes, found without importing any of them.

Modalities are entry points of group ``diffkit.modalities``. A shipped model is a folder ``weights/<name>`` inside its
adapter's package. Recipes are YAML files in the installed package (``diffkit/recipes``) or in the repository's
``recipes/``.
"""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from diffkit.naming import nearest

__all__ = ["default_model", "entry_point", "modality_names", "recipe_folder", "recipe_names", "shipped"]

GROUP = "diffkit.modalities"
WEIGHTS = "model.safetensors"


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def modality_names() -> list[str]:
    """The installed modalities."""
    return sorted(_points())


def entry_point(name: str) -> EntryPoint:
    """Where the adapter of a modality is.

    Raises:
        ValueError: for a name that is not installed, with those that are and the nearest.
    """
    points = _points()
    if name not in points:
        known = ", ".join(sorted(points)) or "(none is installed)"
        raise ValueError(f"got modality '{name}'; expected one of {known}{nearest(name, points)}")
    return points[name]


def _weights(modality: str) -> Path:
    spec = find_spec(entry_point(modality).module.split(".")[0])
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "weights"


def shipped() -> dict[str, Path]:
    """The folders of the models inside the installed adapters, by name such as "molecule/qm9"."""
    return {
        f"{modality}/{weights.parent.name}": weights.parent
        for modality in modality_names()
        for weights in sorted(_weights(modality).glob(f"*/{WEIGHTS}"))
    }


def default_model(modality: str) -> str | None:
    """The name of the model that a modality's name alone means: the one its file ``weights/default`` says."""
    chosen = _weights(modality) / "default"
    return f"{modality}/{chosen.read_text(encoding='utf-8').strip()}" if chosen.exists() else None


def recipe_folder() -> Path:
    """Where the recipes are."""
    package = Path(__file__).parent
    return next(f for f in (package / "recipes", package.parent / "recipes") if f.is_dir())


def recipe_names() -> list[str]:
    """All recipes, as "modality/name"."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml"))
