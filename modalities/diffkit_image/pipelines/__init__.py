"""Models in diffusers' format: Stable Diffusion, DiT, Flux. See `diffkit_image.pipelines.adapter`."""

from diffkit_image.pipelines.adapter import Pipeline, adopt

__all__ = ["Pipeline", "adopt"]
