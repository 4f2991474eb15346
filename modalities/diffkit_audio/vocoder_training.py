r"""Training of the vocoder: spectral losses, and critics where there is a GPU, on crops of real sound.

The network predicts :math:`l = \log(m + \text{floor})` of the magnitudes m of a spectrum, and is told them by

    log       the mean of |l - l*|: every bin counts alike, silence and noise too
    partials  the same, each bin weighed by the root of its magnitude over the crop's largest: where the tones are
    linear    the sum of |m - m*| over that of m*: a partial's frequency is read from its lobe
    mel       the mean of |log F m - mel|: bands keep their level

None of these needs the sound, so a step costs little. Two more do; gradients reach the magnitudes through the inverse
transform, and not the phases, which are found from them:

    spectral  the distance of `diffkit_audio.spectra.distance`, of windows shorter than the network's own too
    adversarial  the hinge loss of `diffkit_audio.critics` (Lim & Ye 2017, arXiv:1705.02894), and the distance of their
              features of the two sounds over the size of those (HiFi-GAN, arXiv:2010.05646, eq. 4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diffkit.modality import Batch
from diffkit.naming import nearest
from diffkit.noise import Noise
from diffkit_audio.critics import Critics
from diffkit_audio.mel import MelSettings, filters, log_mel
from diffkit_audio.spectra import distance
from diffkit_audio.vocoder import Vocoder

__all__ = ["WEIGHTS", "VocoderCodec", "crop"]

WEIGHTS: Mapping[str, float] = {
    "log": 1.0, "partials": 1.0, "linear": 1.0, "mel": 0.5, "spectral": 0.0, "adversarial": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class VocoderCodec:
    """A vocoder in training: `diffkit.codec.Codec`.

    Args:
        network: the vocoder.
        critic: where the adversarial term has a weight.
        weights: of the terms, by name.
        frames: of a crop.
        jitter: the largest standard deviation of the noise that is added to what the network sees: spectrograms that
            a model draws are not quite those of any sound.
    """

    network: Vocoder
    critic: Critics | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    frames: int = 64
    jitter: float = 0.05

    @classmethod
    def of(
        cls,
        settings: MelSettings,
        *,
        weights: Mapping[str, float] = WEIGHTS,
        critic_width: int = 16,
        frames: int = 64,
        jitter: float = 0.05,
        **network: Any,
    ) -> VocoderCodec:
        """The codec of a recipe's ``codec`` node, the rest of which are options of `Vocoder`.

        Raises:
            ValueError: for a term that does not exist.
        """
        for name in weights:
            if name not in WEIGHTS:
                raise ValueError(
                    f"got a weight of '{name}'; expected some of {', '.join(WEIGHTS)}{nearest(name, WEIGHTS)}"
                )
        weights = {**WEIGHTS, **weights}
        critic = Critics(critic_width) if weights["adversarial"] else None
        return cls(Vocoder(settings, **network), critic, weights, frames, jitter)

    def losses(self, batch: Batch, noise: Noise, step: int) -> dict[str, Tensor]:
        """The terms, weighed. Leaf ``wave`` is (B, samples), zero where it is masked."""
        real = batch.mask.get("wave")
        wave = crop(batch.x["wave"].float(), self.frames * self.network.settings.hop, noise, real)
        with torch.autocast(wave.device.type, enabled=False):
            mel = log_mel(wave, self.network.settings)
            size = self.jitter * noise.uniform("size", (1, 1)).float()
            seen = mel + size * noise.normal("jitter", tuple(mel.shape[1:]))
        logs = self.network.magnitudes(seen)
        with torch.autocast(wave.device.type, enabled=False):
            terms = self._magnitude_terms(logs, wave, mel)
            if self.weights["spectral"] or self.critic is not None:
                terms |= self._sound_terms(self.network.sound(logs), wave)
        return terms

    def _magnitude_terms(self, logs: Tensor, wave: Tensor, mel: Tensor) -> dict[str, Tensor]:
        settings, floor, weights = self.network.settings, self.network.floor, self.weights
        real, made = self.network.analyse(wave), self.network.amplitudes(logs)
        off = (logs - (real + floor).log()).abs()
        tonal = (real / real.amax((1, 2), keepdim=True).clamp(min=1e-3)).sqrt()
        bands = made @ filters(settings).to(made) * (settings.n_fft / 4)
        return {
            "log": weights["log"] * off.mean(),
            "partials": weights["partials"] * (tonal * off).sum() / tonal.sum().clamp(min=1.0),
            "linear": weights["linear"] * ((made - real).abs().sum((1, 2)) / (real.sum((1, 2)) + 0.02)).mean(),
            "mel": weights["mel"] * (bands.clamp(min=settings.floor).log() - mel).abs().mean(),
        }

    def _sound_terms(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        terms = {"spectral": self.weights["spectral"] * distance(made, real).mean()} if self.weights["spectral"] else {}
        if self.critic is None:
            return terms
        fixed = {k: v.detach() for k, v in [*self.critic.named_parameters(), *self.critic.named_buffers()]}
        seen = functional_call(self.critic, fixed, made)
        with torch.no_grad():
            known = self.critic(real)
        fooled = [(1 - view[-1]).relu().mean() for view in seen]
        alike = [_features(a, b) for a, b in zip(seen, known, strict=True)]
        caught = [
            (1 - a[-1]).relu().mean() + (1 + b[-1]).relu().mean()
            for a, b in zip(self.critic(real), self.critic(made.detach()), strict=True)
        ]
        weight = self.weights["adversarial"]
        return terms | {
            "adversarial": weight * torch.stack(fooled).mean(),
            "features": weight * torch.stack(alike).mean(),
            "critic": torch.stack(caught).mean(),
        }


def _features(made: list[Tensor], real: list[Tensor]) -> Tensor:
    """The relative distance of two sounds' features, the scores left out."""
    pairs = zip(made[:-1], real[:-1], strict=True)
    return torch.stack([(a - b).abs().mean() / b.abs().mean().clamp(min=1e-5) for a, b in pairs]).mean()


def crop(wave: Tensor, samples: int, noise: Noise, real: Tensor | None = None) -> Tensor:
    """(B, samples) of (B, S), each at a place of its own, with silence where that is not within the clip.

    One in eight is the very beginning, one in eight begins up to half its length before it, and of the others early
    ones are more: notes begin with the attack and end in silence.

    Args:
        real: (B, S) mask of a clip's own samples, which come first.
    """
    length = torch.full((len(wave), 1), wave.shape[-1], device=wave.device) if real is None else real.sum(1, True)
    room = (length - samples).clamp(min=0)
    place = noise.uniform("crop", (1,))
    within = ((place - 0.25) / 0.75).clamp(min=0).pow(1.5) * (room + 1)
    ahead = (1 - 8 * place).clamp(min=0) * (samples // 2)
    begin = (within - ahead).floor().long().minimum(room)
    padded = F.pad(wave, (samples // 2, samples))
    return padded.gather(1, begin + samples // 2 + torch.arange(samples, device=wave.device))
