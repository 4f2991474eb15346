"""A picture, the native object of this modality, and its pixels as numbers.

Colour is kept premultiplied by opacity (T. Porter and T. Duff 1984): what is invisible has no colour, so that a network
need not guess one, and edges are averaged as they are seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Picture", "to_image", "to_tensor"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and what is known of it.

    Args:
        image: of mode RGB or RGBA.
        caption: in words.
        category: its name.
        name: of the file or of the thing, to find it again.
    """

    image: Image.Image
    caption: str = ""
    category: str = ""
    name: str = ""


def to_tensor(image: Image.Image) -> Tensor:
    """float32 (4, H, W) in [-1, 1]: red, green and blue times opacity, and opacity."""
    pixels = torch.from_numpy(np.array(image.convert("RGBA"))).float() / 255
    colour, opacity = pixels[..., :3], pixels[..., 3:]
    return torch.cat([colour * opacity, opacity], -1).permute(2, 0, 1) * 2 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """An RGBA image of (4, H, W), or an RGB one of (3, H, W), in [-1, 1]; values beyond are clipped."""
    shares = (pixels.detach().float().cpu().permute(1, 2, 0) / 2 + 0.5).nan_to_num(0.0).clamp(0, 1)
    if shares.shape[-1] == 4:
        colour, opacity = shares[..., :3], shares[..., 3:]
        shares = torch.cat([(colour / opacity.clamp(min=1 / 255)).clamp(max=1), opacity], -1)
    return Image.fromarray((shares * 255).round().byte().numpy(), "RGBA" if shares.shape[-1] == 4 else "RGB")
