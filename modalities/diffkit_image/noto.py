"""Noto emoji by Google (Apache-2.0), from the npm package ``emoji-datasource-google``: 3,786 pictures of 64 x 64.

What is said of each is made of its Unicode name and its short names; its category is its Unicode subcategory.

A split is a hash of the *base* of an emoji: its code without skin tone, gender and direction, so that a waving hand is
in one split in all its tones, and so are a farmer, a woman who is one and a man. 90 : 5 : 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffkit_image import captions, readers
from diffkit_image.packed import Found

__all__ = ["Emoji", "base_of", "plain", "read", "split_of"]

Emoji = tuple[str, str, list[str], Image.Image]
"""Code, category, names and picture."""

_PEOPLE = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}
"""Men and women as persons, boys and girls as children, old ones as old people."""
_WRITTEN_OUT = {
    "1F48F": "1F9D1-2764-1F48B-1F9D1",
    "1F491": "1F9D1-2764-1F9D1",
    "1F46B": "1F9D1-1F91D-1F9D1",
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F46D": "1F9D1-1F91D-1F9D1",
    "1F46A": "1F9D1-1F9D1-1F9D2",
}
"""Couples that have a code of their own."""
_DROPPED = {"200D", "FE0F", "2640", "2642", "27A1", *captions.TONES}
"""Joiners, genders, directions and skin tones."""


def base_of(code: str) -> str:
    """``1F9D1-1F33E`` for a woman farmer of any skin tone, ``1F469-1F3FD-200D-1F33E``."""
    parts = code.upper().split("-")
    kept = [_PEOPLE.get(part, part) for part in parts if part not in _DROPPED] or parts[:1]
    return _WRITTEN_OUT.get(kept[0], kept[0]) if len(kept) == 1 else "-".join(kept)


def split_of(code: str) -> str:
    """The split of an emoji, from the hash of its base."""
    return readers.split_of(base_of(code))


def read(folder: Path) -> Iterator[Found]:
    """The emoji of the unpacked package, by their codes."""
    emoji = json.loads((folder / "package/emoji.json").read_text(encoding="utf-8"))
    pictures = folder / "package/img/google/64"
    for one in sorted(emoji, key=lambda e: e["sort_order"]):
        names = _names(one)
        for tone, about in [("", one), *one.get("skin_variations", {}).items()]:
            tones = [captions.TONES[part] for part in tone.split("-") if part]
            said = captions.write(names, one["subcategory"], tones)
            with Image.open(pictures / about["image"]) as image:
                yield Found(
                    about["unified"], split_of(about["unified"]), image.convert("RGBA"), said, one["subcategory"]
                )


def plain(folder: Path) -> Iterator[Emoji]:
    """The emoji of the unpacked package without skin tones."""
    emoji = json.loads((folder / "package/emoji.json").read_text(encoding="utf-8"))
    for one in sorted(emoji, key=lambda e: e["sort_order"]):
        with Image.open(folder / "package/img/google/64" / one["image"]) as image:
            yield one["unified"], one["subcategory"], _names(one), image.convert("RGBA")


def _names(emoji: Mapping[str, Any]) -> list[str]:
    """As they are said, the Unicode name first; short ones that are codes, or say no more, are left out."""
    name = captions.spoken(emoji["name"])
    names = [name]
    if name.endswith(" Flag"):
        return [f"flag of {name.removesuffix(' Flag')}", f"{name.removesuffix(' Flag')} flag"]
    for short in emoji["short_names"]:
        plain = captions.spoken(short.replace("-", " "))
        if re.fullmatch(r"[a-z][a-z ]{2,}", plain) and sorted(captions.words(plain)) != sorted(captions.words(name)):
            names.append(plain)
    return list(dict.fromkeys(names))
