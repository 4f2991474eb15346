"""What a person asks for, as numbers that a model has learnt: a size in pixels, words, a category.

A value is asked for by name (``category=cat-face``) or in a prompt (`diffkit_image.prompts`); the named one counts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from diffkit.naming import nearest
from diffkit_image import prompts
from diffkit_image.captions import spelled

__all__ = ["not_understood", "require_known", "size", "understood"]

LARGEST = 4096
"""Pixels along a side."""


def size(said: str, factor: int) -> tuple[int, int]:
    """Height and width in pixels of ``96x64``, width before height, or of ``64``, a square.

    Raises:
        ValueError: for what is no size, or one that the autoencoder cannot decode to.
    """
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x\u00d7,]\s*(\d{1,6}))?\s*", said.lower())
    if not found:
        raise ValueError(f"got size={said}; expected WIDTHxHEIGHT in pixels, such as 96x64")
    wide = int(found[1])
    tall = int(found[2] or wide)
    if any(not 0 < side <= LARGEST or side % factor for side in (wide, tall)):
        near = "x".join(str(min(max(round(side / factor), 1) * factor, LARGEST)) for side in (wide, tall))
        raise ValueError(
            f"got size={said}; expected multiples of {factor}, as the autoencoder works in squares of that many "
            f"pixels, up to {LARGEST}, for instance {near}"
        )
    return tall, wide


def require_known(values: Mapping[str, str], conditions: Sequence[str]) -> None:
    """A ValueError for a name that is none of the model's conditions; a text is asked for as the prompt."""
    takes = sorted({*conditions, "size"} - {"text"})
    for name in values:
        if name not in takes:
            raise ValueError(f"got the condition {name}; this model takes {', '.join(takes)}{nearest(name, takes)}")


def understood(
    prompt: str | None,
    values: Mapping[str, str],
    vocabulary: Sequence[str],
    names: Mapping[str, Sequence[str]],
    encoder: bool,
) -> prompts.Asked:
    """Words and a category of the model's, from a prompt and named values.

    Args:
        vocabulary: the words that it knows.
        names: of the training pictures, by category.
        encoder: whether the prompt is read as a whole besides, so that no word of it is lost.

    Raises:
        ValueError: for a category or words that are not known.
    """
    asked = prompts.Asked() if prompt is None else prompts.read(prompt, vocabulary, names)
    if "words" in values:
        named = prompts.read(values["words"], vocabulary, names)
        if not named.words:
            raise ValueError(f"got words={values['words'][:60]}, none of which this model has learnt{_hint(named)}")
        asked = replace(named, category=asked.category if prompt is not None else named.category)
        encoder = False
    if "category" in values:
        asked = replace(asked, category=_category(values["category"], names))
    if asked.unknown and vocabulary and not encoder and (asked.words or asked.category):
        left = ", ".join(f"'{word}'" for word in asked.unknown)
        warnings.warn(f"left out {left}, which this model has not learnt{_hint(asked)}", stacklevel=2)
    return asked


def not_understood(prompt: str, vocabulary: Sequence[str], names: Mapping[str, Sequence[str]], encoder: bool) -> str:
    """What to say of a prompt none of whose words is known, where an ``encoder`` would have understood."""
    listed = ", ".join([*vocabulary[:3], *list(names)[:2]]) or "none, as it was trained without"
    help_ = ", or `pip install 'diffkit[text]'` to have the whole sentence read" if encoder else ""
    hint = _hint(prompts.read(prompt, vocabulary, names)) or nearest(prompt[:40], names)
    return (
        f"got the prompt {prompt[:60]!r}, none of whose words is known; expected some of the "
        f"{len(vocabulary):,} words or {len(names)} categories of this model ({listed}, ...){help_}{hint}"
    )


def _category(said: str, names: Mapping[str, Sequence[str]]) -> str:
    """The name of a category, whatever its case and punctuation."""
    for name in names:
        if spelled(name) == spelled(said):
            return name
    listed = ", ".join(list(names)[:3]) or "(there are none)"
    raise ValueError(
        f"got category={said[:60]}; expected one of {len(names)} names such as {listed}{nearest(said, names)}"
    )


def _hint(asked: prompts.Asked) -> str:
    """The words "; did you mean ...?" for the unknown ones that are nearly known."""
    near = [f"'{word}'" for word in (asked.unknown or {}).values() if word]
    return f"; did you mean {', '.join(near)}?" if near else ""
