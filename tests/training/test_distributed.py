"""Two processes train as one does with the same global batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from diffkit.fit import fit

TOLERANCE = 1e-6
"""Sums over a batch are taken in another order: float32 rounding of numbers of order one, over a dozen steps."""


def run(recipe: dict[str, Any], folder: Path, plugin: Path) -> None:
    """Train in processes of their own."""
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    paths = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, plugin / "train_toy.py", folder.parent / "recipe.yaml", folder],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def losses(folder: Path) -> list[float]:
    return list(json.loads((folder / "losses.json").read_text()))


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_two_processes_give_the_losses_and_weights_of_one(
    toy: Callable[..., Any], final: Callable[[Path], dict[str, Tensor]], tmp_path: Path, plugin: Path
) -> None:
    # No dropout in the network: each process drops other units, as it should.
    one = toy(network={"dropout": 0.0})
    two = toy(network={"dropout": 0.0}, trainer={"devices": 2, "strategy": "ddp"})
    import train_toy  # beside the plugin

    fit(one, tmp_path / "one", quiet=True, callbacks=[train_toy.Losses(tmp_path / "one" / "losses.json")])
    run(two, tmp_path / "two", plugin)
    assert len(losses(tmp_path / "two")) == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)
    assert largest_difference(final(tmp_path / "one"), final(tmp_path / "two")) < TOLERANCE
    metrics = [(tmp_path / name / "model" / "README.md").read_text().split("## Figures")[1] for name in ("one", "two")]
    assert metrics[0] == metrics[1]  # what is logged is the mean over all ranks


def test_accumulated_parts_of_a_batch_train_as_the_whole_does(
    toy: Callable[..., Any], final: Callable[[Path], dict[str, Tensor]], tmp_path: Path
) -> None:
    for parts in (1, 4):
        recipe = toy(network={"dropout": 0.0}, trainer={"accumulate_grad_batches": parts})
        fit(recipe, tmp_path / str(parts), quiet=True)
    assert largest_difference(final(tmp_path / "1"), final(tmp_path / "4")) < TOLERANCE
    assert torch.load(tmp_path / "4" / "last.ckpt", weights_only=True)["global_step"] == 12
