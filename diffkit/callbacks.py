"""What accompanies a run: checkpoints, the exported model, previews, the progress bar, and the ways to stop early.

Everything is written between two steps and never in the middle of one. A run that is asked to stop (Ctrl-C, SIGTERM)
therefore ends its step, saves, and can be taken up exactly where it was.
"""

import io
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image
from rich import get_console
from rich.progress import BarColumn, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

from diffkit import checkpoint
from diffkit.codec import Part
from diffkit.files import whole
from diffkit.model import Model
from diffkit.training import EMA

__all__ = ["Averaged", "Bar", "Finite", "Interrupted", "Preview", "Progress", "Saver", "Stop", "WholeFile"]

PREVIEW_SAMPLES = 16
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and has saved."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: optimiser steps, the seconds they took, and the last value of everything logged."""

    step: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class WholeFile(TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and are read without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch.save to a full disk fails with an error that does not say so
        torch.save(checkpoint, buffer)
        with whole(Path(path)) as part:
            part.write_bytes(buffer.getbuffer())


class Averaged:
    """A model beside the one in training, to be given the weights that are to be used.

    Those are the average's, or the raw ones where a run has none. As a model of its own it can be called in any mode
    and batch shape: nothing of the training, its compiled graphs included, takes notice.
    """

    def __init__(self, model: Model | Part) -> None:
        self.model = model

    def refresh(self, trainer: L.Trainer) -> Model | Part:
        """The model with the weights of this moment. All ranks have to call it; the weights are right on the first."""
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
        module = trainer.lightning_module
        state = ema.averaged(module).state_dict() if ema else trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
            self.model.network.load_state_dict(own)
        return self.model


class Stop(Callback):
    """Whether someone wants the run to end. The first Ctrl-C or SIGTERM asks; the second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not earlier: Lightning has just put up handlers of its own, and takes all of them down when it ends.
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data-loading process, which this one will end
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            os.write(2, b"\nstopping after this step, to save it (Ctrl-C again: at once, without saving)\n")

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether any rank was asked; all ranks have to call it."""
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)


class Finite(Callback):
    """Ends a run whose loss is no longer a number. It looks every ``every`` steps, as looking waits for the device."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._wrong: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        wrong = ~torch.isfinite(outputs["loss"].detach())
        self._wrong = wrong if self._wrong is None else self._wrong | wrong
        if trainer.global_step % self.every == 0:
            self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Look now; all ranks have to call it.

        Raises:
            ValueError: if a loss since the start, or a weight, is NaN or infinite.
        """
        wrong = self._wrong is not None and bool(self._wrong)
        wrong = wrong or not all(bool(p.isfinite().all()) for p in trainer.lightning_module.parameters())
        if trainer.strategy.reduce_boolean_decision(wrong, all=False):
            raise ValueError(
                f"got a loss or weight that is not a finite number at step {trainer.global_step}; start a new run with "
                "a lower training.learning_rate, a longer training.warmup or trainer.precision=32-true"
            )


class Saver(Checkpoint):
    """Writes ``last.ckpt`` and the exported model: every ``every`` steps, after the last one, and when asked to stop.

    At a step that is followed by a validation (every ``validate_every``) it waits for that: a run taken up there
    neither misses nor repeats it.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        validate_every: int,
        averaged: Averaged,
        card: Callable[[Model | Part, Progress, L.Trainer], str],
        finite: Finite,
        stop: Stop,
    ) -> None:
        self.folder, self.every, self.validate_every = folder, every, validate_every
        self.averaged, self.card, self.finite, self.stop = averaged, card, finite, stop
        self.progress = Progress()
        self._seen = self._exported = -1
        self._clock = time.monotonic()

    @property
    def file(self) -> Path:
        """The checkpoint that a run is taken up from."""
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.progress.seconds, "metrics": dict(self.progress.metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress = Progress(0, state_dict["seconds"], state_dict["metrics"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen, self._clock = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:
            return  # gradients are still being accumulated
        self._seen = trainer.global_step
        if trainer.global_step % self.validate_every:
            self._between_steps(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._between_steps(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._exported != trainer.global_step:  # a run that was taken up after its last step
            self._export(trainer)

    def _between_steps(self, trainer: L.Trainer) -> None:
        stop = self.stop.agreed(trainer)
        if stop or trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._save(trainer)
        if stop and trainer.global_step < trainer.max_steps:
            raise Interrupted(
                f"stopped after step {trainer.global_step}, saved to {self.file}; the same again resumes it"
            )

    def _save(self, trainer: L.Trainer) -> None:
        self.finite.check(trainer)
        self._measure(trainer)
        try:
            trainer.save_checkpoint(self.file)
            self._export(trainer)
        except OSError as error:
            reason = error.strerror or str(error)
            kept = f"that of step {self._exported} is kept" if self._exported > 0 else "there is none yet"
            raise OSError(f"cannot write the checkpoint {self.file}: {reason}; {kept}") from error

    def _measure(self, trainer: L.Trainer) -> None:
        now = time.monotonic()
        seconds = self.progress.seconds + now - self._clock
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.progress = Progress(trainer.global_step, seconds, {**self.progress.metrics, **logged})
        self._clock = now

    def _export(self, trainer: L.Trainer) -> None:
        model = self.averaged.refresh(trainer)
        self._exported = trainer.global_step
        if trainer.is_global_zero:
            progress = replace(self.progress, step=trainer.global_step)
            checkpoint.save(model, self.folder / "model", self.card(model, progress, trainer))


class Preview(Callback):
    """Samples of the model at every validation: native files in ``folder``, the picture and the counts in TensorBoard.

    A preview that fails is a warning: it is no reason to lose a run.
    """

    def __init__(self, folder: Path, averaged: Averaged, stop: Stop) -> None:
        self.folder, self.averaged, self.stop = folder, averaged, stop

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stop.agreed(trainer):
            return
        model = self.averaged.refresh(trainer)
        if not trainer.is_global_zero or not isinstance(model, Model):
            return
        try:
            counts = self._draw(model, trainer)
        except Exception as error:
            warnings.warn(f"no preview at step {trainer.global_step}: {error}", stacklevel=1)
        else:
            pl_module.log_dict(counts, rank_zero_only=True)

    def _draw(self, model: Model, trainer: L.Trainer) -> dict[str, float]:
        model.network.to(trainer.strategy.root_device)
        self.folder.mkdir(parents=True, exist_ok=True)
        result = model.generate(PREVIEW_SAMPLES).save(self.folder)["result"]
        if isinstance(trainer.logger, TensorBoardLogger):
            picture = np.asarray(Image.open(self.folder / "preview.png").convert("RGB"))
            step = trainer.global_step - 1  # Lightning numbers what it logs by the step that was done
            trainer.logger.experiment.add_image("samples", picture, step, dataformats="HWC")
        return {f"samples/{name}": float(count) for name, count in result.items() if isinstance(count, int | float)}


class _Steps(ProgressColumn):
    """Optimiser steps done and to do, and samples per second."""

    def __init__(self, batches_per_step: int, samples_per_batch: float) -> None:
        super().__init__(Column(no_wrap=True))
        self.batches_per_step, self.samples_per_batch = batches_per_step, samples_per_batch

    def render(self, task: Task) -> Text:
        done, total = (int(n or 0) // self.batches_per_step for n in (task.completed, task.total))
        speed = (task.speed or 0) * self.samples_per_batch
        return Text(f"{done:,}/{total:,} steps  {speed:,.0f} samples/s")


class Bar(RichProgressBar):
    """Lightning's progress bar with what a diffusion run is watched for, and a lasting line for every validation.

    Args:
        batch_size: samples of one step.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__(refresh_rate=10, leave=True, console_kwargs={"stderr": True})
        self.batch_size = batch_size
        self._shown: dict[str, Any] = {}

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        parts = trainer.accumulate_grad_batches
        return [BarColumn(10), _Steps(parts, self.batch_size / parts), TimeElapsedColumn(), TimeRemainingColumn()]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The loss, read seldom: to read it is to wait for the device."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss = trainer.callback_metrics.get("train/loss")
            self._shown = {} if loss is None else {"loss": float(loss)}
        return self._shown

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics.items()
            said = [f"{k} {float(v):.4g}" for k, v in metrics if k.endswith("/loss") or k.startswith("samples/")]
            line = "  ".join([f"step {trainer.global_step:,}", *said])
            get_console().print(line, highlight=False, soft_wrap=True)
