"""What a prompt asks for, read by its words: "smiling cats" are the words smiling and cat, and the category cat-face.

The whole of it for a model of words and categories; no language model is needed. A word is known as it is, as another
form of one (plurals, -ing, -ed, -ly), or not at all. The category is one that is named, or that of the name of a
training picture that fits best: by the F-measure of the share of what is said that the name has and the share of the
name that is said, the former counting twice (C. van Rijsbergen 1979), and rare words more. Where another category's
fits nearly as well, it is left open.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from diffkit_image.captions import spelled

__all__ = ["Asked", "category_of", "read", "stem"]

LONGEST = 2000
"""Characters of a prompt that are read."""
EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an the of with and or in on at to for from by as is are it its this that some one very small "
        "emoji emojis icon picture image drawing photo symbol sign clipart show me please",
    )
)
"""Words that say nothing where a model does not know them."""
ENDINGS = ("ingly", "edly", "ings", "ness", "ing", "ies", "ied", "ers", "er", "est", "ed", "ly", "es", "s", "e", "y")

LIKELY, MARGIN, CERTAIN = 0.5, 1.1, 0.99
"""A fit, how much better than the second it is, and one that a category's own name does not change."""


@dataclass(frozen=True)
class Asked:
    """What was understood.

    Args:
        words: of the vocabulary, in the order in which they are said.
        category: its name; None where the prompt leaves it open.
        unknown: words that are not in the vocabulary, each with the nearest that is, or "".
    """

    words: tuple[str, ...] = ()
    category: str | None = None
    unknown: Mapping[str, str] | None = None


def read(prompt: str, vocabulary: Sequence[str], names: Mapping[str, Sequence[str]]) -> Asked:
    """What a prompt asks for.

    Args:
        vocabulary: the words that the model knows.
        names: of the training pictures, by category; a category has a key even where it has none.
    """
    said, stems = spelled(prompt[:LONGEST]), _by_stem(tuple(vocabulary))
    found = {word: _known(word, stems) for word in said}
    words = tuple(dict.fromkeys(word for word in found.values() if word is not None))
    unknown = [word for word, meant in found.items() if meant is None and word not in EMPTY]
    nearest = {word: next(iter(difflib.get_close_matches(word, vocabulary, 1, 0.7)), "") for word in unknown}
    verbatim = next((name for name in names if name.lower() == prompt.strip().lower()), None)
    return Asked(words, verbatim or category_of(words if vocabulary else said, names, unknown), nearest)


def stem(word: str) -> str:
    """What forms of a word have in common: "smil" of smile, smiles and smiling; short words are as they are."""
    for ending in ENDINGS:
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and not (ending == "s" and rest.endswith("s")):
            doubled = len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz" and ending[0] in "iey"
            return rest[:-1] if doubled else rest
    return word


def _known(word: str, stems: Mapping[str, Sequence[str]]) -> str | None:
    """The word of a vocabulary that it is, or is a form of: "kite" is none of "kitty"."""
    alike = stems.get(stem(word), ())
    return word if word in alike else next((other for other in alike if {word[-1], other[-1]} != {"e", "y"}), None)


@lru_cache(maxsize=4)
def _by_stem(vocabulary: tuple[str, ...]) -> dict[str, list[str]]:
    """The words of each stem, the shortest first."""
    found: dict[str, list[str]] = {}
    for word in sorted(vocabulary, key=lambda word: (len(word), word)):
        found.setdefault(stem(word), []).append(word)
    return found


# ------------------------------------------------------------------------------------------------- category


def category_of(said: Sequence[str], names: Mapping[str, Sequence[str]], unknown: Sequence[str] = ()) -> str | None:
    """The category that words name, or that of the name they fit best; None where they fit none, or several.

    Words that no name has, such as skin tones, say nothing here; ``unknown`` ones tell that no name fits quite.
    """
    stems = frozenset(stem(word) for word in (*said, *unknown)) - EMPTY
    named = [category for category in names if (words := _stems(category)) and words <= stems]
    fits = _fits(frozenset(stem(word) for word in said) - EMPTY, names, len(set(unknown) - set(said)))
    first, second = sorted([*fits.values(), 0.0, 0.0], reverse=True)[:2]
    if named and first < CERTAIN:
        return max(named, key=lambda category: (len(_stems(category)), fits.get(category, 0.0)))
    likely = first >= LIKELY and first >= MARGIN * second
    return max(fits, key=lambda category: fits[category]) if likely else None


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in spelled(text)) - EMPTY


def _fits(said: frozenset[str], names: Mapping[str, Sequence[str]], unknown: int) -> dict[str, float]:
    """How well the best name of each category fits, 0 to 1; so many ``unknown`` words fit none."""
    told = {category: {_stems(name) for name in some} for category, some in names.items()}
    often = Counter(word for some in told.values() for words in some for word in words)
    weight = {word: 1 / math.sqrt(count) for word, count in often.items()}
    asked = _sum(said, weight) + unknown
    found: dict[str, float] = {}
    for category, some in told.items():
        for words in some:
            if shared := _sum(words & said, weight):
                fit = 5 * shared / (4 * asked + _sum(words, weight))
                found[category] = max(found.get(category, 0.0), fit)
    return found


def _sum(words: frozenset[str], weight: Mapping[str, float]) -> float:
    return math.fsum(weight.get(word, 0.0) for word in sorted(words))
