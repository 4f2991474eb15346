"""What to ask for where nothing is asked: names of all categories, evenly.

A model is measured, and shown, over all that it knows. Sample number n is asked for the same whatever is drawn beside
it, so that figures do not depend on the size of a batch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from diffkit_image.captions import words

__all__ = ["MOST", "askable", "key", "plain", "spread"]

MOST = 6
"""Names of a category, at most, that samples are asked for: 594 of the 99 kinds of emoji."""

_TONE = re.compile(r", [a-z -]+ skin tones?$")


def plain(caption: str) -> str:
    """``waving hand sign`` of ``waving hand sign, dark skin tone``."""
    return _TONE.sub("", caption)


def key(caption: str) -> tuple[str, ...]:
    """The words of a caption without its skin tone, sorted: what a model is asked for that reads words."""
    return tuple(sorted(words(plain(caption))))


def askable(pairs: Iterable[tuple[str, str]], most: int = MOST) -> dict[str, list[str]]:
    """At most ``most`` names of each category, evenly taken from its own, of categories and captions.

    Captions that are empty are passed over; what differs by its skin tone alone is asked for once.
    """
    known: dict[str, dict[str, None]] = {}
    for category, caption in pairs:
        if caption:
            known.setdefault(category, {})[plain(caption)] = None
    return {category: _evenly(list(names), most) for category, names in sorted(known.items())}


def _evenly(names: Sequence[str], most: int) -> list[str]:
    """The middle ones of as many equal parts."""
    count = min(len(names), most)
    return [names[(2 * k + 1) * len(names) // (2 * count)] for k in range(count)]


def spread(numbers: Sequence[int], names: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """For every sample's number a category and a name of it: over many numbers, evenly over both.

    Categories come in turn, in an order that mixes those with names alike; the names of each come in turn as well.

    Args:
        names: of every category, at least one of each, as of `askable`.
    """
    kinds, golden = list(names), (math.sqrt(5) - 1) / 2
    if not kinds:
        return []
    step = next(k for k in range(max(round(golden * len(kinds)), 1), 2 * len(kinds)) if math.gcd(k, len(kinds)) == 1)
    found = []
    for number in numbers:
        turn, place = divmod(number, len(kinds))
        kind = kinds[place * step % len(kinds)]
        found.append((kind, names[kind][turn % len(names[kind])]))
    return found
