"""A run that was killed and taken up ends like one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from diffkit.fit import fit

Recipe = dict[str, Any]


class Crash(L.Callback):
    """The power fails at a point of the run."""

    def __init__(self, step: int, during: str) -> None:
        self.step, self.during = step, during

    def _maybe(self, during: str, step: int) -> None:
        if (during, step) == (self.during, self.step):
            raise RuntimeError("the power failed")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe("step", trainer.global_step)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe("validation", trainer.global_step)


class Validations(L.Callback):
    """The steps at which the run was validated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)


def final(folder: Path) -> dict[str, Tensor]:
    """Raw weights, averaged weights and the optimiser's moments at the end of a run."""
    state = torch.load(folder / "last.ckpt", weights_only=True)
    moments = {f"adam/{i}/{k}": v for i, m in state["optimizer_states"][0]["state"].items() for k, v in m.items()}
    weights = {f"{kind}/{k}": v for kind in ("state_dict", "current_model_state") for k, v in state[kind].items()}
    return {**weights, **moments}


def train_in_two(recipe: Recipe, folder: Path, crash: Crash) -> list[int]:
    """Train, fail, take up; returns the steps validated."""
    seen = Validations()
    with pytest.raises(RuntimeError, match="the power failed"):
        fit(recipe, folder, quiet=True, callbacks=[seen, crash])
    fit(recipe, folder, quiet=True, callbacks=[seen])
    return seen.steps


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    unequal = [k for k in left if not torch.equal(left[k], right[k])]
    assert not unequal


@pytest.mark.parametrize("crash", [Crash(2, "step"), Crash(6, "step"), Crash(8, "step"), Crash(8, "validation")], ids=str)
@pytest.mark.parametrize(("checkpoint_every", "validate_every", "parts"), [(4, 4, 1), (3, 5, 2), (5, 2, 1)])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    toy: Callable[..., Recipe], tmp_path: Path, crash: Crash, checkpoint_every: int, validate_every: int, parts: int
) -> None:
    recipe = toy(
        training={"checkpoint_every": checkpoint_every, "validate_every": validate_every},
        trainer={"accumulate_grad_batches": parts},
    )
    whole = Validations()
    fit(recipe, tmp_path / "whole", quiet=True, callbacks=[whole])
    broken = train_in_two(recipe, tmp_path / "broken", crash)
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "broken"))
    print(whole.steps, broken)
