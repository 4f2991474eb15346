"""How a picture came about, written into it: a text chunk ``diffkit`` of a PNG, in JSON.

The pixels stay as they are, to the byte: a chunk is put in, and nothing is encoded again (PNG specification, W3C 2003,
sections 5.3 and 11.3.4.3). Every viewer that shows the texts of a picture shows it, and `diffkit show` reads it.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from diffkit.files import whole

__all__ = ["KEY", "read", "stamp"]

KEY = "diffkit"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"iTXt", b"zTXt")


def stamp(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` into a PNG, in place of those that it carries already; a file that is no PNG is left alone."""
    content = path.read_bytes()
    if not content.startswith(SIGNATURE):
        return
    said = KEY.encode() + b"\0"
    head, *rest = [(kind, data) for kind, data in _chunks(content) if not (kind in TEXTS and data.startswith(said))]
    text = said + json.dumps(facts, default=str).encode("ascii")
    with whole(path) as part:
        part.write_bytes(SIGNATURE + b"".join(_packed(*chunk) for chunk in (head, (b"tEXt", text), *rest)))


def read(path: Path) -> dict[str, Any] | None:
    """The facts in a PNG; None where there are none.

    Raises:
        OSError: if there is no such file.
        ValueError: for what carries our name, and is not JSON.
    """
    try:
        with Image.open(path) as image:
            image.load()  # texts may come last
            text = image.info.get(KEY)
    except (UnidentifiedImageError, SyntaxError):
        return None
    if text is None:
        return None
    try:
        facts: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError):
        raise ValueError(f"got {path}, of which the text '{KEY}' is not JSON; expected one of diffkit's") from None
    return facts


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Types and data."""
    place = len(SIGNATURE)
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        place += size + 12


def _packed(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
