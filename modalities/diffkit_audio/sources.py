"""Public sets of sound, fetched as packages (`diffkit.packages`) and converted once to the cache.

Notes (Debian package ``fluid-soundfont-gm``, MIT): FluidR3 by Frank Wen, rendered as `diffkit_audio.soundfont` says.

Speech (``asterisk-core-sounds-en-wav``, CC-BY-SA-3.0): words spoken by Allison Smith, see `diffkit_audio.speech`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffkit.packages import Package, cache_folder, unpacked
from diffkit_audio import packed, readers, soundfont, speech
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import INSTRUMENTS
from diffkit_audio.mel import MelSettings
from diffkit_audio.packed import Found, Packed

__all__ = ["SOURCES", "Source", "cached", "own", "place", "sample"]

FRAMES = 172
"""Of two seconds of the default settings."""
SAMPLE = Path(__file__).parent / "sample" / "notes.ogg"
"""Notes that ship with the package; their labels are beside them."""
SAMPLED = (
    *("Acoustic Grand Piano", "Electric Piano 2", "Vibraphone", "Church Organ", "Acoustic Guitar (nylon)"),
    *("Electric Bass (finger)", "Violin", "Trumpet", "Clarinet", "Flute", "Lead 1 (square)"),
    *("Bass Drum 1", "Acoustic Snare", "Closed Hi-Hat", "Cowbell"),
)
"""The sample's instruments."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and how to read the unpacked package in clips of some frames, with what module."""

    package: Package
    module: Callable[[], object]
    instruments: Sequence[str]
    read: Callable[[Path, MelSettings, int], Iterator[Found]]


def cached(name: str, settings: MelSettings, frames: int) -> Packed:
    """A public set from the cache; the first time it is fetched and converted, which takes some minutes.

    Raises ``ConnectionError`` if the package cannot be had and ``ValueError`` if it is not the file it should be.
    """
    source, folder = SOURCES[name], place(f"{name}-v1", settings, frames)
    if not folder.exists():
        source.module()  # before the download, if it is missing
        with unpacked(source.package) as files:
            found = source.read(files, settings, frames)
            packed.save(found, source.instruments, settings, frames, folder)
    return packed.load(folder)


def own(path: Path, settings: MelSettings, frames: int) -> Packed:
    """A person's files from the cache, where they are as they were; else they are read and converted.

    Where none of them says what it is, all are of the one instrument "sound".

    Raises what `diffkit_audio.readers.read` does.
    """
    folder = place(f"folder-{readers.fingerprint(path)[:16]}", settings, frames)
    if not folder.exists():
        rejected: list[tuple[str, str]] = []
        packed.save(readers.read(path, settings, frames, rejected), (), settings, frames, folder, rejected)
    found = packed.load(folder)
    found = replace(found, splits=readers.splits(found.names))
    return (
        found
        if found.instruments
        else replace(found, instruments=("sound",), instrument=np.zeros_like(found.instrument))
    )


@lru_cache(maxsize=1)
def sample(settings: MelSettings, frames: int) -> Packed:
    """The notes that ship with this package."""
    with SAMPLE.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    usual = MelSettings()
    waves = readers.read_wave(SAMPLE, usual).reshape(len(rows), -1)
    sounds = [readers.resample(wave, usual.rate, settings.rate) for wave in waves]
    clips = [_noted(row, sound, settings.rate) for row, sound in zip(rows, sounds, strict=True)]
    found = [(_named(clip), soundfont.split_of(clip), clip) for clip in clips]
    return packed.gather(found, list(dict.fromkeys(clip.instrument for clip in clips)), settings, frames)


def _noted(row: Mapping[str, str], wave: NDArray[np.float32], rate: int) -> Clip:
    pitch, duration = (int(row["pitch"]), float(row["duration"])) if row["pitch"] else (None, None)
    return Clip(wave, rate, "", row["instrument"], pitch, int(row["velocity"]), duration)


def write_sample(path: Path) -> None:
    """Write some notes of few instruments, one after the other: how this package's sample was made.

    Of those that are held out, all: else there would be none.
    """
    whole = cached("notes", MelSettings(), FRAMES)
    rows = _chosen(whole)
    labels = [whole.label(n) for n in rows]
    options = {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.7}
    with readers.soundfile().SoundFile(path, "w", whole.settings.rate, 1, **options) as file:
        for n in rows:
            for part in np.split(whole.waves[n], 4):  # more at once is too much for libsndfile
                file.write(part)
    fields = ("instrument", "pitch", "velocity", "duration")
    known = [["" if getattr(clip, k) is None else str(getattr(clip, k)) for k in fields] for clip in labels]
    text = "\n".join(",".join(row) for row in [fields, *known])
    path.with_suffix(".csv").write_text(text + "\n", encoding="utf-8")


def _chosen(whole: Packed) -> list[int]:
    """Rows of the sample's notes: the first way to play of each."""
    first: dict[tuple[str, int | None], int] = {}
    hits = []
    for n in np.flatnonzero(np.isin(whole.instrument, [whole.instruments.index(name) for name in SAMPLED])).tolist():
        clip = whole.label(n)
        if clip.pitch is None:
            hits += [n] * (clip.velocity in (60, 110))
        elif 48 <= clip.pitch <= 72:
            first.setdefault((clip.instrument, clip.pitch), n)
    held = [n for n in first.values() if whole.splits[n]]
    train = [n for n in first.values() if not whole.splits[n]]
    return sorted([*held, *train[:: len(train) // 72], *hits])


def place(name: str, settings: MelSettings, frames: int) -> Path:
    """The folder of a converted set; that of settings other than the default has their hash in its name."""
    text = json.dumps([asdict(settings), frames], sort_keys=True)
    usual = settings == MelSettings() and frames == FRAMES
    suffix = "" if usual else f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return cache_folder() / "audio" / f"{name}{suffix}"


# Notes


def _notes(folder: Path, settings: MelSettings, frames: int) -> Iterator[Found]:
    font = soundfont.Font(folder / "usr/share/sounds/sf2/FluidR3_GM.sf2", settings.rate, frames * settings.hop)
    return ((_named(clip), soundfont.split_of(clip), clip) for clip in soundfont.notes(font))


def _named(clip: Clip) -> str:
    parts = (clip.instrument, clip.pitch, clip.velocity, clip.duration)
    return "|".join(str(part) for part in parts if part is not None)


SOURCES: Mapping[str, Source] = {
    "notes": Source(
        Package(
            "apt",
            "fluid-soundfont-gm",
            "3.1-5.3",
            "6f531493ac4e4d9772fd96b2488ea1790af81c196135fbdd25997da0781fc60e",
            "MIT",
            120,
        ),
        soundfont.tinysoundfont,
        INSTRUMENTS,
        _notes,
    ),
    "speech": Source(
        Package(
            "apt",
            "asterisk-core-sounds-en-wav",
            "1.6.1-1",
            "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            "CC-BY-SA-3.0",
            18,
        ),
        readers.soundfile,
        speech.KINDS,
        speech.recordings,
    ),
}
