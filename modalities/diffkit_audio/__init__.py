"""Sound as log-mel spectrograms. See `diffkit_audio.adapter`."""

from diffkit_audio.adapter import Audio

modality = Audio

__all__ = ["Audio", "modality"]
