"""Generated pictures as files: `0000.png` and so on, and `preview.png` of the first.

The number of a file is that of the sample. PNG and WebP keep transparency; JPEG has none, and is written on white.
What is no picture, for it holds what is not a number, has no file and is counted. A file is written whole or not at
all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diffkit import naming
from diffkit.files import whole
from diffkit_image.record import Picture

__all__ = ["FORMATS", "on_checkerboard", "on_white", "require_format", "save"]

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
"""As Pillow calls them."""
SHOWN = 24
LARGEST, SMALLEST = 256, 128
"""Pixels of a picture on the contact sheet: a small one is enlarged by a whole number."""
CAPTION, GAP, SQUARE = 22, 10, 8
BACKGROUND, INK = (250, 250, 252), (72, 76, 86)


def require_format(name: str) -> None:
    """A ValueError for a format that pictures are not written in."""
    if name not in FORMATS:
        raise ValueError(f"got format '{name}'; expected one of {', '.join(FORMATS)}{naming.nearest(name, FORMATS)}")


def save(samples: Sequence[Picture | None], folder: Path | str, format: str = "png") -> dict[str, Any]:
    """Write every one of ``samples`` and the contact sheet to ``folder``, made if missing.

    Returns how many were drawn and written, their sizes (width x height), and the format.

    Raises:
        ValueError: for a format that is none.
        OSError: if a file cannot be written.
    """
    require_format(format)
    folder = Path(folder)
    for number, picture in enumerate(samples):
        if picture is not None:
            with whole(folder / f"{number:04d}.{format}") as part:
                _write(picture.image, part, format)
    with whole(folder / "preview.png") as part:
        contact_sheet(samples).save(part)
    good = [picture.image for picture in samples if picture is not None]
    sizes = sorted({f"{image.width}x{image.height}" for image in good})
    return {"drawn": len(samples), "written": len(good), "sizes": sizes, "format": format}


def _write(image: Image.Image, path: Path, format: str) -> None:
    if format == "png":
        image.save(path, FORMATS[format])
    elif format == "jpg":
        on_white(image).save(path, FORMATS[format], quality=95, subsampling=0)
    else:
        image.save(path, FORMATS[format], lossless=True)


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with white where it is transparent."""
    return _on(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)


def on_checkerboard(image: Image.Image, square: int = SQUARE) -> Image.Image:
    """RGB, with grey squares where it is transparent."""
    board = Image.new("RGBA", image.size, (255, 255, 255, 255))
    pen = ImageDraw.Draw(board)
    for top in range(0, image.height, square):
        for left in range((top // square % 2) * square, image.width, 2 * square):
            pen.rectangle((left, top, left + square - 1, top + square - 1), (226, 226, 230, 255))
    return _on(board, image)


def _on(ground: Image.Image, image: Image.Image) -> Image.Image:
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def contact_sheet(pictures: Sequence[Picture | None]) -> Image.Image:
    """The first pictures, each over its number and caption; an empty panel where there is none."""
    shown = list(pictures)[:SHOWN]
    images = [None if picture is None else _enlarged(picture.image) for picture in shown]
    side = [max((size for size in sizes), default=SMALLEST) for sizes in _sides(images)]
    columns = min(6, max(1, math.ceil(math.sqrt(len(shown)))))
    wide, tall = side[0] + GAP, side[1] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * wide + GAP, max(1, -(-len(shown) // columns)) * tall + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (picture, image) in enumerate(zip(shown, images, strict=True)):
        left, top = GAP + number % columns * wide, GAP + number // columns * tall
        if image is not None:
            sheet.paste(image, (left, top))
        pen.text((left, top + side[1] + 4), _fit(_caption(number, picture), font, side[0]), INK, font=font)
    return sheet


def _sides(images: Sequence[Image.Image | None]) -> tuple[list[int], list[int]]:
    there = [image for image in images if image is not None]
    return [image.width for image in there], [image.height for image in there]


def _enlarged(image: Image.Image) -> Image.Image:
    """On a checkerboard, small ones enlarged by whole numbers and large ones reduced, to be seen."""
    longest = max(image.size)
    times = max(1, SMALLEST // longest)
    if longest > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST))
    large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return on_checkerboard(large) if image.mode == "RGBA" else large.convert("RGB")


def _caption(number: int, picture: Picture | None) -> str:
    said = "" if picture is None else picture.caption or picture.category
    return f"{number:04d}  {said}".rstrip()


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a line as a panel is wide."""
    text = " ".join(text.split())[:200]
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("\u2026") + "\u2026"
    return text
