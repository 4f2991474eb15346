"""Models as training runs leave them, but small and untrained: the command line does the same with any weights."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffkit import checkpoint, recipe
from diffkit.modality import find_modality
from diffkit.model import Model

TINY = ["network.width=32", "network.layers=2", "network.heads=4", "data.source=sample", "sampling.steps=4"]
Command = Callable[..., subprocess.CompletedProcess[str]]


def untrained(*overrides: str) -> Model:
    """The molecule model of `TINY` size, its statistics those of the shipped sample."""
    resolved = recipe.load("molecule/qm9", [*TINY, *overrides])
    fields = {k: v for k, v in resolved["modality"].items() if k != "name"}
    train = find_modality("molecule")(**fields).dataset("train", **resolved["data"])
    torch.manual_seed(0)
    return Model.of({**resolved, "modality": {**resolved["modality"], "statistics": dict(train.statistics)}})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model without conditions."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(untrained(), folder, "# a model for tests\n")
    return folder


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that takes a dipole moment."""
    folder = tmp_path_factory.mktemp("conditional")
    checkpoint.save(untrained("modality.conditions=[dipole]"), folder, "# a model for tests\n")
    return folder


@pytest.fixture
def diffkit(tmp_path: Path) -> Command:
    """Run the command line in an empty folder, as a person would."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-m", "diffkit.cli", *map(str, arguments)]
        return subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, **options
        )  # type: ignore[call-overload,no-any-return]

    return run
