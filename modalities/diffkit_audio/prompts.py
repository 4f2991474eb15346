"""What a prompt asks for, read by its words: "soft flute, A5" is a flute, note 81, played softly.

The whole of it for a model of notes; no language model is needed. Instruments are found by the words of their names,
by what else they are called, and by their families; pitches by note names (scientific: C4 is middle C, MIDI note 60),
in Hz, or as low and high; how hard a note is played by dynamics (pp to ff) and words such as "softly"; how long it is
held in seconds or by words such as "short".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from diffkit_audio.instruments import ALIASES, INSTRUMENTS, family_of

__all__ = ["Asked", "instruments_of", "pitch_of", "read"]

LONGEST = 2000
"""Characters of a prompt that are read."""
SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
SIGNS = {"#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1}
NOTE = re.compile(
    r"(?<![\w#♯♭])([A-Ga-g])(?:([#♯b♭])|[ -](sharp|flat) ?)?(-?\d)(?![\w.]|\s*(?:hz|ms|s\b|sec))", re.IGNORECASE
)
BARE = re.compile(r"(?<![\w#♯♭'])(?:([B-G])|([A-G])(?:([#♯b♭])|[ -](sharp|flat)))(?![\w#♯♭'])")
HERTZ = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*(k?)hz\b", re.IGNORECASE)
NUMBER = re.compile(r"\bmidi(?: (?:note|number|pitch))?\s*(\d{1,3})\b", re.IGNORECASE)
NAMED = {"middle c": 60.0, "concert a": 69.0, "very low": 38.0, "very high": 93.0, "low": 45.0, "high": 81.0}

DYNAMICS = {"ppp": 40.0, "pp": 40.0, "p": 50.0, "mp": 70.0, "mf": 85.0, "f": 100.0, "ff": 120.0, "fff": 120.0}
SOFTNESS = {
    40.0: "soft, softly, quiet, quietly, gentle, gently, delicate, delicately, faint, faintly, pianissimo",
    70.0: "medium, moderate, moderately, at medium volume, mezzo-piano, mezzo-forte",
    100.0: "strong, strongly, bold, boldly, firm, firmly, forte",
    120.0: "loud, loudly, very loud, hard, powerful, powerfully, forceful, with full force, accented, fortissimo",
}
LENGTHS = {
    0.25: "very short, staccato, clipped, a quarter of a second, quarter of a second",
    0.5: "short, brief, briefly, half a second, half second, half-second",
    1.0: "held, one-second, one second, a second",
    1.5: "long, very long, sustained, drawn-out, legato, second and a half, one and a half seconds, two seconds",
}
SECONDS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[ -]?(ms|milliseconds?|s|secs?|seconds?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What was understood; None, or nothing, where the prompt leaves it open.

    Args:
        instruments: names, any of which is meant.
        pitch: MIDI note number, with a fraction where it lies between two.
        velocity: 1 to 127.
        duration: seconds that the note is held.
    """

    instruments: tuple[str, ...] = ()
    pitch: float | None = None
    velocity: float | None = None
    duration: float | None = None


def read(prompt: str, instruments: Sequence[str] = INSTRUMENTS) -> Asked:
    """What a prompt asks for, of a model of ``instruments``."""
    text = prompt[:LONGEST]
    names, words = instruments_of(text, instruments)
    rest = _without(text, words)  # a high tom is an instrument, and no high note
    return Asked(names, pitch_of(rest), _velocity(rest), _duration(rest))


def _without(text: str, words: Collection[str]) -> str:
    return re.sub(
        r"[^\W\d_]+", lambda found: "" if _words(found[0]) and _words(found[0])[0] in words else found[0], text
    )


# -------------------------------------------------------------------------------------------------- numbers


def pitch_of(text: str) -> float | None:
    """The first note that a text names."""
    if found := NOTE.search(text):
        letter, sign, word, octave = found.groups()
        return 12.0 * (int(octave) + 1) + SEMITONES[letter.lower()] + _sign(sign or word)
    if found := HERTZ.search(text):
        frequency = float(found[1]) * (1000 if found[2] else 1)
        return 69 + 12 * math.log2(frequency / 440) if frequency else None
    if found := NUMBER.search(text):
        return float(found[1])
    lower = text.lower()
    named = next((value for name, value in NAMED.items() if _says(lower, name)), None)
    if named in (60.0, 69.0):
        return named
    if found := BARE.search(text):
        letter, sign = found[1] or found[2], found[3] or found[4]
        return _near(SEMITONES[letter.lower()] + _sign(sign), 60.0 if named is None else named)
    return named


def _sign(sign: str | None) -> int:
    return 0 if sign is None else SIGNS[sign.lower()]


def _near(pitch_class: int, middle: float) -> float:
    """The note of this class in the octave around ``middle``."""
    return middle - 6 + (pitch_class - middle + 6) % 12


def _velocity(text: str) -> float | None:
    if found := re.search(r"\bvelocity\s*(?:of|=)?\s*(\d{1,3})\b", text, re.IGNORECASE):
        return float(found[1])
    if found := re.search(r"(?<![\w'])(ppp|pp|mp|mf|fff|ff|p|f)(?![\w'])", text):
        return DYNAMICS[found[1]]
    return _of_words(text, SOFTNESS)


def _duration(text: str) -> float | None:
    if found := SECONDS.search(text):
        return float(found[1]) / (1000 if found[2].lower().startswith("m") else 1)
    return _of_words(text, LENGTHS)


def _of_words(text: str, meanings: Mapping[float, str]) -> float | None:
    """What the longest phrase means that the text says."""
    pairs = [(phrase, value) for value, phrases in meanings.items() for phrase in phrases.split(", ")]
    said = [(len(phrase), value) for phrase, value in pairs if _says(text.lower(), phrase)]
    return max(said)[1] if said else None


def _says(lower: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", lower) is not None


# ---------------------------------------------------------------------------------------------- instruments


def instruments_of(text: str, instruments: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Those that a text names, and by which words: by name, by another name, by family, or by half of a name."""
    said = _words(text)
    called = [(words, name) for name in instruments for words in _calls(name)]
    families = [(_words(family_of(name)), name) for name in instruments if name in INSTRUMENTS]
    for names in (called, families):
        found = [(len(words), _together(words, said), words, name) for words, name in names if {*words} <= {*said}]
        if best := max((entry[:2] for entry in found), default=None):
            meant = [entry for entry in found if entry[:2] == best]
            return tuple(dict.fromkeys(name for *_, name in meant)), frozenset(w for *_, ws, _ in meant for w in ws)
    return _in_part(frozenset(said), {name: frozenset(_words(name)) for name in instruments})


def _calls(name: str) -> list[list[str]]:
    """The words of all names of an instrument."""
    return [words for words in map(_words, (name, *ALIASES.get(name, ()))) if words]


def _together(words: Sequence[str], said: Sequence[str]) -> bool:
    return any(said[k : k + len(words)] == words for k in range(len(said)))


def _in_part(said: frozenset[str], names: Mapping[str, frozenset[str]]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of which half the words are said, rare words counting more."""
    often = Counter(word for words in names.values() for word in words)
    scores = {}
    for name, words in names.items():
        share = sum(1 / often[w] for w in words & said) / sum(1 / often[w] for w in words) if words else 0.0
        scores[name] = share
    best = max(scores.values(), default=0.0)
    meant = tuple(name for name, score in scores.items() if score == best and score >= 0.5)
    return meant, frozenset(word for name in meant for word in names[name] & said)


def _words(text: str) -> list[str]:
    """Lower-case words without numbers, plurals as singulars."""
    words = re.findall(r"[^\W\d_]+", text.lower().replace("'", ""))
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]
