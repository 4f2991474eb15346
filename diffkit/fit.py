"""``fit``: from a recipe to a trained model in a run folder.

A run folder holds ``last.ckpt`` (all that a resumed run needs; written here, so Lightning may unpickle it), TensorBoard's
logs, and the exported model: EMA weights, recipe and card, which `diffkit.load` reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from diffkit import registry
from diffkit.data import Numbered, StepSampler, collate
from diffkit.modality import Batch, Dataset, find_modality
from diffkit.model import Model
from diffkit.training import EMA, DiffusionModule, Optimisation

__all__ = ["Loaders", "fit", "prepare"]

# Keys of the recipe's ``training`` node that are not fields of `Optimisation`.
_RUN = ("steps", "batch_size", "times", "ema", "compile", "workers", "validate_every", "checkpoint_every")


class Loaders(L.LightningDataModule):
    """The batches of a run. The first one follows the step that a resumed run had reached."""

    def __init__(self, train: Dataset, valid: Dataset, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.train, self.valid, self.options = train, valid, options

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        repeat = self.trainer.accumulate_grad_batches
        batches = StepSampler(
            len(self.train),
            self.options["batch_size"] // repeat,
            self.options["seed"],
            self.trainer.global_step * repeat,
            self.options["steps"] * repeat,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        size, ranks = self.options["batch_size"], self.trainer.world_size
        steps = max(1, min(len(self.valid) // size, 16))
        return self._loader(
            self.valid, StepSampler(len(self.valid), size, 0, 0, steps, self.trainer.global_rank, ranks)
        )

    def _loader(self, dataset: Dataset, batches: StepSampler) -> DataLoader[Batch]:
        workers = self.options["workers"]
        return DataLoader(
            Numbered(dataset),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


@dataclass(frozen=True)
class Run:
    """A run about to start: the model with fresh weights, its Lightning module and its batches."""

    model: Model
    module: DiffusionModule
    loaders: Loaders


def prepare(recipe: Mapping[str, Any]) -> Run:
    """Load the data, measure its statistics into the recipe, and build the model."""
    fields = dict(recipe["modality"])
    adapter = find_modality(fields.pop("name"))(**fields)
    train, valid = (adapter.dataset(split, **recipe["data"]) for split in ("train", "valid"))
    recipe = {**recipe, "modality": {**recipe["modality"], "statistics": dict(train.statistics)}}
    options = recipe["training"]
    L.seed_everything(options["seed"], verbose=False)
    model = Model.of(recipe)
    learning = Optimisation(**{k: v for k, v in options.items() if k not in _RUN})
    module = DiffusionModule(model.network, model.denoiser, learning, registry.build("times", options["times"]))
    return Run(model, module, Loaders(train, valid, options))


def fit(recipe: Mapping[str, Any], folder: Path, callbacks: Sequence[Callback] = ()) -> Model:
    """Train ``recipe`` into ``folder``, taking up ``folder/last.ckpt`` where there is one."""
    run = prepare(recipe)
    options = recipe["training"]
    if options["compile"]:
        run.model.network.compile(dynamic=False)
    checkpoint = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=options["checkpoint_every"], save_last=True, save_top_k=0
    )
    trainer = L.Trainer(
        **recipe["trainer"],
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="logs"),
        callbacks=[EMA(options["ema"]), checkpoint, *callbacks],
        max_steps=options["steps"],
        val_check_interval=options["validate_every"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(run.module, run.loaders, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    return run.model
