"""Raw and averaged weights are never taken for each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from diffkit import checkpoint
from diffkit.fit import fit

DECAY = 0.9
Weights = dict[str, Tensor]


def weights(module: L.LightningModule) -> Weights:
    return {k: v.detach().clone() for k, v in module.network.named_parameters()}  # type: ignore[union-attr, operator]


def equal(left: Weights, right: Weights) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def close(left: Weights, right: Weights) -> bool:
    return all(torch.allclose(left[name], right[name], rtol=0, atol=1e-6) for name in left)


class Reference(Callback):
    """The average computed a second time, from its definition, and what the module held during validations."""

    def __init__(self) -> None:
        self.count = 0
        self.raw: Weights = {}
        self.average: Weights = {}
        self.validated: list[bool] = []
        self.restored: list[bool] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.raw = weights(pl_module)
        kept = min(DECAY, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        self.average = {k: kept * self.average.get(k, v) + (1 - kept) * v for k, v in self.raw.items()}
        self.count += 1

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated.append(close(weights(pl_module), self.average))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restored.append(equal(weights(pl_module), self.raw))


def saved(path: Path, key: str) -> Weights:
    state = torch.load(path, weights_only=True)[key]
    return {k.removeprefix("network."): v for k, v in state.items()}


@pytest.fixture
def reference() -> Reference:
    return Reference()


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(
    toy: Callable[..., Any], tmp_path: Path, reference: Reference
) -> None:
    # From the first step on: Lightning's issue 21724 is a validation with an average that has not begun.
    fit(toy(training={"validate_every": 1, "steps": 4}), tmp_path, quiet=True, callbacks=[reference])
    assert len(reference.validated) >= 4 and all(reference.validated)
    assert len(reference.restored) == 4 and all(reference.restored)


def test_checkpoint_and_export_hold_what_they_say(
    toy: Callable[..., Any], tmp_path: Path, reference: Reference
) -> None:
    model = fit(toy(), tmp_path, quiet=True, callbacks=[reference])
    assert model is not None
    assert not close(reference.raw, reference.average)
    assert equal(saved(tmp_path / "last.ckpt", "current_model_state"), reference.raw)
    assert close(saved(tmp_path / "last.ckpt", "state_dict"), reference.average)
    exported = dict(checkpoint.load(tmp_path).network.named_parameters())
    assert equal(exported, saved(tmp_path / "last.ckpt", "state_dict"))
    assert equal(exported, dict(model.network.named_parameters()))


def test_a_checkpoint_written_during_a_validation_is_not_the_wrong_way_round(
    toy: Callable[..., Any], at: Any, tmp_path: Path, reference: Reference
) -> None:
    during = at(8, lambda trainer, _: trainer.save_checkpoint(tmp_path / "during.ckpt"), "validation")
    fit(toy(training={"steps": 8}), tmp_path / "run", quiet=True, callbacks=[reference, during])
    assert equal(saved(tmp_path / "during.ckpt", "current_model_state"), reference.raw)
    assert close(saved(tmp_path / "during.ckpt", "state_dict"), reference.average)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_validation_that_breaks_off_leaves_the_raw_weights_in_the_module(
    toy: Callable[..., Any], at: Any, tmp_path: Path, reference: Reference, error: type[BaseException]
) -> None:
    modules = []

    def fail(_: L.Trainer, module: L.LightningModule) -> None:
        modules.append(module)
        raise error

    with pytest.raises(error):
        fit(toy(), tmp_path, quiet=True, callbacks=[reference, at(8, fail, "validation")])
    assert equal(weights(modules[0]), reference.raw)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_without_an_average_exports_the_raw_weights(
    toy: Callable[..., Any], tmp_path: Path, reference: Reference
) -> None:
    model = fit(toy(training={"ema": None}), tmp_path, quiet=True, callbacks=[reference])
    assert model is not None
    assert equal(dict(model.network.named_parameters()), reference.raw)


def test_sharded_weights_are_not_averaged_and_that_is_said(toy: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no moving average"), pytest.raises(ValueError, match="GPU"):
        fit(toy(trainer={"strategy": "fsdp"}), tmp_path, quiet=True)
