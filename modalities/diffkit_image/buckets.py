"""Sizes for pictures of any shape: about equal areas, sides that are multiples of a number, ratios up to 2 : 1.

A set is sorted into as many sizes as it needs (aspect-ratio buckets), so that little of a picture is lost and a batch
of one size wastes nothing on padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageOps

__all__ = ["RATIO", "fitted", "nearest", "sizes"]

RATIO = 2.0
"""Of a size's longer side to its shorter one, at most."""


@lru_cache
def sizes(side: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of all sizes, by height: those nearest to the area of a square of ``side``.

    Raises:
        ValueError: if the side is less than the multiple.
    """
    if multiple < 1 or side < multiple:
        raise ValueError(f"got size {side} for sides that are multiples of {multiple}; expected at least {multiple}")
    steps = (side / multiple) ** 2
    tallest = math.floor(math.sqrt(steps * RATIO) + 1e-9)
    pairs = ((k, max(1, round(steps / k))) for k in range(1, tallest + 1))
    allowed = {pair for pair in pairs if max(pair) <= RATIO * min(pair)}
    square = max(1, round(math.sqrt(steps)))
    both = allowed | {(w, h) for h, w in allowed} | {(square, square)}
    return tuple((h * multiple, w * multiple) for h, w in sorted(both))


def nearest(height: int, width: int, known: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size whose ratio is the nearest to that of a picture; of two, the larger."""
    wanted = math.log(height / width)
    return min(known, key=lambda size: (round(abs(math.log(size[0] / size[1]) - wanted), 9), -size[0] * size[1], size))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGBA of (height, width): a picture with transparent parts as a whole, the rest transparent; another one cropped.

    What is cut off is as much on both sides.
    """
    height, width = size
    if image.size == (width, height):
        return image.convert("RGBA")
    excess = min(image.width // width, image.height // height) // 2
    if excess > 1:  # much faster, and what is left is still twice as large
        image = image.reduce(excess)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, (0, 0, 0, 0))
    return ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS).convert("RGBA")
