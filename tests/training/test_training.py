"""The loss that is learnt from, and how the weights learn from it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.data import collate
from diffkit.denoiser import Denoiser
from diffkit.fit import fit, prepare
from diffkit.modality import Batch, Example
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.times import Uniform
from diffkit.training import DiffusionModule, Optimisation


class Zero(nn.Module):
    """Always predicts zero, so that the loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(2, 2))
        self.vector = nn.Parameter(torch.zeros(2))

    def forward(
        self, x: Mapping[str, Tensor], t: Tensor, condition: Condition, mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {k: torch.zeros_like(v) for k, v in x.items()}


def module_of(**options: Any) -> DiffusionModule:
    network = Zero()
    denoiser = Denoiser(network, Product({"x": Gaussian()}))
    return DiffusionModule(network, denoiser, Optimisation(**options), Uniform())


def ragged(sizes: list[int]) -> Batch:
    examples = [Example({"x": torch.ones(n)}, {"x": torch.ones(n, dtype=torch.bool)}) for n in sizes]
    return collate(list(enumerate(examples)))


def test_a_samples_loss_is_the_mean_over_its_real_elements() -> None:
    module, batch = module_of(), ragged([1, 3, 8])
    t = torch.full((3,), 0.25)
    together = module.losses(batch, t, Noise.of(0, 3))["x"]
    for i, size in enumerate([1, 3, 8]):
        alone = replace(ragged([size]), index=torch.tensor([i]))
        assert torch.allclose(module.losses(alone, t[:1], Noise(0, torch.tensor([i])))["x"], together[i : i + 1])


def test_what_stands_in_the_padding_does_not_matter() -> None:
    module, batch, t = module_of(), ragged([1, 3, 8]), torch.full((3,), 0.25)
    filled = replace(batch, x={"x": torch.where(batch.mask["x"], batch.x["x"], 1e6)})
    losses = [module.losses(b, t, Noise.of(0, 3))["x"] for b in (batch, filled)]
    assert torch.equal(*losses)


def test_conditions_are_dropped_at_their_rate_in_training_alone() -> None:
    module = module_of(condition_dropout=0.25)
    noise, values = Noise.of(0, 4000), {"a": torch.zeros(4000), "b": torch.zeros(4000)}
    condition = Condition(values, {k: torch.ones(4000, dtype=torch.bool) for k in values})
    dropped = module.train()._dropped(condition, noise)
    a, b = (~dropped.present[name] for name in ("a", "b"))
    # All at once at 1/4, and each on its own at 1/4 of the rest.
    assert a.float().mean() == pytest.approx(7 / 16, abs=0.03)
    assert b.float().mean() == pytest.approx(7 / 16, abs=0.03)
    assert (a & b).float().mean() == pytest.approx(1 / 4 + 3 / 64, abs=0.03)
    assert module.eval()._dropped(condition, noise) is condition


def test_weight_decay_is_on_matrices_alone() -> None:
    module = module_of(weight_decay=0.3)
    module._trainer = L.Trainer(accelerator="cpu", max_steps=10, logger=False, enable_checkpointing=False)
    made: Any = module.configure_optimizers()
    groups = made["optimizer"].param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.3, [2]), (0.0, [1])]


def test_the_learning_rate_warms_up_and_falls_to_its_final_share() -> None:
    module = module_of(warmup=10, final=0.1)
    module._trainer = L.Trainer(accelerator="cpu", max_steps=110, logger=False, enable_checkpointing=False)
    rates = [module._rate(step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # half-way down the cosine
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


class Steps(L.Callback):
    """The loss of every step, and the norm of the gradient that it was taken with."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        squares = [p.grad.square().sum() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(squares).sum().sqrt()))
        self.losses.append(float(outputs["loss"]))


def test_gradients_are_clipped_and_the_loss_falls(toy: Callable[..., Any], tmp_path: Path) -> None:
    steps = Steps()
    long = {"steps": 60, "learning_rate": 0.02, "validate_every": 60, "checkpoint_every": 60}
    fit(toy(training=long, trainer={"gradient_clip_val": 0.5}), tmp_path, quiet=True, callbacks=[steps])
    assert max(steps.norms) == pytest.approx(0.5, abs=1e-3)
    assert sum(steps.losses[-10:]) < 0.8 * sum(steps.losses[:10])


def test_an_item_gets_other_noise_each_time_it_is_seen(toy: Callable[..., Any], tmp_path: Path) -> None:
    steps = Steps()
    one_batch = toy(data={"train": 8}, network={"dropout": 0.0}, training={"learning_rate": 0.0, "steps": 6})
    fit(one_batch, tmp_path, quiet=True, callbacks=[steps])
    assert len(set(steps.losses)) == 6


def test_weights_of_leaves_scale_their_losses(toy: Callable[..., Any], tmp_path: Path) -> None:
    logged: dict[str, float] = {}

    class Logged(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            logged.update({k: float(v) for k, v in trainer.callback_metrics.items()})

    recipe = toy(training={"steps": 1, "leaf_weights": {"colour": 3.0}})
    fit(recipe, tmp_path, quiet=True, callbacks=[Logged()])
    assert logged["train/loss"] == pytest.approx(3 * logged["train/colour"] + logged["train/point"], rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(toy: Callable[..., Any]) -> None:
    def first(seed: int) -> Tensor:
        return next(prepare(toy(training={"seed": seed})).model.network.parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_run_begins_with_the_weights_of_another_model(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = fit(toy(training={"steps": 2}), tmp_path, quiet=True)
    assert isinstance(model, Model)
    begun = prepare(toy(training={"start": str(tmp_path), "seed": 5})).model.network.state_dict()
    assert all(torch.equal(begun[k], v) for k, v in model.network.state_dict().items())
    with pytest.raises(ValueError, match="a model of another network: size mismatch"):
        prepare(toy(training={"start": str(tmp_path)}, network={"width": 8}))
    with pytest.raises(ValueError, match="got model 'nowhere'"):
        prepare(toy(training={"start": "nowhere"}))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_compiled_run_in_either_precision_exports_float32(
    toy: Callable[..., Any], tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))  # the compiler takes a minute
    recipe = toy(training={"steps": 4, "compile": True}, trainer={"precision": precision})
    model = fit(recipe, tmp_path, quiet=True)
    assert len(compiled) == 1
    assert model is not None and {p.dtype for p in model.network.parameters()} == {torch.float32}
