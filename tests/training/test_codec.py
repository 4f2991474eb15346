"""A codec is trained by the trainer of everything else, and never mistaken for a model that draws."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from diffkit import checkpoint
from diffkit.data import Batches
from diffkit.fit import fit, prepare
from diffkit.noise import Noise

Toy = Callable[..., dict[str, Any]]


class PowerFails(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise RuntimeError("the power failed")


def test_a_codec_learns_and_is_exported_without_its_critic(toy: Toy, tmp_path: Path) -> None:
    recipe = toy(codec={"adversarial": True}, training={"steps": 200, "learning_rate": 3e-2, "validate_every": 200})
    folder = fit(recipe, tmp_path, quiet=True)
    assert folder == tmp_path / "model"
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert sorted(weights) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# A codec for data of kind toy" in card and "diffkit generate" not in card
    assert yaml.safe_load((tmp_path / "model" / "recipe.yaml").read_text())["codec"] == {"adversarial": True}
    fresh = prepare(recipe)
    batch = Batches(fresh.loaders.valid).__getitems__(range(40))
    losses = [float(_distance(weights, fresh, batch)) for weights in (fresh.model.network.state_dict(), weights)]
    assert losses[1] < 0.5 * losses[0]


def _distance(weights: Mapping[str, Tensor], run: Any, batch: Any) -> Tensor:
    network = run.model.network
    kept = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    with torch.no_grad():
        distance: Tensor = run.model.codec.losses(batch, Noise(0, batch.index), 0)["distance"]
    network.load_state_dict(kept)
    return distance


def test_each_side_has_the_gradient_of_its_own_loss(toy: Toy) -> None:
    run = prepare(toy(codec={}))
    batch = Batches(run.loaders.train).__getitems__(range(8))
    terms = run.model.codec.losses(batch, Noise(0, batch.index), 0)
    sides = {"critic": run.module.critic.parameters(), "network": run.module.network.parameters()}
    own = {"critic": terms["critic"], "network": terms["distance"] + terms["fooled"]}
    for side, parameters in sides.items():
        parameters = list(parameters)
        together = torch.autograd.grad(sum(terms.values()), parameters, retain_graph=True)
        alone = torch.autograd.grad(own[side], parameters, retain_graph=True)
        for left, right in zip(together, alone, strict=True):
            torch.testing.assert_close(left, right)


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    toy: Toy, final: Callable[[Path], dict[str, Tensor]], tmp_path: Path
) -> None:
    recipe = toy(codec={})
    fit(recipe, tmp_path / "whole", quiet=True)
    with pytest.raises(RuntimeError, match="power"):
        fit(recipe, tmp_path / "broken", quiet=True, callbacks=[PowerFails()])
    fit(recipe, tmp_path / "broken", quiet=True)
    whole, broken = final(tmp_path / "whole"), final(tmp_path / "broken")
    assert whole.keys() == broken.keys() and any("critic" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []


def test_what_cannot_be(toy: Toy, tmp_path: Path) -> None:
    fit(toy(codec={"adversarial": False}), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="holds a codec and draws no samples"):
        checkpoint.load(tmp_path)
    molecule = toy(modality={"name": "molecule"}, data={"source": "sample"}, codec={"width": 1})
    with pytest.raises(ValueError, match="this kind of data has none that is trained"):
        prepare(molecule)
