"""Drawings of the Open Clip Art Library 0.18 (public domain), from Debian's ``openclipart-png`` and ``-svg``.

Pixels are those of the PNG files, without empty margins; titles and keywords are in the metadata of the SVG files. A
category is the folder that a drawing lies in, ``animals/mammals``; what lies in none has no category. Plain stars and
icons of computers, which are almost half of the library and much alike, are left out. A split is a hash of the file's
name. 90 : 5 : 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from PIL import Image

from diffkit.packages import members
from diffkit_image import readers
from diffkit_image.packed import Found
from diffkit_image.readers import Shape

__all__ = ["read", "said_of"]

LEFT_OUT = ("computer/icons", "shapes/stars")
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_METADATA = re.compile(rb"<metadata.*?</metadata>", re.DOTALL)
_EMPTY = {"hash", "unsorted", "clip art", "clipart", "image", "images", "svg", "open clip art library", ""}
"""Keywords and titles that say nothing."""


def read(png: Path, svg: Path, shape: Shape) -> Iterator[Found]:
    """The drawings of the two packages, by their paths; what cannot be read is left out."""
    known = {_key(name): said_of(content) for name, content in members(svg, ".svg")}
    seen = set()
    for name, content in members(png, ".png"):
        key = _key(name)
        if key.startswith(LEFT_OUT) or PurePosixPath(key).name in seen:
            continue
        try:
            image = _drawn(readers.decode(content)[0])
        except ValueError:
            continue
        seen.add(PurePosixPath(key).name)
        category = PurePosixPath(key).parent.as_posix()
        category = "" if category in {".", "unsorted", "unsorted/duplicates"} else category
        split = readers.split_of(PurePosixPath(key).name)
        yield Found(key, split, shape.fit(image), known.get(key, ()), category)


def _drawn(image: Image.Image) -> Image.Image:
    """What is drawn on a page, without the empty rest of it."""
    box = image.getchannel("A").getbbox() if image.mode == "RGBA" else None
    if box is None and image.mode == "RGBA":
        raise ValueError("is empty")
    return image if box is None else image.crop(box)


def said_of(svg: bytes) -> tuple[str, ...]:
    """Captions of a drawing: its title, and its title with its keywords; none where it has neither."""
    found = _METADATA.search(svg)
    try:
        tree = ElementTree.fromstring(_bound(found[0])) if found else None
    except ElementTree.ParseError:
        tree = None
    if tree is None:
        return ()
    authors = {_text(e) for e in tree.iter(f"{_DC}title")} - {_text(e) for e in tree.findall(f".//{_DC}title")[:1]}
    title = next((_text(e) for e in tree.iter(f"{_DC}title")), "")
    title = "" if title.lower() in _EMPTY or title in authors else title
    keys = [_text(e).lower() for e in tree.iter(f"{_RDF}li")]
    keys = [key for key in dict.fromkeys(keys) if key not in _EMPTY and key not in {a.lower() for a in authors}]
    listed = ", ".join(key for key in keys[:6] if key != title.lower())
    said = (title, f"clip art of {title}" if title else "", ", ".join(part for part in (title, listed) if part))
    return tuple(dict.fromkeys(text for text in said if text))


def _bound(metadata: bytes) -> bytes:
    """The element with the names of namespaces that are bound outside of it."""
    head = metadata[: metadata.index(b">")]
    bound = {"rdf": _RDF, "dc": _DC, "cc": "{http://web.resource.org/cc/}"}
    extra = "".join(f' xmlns:{k}="{v.strip("{}")}"' for k, v in bound.items() if f"xmlns:{k}=".encode() not in head)
    return metadata.replace(b"<metadata", b"<metadata" + extra.encode(), 1)


def _text(element: ElementTree.Element) -> str:
    return " ".join((element.text or "").replace("_", " ").split())


def _key(name: str) -> str:
    """``animals/mammals/bear_01`` for the path of either file."""
    parts = PurePosixPath(name).with_suffix("").parts
    return "/".join(parts[parts.index("openclipart") + 2 :])
