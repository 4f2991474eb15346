"""Pictures in the latent space of an autoencoder. See `diffkit_image.adapter`."""

from diffkit_image.adapter import Image

modality = Image

__all__ = ["Image", "modality"]
