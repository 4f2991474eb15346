"""Pictures in the latent space of an autoencoder: our models (`.adapter`) and those of diffusers (`.pipelines`)."""

from typing import Any

from diffkit.modality import Modality
from diffkit_image.adapter import Image
from diffkit_image.pipelines import Pipeline, adopt

__all__ = ["Image", "Pipeline", "adopt", "modality"]


def modality(**options: Any) -> Modality:
    """The adapter of a recipe's ``modality`` node: of a diffusers pipeline, where it names one."""
    return Pipeline(**options) if "pipeline" in options else Image(**options)
