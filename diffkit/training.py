r"""Training with Lightning.

One step: draw a time per sample, corrupt the data, call the network, and add up the leaves' losses,

    loss = sum_leaf weight_leaf  mean_samples mean_elements loss_leaf(output, x_0, x_t, t)

where the inner mean is over the real elements of a sample. Means of equal parts make the loss, hence the
gradient, independent of how a batch is cut into ranks. Every random number of a step is a function of
(seed, step, item): a resumed run repeats the unbroken one.

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
from diffkit.denoiser import Denoiser
from diffkit.modality import Batch
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.times import Times

__all__ = ["EMA", "DiffusionModule", "Optimisation"]


@dataclass(frozen=True)
class Optimisation:
    """How the weights are learnt; the recipe's ``training`` node.

    Args:
        learning_rate: AdamW's, after ``warmup`` steps of linear growth; then a cosine to ``final`` times that.
        betas, weight_decay: AdamW's; no decay on vectors and scalars.
        leaf_weights: weight of each leaf's loss; 1 where not named.
        condition_dropout: probability, per condition and sample, of hiding a condition.
        seed: of the times, the noise and the dropped conditions.
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
    """Exponential moving average of the weights, its memory growing from 10 steps to 1 / (1 - decay)."""

    def __init__(self, decay: float = 0.999) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = int(count)
            kept = min(decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(averaged, current, 1 - kept)

        super().__init__(multi_avg_fn=average, use_buffers=False)


class DiffusionModule(L.LightningModule):
    """A denoiser in training. Batches are `diffkit.modality.Batch`."""

    def __init__(
        self,
        network: nn.Module,
        denoiser: Denoiser,
        options: Optimisation,
        times: Times,
    ) -> None:
        super().__init__()
        self.network = network
        self.denoiser = denoiser
        self.options = options
        self.times = times

    @property
    def process(self) -> Product:
        """The process of the data."""
        return self.denoiser.process

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def losses(self, batch: Batch, t: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Each leaf's loss at times ``t`` (B,), as (B,) means over the real elements of each sample."""
        x_t = self.process.corrupt(batch.x, t, noise, batch.mask)
        condition = self._dropped(batch.condition, noise)
        output = self.denoiser.output(x_t, t, condition, batch.mask)
        unreduced = self.process.loss(output, batch.x, x_t, t, batch.mask)
        return {k: _mean(loss, batch.mask.get(k)) for k, loss in unreduced.items()}

    def _dropped(self, condition: Condition, noise: Noise) -> Condition:
        if not self.training:
            return condition
        p = self.options.condition_dropout
        return condition.drop({k: noise.uniform(f"drop/{k}", ()) < p for k in condition.values})

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        noise = Noise(self.options.seed, batch.index).fold("train", self.global_step)
        return self._step(batch, noise, "train")

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self._step(batch, Noise(self.options.seed, batch.index).fold("valid"), "valid")

    def _step(self, batch: Batch, noise: Noise, stage: str) -> Tensor:
        size, ranks = len(batch.index), self.trainer.world_size
        places = torch.arange(size, device=batch.index.device) * ranks + self.global_rank
        shared = Noise(noise.seed, torch.zeros_like(batch.index), noise.path)  # one shift for all ranks
        losses = self.losses(batch, self.times(shared, places, size * ranks), noise)
        parts = {f"{stage}/{k}": loss.mean() for k, loss in losses.items()}
        total = torch.stack([self.options.leaf_weights.get(k, 1.0) * v.mean() for k, v in losses.items()]).sum()
        self.log_dict({f"{stage}/loss": total, **parts}, batch_size=size, sync_dist=stage == "valid")
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.network.parameters() if p.ndim > 1]},
                {"params": [p for p in self.network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.options.learning_rate,
            betas=tuple(self.options.betas),
            weight_decay=self.options.weight_decay,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        warmup, stop = self.options.warmup, int(self.trainer.estimated_stepping_batches)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, stop - warmup))
        return self.options.final + (1 - self.options.final) * 0.5 * (1 + math.cos(math.pi * progress))


def _mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) means over the real elements of each sample."""
    if mask is None:
        return loss.flatten(1).mean(1)
    real = mask.expand(loss.shape).flatten(1)
    return loss.flatten(1).sum(1) / real.sum(1).clamp(min=1)
