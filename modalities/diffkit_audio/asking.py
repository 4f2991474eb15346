"""What a person asks for, as instruments and numbers within what a model has learnt.

A value is asked for by name (``pitch=C4``) or in a prompt (`diffkit_audio.prompts`); the named one counts. What is out
of reach is said, and the nearest taken: the pitches of the instrument, by the model's statistics, and, of General
MIDI's instruments, the velocities and durations of `diffkit_audio.soundfont`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from diffkit.naming import nearest
from diffkit_audio import prompts
from diffkit_audio.captions import note_name
from diffkit_audio.instruments import DRUMS, INSTRUMENTS
from diffkit_audio.network import SCALARS

__all__ = ["not_understood", "require_known", "require_length", "seconds", "understood"]

RANGES = {"pitch": (36.0, 95.0), "velocity": (40.0, 120.0), "duration": (0.25, 1.5)}
"""Of the notes of General MIDI's instruments; that of pitches where the statistics have none."""
SECONDS = (0.25, 60.0)
"""Of a clip."""

Ranges = Mapping[str, tuple[int, int]]
"""The lowest and the highest pitch of each instrument that has one."""


def seconds(said: str) -> float:
    """The length of a clip.

    Raises:
        ValueError: for what is no number, or too small or large a one.
    """
    number = _number("seconds", said)
    if not SECONDS[0] <= number <= SECONDS[1]:
        raise ValueError(f"got seconds={said}; expected {SECONDS[0]:g} to {SECONDS[1]:g}")
    return number


def require_length(source: str, found: float) -> None:
    """A ValueError for a file that is longer than a clip can be."""
    if found > SECONDS[1]:
        raise ValueError(
            f"got {source} with {found:.0f} s of sound; expected at most {SECONDS[1]:g}: "
            "say how much of it with --condition seconds=S"
        )


def require_known(values: Mapping[str, str], conditions: Sequence[str]) -> None:
    """A ValueError for a name that is none of the model's conditions; a text is asked for as the prompt."""
    takes = sorted({*conditions, "seconds"} - {"text"})
    for name in values:
        if name not in takes:
            raise ValueError(f"got the condition {name}; this model takes {', '.join(takes)}{nearest(name, takes)}")


def understood(
    prompt: str | None, values: Mapping[str, str], instruments: Sequence[str], ranges: Ranges
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Instruments, any of which is meant, and numbers by name.

    Raises:
        ValueError: for an instrument that is not known, or a value that is no number.
    """
    asked = prompts.Asked() if prompt is None else prompts.read(prompt, instruments)
    names = (_instrument(values["instrument"], instruments),) if "instrument" in values else asked.instruments
    numbers = {k: v for k in SCALARS if (v := getattr(asked, k)) is not None}
    numbers |= {name: _number(name, said) for name, said in values.items() if name != "instrument"}
    if set(names) & set(DRUMS):
        numbers.pop("pitch", None)  # "a low drum": they have none
    general = set(instruments) <= set(INSTRUMENTS)
    reach = (RANGES if general else {}) | {"pitch": _pitches(names, ranges)}
    return names, {
        name: _within(name, number, reach[name]) if name in reach else number for name, number in numbers.items()
    }


def not_understood(prompt: str, instruments: Sequence[str], encoder: bool) -> str:
    """What to say of a prompt none of whose words is known, where an ``encoder`` would have understood."""
    listed = ", ".join(instruments[:3]) or "none, as it was trained without"
    help_ = ", or `pip install 'diffkit[text]'` to have the whole sentence read" if encoder else ""
    return (
        f"got the prompt {prompt[:60]!r}, none of whose words is known; expected an instrument ({listed}, ...) and a "
        f"note such as C4{help_}{nearest(prompt[:40], instruments)}"
    )


def _instrument(said: str, instruments: Sequence[str]) -> str:
    """The name of an instrument, whatever its case."""
    for name in instruments:
        if name.lower() == said.lower():
            return name
    raise ValueError(
        f"got instrument={said}; expected one of {len(instruments)} names such as "
        f"{', '.join(instruments[:3]) or '(there are none)'}{nearest(said, instruments)}"
    )


def _number(name: str, said: str) -> float:
    try:
        pitch = prompts.pitch_of(said) if name == "pitch" else None
        number = float(said) if pitch is None else pitch
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        expected = "a MIDI note number or a name such as C4" if name == "pitch" else "a number"
        raise ValueError(f"got {name}={said}; expected {expected}")
    return number


def _pitches(instruments: Sequence[str], ranges: Ranges) -> tuple[float, float]:
    """From the lowest to the highest of the instruments, or of all where none of them is known."""
    known = [ranges[name] for name in instruments if name in ranges] or list(ranges.values())
    return (min(low for low, _ in known), max(high for _, high in known)) if known else RANGES["pitch"]


def _within(name: str, number: float, reach: tuple[float, float]) -> float:
    """The nearest within reach, with a warning where that is another; a whole number for a pitch."""
    low, high = reach
    known = min(max(float(round(number)) if name == "pitch" else number, low), high)
    if abs(known - number) > 0.01:
        got, first, last, used = (
            f"{v:g}" + (f" ({note_name(round(v))})" if name == "pitch" else "") for v in (number, low, high, known)
        )
        warnings.warn(f"got {name} {got}; known are {first} to {last}: the nearest, {used}, is used", stacklevel=2)
    return known
