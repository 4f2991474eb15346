"""Spoken numbers, letters, months and days: the recordings of a telephone exchange, called by what is said in them.

The words are English, of one speaker, at 8 kHz. The caption of a recording is what is said; its kind is its
``instrument``.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings
from diffkit_audio.packed import Found
from diffkit_audio.readers import read_wave

__all__ = ["KINDS", "recordings", "split_of", "spoken"]

KINDS = ("number", "ordinal", "letter", "phonetic", "month", "day")

_MONTHS = "January February March April May June July August September October November December"
_DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday"
_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
_PHONETIC = """alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec
    romeo sierra tango uniform victor whiskey x-ray yankee zulu"""
_ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    "twelve": "twelfth",
}
_SIGNS = {
    "a-m": "AM",
    "p-m": "PM",
    "oclock": "o'clock",
    "exclaimation-point": "exclamation point",
    "reverse solidus": "backslash",
    "circumflex accent": "caret",
    "low line": "underscore",
    "vertical line": "vertical bar",
    "less-than sign": "less than",
    "greater-than sign": "greater than",
}
"""What is said where the name of the file, or of the sign, is another."""


def recordings(folder: Path, settings: MelSettings, frames: int) -> Iterator[Found]:
    """Those of the unpacked package."""
    root = folder / "usr/share/asterisk/sounds/en_US_f_Allison"
    for kind in ("digits", "letters", "phonetic"):
        for file in sorted((root / kind).glob("*.wav")):
            name, wave = f"{kind}/{file.stem}", read_wave(file, settings)
            group, words = spoken(name)
            yield name, split_of(name), Clip(wave[: frames * settings.hop], settings.rate, words, group)


def spoken(name: str) -> tuple[str, str]:
    """The kind of a recording, and what is said in it, by the name of its file.

    >>> spoken("digits/h-3"), spoken("letters/ascii63"), spoken("phonetic/b_p")
    (('ordinal', 'third'), ('letter', 'question mark'), ('phonetic', 'bravo'))
    """
    kind, _, word = name.partition("/")
    if kind == "digits":
        return _digits(word)
    if kind == "letters":
        sign = unicodedata.name(chr(int(word[5:]))).lower() if word.startswith("ascii") else word
        return "letter", f"the letter {sign.upper()}" if len(sign) == 1 else _SIGNS.get(sign, sign)
    return "phonetic", _number(word[0]) if word[0].isdigit() else _PHONETIC.split()[ord(word[0]) - ord("a")]


def _digits(word: str) -> tuple[str, str]:
    head, _, rest = word.rpartition("-")
    if head == "mon":
        return "month", _MONTHS.split()[int(rest)]
    if head == "day":
        return "day", _DAYS.split()[int(rest)]
    if head == "h":
        return "ordinal", _ordinal(_number(rest))
    return "number", _number(word)


def _number(word: str) -> str:
    if not word.isdigit():
        return _SIGNS.get(word, word)
    return _UNITS.split()[int(word)] if int(word) < 20 else _TENS.split()[int(word) // 10 - 1]


def _ordinal(number: str) -> str:
    return _ORDINALS.get(number) or (f"{number[:-1]}ieth" if number.endswith("y") else f"{number}th")


def split_of(name: str) -> str:
    """Of a recording: 90 : 5 : 5 by the hash of its name."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"
