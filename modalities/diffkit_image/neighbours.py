"""Samples beside the training pictures nearest to them, to see what is new."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffkit.files import whole
from diffkit_image.real import Real, nearest, seen, usable
from diffkit_image.record import Picture

__all__ = ["save_neighbours"]

PAIRS, ACROSS = 24, 4
SIDE, GAP, LINE = 128, 8, 16  # pixels
SQUARE = 8
"""Pixels a side of the squares that show through."""
PAPER, INK, SHADES = (255, 255, 255), (72, 76, 86), ((250, 250, 252), (230, 231, 236))


def save_neighbours(samples: Sequence[Picture | None], train: Real, path: Path | str) -> None:
    """Write a picture of the first samples, each beside its nearest training picture, with how far that is.

    Nothing is written where there is no sample or no training picture.
    """
    good = [one for one in samples if one is not None and usable(one)][:PAIRS]
    if not good or not len(train):
        return
    values, rows = nearest(seen(good), train)
    height, width = SIDE + 2 * LINE + GAP, 2 * SIDE + GAP + 2 * GAP
    sheet = Image.new("RGB", (min(len(good), ACROSS) * width, -(-len(good) // ACROSS) * height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (one, value, row) in enumerate(zip(good, values.tolist(), rows.tolist(), strict=True)):
        left, top = number % ACROSS * width + GAP, number // ACROSS * height + GAP // 2
        other = train.packed.picture(row)
        for place, picture in ((left, one), (left + SIDE + GAP, other)):
            sheet.paste(_shown(picture.image), (place, top))
        pen.text((left, top + SIDE), _short(one.caption or one.category, font), INK, font)
        said = f"{value:.1f} from {other.caption or other.category or other.name}"
        pen.text((left, top + SIDE + LINE), _short(said, font), INK, font)
    with whole(Path(path)) as part:
        sheet.save(part, optimize=True)


def _shown(image: Image.Image) -> Image.Image:
    """On a checkerboard, the longer side as long as the panel's; small ones in whole pixels."""
    panel = Image.new("RGB", (SIDE, SIDE), SHADES[0])
    pen = ImageDraw.Draw(panel)
    for x in range(0, SIDE, SQUARE):
        for y in range(x // SQUARE % 2 * SQUARE, SIDE, 2 * SQUARE):
            pen.rectangle((x, y, x + SQUARE - 1, y + SQUARE - 1), SHADES[1])
    share = SIDE / max(image.size)
    width, height = (max(round(side * share), 1) for side in image.size)
    way = Image.Resampling.NEAREST if share == round(share) else Image.Resampling.LANCZOS
    drawn = image.convert("RGBA").resize((width, height), way)
    panel.paste(drawn, ((SIDE - width) // 2, (SIDE - height) // 2), drawn)
    return panel


def _short(said: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """What fits under a pair."""
    line = " ".join(said.split())
    while font.getlength(line) > 2 * SIDE + GAP and len(line) > 4:
        line = f"{line.removesuffix('...')[:-1].rstrip()}..."
    return line
