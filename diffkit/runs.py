"""Run folders: which folder may be written to, what was begun in it, and from where it can be taken up."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from diffkit.files import whole

__all__ = ["begin", "claim", "differences", "last_checkpoint"]

RECIPE, LAST = "recipe.yaml", "last.ckpt"

# What may change while a run pauses: where it runs, and what is said of it. All else changes the weights it ends with.
FREE = ("trainer.accelerator", "trainer.devices", "training.workers", "sampling", "card")


def claim(folder: Path) -> None:
    """Make sure that ``folder`` is a run's or can become one.

    Raises:
        ValueError: if it holds files that no run put there.
    """
    if not folder.exists():
        return
    strange = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strange and not (folder / RECIPE).exists():
        raise ValueError(
            f"got the run folder {folder}, which holds something else ({strange[0]}); expected a new or an empty one"
        )


def begin(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write down the recipe of the run in ``folder``.

    Raises:
        ValueError: if a run of another recipe was begun there, with the keys that differ.
    """
    path = folder / RECIPE
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    if path.exists() and (folder / LAST).exists():  # before the first checkpoint there is nothing to fall out with
        old, new = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
        changed = ", ".join(f"{key}={after} (was {before})" for key, before, after in differences(old, new))
        if changed:
            raise ValueError(f"got {changed} for the run in {folder}; expected its own recipe, or another folder")
    for remains in folder.glob(f".{Path(LAST).stem}-*"):
        remains.unlink()  # of a run that was killed while it saved
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of what differs between two recipes and is not in `FREE`."""
    if key in FREE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint to take the run up from and its step; None for a run that has none yet.

    Raises:
        ValueError: if the file is cut short or no checkpoint.
    """
    path = folder / LAST
    if not path.exists():
        return None
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's guesses at what is wrong
        try:
            return path, int(torch.load(file, map_location="cpu", weights_only=True)["global_step"])
        except Exception:  # of half a dozen kinds, depending on what is wrong with the file
            raise ValueError(
                f"got {path}, which is cut short or no checkpoint; remove it to start again, or use another folder"
            ) from None
