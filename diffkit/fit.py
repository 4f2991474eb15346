"""``fit``: from a recipe to a trained model in a run folder.

    recipe.yaml   the resolved recipe, what was measured of the data included
    last.ckpt     all that the run needs to be taken up again: raw and averaged weights, optimiser, schedule, counters
    model/        the exported model: averaged weights, recipe and card, which `diffkit.load` reads
    samples/      what the model drew at the last validation
    logs/         TensorBoard: losses, and the samples' picture

A run is taken up by calling ``fit`` again with the same recipe and folder; it then ends with the weights that an
unbroken run would have had.
"""

import logging
import platform
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from diffkit import card, checkpoint, registry, runs
from diffkit.callbacks import (
    SIGNALS,
    Averaged,
    Bar,
    Finite,
    Interrupted,
    Preview,
    Progress,
    Saver,
    Stop,
    WholeFile,
)
from diffkit.codec import CodecModule, Part
from diffkit.data import Batches, Sealed, StepSampler
from diffkit.modality import Dataset, find_modality
from diffkit.model import Model
from diffkit.naming import nearest
from diffkit.product import Product
from diffkit.times import Times
from diffkit.training import EMA, DiffusionModule, Learner, Optimisation
from diffkit.weighting import Weighting

__all__ = ["Loaders", "Run", "fit", "prepare"]

# Keys of the recipe's ``training`` node that are not fields of `Optimisation`.
_RUN = (
    "steps",
    "batch_size",
    "times",
    "weighting",
    "coupling",
    "ema",
    "start",
    "compile",
    "workers",
    "validate_every",
    "checkpoint_every",
)

# Lightning's remarks that are not so here, or say nothing that a person could act on.
_NOISE = (
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # it is: StepSampler
    ".*is smaller than the logging interval.*",
    ".*use `self.log\\('samples/.*sync_dist=True.*",  # the samples are drawn by one process
    ".*LeafSpec.* is deprecated.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*torch._prims_common.check.*",
)


class Loaders(L.LightningDataModule):
    """The batches of a run. The first one follows the step that a resumed run had reached."""

    def __init__(self, train: Dataset, valid: Dataset, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.train, self.valid, self.options = train, valid, options

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training split, from the step that the run stands at."""
        assert self.trainer is not None
        parts = self.trainer.accumulate_grad_batches
        batches = StepSampler(
            len(self.train),
            self.options["batch_size"] // parts,
            self.options["seed"],
            self.trainer.global_step * parts,
            self.options["steps"] * parts,
            self.trainer.global_rank,
            self.trainer.world_size,
            getattr(self.train, "groups", None),
        )
        return self._loader(self.train, batches)

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        size, ranks = self.options["batch_size"], self.trainer.world_size
        steps = max(1, min(len(self.valid) // size, 16))
        batches = StepSampler(len(self.valid), size, 0, 0, steps, self.trainer.global_rank, ranks)
        return self._loader(self.valid, batches)

    def _loader(self, dataset: Dataset, batches: StepSampler) -> DataLoader[Any]:
        workers = self.options["workers"]
        return DataLoader(
            Batches(dataset),
            batch_sampler=batches,
            collate_fn=_seal,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts,
            pin_memory=torch.cuda.is_available(),
        )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the one that trains is to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _seal(batch: Any) -> Sealed:
    return Sealed(batch)


@dataclass(frozen=True)
class Run:
    """A run about to start: the model with fresh weights, its Lightning module and its batches."""

    model: Model | Part
    module: Learner
    loaders: Loaders


def prepare(recipe: Mapping[str, Any]) -> Run:
    """Load the data, measure its statistics into the recipe, and build the model.

    Raises:
        ValueError: for a name or an option that does not exist, or a split without data.
    """
    node = dict(recipe["modality"])
    adapter = find_modality(node.pop("name"))(**node)
    train, valid = (adapter.dataset(split, **recipe["data"]) for split in ("train", "valid"))
    for split, dataset in (("train", train), ("valid", valid)):
        if len(dataset) == 0:
            raise ValueError(f"got data of which nothing is in the {split} split; expected more of it")
    recipe = {**recipe, "modality": {**recipe["modality"], "statistics": dict(train.statistics)}}
    L.seed_everything(recipe["training"]["seed"], verbose=False)
    model, module = _codec(recipe) if recipe.get("codec") is not None else _denoiser(recipe)
    return Run(model, module, Loaders(train, valid, recipe["training"]))


def _codec(recipe: Mapping[str, Any]) -> tuple[Part, CodecModule]:
    part = Part.of(recipe)
    return part, CodecModule(part.codec, _optimisation(recipe["training"]))


def _denoiser(recipe: Mapping[str, Any]) -> tuple[Model, DiffusionModule]:
    model, options = Model.of(recipe), recipe["training"]
    if options.get("start") is not None:
        _start(model, options["start"])
    times, coupling = registry.build("times", options["times"]), registry.build("coupling", options["coupling"])
    weightings = _weightings(options["weighting"], model.denoiser.process, times)
    return model, DiffusionModule(model.network, model.denoiser, _optimisation(options), times, weightings, coupling)


def _start(model: Model, name: str) -> None:
    """Give it the weights of the model ``name``."""
    try:
        model.network.load_state_dict(checkpoint.load(name).network.state_dict())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"got training.start={name}, a model of another network: {reason}") from None


def _weightings(node: Any, process: Product, times: Times) -> dict[str, Weighting]:
    """The weighting of every leaf: one for all, or a mapping with some leaves' own."""
    if isinstance(node, str) or "name" in node:
        found = dict.fromkeys(process, registry.build("weighting", node))
    else:
        found = {k: registry.build("weighting", each) for k, each in node.items()}
        for k, weighting in found.items():
            if k not in process.leaves:
                raise ValueError(f"got training.weighting of leaf '{k}'; expected one of {', '.join(process)}")
            if not weighting.takes(process[k]):
                raise ValueError(
                    f"got training.weighting.{k}={node[k]}, which is of Gaussian leaves; expected none or elbo"
                )
    for weighting in found.values():
        if weighting.over_time and not times.even:
            raise ValueError(
                f"got training.weighting={node} with training.times={type(times).__name__}; expected the times "
                "uniform or adaptive, as that weighting is an integral over time"
            )
    return found


def _optimisation(options: Mapping[str, Any]) -> Optimisation:
    """What of the ``training`` node is about the weights."""
    known = [field.name for field in fields(Optimisation)]
    for name in options:
        if name not in (*known, *_RUN):
            raise ValueError(f"got training.{name}, which does not exist{nearest(name, (*known, *_RUN))}")
    return Optimisation(**{name: value for name, value in options.items() if name in known})


def fit(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    command: str = "",
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Model | Path | None:
    """Train ``recipe`` into ``folder``, or take up the run that was begun there.

    Args:
        recipe: resolved; see `diffkit.recipe.load`.
        folder: new, empty, or a run of the same recipe.
        command: the command line, for the card.
        quiet: without the progress bar and the lines of validations.
        callbacks: Lightning's, besides our own.

    Returns:
        The exported model, of a codec its folder; None on every rank but the first.

    Raises:
        ValueError: for a recipe, a folder or a checkpoint that cannot be used, or a loss that is not finite.
        OSError: if something cannot be written; what was saved before is then as it was.
        KeyboardInterrupt: if the run was asked to stop, with where it was saved.
    """
    if _is_first():
        runs.claim(folder)
    run = prepare(recipe)
    if _is_first():
        runs.begin(folder, run.model.recipe)
    last = runs.last_checkpoint(folder)
    with _hushed(), _interruptible():
        trainer = _trainer(run, folder, last[1] if last else None, command, quiet, callbacks)
        if recipe["training"]["compile"]:
            run.model.network.compile()
        trainer.fit(run.module, run.loaders, ckpt_path=last and last[0], weights_only=True)
    if not _is_first():
        return None
    return folder / "model" if recipe.get("codec") is not None else checkpoint.load(folder / "model")


def _is_first() -> bool:
    """Whether this is the first of the run's processes, or will be: asked before they are started, too."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def _trainer(
    run: Run, folder: Path, step: int | None, command: str, quiet: bool, callbacks: Sequence[Callback]
) -> L.Trainer:
    options, given = run.model.recipe["training"], run.model.recipe["trainer"]
    validate_every = min(options["validate_every"], options["steps"])
    try:
        trainer = L.Trainer(
            **given,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder, name="", version="logs", purge_step=step),
            callbacks=[*_callbacks(run.model.recipe, folder, validate_every, command, quiet), *callbacks],
            plugins=[WholeFile()],
            max_steps=options["steps"],
            val_check_interval=validate_every * given["accumulate_grad_batches"],
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=not quiet,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"got trainer options that Lightning refuses: {error}") from None
    parts = trainer.world_size * trainer.accumulate_grad_batches
    if options["batch_size"] % parts:
        raise ValueError(
            f"got training.batch_size={options['batch_size']} for {trainer.world_size} devices x "
            f"{trainer.accumulate_grad_batches} accumulated batches; expected a multiple of {parts}"
        )
    return trainer


def _callbacks(
    recipe: Mapping[str, Any], folder: Path, validate_every: int, command: str, quiet: bool
) -> Iterator[Callback]:
    """In the order in which they act; Lightning puts the saver last."""
    options, strategy = recipe["training"], str(recipe["trainer"]["strategy"])
    every = options["checkpoint_every"]
    has_average = options["ema"] is not None and "fsdp" not in strategy
    if has_average:
        yield EMA(options["ema"])
    elif options["ema"] is not None and _is_first():
        warnings.warn(
            f"no moving average with trainer.strategy={strategy}: it cannot be taken of sharded weights, and the "
            "exported ones are those of the last step; ddp has it",
            stacklevel=1,
        )
    averaged = Averaged(Part.of(recipe) if recipe.get("codec") is not None else Model.of(recipe))
    stop, finite = Stop(), Finite(recipe["trainer"]["log_every_n_steps"])
    yield from (stop, finite, Preview(folder / "samples", averaged, stop))
    if not quiet:
        yield Bar(options["batch_size"])
    yield Saver(folder, every, validate_every, averaged, partial(_card, command, has_average), finite, stop)


def _card(command: str, has_average: bool, model: Model | Part, progress: Progress, trainer: L.Trainer) -> str:
    name = torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else platform.machine() + " CPU"
    hardware = f"{trainer.world_size} x {name}"
    return card.write(
        model, card.Facts(command, progress.step, progress.seconds, has_average, hardware, progress.metrics)
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """However Lightning puts an interruption, it leaves as KeyboardInterrupt, and with the handlers as they were."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except Interrupted as stopped:
        if not _is_first():
            raise SystemExit(0) from None  # Lightning takes another exit code of its processes for a crash
        raise KeyboardInterrupt(str(stopped)) from None
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        raise KeyboardInterrupt from None
    finally:
        if main:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without Lightning's notices, and without the warnings in `_NOISE`."""
    talkers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [talker.level for talker in talkers]
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        for talker in talkers:
            talker.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for talker, level in zip(talkers, levels, strict=True):
                talker.setLevel(level)
