"""What is lost between a picture, its latents and a picture again.

    python -m diffkit_image.round_trip [--autoencoder NAME] [--picture FILE]

prints, over pictures of the test split, the peak signal-to-noise ratio of what is seen: of colours on black and on
white, and of opacity, each from 0 to 1; the mean over pictures, with the lowest tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image
from torch import Tensor

from diffkit.report import Metric, Metrics, table
from diffkit_image import data
from diffkit_image.autoencoder import Autoencoder, load, on_white
from diffkit_image.record import to_image, to_tensor

__all__ = ["figures", "main", "measure", "ratio", "round_trip"]

SHOWN, SIDE = 12, 96
"""Pictures in a row of ``--picture``, and pixels of each."""


def ratio(made: Tensor, real: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratios in decibels of (B, C, H, W) in [-1, 1], 10 lg(4 / mean square error).

    What is made is clipped first, as a picture of it would be; at most 100 dB.
    """
    wrong = (made.clamp(-1, 1) - real).square().flatten(1).mean(1)
    return 10 * (4 / wrong.clamp(min=4e-10)).log10()


def measure(made: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Ratios (B,) of pictures ``made`` beside those they should be, (B, 4, H, W) or both (B, 3, H, W).

    On white, what is made is clipped as a whole, and not its opacity by itself.
    """
    if real.shape[1] == 3:
        return {"PSNR": ratio(made, real)}
    made = made.clamp(-1, 1)
    seen = [torch.cat([pixels, on_white(pixels)], 1) for pixels in (made, real)]
    return {
        "PSNR": ratio(*seen),
        "on black": ratio(made[:, :3], real[:, :3]),
        "on white": ratio(on_white(made), on_white(real)),
        "of opacity": ratio(made[:, 3:], real[:, 3:]),
    }


@torch.no_grad()
def round_trip(pixels: Tensor, autoencoder: Autoencoder) -> Tensor:
    """(B, 4, H, W), or (B, 3, H, W) of an autoencoder without opacity."""
    return autoencoder.decode(autoencoder.encode(pixels))


def figures(pictures: Mapping[int, Tensor], autoencoder: Autoencoder) -> Metrics:
    """Figures over pictures (4, H, W) by number, of any sizes."""
    found: dict[str, list[Tensor]] = {}
    begin, numbers, latents = perf_counter(), 0, 0
    for batch in _batches(pictures):
        made = round_trip(batch, autoencoder)
        numbers += autoencoder.shown(batch).numel()
        latents += len(batch) * autoencoder.channels * batch[0, 0].numel() // autoencoder.factor**2
        for name, values in measure(made, autoencoder.shown(batch)).items():
            found.setdefault(name, []).append(values)
    taken, count = perf_counter() - begin, len(pictures)
    known = {name: torch.cat(values) for name, values in found.items()}
    return {name: Metric(float(values.mean()), count, "pictures", "dB") for name, values in known.items()} | {
        "PSNR, 90 % above": Metric(float(known["PSNR"].quantile(0.1)), count, "pictures", "dB"),
        "numbers to a latent": Metric(numbers / latents, count, "pictures"),
        "seconds": Metric(taken / count, count, "pictures", "a picture"),
    }


def _batches(pictures: Mapping[int, Tensor], at_once: int = 32) -> Iterator[Tensor]:
    sizes: dict[torch.Size, list[Tensor]] = {}
    for pixels in pictures.values():
        sizes.setdefault(pixels.shape, []).append(pixels)
    for same in sizes.values():
        yield from torch.stack(same).split(at_once)


def comparison(pictures: list[Tensor], autoencoder: Autoencoder) -> Image.Image:
    """Pictures above what comes back of them, on a checkerboard."""
    rows = [pictures, [round_trip(pixels.unsqueeze(0), autoencoder)[0] for pixels in pictures]]
    sheet = Image.new("RGBA", (SIDE * len(pictures), SIDE * len(rows)), "white")
    light = Image.new("RGBA", (SIDE // 8, SIDE // 8), "#ddd")
    for x in range(0, sheet.width, SIDE // 8):
        for y in range(x % (SIDE // 4), sheet.height, SIDE // 4):
            sheet.paste(light, (x, y))
    for row, drawn in enumerate(rows):
        for column, pixels in enumerate(drawn):
            image = to_image(pixels).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.alpha_composite(image, (column * SIDE, row * SIDE))
    return sheet.convert("RGB")


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m diffkit_image.round_trip", description=__doc__.split("\n")[0])
    parser.add_argument("--autoencoder", help="a folder, a run, or an id on the Hub (the shipped one)")
    parser.add_argument("--source", default="noto", help="a public set (%(default)s)")
    parser.add_argument("--path", type=Path, help="a folder of pictures instead")
    parser.add_argument("--split", default="test", help="train, valid or test (%(default)s)")
    parser.add_argument("-n", "--count", type=int, default=200, help="pictures, spread evenly (%(default)s)")
    parser.add_argument("--picture", type=Path, help="a file for some of them, what comes back below")
    given = parser.parse_args(arguments)
    try:
        print(_report(given))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(given: argparse.Namespace) -> str:
    if given.count < 1:
        raise ValueError(f"got {given.count} pictures; expected at least one")
    autoencoder = load(given.autoencoder)
    found = data.load(given.split, None if given.path else given.source, given.path, pixels=True)
    if not len(found):
        raise ValueError(f"got the split '{given.split}', which is empty; expected one with pictures")
    chosen = torch.linspace(0, len(found) - 1, min(given.count, len(found))).long().tolist()
    pictures = {n: to_tensor(found.records(n).image) for n in chosen}
    if given.picture is not None:
        some = chosen[:: -(-len(chosen) // SHOWN)]
        comparison([pictures[n] for n in some], autoencoder).save(given.picture)
    return table({autoencoder.kind: figures(pictures, autoencoder)})


if __name__ == "__main__":
    raise SystemExit(main())
