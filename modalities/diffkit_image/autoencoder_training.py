r"""Training of an autoencoder of pictures: they should come back, from latents that lie near the unit normal.

A picture with opacity is compared in the planes in which it is seen: its colours on black (which premultiplied colour
is), its opacity, and its colours on white. With e the difference of those planes, and z the latents, the terms are

    pixels    the mean of |e|
    square    the mean of e^2: what the signal-to-noise ratio is made of
    scales    the mean of |e averaged over squares of 2 and of 4 pixels|: tints, which |e| alone would trade for edges
    kl        the divergence of the latents from the unit normal, per number, in nats (Kingma & Welling 2014,
              arXiv:1312.6114, appendix B); of an encoder that gives no variance, that of ``jitter``
    adversarial  the hinge loss (Lim & Ye 2017, arXiv:1705.02894) of a critic of patches (Isola et al. 2017,
              arXiv:1611.07004), where it has a weight: sharper, for a lower signal-to-noise ratio

The decoder sees latents with noise of their standard deviation, so that it forgives small errors of a model's. What
pads a picture in a batch of several sizes is transparent, and learnt as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffkit.modality import Batch
from diffkit.naming import nearest
from diffkit.noise import Noise
from diffkit_image.autoencoder import Autoencoder, build, on_white

__all__ = ["WEIGHTS", "AutoencoderCodec", "Critic", "augment", "divergence", "planes"]

WEIGHTS: Mapping[str, float] = {"pixels": 1.0, "square": 0.0, "scales": 1.0, "kl": 1e-3, "adversarial": 0.0}
SCALES = (2, 4)


@dataclass(frozen=True)
class AutoencoderCodec:
    """An autoencoder in training: `diffkit.codec.Codec`.

    Args:
        autoencoder: to be trained.
        critic: where the adversarial term has a weight.
        weights: of the terms, by name.
        jitter: standard deviation of the latents, of an encoder that does not say it.
        shift: the most pixels that a training picture is moved, to each side.
    """

    autoencoder: Autoencoder
    critic: Critic | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    jitter: float = 0.05
    shift: int = 4

    @classmethod
    def of(
        cls,
        kind: str,
        config: Mapping[str, Any],
        *,
        weights: Mapping[str, float] = WEIGHTS,
        critic_width: int = 32,
        jitter: float = 0.05,
        shift: int = 4,
    ) -> AutoencoderCodec:
        """The codec of a recipe's ``codec`` node: a class of diffusers, its options, and how it is trained.

        Raises:
            ValueError: for a class or a term that does not exist, or an option that the class does not take.
        """
        for name in weights:
            if name not in WEIGHTS:
                raise ValueError(
                    f"got a weight of '{name}'; expected some of {', '.join(WEIGHTS)}{nearest(name, WEIGHTS)}"
                )
        weights = {**WEIGHTS, **weights}
        found = build(kind, **config)
        found.network.to(memory_format=torch.channels_last)  # a third faster on a CPU
        critic = Critic(found.colours, critic_width) if weights["adversarial"] else None
        return cls(found, critic, weights, jitter, shift)

    @property
    def network(self) -> nn.Module:
        """What is exported."""
        network: nn.Module = self.autoencoder.network
        return network

    def losses(self, batch: Batch, noise: Noise, step: int) -> dict[str, Tensor]:
        """The terms, weighed. Leaf ``pixels`` is (B, 4, H, W); moved and mirrored in training, not in a validation."""
        pixels = batch.x["pixels"].float()
        if "pixels" in batch.mask:
            pixels = torch.where(batch.mask["pixels"], pixels, -1.0)
        if self.network.training:
            pixels = augment(pixels, noise, self.shift)
        real = self.autoencoder.shown(pixels).contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.autoencoder.posterior(pixels.contiguous(memory_format=torch.channels_last))
        with torch.autocast(real.device.type, enabled=False):
            mean = mean.float()
            deviation = (
                torch.full_like(mean, self.jitter) if log_variance is None else (0.5 * log_variance.float()).exp()
            )
            z = mean + deviation * noise.normal("latents", tuple(mean.shape[1:]))
        made = self.autoencoder.decode(z).float()
        with torch.autocast(real.device.type, enabled=False):
            terms = self._terms(made, real) | {"kl": self.weights["kl"] * divergence(mean, deviation).mean()}
        return terms if self.critic is None else terms | self._adversarial(self.critic, made, real)

    def _terms(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        off, weights = planes(made) - planes(real), self.weights
        coarse = torch.stack([F.avg_pool2d(off, size).abs().mean() for size in SCALES])
        return {
            "pixels": weights["pixels"] * off.abs().mean(),
            "square": weights["square"] * off.square().mean(),
            "scales": weights["scales"] * coarse.mean(),
        }

    def _adversarial(self, critic: Critic, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        fixed = {name: value.detach() for name, value in critic.named_parameters()}
        fooled = (1 - functional_call(critic, fixed, made)).relu().mean()
        caught = (1 - critic(real)).relu().mean() + (1 + critic(made.detach())).relu().mean()
        return {"adversarial": self.weights["adversarial"] * fooled, "critic": caught}


def planes(pixels: Tensor) -> Tensor:
    """What is compared of (B, 4, H, W): colours on black, opacity, colours on white; of (B, 3, H, W) the colours."""
    return pixels if pixels.shape[1] == 3 else torch.cat([pixels, on_white(pixels)], 1)


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Of N(mean, deviation^2) from N(0, 1), in nats, number by number."""
    return 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()


def augment(pixels: Tensor, noise: Noise, shift: int) -> Tensor:
    """Each picture moved by up to ``shift`` pixels along both axes, transparent beyond its edge, and half mirrored.

    Args:
        pixels: (B, 4, H, W) in [-1, 1].
        noise: of its items.
        shift: 0 leaves them in place.
    """
    height, width = pixels.shape[-2:]
    draws = noise.uniform("augment", (3,)).to(pixels.device)
    moved = (draws[:, :2] * (2 * shift + 1)).long()  # 0 is `shift` up or left
    rows = moved[:, :1] + torch.arange(height, device=pixels.device)
    columns = moved[:, 1:] + torch.arange(width, device=pixels.device)
    columns = torch.where(draws[:, 2:] < 0.5, columns, columns.flip(1))
    padded = F.pad(pixels, (shift,) * 4, value=-1.0)
    found = padded.gather(2, rows[:, None, :, None].expand(-1, pixels.shape[1], -1, padded.shape[3]))
    return found.gather(3, columns[:, None, None, :].expand(-1, pixels.shape[1], height, -1))


class Critic(nn.Module):
    """Is this patch of a real picture? Convolutions of stride 2, and a score for each square of 8 pixels.

    Args:
        colours: channels of the pictures.
        width: channels of the first layer.
    """

    def __init__(self, colours: int, width: int = 32) -> None:
        super().__init__()
        widths = (colours, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(i, o, 4, 2, 1)) for i, o in pairwise(widths)
        )
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, H / 8, W / 8) of (B, colours, H, W); above 1 it is sure of yes, below -1 of no."""
        for layer in self.layers:
            pixels = F.leaky_relu(layer(pixels), 0.2)
        scores: Tensor = self.score(pixels)
        return scores
