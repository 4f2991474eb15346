"""Notes from a soundfont, by `tinysoundfont`: exactly labelled, and the same on every machine.

A note is held for its duration and then released; what follows the release is silence, and stays. Both channels are
averaged. One gain serves all notes of an instrument at a pitch: that by which its hardest note, held longest, peaks at
0.9, so that soft notes are soft.

Every instrument is rendered at `PITCHES`, `EACH` times, with velocities and durations that are drawn without
replacement by the hash of "instrument|pitch"; a note that its instrument does not have (nothing sounds) is left out.
Drums, which have neither pitch nor duration, are hit at `HITS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit_audio.clip import Clip
from diffkit_audio.instruments import DRUM_KEYS, DRUMS, PROGRAMS

__all__ = ["PITCHES", "Font", "notes", "split_of", "tinysoundfont"]

PITCHES = range(36, 96)
VELOCITIES = (40, 70, 100, 120)
DURATIONS = (0.25, 0.5, 1.0, 1.5)
EACH = 5
HITS = range(30, 126, 5)
PEAK, SILENT = 0.9, 1e-3
DRUM_BANK = 128
DRUM_HELD = 1.0
"""Seconds; a drum's sound ends by itself."""


def tinysoundfont() -> Any:
    """The synthesizer, which plays into arrays here; its requirement PyAudio, which has to be built, is not needed.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        return import_module("tinysoundfont")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "got notes to render and no tinysoundfont; install it with `pip install --no-deps tinysoundfont`"
        ) from None


class Font:
    """A soundfont, loaded.

    Args:
        path: of the ``.sf2`` file.
        rate: samples per second.
        samples: of every clip.

    Raises:
        ModuleNotFoundError: if `tinysoundfont` is not installed.
        ValueError: if the file is no soundfont.
    """

    def __init__(self, path: Path, rate: int = 22050, samples: int = 44032) -> None:
        synth = tinysoundfont().Synth(samplerate=rate)
        self.rate, self.samples = rate, samples
        self._synth = synth
        try:
            self._number = synth.sfload(str(path))
        except Exception as error:  # tinysoundfont has one of its own, which it does not export
            raise ValueError(f"got {path}, which is no soundfont ({error})") from None

    def note(self, program: int, pitch: int, velocity: int, held: float, bank: int = 0) -> NDArray[np.float32]:
        """(samples,) of one note, as loud as the font has it."""
        self._synth.program_select(0, self._number, bank, program)
        self._synth.noteon(0, pitch, velocity)
        before = min(round(held * self.rate), self.samples)
        wave = [self._take(before)]
        self._synth.noteoff(0, pitch)
        wave.append(self._take(self.samples - before))
        self._synth.sounds_off(0)
        self._take(2048)  # in which what still sounds fades out
        return np.concatenate(wave)

    def _take(self, count: int) -> NDArray[np.float32]:
        stereo = np.frombuffer(self._synth.generate(count), np.float32).reshape(-1, 2)
        mono: NDArray[np.float32] = stereo.mean(1)
        return mono


def notes(font: Font) -> Iterator[Clip]:
    """Every note of the set, instrument by instrument."""
    for program, name in enumerate(PROGRAMS):
        for pitch in PITCHES:
            yield from _played(font, program, name, pitch)
    for key, name in zip(DRUM_KEYS, DRUMS, strict=True):
        gain = _gain(font.note(0, key, 127, DRUM_HELD, DRUM_BANK))
        for velocity in HITS:
            wave = font.note(0, key, velocity, DRUM_HELD, DRUM_BANK)
            yield Clip(_scaled(wave, gain), font.rate, instrument=name, velocity=velocity)


def _played(font: Font, program: int, name: str, pitch: int) -> Iterator[Clip]:
    gain = _gain(font.note(program, pitch, 127, max(DURATIONS)))
    for velocity, held in _ways(name, pitch):
        wave = _scaled(font.note(program, pitch, velocity, held), gain)
        if gain and np.abs(wave).max() > SILENT:
            yield Clip(wave, font.rate, instrument=name, pitch=pitch, velocity=velocity, duration=held)


def _ways(name: str, pitch: int) -> list[tuple[int, float]]:
    """Velocities and durations of the notes of an instrument at a pitch."""
    every = [(velocity, held) for velocity in VELOCITIES for held in DURATIONS]
    chosen = np.random.default_rng(_hash(f"{name}|{pitch}|ways")).permutation(len(every))[:EACH]
    return [every[k] for k in chosen]


def _gain(loudest: NDArray[np.float32]) -> float:
    peak = float(np.abs(loudest).max())
    return PEAK / peak if peak > SILENT else 0.0


def _scaled(wave: NDArray[np.float32], gain: float) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = np.clip(wave * np.float32(gain), -1, 1)
    return scaled


def split_of(clip: Clip) -> str:
    """Of a note: 90 : 5 : 5 by the hash of "instrument|pitch". Drums, of each of which there is one, are trained on."""
    if clip.pitch is None:
        return "train"
    bucket = _hash(f"{clip.instrument}|{clip.pitch}") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
