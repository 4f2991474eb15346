"""The model's card: what it is, what it was made of and by which command, with Hugging Face's metadata in its head.

What cannot be known from the run comes from the recipe's ``card`` node:

    license     of the weights, as Hugging Face spells it
    tags        for the search
    sources     for each value of ``data.source``: what the data is, its licence and where it comes from
    citations   of the method

The licence and the sources are of public data: a card says neither of a model that was trained on a file of one's own
(``data.path``).
"""

import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from diffkit.codec import Part
from diffkit.model import Model

__all__ = ["Facts", "write"]

PACKAGES = ("diffkit", "torch", "lightning", "numpy")


@dataclass(frozen=True)
class Facts:
    """What a card says of a training run.

    Args:
        command: the command line that made the model; empty if there was none.
        step: optimiser steps taken.
        seconds: the wall-clock time they took.
        averaged: whether the weights are a moving average.
        hardware: what it ran on.
        metrics: the last value of everything that was logged.
    """

    command: str
    step: int
    seconds: float
    averaged: bool
    hardware: str
    metrics: Mapping[str, float]


def write(model: Model | Part, facts: Facts) -> str:
    """The card, as Markdown."""
    return "\n\n".join([_head(model.recipe), *_body(model, facts)]) + "\n"


def _head(recipe: Mapping[str, Any]) -> str:
    node, own = recipe.get("card", {}), _own_file(recipe)
    front = {
        "license": None if own else node.get("license"),
        "library_name": "diffkit",
        "tags": ["diffusion", recipe["modality"]["name"], *node.get("tags", [])],
        "datasets": None if own or "source" not in recipe["data"] else [recipe["data"]["source"]],
    }
    stated = {key: value for key, value in front.items() if value is not None}
    return f"---\n{yaml.safe_dump(stated, sort_keys=False)}---"


def _body(model: Model | Part, facts: Facts) -> Iterator[str]:
    recipe, name = model.recipe, model.recipe["modality"]["name"]
    if recipe.get("codec") is not None:
        yield f"# A codec for data of kind {name}, made with diffkit"
    else:
        yield f"# A diffusion model of data of kind {name}, made with diffkit"
        yield f"    diffkit generate {name} --model FOLDER"
    yield f"## Training\n\n{_table(_training(model, facts))}"
    if facts.command:
        yield f"    {facts.command}"
    if facts.metrics:
        figures = {key: f"{value:.4g}" for key, value in facts.metrics.items()}
        yield f"## Figures at step {facts.step:,}\n\n{_table(figures)}"
        yield "`train/` and `valid/` are losses, `samples/` counts of the last preview."
    yield f"## Data\n\n{_data(recipe)}"
    yield f"## Made with\n\n{_table(_versions())}"
    if citations := recipe.get("card", {}).get("citations"):
        yield "## Citations\n\n" + "\n".join(f"- {text}" for text in citations)


def _training(model: Model | Part, facts: Facts) -> dict[str, str]:
    options = model.recipe["training"]
    return {
        "parameters": f"{sum(p.numel() for p in model.network.parameters()):,}",
        "steps": f"{facts.step:,} of {options['steps']:,}",
        "samples seen": f"{facts.step * options['batch_size']:,}",
        "wall time": str(timedelta(seconds=round(facts.seconds))),
        "hardware": facts.hardware,
        "precision": model.recipe["trainer"]["precision"],
        "seed": str(options["seed"]),
        "weights": f"exponential moving average, decay {options['ema']}" if facts.averaged else "of the last step",
    }


def _own_file(recipe: Mapping[str, Any]) -> bool:
    return recipe["data"].get("path") is not None


def _data(recipe: Mapping[str, Any]) -> str:
    if _own_file(recipe):
        file = Path(recipe["data"]["path"]).name
        return f"A file of the user's own, `{file}`; its terms decide on the use of the weights."
    source = recipe["data"].get("source", "")
    return str(recipe.get("card", {}).get("sources", {}).get(source) or source or "Not stated.")


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | ({"commit": commit} if (commit := _commit()) else {})


@cache
def _commit() -> str:
    """The commit of diffkit's own checkout, marked if files were changed since; empty if it is not one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
