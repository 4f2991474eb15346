"""What the kinds of pipelines are given beside the latents, and what their networks are asked.

=============  ===========================  ======================================  =========================
pipeline       network                      conditions                              of the time
=============  ===========================  ======================================  =========================
SD 1.x, 2.x    ``UNet2DConditionModel``     ``text`` (B, L, D)                      the step k of its table
SD XL          ``UNet2DConditionModel``     ``text``, ``pooled`` (B, P)             the same, and sizes
DiT            ``DiTTransformer2DModel``    ``label`` (B,)                          the same
SD 3           ``SD3Transformer2DModel``    ``text``, ``pooled``                    1000 sigma
Flux           ``FluxTransformer2DModel``   ``text``, ``pooled``, ``distilled``     sigma
=============  ===========================  ======================================  =========================

Prompts are encoded by the pipeline's own ``encode_prompt``, so that they are what diffusers makes of them. A condition
that is absent is that of the empty prompt; in XL zeros, where its configuration says so; in DiT the class after the
last one. ``distilled`` is the guidance that Flux's network was taught to imitate.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffkit.naming import nearest

__all__ = ["FAMILIES", "Family"]

Values = Mapping[str, Tensor]


class Family(ABC):
    """How the pipelines of one kind are used. ``pipe`` is always a pipeline of diffusers, of that kind."""

    part = "unet"
    """The member that denoises."""
    guidance = 7.5
    """The scale that diffusers' pipeline has by default."""
    words = True
    """Whether it takes prompts."""
    grid: Mapping[str, Any] | None = None
    """Of times, where it is not its scheduler's."""

    @abstractmethod
    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """The conditions of a prompt, a batch of 1."""

    def nothing(self, pipe: Any) -> dict[str, Tensor]:
        """What stands for conditions that are absent, a batch of 1."""
        return self.said(pipe, "")

    @abstractmethod
    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        """The network's output (B, C, h, w) for latents ``x``, given its own ``code`` (B,) of the time."""

    def readers(self, pipe: Any) -> list[tuple[Any, int]]:
        """Tokenizers, and how many tokens of a prompt are read with each."""
        known = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in known if tokenizer is not None]

    def patch(self, pipe: Any) -> int:
        """What the height and the width of latents are multiples of."""
        return 1

    def sides(self, pipe: Any) -> tuple[int, int]:
        """Height and width of the latents that the network was made for."""
        size = getattr(pipe, self.part).config.sample_size
        return (size[0], size[1]) if isinstance(size, Sequence) else (size, size)

    def channels(self, pipe: Any) -> int:
        """Of the latents that the network takes."""
        return int(getattr(pipe, self.part).config.in_channels)


class StableDiffusion(Family):
    """Rombach et al. (2022, arXiv:2112.10752)."""

    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        return {"text": pipe.encode_prompt([prompt], pipe._execution_device, 1, False)[0]}

    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        said: Tensor = pipe.unet(x, code, encoder_hidden_states=values["text"], return_dict=False)[0]
        return said


class StableDiffusionXL(Family):
    """Podell et al. (2023, arXiv:2307.01952)."""

    guidance = 5.0

    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        text, _, pooled, _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def nothing(self, pipe: Any) -> dict[str, Tensor]:
        said = self.said(pipe, "")
        return {k: torch.zeros_like(v) for k, v in said.items()} if pipe.config.force_zeros_for_empty_prompt else said

    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        height, width = (side * pipe.vae_scale_factor for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        beside = {"text_embeds": values["pooled"], "time_ids": sizes.expand(len(x), -1)}
        said: Tensor = pipe.unet(
            x, code, encoder_hidden_states=values["text"], added_cond_kwargs=beside, return_dict=False
        )[0]
        return said


class DiT(Family):
    """Peebles & Xie (2023, arXiv:2212.09748)."""

    part = "transformer"
    guidance = 4.0
    words = False

    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        return {"label": torch.tensor([self._number(pipe, prompt)], device=pipe._execution_device)}

    def _number(self, pipe: Any, label: str) -> int:
        classes = pipe.transformer.config.num_embeds_ada_norm
        number = int(label) if label.isdecimal() else pipe.labels.get(label, -1)
        if not 0 <= number < classes:
            names = f", or a name such as {', '.join([*pipe.labels][:3])}" if pipe.labels else ""
            raise ValueError(
                f"got label '{label}'; expected a number below {classes}{names}{nearest(label, pipe.labels)}"
            )
        return int(number)

    def nothing(self, pipe: Any) -> dict[str, Tensor]:
        return {"label": torch.tensor([pipe.transformer.config.num_embeds_ada_norm], device=pipe._execution_device)}

    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        said: Tensor = pipe.transformer(x, timestep=code, class_labels=values["label"], return_dict=False)[0]
        return said[:, : x.shape[1]]  # the others are of the variance, where it was learnt

    def readers(self, pipe: Any) -> list[tuple[Any, int]]:
        return []

    def patch(self, pipe: Any) -> int:
        return int(pipe.transformer.config.patch_size)


class StableDiffusion3(Family):
    """Esser et al. (2024, arXiv:2403.03206)."""

    part = "transformer"
    guidance = 7.0
    tokens = 256
    """Of a prompt that T5 reads."""

    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        text, _, pooled, _ = pipe.encode_prompt(
            [prompt], None, None, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return {"text": text, "pooled": pooled}

    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        """The velocity, by the sentence encodings and the pooled ones."""
        said: Tensor = pipe.transformer(
            hidden_states=x,
            timestep=code,
            encoder_hidden_states=values["text"],
            pooled_projections=values["pooled"],
            return_dict=False,
        )[0]
        return said

    def readers(self, pipe: Any) -> list[tuple[Any, int]]:
        return [*super().readers(pipe), *([(pipe.tokenizer_3, self.tokens)] if pipe.tokenizer_3 is not None else [])]

    def patch(self, pipe: Any) -> int:
        return int(pipe.transformer.config.patch_size)


class Flux(Family):
    """Black Forest Labs (2024); its transformer sees the latents in 2x2 patches."""

    part = "transformer"
    guidance = 1.0
    grid: Mapping[str, Any] | None = {"name": "power"}
    tokens = 512
    """Of a prompt that T5 reads."""

    def said(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        text, pooled, _ = pipe.encode_prompt([prompt], None, max_sequence_length=self.tokens)
        return {"text": text, "pooled": pooled}

    def nothing(self, pipe: Any) -> dict[str, Tensor]:
        usual = {"distilled": torch.tensor([3.5], device=pipe._execution_device)}
        return self.said(pipe, "") | (usual if pipe.transformer.config.guidance_embeds else {})

    def ask(self, pipe: Any, x: Tensor, code: Tensor, values: Values) -> Tensor:
        """The velocity; latents are given in patches of 2x2, with their places."""
        height, width = (side // 2 for side in x.shape[-2:])
        said: Tensor = pipe.transformer(
            hidden_states=rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            timestep=code / 1000,
            guidance=values.get("distilled"),
            encoder_hidden_states=values["text"],
            pooled_projections=values["pooled"],
            txt_ids=x.new_zeros(values["text"].shape[1], 3),
            img_ids=_places(height, width, x),
            return_dict=False,
        )[0]
        return rearrange(said, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)

    def readers(self, pipe: Any) -> list[tuple[Any, int]]:
        return [(pipe.tokenizer, pipe.tokenizer.model_max_length), (pipe.tokenizer_2, self.tokens)]

    def patch(self, pipe: Any) -> int:
        return 2

    def sides(self, pipe: Any) -> tuple[int, int]:
        return pipe.default_sample_size, pipe.default_sample_size

    def channels(self, pipe: Any) -> int:
        return int(pipe.transformer.config.in_channels) // 4


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """Rows and columns of patches, (h w, 3); the first number is 0."""
    rows, columns = torch.arange(height), torch.arange(width)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.nn.functional.pad(places, (1, 0)).to(like)


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionXLPipeline": StableDiffusionXL(),
    "DiTPipeline": DiT(),
    "StableDiffusion3Pipeline": StableDiffusion3(),
    "FluxPipeline": Flux(),
}
"""By the name of diffusers' class."""
