"""Captions of notes, written from their labels in many phrasings.

A caption says a part of what is known: what plays, mostly its pitch, sometimes how hard and for how long. Which words
it takes is a hash of what it says, so that a set has a finite number of captions, whose vectors are cached.
`HELD_OUT` are phrasings that no caption of a data set has: they show whether a model understands unseen wordings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from diffkit_audio.clip import Clip
from diffkit_audio.instruments import ALIASES, DRUMS, family_of

__all__ = ["HELD_OUT", "NOTES", "held_out", "note_name", "write"]

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}

_PLAIN = ("{what}", "{a what}", "the sound of {a what}", "{what} playing", "one hit of {a what}", "{a what} sound")
_NOTED = (
    "{what}, {note}",
    "{what} {note}",
    "{note} on {a what}",
    "{a what} playing {note}",
    "{a what} plays the note {note}",
    "{note}, {what}",
    "the note {note} on {a what}",
    "a single {what} note, {note}",
    "{note} played by {a what}",
    "{what} in {note}",
)
_HOW = ("{soft} {what}", "{a what}, played {softly}", "{what}, {softly}", "{a soft what} sound", "{what}, {soft}")
_LONG = ("{long} {what} note", "{what}, {long}", "{a long what} sound", "{a what} playing a {long} note")
_FULL = (
    "{soft} {what}, {note}",
    "{note} on {a what}, played {softly}",
    "{soft} {long} {what}, {note}",
    "{a long what} note, {note}, {soft}",
    "{what} {note}, {softly}, {long}",
    "{a what} plays {a long note}, {note}, {softly}",
)
HELD_OUT = (
    "give me {a soft what} at {note}",
    "{note}: {softly} played {what}",
    "I would like to hear {a what} hold {note}, {long}",
    "recording of {a soft what} note ({note})",
    "{what} sample, pitch {note}, {soft} and {long}",
)
"""Phrasings that captions of the data do not have."""

_SOFT = (
    (50, ("soft", "quiet", "gentle", "delicate"), ("softly", "quietly", "gently", "piano")),
    (85, ("medium", "moderate", "mellow"), ("moderately", "at medium volume", "mezzo-forte")),
    (110, ("strong", "bold", "firm"), ("strongly", "firmly", "forte")),
    (128, ("loud", "hard", "powerful", "very loud"), ("loudly", "hard", "with full force", "fortissimo")),
)
"""Below a velocity: adjectives and adverbs."""
_LENGTHS = (
    (0.35, ("very short", "staccato", "clipped")),
    (0.75, ("short", "brief")),
    (1.25, ("held", "one-second")),
    (1e9, ("long", "sustained", "drawn-out")),
)
"""Below a duration in seconds: adjectives."""


def note_name(pitch: int, flat: bool = False) -> str:
    """``C4`` for MIDI number 60; black keys as sharps, or as flats."""
    name = NOTES[pitch % 12]
    return f"{_FLATS.get(name, name) if flat else name}{pitch // 12 - 1}"


def write(clip: Clip) -> tuple[str, ...]:
    """What may be said of a clip; its own caption alone, where it has one."""
    if clip.caption or not clip.instrument:
        return (clip.caption,) if clip.caption else ()
    said = [_say(clip, _PLAIN if clip.instrument in DRUMS else _PLAIN[:4], "instrument")]
    if clip.pitch is not None:
        said += [_say(clip, _NOTED, "instrument pitch", k) for k in range(2)]
        said.append(_say(clip, _NOTED, "family pitch"))
    if clip.velocity is not None:
        said += [_say(clip, _HOW, "instrument velocity", k) for k in range(1 + (clip.instrument in DRUMS))]
    if clip.duration is not None:
        said.append(_say(clip, _LONG, "instrument duration"))
    every = "instrument pitch velocity duration"
    if None not in (clip.pitch, clip.velocity, clip.duration) and _draw(clip, every, "whether") % 4 == 0:
        said.append(_say(clip, _FULL, every))
    return tuple(said)


def held_out(clip: Clip) -> tuple[str, ...]:
    """The same clip, which has a pitch, in phrasings that `write` does not use."""
    return tuple(_filled(clip, phrasing, "instrument pitch velocity duration") for phrasing in HELD_OUT)


def _say(clip: Clip, phrasings: Sequence[str], labels: str, k: int = 0) -> str:
    return _filled(clip, phrasings[(_draw(clip, labels, "phrasing") + 3 * k) % len(phrasings)], labels, k)


def _draw(clip: Clip, labels: str, what: str) -> int:
    """A number that is a function of the named labels."""
    known = {
        "instrument": clip.instrument,
        "family": family_of(clip.instrument),
        "pitch": clip.pitch,
        "velocity": _below(clip.velocity or 0, _SOFT),
        "duration": _below(clip.duration or 0.0, _LENGTHS),
    }
    text = "|".join([what, *(str(known[label]) for label in labels.split())])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def _below(value: float, table: Sequence[tuple[float, *tuple[tuple[str, ...], ...]]]) -> int:
    return next(k for k, (limit, *_) in enumerate(table) if value < limit)


def _filled(clip: Clip, phrasing: str, labels: str, k: int = 0) -> str:
    def pick(words: Sequence[str], which: str) -> str:
        return words[(_draw(clip, labels, which) + k) % len(words)]

    family = "family" in labels
    name = family_of(clip.instrument) if family else clip.instrument
    what = name.lower() if family else pick((_spoken(name), *ALIASES.get(name, ())), "alias")
    _, adjectives, adverbs = _SOFT[_below(clip.velocity or 0, _SOFT)]
    soft, long = pick(adjectives, "soft"), pick(_LENGTHS[_below(clip.duration or 0.0, _LENGTHS)][1], "long")
    words = {
        "what": what,
        "note": note_name(clip.pitch, flat=_draw(clip, labels, "flat") % 2 == 0) if clip.pitch is not None else "",
        "soft": soft,
        "softly": pick(adverbs, "softly"),
        "long": long,
        "a what": _one(what),
        "a soft what": _one(f"{soft} {what}"),
        "a long what": _one(f"{long} {what}"),
        "a long note": _one(f"{long} note"),
    }
    return phrasing.format_map(words)


def _spoken(name: str) -> str:
    """``acoustic guitar (nylon)`` for the name of an instrument; without a digit that only counts."""
    return " ".join(word for word in name.split() if not (word.isdigit() and "(" not in name)).lower()


def _one(thing: str) -> str:
    """With its article."""
    vowel = thing.startswith("FM") or (thing[0].lower() in "aeiou" and not thing.startswith("one"))
    return f"{'an' if vowel else 'a'} {thing}"
