"""``python train_toy.py RECIPE.yaml FOLDER``: train, and write the losses of all ranks to FOLDER/losses.json."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from diffkit.fit import fit


class Losses(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(trainer.strategy.reduce(outputs["loss"], reduce_op="mean")))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.values))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    fit(yaml.safe_load(Path(sys.argv[1]).read_text()), folder, quiet=True, callbacks=[Losses(folder / "losses.json")])
