"""A clip of sound, the native object of this modality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clip"]


@dataclass(frozen=True, eq=False)
class Clip:
    """Sound, and what is known of it.

    Args:
        wave: (samples,) float32, one channel, in [-1, 1].
        rate: samples per second.
        caption: in words.
        instrument: its name, as `diffkit_audio.instruments` spells it.
        pitch: MIDI note number (A4 = 69); None for what has no pitch.
        velocity: how hard it is played, 1 to 127.
        duration: seconds that the note is held.
    """

    wave: NDArray[np.float32]
    rate: int
    caption: str = ""
    instrument: str = ""
    pitch: int | None = None
    velocity: int | None = None
    duration: float | None = None

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.wave) / self.rate
