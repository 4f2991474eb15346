"""What to ask for where nothing is asked: instruments and pitches, evenly.

A model is measured, and shown, over all that it can play. Sample number n is asked for the same whatever is drawn
beside it, so that figures do not depend on the size of a batch.
"""

import math
from collections.abc import Mapping, Sequence

from diffkit_audio.instruments import INSTRUMENTS, family_of
from diffkit_audio.pitch import pitched

__all__ = ["has_pitch", "playable", "spread"]


def has_pitch(name: str) -> bool:
    """Whether the pitch of an instrument can be estimated; one that General MIDI does not name is taken to have one."""
    return name not in INSTRUMENTS or pitched(INSTRUMENTS.index(name))


def playable(
    instruments: Sequence[str], ranges: Mapping[str, tuple[int, int]] | None = None, family: str | None = None
) -> dict[str, tuple[int, int] | None]:
    """Those of the ``instruments`` that have a pitch, or all those of a ``family``, each with its pitches.

    Args:
        ranges: the lowest and the highest pitch of each; 36 and 95 where it is not known.

    Returns:
        The lowest and the highest pitch of each; None for drums.
    """
    known = ranges or {}
    names = [name for name in instruments if (has_pitch(name) if family is None else family_of(name) == family)]
    return {name: None if family_of(name) == "Drums" else known.get(name, (36, 95)) for name in names}


def spread(numbers: Sequence[int], ranges: Mapping[str, tuple[int, int] | None]) -> list[tuple[str, int | None]]:
    """For every sample's number an instrument and a pitch: over many numbers, evenly over both.

    Instruments come in turn, in an order that mixes the families; the pitches of each follow the golden ratio, which
    fills a range evenly however many are drawn (H. Weyl 1916), and begin where those of the one before it do not.

    Args:
        ranges: what is `playable`.
    """
    names, golden = list(ranges), (math.sqrt(5) - 1) / 2
    step = next(k for k in range(max(round(golden * len(names)), 1), 2 * len(names)) if math.gcd(k, len(names)) == 1)
    found: list[tuple[str, int | None]] = []
    for number in numbers:
        turn, place = divmod(number, len(names))
        name = names[place * step % len(names)]
        share = (turn * golden + place * math.sqrt(2)) % 1
        found.append((name, _at(share, ranges[name])))
    return found


def _at(share: float, pitches: tuple[int, int] | None) -> int | None:
    return None if pitches is None else pitches[0] + int(share * (pitches[1] - pitches[0] + 1))
