"""Captions of emoji, written from their names in several phrasings, and the words of any caption.

A caption takes one of a picture's names, and its kind or its skin tone; which phrasing it takes is a hash of the name,
so that a set has a finite number of captions, whose vectors are cached. `words` is what becomes of a caption, and of a
prompt, that is to be looked up in a vocabulary.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

__all__ = ["TONES", "kind", "spelled", "spoken", "words", "write"]

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
"""Names of skin tones by their codes."""
_PLAIN = (
    "emoji of {a name}",
    "{name} emoji",
    "{a name}",
    "an icon of {a name}",
    "a small picture of {a name}",
    "{name} icon",
)
_KIND = ("{name}, {kind}", "{kind}: {name}", "{a kind} emoji: {name}", "{name} ({kind})")
_TONED = ("emoji of {a name}, {tone}", "{name} with {tone}", "{tone} {name}", "{a name} with {tone}")
_HEADS = ("animal", "face", "food", "hand", "person", "place", "plant", "transport")
"""First words of subcategories that are said last."""
_SILENT = frozenset(
    (
        *("a", "an", "the", "of", "with", "and", "or", "in", "on", "at", "to", "for", "from", "by", "as", "is", "it"),
        *("its", "s", "emoji", "emojis", "icon", "icons", "picture", "pictures", "image", "images", "symbol"),
        *("symbols", "sign", "signs", "small"),
    )
)
"""Words that say nothing of what is seen."""
_TOKENS = re.compile(r"[^\W_]+")


def spoken(name: str) -> str:
    """A name as it is said: ``waving hand sign`` for ``WAVING HAND SIGN``, ``smile cat`` for ``smile_cat``."""
    plain = name.lower() if name.isupper() else name
    return re.sub(r"\s+", " ", re.sub(r"[_]+", " ", plain)).strip()


def kind(category: str) -> str:
    """A subcategory as it is said: ``mammal`` for ``animal-mammal``, ``smiling face`` for ``face-smiling``."""
    parts = re.split(r"[-_ ]+", category.lower())
    if len(parts) > 1 and parts[0] in _HEADS:
        parts = [*parts[1:], *parts[: parts[0] != "animal"]]
    return " ".join(part for part in parts if part != "other")


def write(names: Sequence[str], category: str = "", tones: Sequence[str] = ()) -> tuple[str, ...]:
    """What may be said of a picture: first the plain name, with its tone where it has one.

    Args:
        names: of the thing, as they are said; the first is the usual one.
        category: a subcategory.
        tones: names of skin tones, of `TONES`.
    """
    distinct = dict.fromkeys(tones)
    tone = f"{' and '.join(distinct)} skin tone{'s' * (len(distinct) > 1)}" if distinct else ""
    if tone:
        said = [f"{name}, {tone}" for name in names[:2]]
        said += [_filled(_TONED, names[0], tone=tone, place=k) for k in range(2)]
        return tuple(dict.fromkeys(said))
    said = [names[0], *(_filled(_PLAIN, names[0], place=k) for k in range(2))]
    said += [name if _draw(name) % 2 else _filled(_PLAIN, name) for name in names[1:3]]
    said += [_filled(_KIND, names[0], category)] if category else []
    return tuple(dict.fromkeys(said))


def words(text: str) -> tuple[str, ...]:
    """Its distinct words in the form that vocabularies have, without accents, plurals and words that say nothing."""
    return tuple(dict.fromkeys(_singular(word) for word in spelled(text) if word not in _SILENT))


def spelled(text: str) -> list[str]:
    """The words and numbers of a text, in lower case and without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return _TOKENS.findall(plain.replace("'", "").replace("\u2019", ""))


def _singular(word: str) -> str:
    """``cat`` for ``cats``, ``cherry`` for ``cherries``, ``box`` for ``boxes``: by the rules of English spelling."""
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def _filled(phrasings: Sequence[str], name: str, category: str = "", tone: str = "", place: int = 0) -> str:
    said = kind(category)
    phrasing = phrasings[(_draw(name) + place) % len(phrasings)]
    return phrasing.format_map(
        {"name": name, "a name": _one(name), "kind": said, "a kind": _one(said) if said else "", "tone": tone}
    )


def _draw(name: str) -> int:
    """A number that is a function of the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])


def _one(thing: str) -> str:
    """With its article."""
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"
