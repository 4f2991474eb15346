"""Training of what stands before and behind a denoiser: an autoencoder, a vocoder.

A *codec* is a network with losses of its own and, where it is trained against one, a critic. A recipe with a ``codec``
node trains it with the trainer, the flags and the run folder of any other recipe; the adapter makes it
(`Modality.codec`) and uses what is exported, ``model/`` of the run, by the folder's name.

Network and critic learn in the same step, from the sum of their losses, by one AdamW. For that to be two games and not
one, the codec computes the network's adversarial term with the critic's weights detached, and the critic's loss on
detached outputs: each weight then has the gradient of its own loss alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffkit.data import Sealed
from diffkit.modality import Batch, Modality, find_modality
from diffkit.noise import Noise
from diffkit.training import Learner, Optimisation

__all__ = ["Codec", "CodecModule", "Part"]


class Codec(Protocol):
    """An encoder and decoder, or one of both, as it is trained."""

    @property
    def network(self) -> nn.Module:
        """What is exported."""

    @property
    def critic(self) -> nn.Module | None:
        """What is trained beside it, against it, and not exported."""

    def losses(self, batch: Batch, noise: Noise, step: int) -> Mapping[str, Tensor]:
        """Scalars by name, weighed, the critic's included; their sum is what is minimised.

        Args:
            batch: of the adapter's dataset.
            noise: for crops and samples; a function of the seed, the step and the items.
            step: optimiser steps done.
        """


class CodecModule(Learner):
    """A codec in training."""

    def __init__(self, codec: Codec, options: Optimisation) -> None:
        super().__init__(codec.network, options, codec.critic)
        self._losses = codec.losses  # and not the codec, whose modules would be registered twice

    def training_step(self, sealed: Sealed, batch_index: int) -> Tensor:
        return self._step(sealed.batch, self._noise(sealed.batch, batch_index), "train")

    def validation_step(self, sealed: Sealed, batch_index: int) -> Tensor:
        return self._step(sealed.batch, Noise(self.options.seed, sealed.batch.index).fold("valid"), "valid")

    def _step(self, batch: Batch, noise: Noise, stage: str) -> Tensor:
        terms = self._losses(batch, noise, self.global_step)
        total = torch.stack(list(terms.values())).sum()
        self._log(stage, total, terms, len(batch.index))
        return total


@dataclass(frozen=True)
class Part:
    """A codec's network with all that it needs: what `diffkit.model.Model` is for a denoiser's.

    Args:
        recipe: the resolved recipe it was built from.
        modality: the adapter.
        codec: made by it.
    """

    recipe: Mapping[str, Any]
    modality: Modality
    codec: Codec

    @property
    def network(self) -> nn.Module:
        """What is exported."""
        return self.codec.network

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> "Part":
        """The codec that a resolved recipe describes, with fresh weights.

        Raises:
            ValueError: for a name or an option that does not exist, or data that has no codec to train.
        """
        fields = dict(recipe["modality"])
        modality: Modality = find_modality(fields.pop("name"))(**fields)
        return cls(recipe, modality, modality.codec(**recipe["codec"]))
