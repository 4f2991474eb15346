"""What an autoencoder makes of a set of pictures: encoded once, and kept beside the set in half precision.

The file's name has a hash of the autoencoder's weights in it, so that another one's latents are never taken for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffkit.files import whole
from diffkit.packages import cache_folder
from diffkit_image.packed import Packed, premultiplied

__all__ = ["Encoder", "Latents", "encoded", "fingerprint", "open_autoencoder"]

PIXELS = 64 * 64 * 64
"""That are encoded at once."""
LARGEST = 6e4
"""Of a number in half precision, with room to spare."""


class Encoder(Protocol):
    """What this module asks of an autoencoder."""

    @property
    def factor(self) -> int:
        """Pixels of one place of the latents, along each side."""

    @property
    def channels(self) -> int:
        """Of the latents."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H / factor, W / factor) of pixels (B, 4, H, W)."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Of a set's pictures, by the places that the set has them in."""

    parts: tuple[NDArray[np.float16], ...]  # of each size [n, C, h, w]

    def moments(self, places: NDArray[np.int64]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the pictures at ``places`` (N, 2)."""
        count, total, square = 0, 0.0, 0.0
        for group, part in enumerate(self.parts):
            rows = np.sort(places[places[:, 0] == group, 1])
            for some in np.array_split(rows, -(-len(rows) // 512) or 1):
                values = part[some].astype(np.float64)
                count += values.shape[0] * values.shape[2] * values.shape[3]
                total, square = total + values.sum((0, 2, 3)), square + (values**2).sum((0, 2, 3))
        mean = np.asarray(total) / count
        scale = np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 1e-12))
        return mean.tolist(), scale.tolist()


def open_autoencoder(name: str | Path | None) -> Encoder:
    """The shipped autoencoder, or that of a folder or a Hub id."""
    loaded: Encoder = import_module("diffkit_image.autoencoder").load(name)
    return loaded


def encoded(packed: Packed, autoencoder: Encoder) -> Latents:
    """The latents of all pictures of a set, from the cache where they were encoded before.

    Raises:
        ValueError: for a size that the autoencoder cannot encode, or latents that are not finite.
    """
    factor, digest = autoencoder.factor, fingerprint(autoencoder)
    home = packed.home or cache_folder() / "image" / "others"
    parts = []
    for pixels in packed.pixels:
        height, width = pixels.shape[1:3]
        if height % factor or width % factor:
            raise ValueError(
                f"got pictures of {width}x{height} for an autoencoder of factor {factor}; expected multiples of it: "
                f"set data.multiple={factor}"
            )
        path = home / f"latents-{digest[:16]}-{height}x{width}.npy"
        if not path.exists() or np.load(path, mmap_mode="r").shape[0] != len(pixels):
            _encode(pixels, autoencoder, path)
        parts.append(np.load(path, mmap_mode="r"))
    return Latents(tuple(parts))


def fingerprint(autoencoder: Any) -> str:
    """A hash of its weights."""
    networks: Sequence[nn.Module] = (
        [autoencoder]
        if isinstance(autoencoder, nn.Module)
        else [v for v in vars(autoencoder).values() if isinstance(v, nn.Module)]
    )
    digest = hashlib.sha256(f"{type(autoencoder).__name__}|{autoencoder.factor}|{autoencoder.channels}".encode())
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(f"{name}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(pixels: NDArray[np.uint8], autoencoder: Encoder, path: Path) -> None:
    """Some pictures at a time, into a file of the same order."""
    size = max(1, PIXELS // (pixels.shape[1] * pixels.shape[2]))
    shape = (pixels.shape[1] // autoencoder.factor, pixels.shape[2] // autoencoder.factor)
    with whole(path) as part:
        made = np.lib.format.open_memmap(part, "w+", np.float16, shape=(len(pixels), autoencoder.channels, *shape))
        for start in range(0, len(pixels), size):
            with torch.no_grad():
                latent = autoencoder.encode(premultiplied(pixels[start : start + size])).float().cpu().numpy()
            if not np.isfinite(latent).all() or np.abs(latent).max() > LARGEST:
                raise ValueError(f"got latents beyond half precision in {path.stem}; check the autoencoder")
            made[start : start + size] = latent
        made.flush()
        del made
