r"""Training with Lightning.

One step: draw a time per sample, corrupt the data, call the network, and add up the leaves' losses,

    loss = sum_leaf weight_leaf  mean_samples weight(t) mean_elements loss_leaf(output, x_0, x_t, t)

where the inner mean is over the elements of a sample that are real and not given (`diffkit.modality.Example`: those
are shown as they are, at t = 0), ``loss_leaf`` is the leaf's loss under its weighting
(`diffkit.weighting`) and weight(t) that of the distribution of the times (`diffkit.times`). Means of equal parts make
the loss, hence the gradient, independent of how a batch is cut into ranks or accumulated parts. Every random number
of a step is a function of (seed, step, item): a resumed run repeats the unbroken one.

The EMA is Lightning's weight averaging. In its checkpoints ``state_dict`` holds the averaged weights and
``current_model_state`` the raw ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.coupling import Coupling, Independent
from diffkit.data import Sealed
from diffkit.denoiser import Denoiser
from diffkit.modality import Batch
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.times import Times
from diffkit.typing import expand, masked
from diffkit.weighting import Plain, Weighting

__all__ = ["EMA", "DiffusionModule", "Learner", "Optimisation"]


@dataclass(frozen=True)
class Optimisation:
    """How the weights are learnt; the recipe's ``training`` node.

    Args:
        learning_rate: AdamW's, after ``warmup`` steps of linear growth; then a cosine to ``final`` times that.
        betas, weight_decay: AdamW's; no decay on vectors and scalars.
        leaf_weights: weight of each leaf's loss; 1 where not named.
        condition_dropout: probability of hiding all conditions of a sample, and otherwise of hiding each on its own:
            any subset can be asked for, and guidance finds its unconditional estimate trained.
        seed: of the times, the noise, the dropped conditions and the network's own dropout.
    """

    learning_rate: float = 1e-3
    warmup: int = 500
    final: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    leaf_weights: Mapping[str, float] = field(default_factory=dict)
    condition_dropout: float = 0.1
    seed: int = 0


class EMA(WeightAveraging):
    """Exponential moving average of the weights, its memory growing from 10 steps to 1 / (1 - decay).

    During a validation (``swapped``) the two models have changed places: the module holds the average, the averaged
    model the raw weights.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=self._average, use_buffers=False)
        self.decay = decay
        self.swapped = False

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)
        kept = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, 1 - kept)

    def averaged(self, module: L.LightningModule) -> nn.Module:
        """Whichever of the two models holds the average."""
        assert self._average_model is not None
        return module if self.swapped else self._average_model.module

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # Read for every parameter of every step: from the host's memory it does not wait for the device.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self.swapped = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.swapped:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint.update(state_dict=average, current_model_state=raw)


class Learner(L.LightningModule):
    """A network in training: one AdamW with a warm-up and a cosine, over ``critic`` as well where there is one."""

    def __init__(self, network: nn.Module, options: Optimisation, critic: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.critic = critic
        # Asked now: a sharded parameter is flat.
        self._decays = [p.ndim > 1 for p in self.parameters()]

    def _noise(self, batch: Batch, batch_index: int) -> Noise:
        """Of a training step: a function of the seed, the step and the items."""
        # A network's own dropout draws from torch's generator: it too has to repeat in a resumed run.
        torch.manual_seed(hash((self.options.seed, batch_index, self.global_rank)))
        return Noise(self.options.seed, batch.index).fold("train", self.global_step)

    def _log(self, stage: str, total: Tensor, terms: Mapping[str, Tensor], count: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if stage == "valid" or (self.global_step + 1) % every == 0:  # seldom: the ranks wait for one another
            logged = {f"{stage}/{k}": value for k, value in {"loss": total, **terms}.items()}
            self.log_dict(logged, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with weight decay of matrices alone, and the schedule of its rate."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter, decays in zip(self.parameters(), self._decays, strict=True):
            groups[decays].append(parameter)
        fast, slow = self.options.betas
        nodes: list[dict[str, Any]] = [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            nodes,
            lr=self.options.learning_rate,
            betas=(fast, slow),
            weight_decay=self.options.weight_decay,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        warmup, stop = self.options.warmup, self.trainer.max_steps
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, stop - warmup))
        return self.options.final + (1 - self.options.final) * 0.5 * (1 + math.cos(math.pi * progress))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning clips, and over all shards where the weights are sharded."""
        sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if sharded is not None and gradient_clip_val:
            sharded(gradient_clip_val)  # FSDP's: the norm is over the shards of all ranks
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


class DiffusionModule(Learner):
    """A denoiser in training."""

    def __init__(
        self,
        network: nn.Module,
        denoiser: Denoiser,
        options: Optimisation,
        times: Times,
        weightings: Mapping[str, Weighting] | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        super().__init__(network, options)
        self.denoiser = denoiser
        self.times = times
        self.weightings = {k: Plain() for k in denoiser.process} | dict(weightings or {})
        self.coupling = coupling or Independent()
        self._memory = times.start()  # no buffer: the network alone is averaged, sharded and exported
        self._learnt = torch.zeros_like(self._memory)

    @property
    def process(self) -> Product:
        """The process of the data."""
        return self.denoiser.process

    def losses(self, batch: Batch, t: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Each leaf's loss at times ``t`` (B,), as (B,) means over the elements of each sample that are learnt."""
        x_t = self._corrupted(batch, t, noise)
        condition = self._dropped(batch.condition, noise)
        output = self.denoiser.output(x_t, _times_of(batch, t), condition, batch.mask)
        losses = {}
        for k, process in self.process.leaves.items():
            m = _learnt(batch, k)
            losses[k] = _mean(self.weightings[k](process, output[k], batch.x[k], x_t[k], t, m), m).float()
        return losses

    def _corrupted(self, batch: Batch, t: Tensor, noise: Noise) -> dict[str, Tensor]:
        """x_t, its Gaussian leaves from the noise that the coupling chose."""
        x_t = self.process.corrupt(batch.x, t, noise, batch.mask)
        for k, eps in self.coupling(self.process, batch.x, noise, batch.condition, batch.mask).items():
            x0 = masked(batch.x[k], batch.mask.get(k))
            alpha, sigma = self.process.gaussian[k].coefficients(t, x0)
            x_t[k] = alpha * x0 + sigma * eps
        return x_t | {k: torch.where(given, batch.x[k], x_t[k]) for k, given in batch.given.items()}

    def _dropped(self, condition: Condition, noise: Noise) -> Condition:
        if not self.training:
            return condition
        p = self.options.condition_dropout
        everything = noise.uniform("drop", ()) < p
        return condition.drop({k: everything | (noise.uniform(f"drop/{k}", ()) < p) for k in condition.values})

    def training_step(self, sealed: Sealed, batch_index: int) -> Tensor:
        batch = sealed.batch
        parts = self.trainer.accumulate_grad_batches
        return self._step(batch, self._noise(batch, batch_index), "train", batch_index % parts, parts)

    def validation_step(self, sealed: Sealed, batch_index: int) -> Tensor:
        return self._step(sealed.batch, Noise(self.options.seed, sealed.batch.index).fold("valid"), "valid")

    def _step(self, batch: Batch, noise: Noise, stage: str, part: int = 0, parts: int = 1) -> Tensor:
        """The loss of this rank's share of ``part`` of ``parts`` of a step's batch."""
        # A validation's times are those of a new run, so that its losses can be compared.
        memory = (self._memory if stage == "train" else self.times.start()).to(batch.index.device)
        t = self._times(noise, part, parts, memory)
        losses = self.losses(batch, t, noise)
        weight = self.times.weight(t, memory)
        means = {k: (weight * loss).mean() for k, loss in losses.items()}
        total = torch.stack([self.options.leaf_weights.get(k, 1.0) * mean for k, mean in means.items()]).sum()
        if stage == "train" and memory.numel():
            self._learn(t, losses, memory, last=part == parts - 1)
        self._log(stage, total, means, len(batch.index))
        return total

    def _learn(self, t: Tensor, losses: Mapping[str, Tensor], memory: Tensor, last: bool) -> None:
        """Let the times learn from the losses of all ranks, and of all parts of a step when the last one is done."""
        each = torch.stack([self.options.leaf_weights.get(k, 1.0) * loss for k, loss in losses.items()]).sum(0)
        self._learnt = self._learnt.to(memory.device) + self.times.learn(t, each)
        if last:
            learnt = self.trainer.strategy.reduce(self._learnt, reduce_op="sum")
            self._memory, self._learnt = self.times.updated(memory, learnt), torch.zeros_like(memory)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["times"] = self._memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._memory = checkpoint.get("times", self._memory)

    def _times(self, noise: Noise, part: int, parts: int, memory: Tensor) -> Tensor:
        """Times of samples, by their places in the batch of the whole step: on all ranks, of all parts."""
        size, ranks = len(noise.index), self.trainer.world_size
        places = (part * size + torch.arange(size, device=noise.index.device)) * ranks + self.global_rank
        shared = Noise(noise.seed, torch.zeros_like(noise.index), noise.path)  # equal on all ranks
        schedule = next(iter({**self.process.gaussian, **self.process.leaves}.values())).schedule
        return self.times(shared, places, size * ranks * parts, schedule, memory)


def _times_of(batch: Batch, t: Tensor) -> Tensor | dict[str, Tensor]:
    """Times (B,) as those of every element, 0 where one is given; ``t`` itself where none is."""
    if not batch.given:
        return t
    return {k: torch.where(batch.given[k], 0.0, expand(t, v)) if k in batch.given else t for k, v in batch.x.items()}


def _learnt(batch: Batch, leaf: str) -> Tensor | None:
    """Which elements of a leaf are learnt: those that are real and not given."""
    real, given = batch.mask.get(leaf), batch.given.get(leaf)
    if given is None:
        return real
    return ~given if real is None else real & ~given


def _mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) means over the real elements of each sample."""
    if mask is None:
        return loss.flatten(1).mean(1)
    real = mask.expand(loss.shape).flatten(1)
    return loss.flatten(1).sum(1) / real.sum(1).clamp(min=1)
