"""Public sets of pictures, fetched as packages (`diffkit.packages`) and converted once to the cache; a person's own.

=============  ==================================================  ==========================================
``noto``       npm ``emoji-datasource-google`` (Apache-2.0)        3,786 emoji, 64 x 64: `diffkit_image.noto`
``clipart``    apt ``openclipart-png``, ``-svg`` (public domain)   drawings: `diffkit_image.clipart`
``animals``    PyPI ``animal-shape-mnist`` (MIT)                   10,000 silhouettes: `diffkit_image.animals`
=============  ==================================================  ==========================================
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from diffkit.packages import Package, cache_folder, fetched, unpacked
from diffkit_image import animals, captions, clipart, hub, noto, packed, readers
from diffkit_image.packed import Found, Packed
from diffkit_image.readers import Report, Shape

__all__ = ["SOURCES", "Source", "cached", "own", "public", "sample", "write_sample"]

SAMPLE = Path(__file__).parent / "sample" / "emoji.webp"
"""Emoji that ship with the package, side by side; their codes, categories and names are in a file beside it."""
SAMPLED = (
    *("face-smiling", "face-affection", "face-concerned", "cat-face", "monkey-face", "heart", "animal-mammal"),
    *("animal-bird", "animal-marine", "animal-bug", "plant-flower", "food-fruit", "food-vegetable", "food-sweet"),
    *("drink", "transport-ground", "transport-air", "sky & weather", "sport", "musical-instrument", "clothing"),
)
"""The sample's categories."""
EACH, ACROSS = 5, 10
"""Emoji of a category, and in a row of the picture."""
NOTO = Package(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "Apache-2.0",
    74,
)
CLIPART = Package(
    "apt",
    "openclipart-png",
    "1:0.18+dfsg-19",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public domain",
    131,
)
TITLES = Package(
    "apt",
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public domain",
    25,
)
ANIMALS = Package(
    "pip",
    "animal-shape-mnist",
    "0.39",
    "e97143ae2d7aa6e320af430c9a5ca78fa9fda58b015e6937499e90f127bc95d1",
    "MIT",
    3,
)


@dataclass(frozen=True)
class Source:
    """How to read a set in its own shape, or in another one; the shape is its own if it is as large."""

    shape: Shape
    read: Callable[[Shape], Iterator[Found]]


def cached(name: str, shape: Shape | None = None) -> Packed:
    """A public set from the cache; the first time it is fetched and converted.

    Raises ``ConnectionError`` if a package cannot be had and ``ValueError`` if it is not the file it should be.
    """
    source = SOURCES[name]
    wanted = shape or source.shape
    suffix = "" if wanted == source.shape else f"-{wanted.side}-{wanted.multiple}"
    folder = cache_folder() / "image" / f"{name}-v1{suffix}"
    if not folder.exists():
        packed.save(source.read(wanted), folder)
    return packed.load(folder)


def own(path: Path, shape: Shape) -> tuple[Packed, str]:
    """A person's files from the cache, where they are as they were, else read and converted; and what is to be said.

    Raises what `diffkit_image.readers.read` does.
    """
    report = Report(str(path))
    return _kept(f"folder-{readers.fingerprint(path)[:16]}", shape, report, lambda: readers.read(path, shape, report))


def public(name: str, shape: Shape, limit: int) -> tuple[Packed, str]:
    """The first ``limit`` pictures of a set of `datasets`, and what is to be said. Raises what `hub.read` does."""
    report = Report(name)
    digest = hashlib.sha256(f"{hub.identity(name)}|{limit}".encode()).hexdigest()[:16]
    return _kept(f"set-{digest}", shape, report, lambda: hub.read(name, shape, limit, report))


@lru_cache(maxsize=2)
def sample(shape: Shape | None = None) -> Packed:
    """The emoji that ship with this package, in their own shape or another one."""
    usual = SOURCES["noto"].shape
    home = cache_folder() / "image" / "sample-v1"
    return packed.gather(_resized(_shipped(), shape or usual, usual), SAMPLED, home)


def _shipped() -> Iterator[Found]:
    with SAMPLE.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    side = SOURCES["noto"].shape.side
    with Image.open(SAMPLE) as image:
        whole = image.convert("RGBA")
    for n, row in enumerate(rows):
        y, x = (side * k for k in divmod(n, ACROSS))
        said = captions.write(row["names"].split("; "), row["category"])
        one = whole.crop((x, y, x + side, y + side))
        yield Found(row["code"], noto.split_of(row["code"]), one, said, row["category"])


def write_sample(path: Path) -> None:
    """Write some emoji of few categories side by side, and what they are: how this package's sample was made."""
    with unpacked(NOTO) as files:
        rows = _chosen(noto.plain(files))
    side = SOURCES["noto"].shape.side
    whole = Image.new("RGBA", (ACROSS * side, -(-len(rows) // ACROSS) * side))
    for n, (_, _, _, image) in enumerate(rows):
        y, x = (side * k for k in divmod(n, ACROSS))
        whole.paste(image, (x, y), image.getchannel("A").point(lambda opacity: 255 * (opacity > 0)))
    whole.save(path, lossless=True, method=6, quality=100)
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("code", "category", "names"))
        writer.writerows((code, category, "; ".join(names)) for code, category, names, _ in rows)


def _chosen(emoji: Iterator[noto.Emoji]) -> list[noto.Emoji]:
    """Of each category the first; of those that are held out one at least, where there is one."""
    by_category: dict[str, list[noto.Emoji]] = {name: [] for name in SAMPLED}
    for one in emoji:
        by_category.get(one[1], []).append(one)
    chosen = []
    for some in by_category.values():
        held = [one for one in some if noto.split_of(one[0]) != "train"][:1]
        train = [one for one in some if noto.split_of(one[0]) == "train"]
        chosen += [*train[: EACH - len(held)], *held]
    return chosen


def _kept(name: str, shape: Shape, report: Report, read: Callable[[], Iterator[Found]]) -> tuple[Packed, str]:
    folder = cache_folder() / "image" / f"{name}-{shape.side}-{shape.multiple}"
    if not folder.exists():
        packed.save(read(), folder, (), report.rejected, report.changed)
    found = packed.load(folder)
    said = Report(report.path, len(found), list(found.rejected), list(found.changed))
    return found, str(said) if found.rejected or found.changed else ""


def _resized(found: Iterator[Found], shape: Shape, usual: Shape) -> Iterator[Found]:
    return found if shape == usual else (replace(one, image=shape.fit(one.image)) for one in found)


def _noto(shape: Shape) -> Iterator[Found]:
    with unpacked(NOTO) as files:
        yield from _resized(noto.read(files), shape, SOURCES["noto"].shape)


def _animals(shape: Shape) -> Iterator[Found]:
    with unpacked(ANIMALS) as files:
        yield from _resized(animals.read(files), shape, SOURCES["animals"].shape)


def _clipart(shape: Shape) -> Iterator[Found]:
    with fetched(CLIPART) as png, fetched(TITLES) as svg:
        yield from clipart.read(png, svg, shape)


SOURCES: Mapping[str, Source] = {
    "noto": Source(Shape(64), _noto),
    "clipart": Source(Shape(64), _clipart),
    "animals": Source(Shape(32), _animals),
}
