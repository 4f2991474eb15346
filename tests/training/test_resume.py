"""A run that was killed and taken up ends like one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from diffkit.cli import main
from diffkit.fit import fit

Final = Callable[[Path], dict[str, Tensor]]


class Validations(L.Callback):
    """The steps at which a run was validated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(trainer.global_step)


def power_fails(*_: Any) -> None:
    raise RuntimeError("the power failed")


def unequal(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize(
    ("step", "during", "saves", "validates", "parts", "expected"),
    [
        # taken up at: the start, a checkpoint that follows a validation, one that precedes none, one of a half-done run
        (2, "step", 4, 4, 1, [4, 8, 12]),
        (6, "step", 4, 4, 1, [4, 8, 12]),
        (8, "validation", 4, 4, 1, [4, 8, 12]),
        (8, "step", 3, 5, 2, [5, 10]),
        (9, "step", 5, 2, 1, [2, 4, 6, 8, 6, 8, 10, 12]),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    toy: Callable[..., Any],
    at: Any,
    final: Final,
    tmp_path: Path,
    step: int,
    during: str,
    saves: int,
    validates: int,
    parts: int,
    expected: list[int],
) -> None:
    recipe = toy(
        training={"checkpoint_every": saves, "validate_every": validates},
        trainer={"accumulate_grad_batches": parts},
    )
    seen = Validations()
    fit(recipe, tmp_path / "whole", quiet=True)
    with pytest.raises(RuntimeError, match="the power failed"):
        fit(recipe, tmp_path / "broken", quiet=True, callbacks=[seen, at(step, power_fails, during)])
    fit(recipe, tmp_path / "broken", quiet=True, callbacks=[seen])
    assert not unequal(final(tmp_path / "whole"), final(tmp_path / "broken"))
    assert seen.steps == expected  # none is missed, and none is repeated of a step that is not


def test_a_run_killed_by_sigkill_resumes_exactly(final: Final, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        tiny = ["network.width=32", "network.layers=1", "network.pair_width=8", "training.batch_size=8"]
        rate = ["training.steps=100", "training.checkpoint_every=5", "training.validate_every=100"]
        return ["train", "molecule/sample", *tiny, *rate, "sampling.steps=2", "--quiet", "--out", str(folder)]

    killed = subprocess.Popen(
        [sys.executable, "-m", "diffkit.cli", *command(tmp_path / "killed")], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not (tmp_path / "killed" / "last.ckpt").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] < 100
    assert main(command(tmp_path / "killed")) == 0
    assert main(command(tmp_path / "whole")) == 0
    assert not unequal(final(tmp_path / "whole"), final(tmp_path / "killed"))


def test_a_finished_run_is_exported_again_and_not_trained(toy: Callable[..., Any], tmp_path: Path) -> None:
    first = fit(toy(), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    again = fit(toy(), tmp_path / "run", quiet=True)
    assert first is not None and again is not None
    assert not unequal(first.network.state_dict(), again.network.state_dict())
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns == before


def test_the_number_of_devices_and_the_sampling_may_change_in_between(
    toy: Callable[..., Any], at: Any, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the power failed"):
        fit(toy(), tmp_path / "run", quiet=True, callbacks=[at(6, power_fails)])
    model = fit(toy(sampling={"steps": 3}, training={"workers": 1}), tmp_path / "run", quiet=True)
    assert model is not None and model.recipe["sampling"]["steps"] == 3
