"""A person's own sound: a file, or a folder of them at any depth.

``.wav``, ``.flac``, ``.ogg`` and ``.mp3`` are read, of any rate, any number of channels and any sample format:
channels are averaged, the rate becomes that of the spectrograms, and what is louder than full scale is made quieter as
a whole. A file longer than an example gives several, one after the other; of the last, half an example must be left.

What is said of a file comes from ``metadata.csv`` or ``metadata.jsonl`` in its folder or above, by ``file_name``:
``text``, and, where they are known, ``instrument``, ``pitch`` (a MIDI number), ``velocity`` (1 to 127) and ``duration``
(seconds). Where there is none, the folder that a file lies in, below the one that was given, is its instrument and its
text. Folders ``train``, ``valid`` (or ``validation``) and ``test`` at the top are splits; without them files are split
by a hash of their names.

What cannot be used is named with its reason, and the rest is used. Nothing usable is an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit import folders
from diffkit.folders import reasons
from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings
from diffkit_audio.packed import SPLITS, Found
from diffkit_audio.torchaudio import functional

__all__ = ["SUFFIXES", "Report", "fingerprint", "read", "read_wave", "resample", "soundfile", "splits"]

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""Of the files that are read."""
LIMIT = 1 << 30
"""The largest sound that is read, in bytes once it is decoded."""
RATES = (1000, 1_000_000)
PLACES = 4000
NUMBERS = {"pitch": (0, 127), "velocity": (1, 127), "duration": (0, math.inf)}
FOLDERS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Report:
    """How much was used: ``rejected`` are those that were not, with reasons."""

    path: Path
    used: int
    rejected: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        total = self.used + len(self.rejected)
        said = f"{self.path}: {self.used} of {total} files used"
        return f"{said}; left out: {reasons(self.rejected)}" if self.rejected else said


def read(path: Path, settings: MelSettings, frames: int, rejected: list[tuple[str, str]]) -> Iterator[Found]:
    """The clips in ``path``, each of up to ``frames``, by the names of their files and their places in them.

    What cannot be used is added to ``rejected``. All are for training: see :func:`splits`.

    Raises:
        ValueError: if nothing there can be used, with the reasons.
        FileNotFoundError: if there is nothing there.
    """
    files = _files(path)
    known, usable = folders.metadata(files, rejected), 0
    for name, file in files.items():
        if file.suffix.lower() not in SUFFIXES:
            continue
        try:
            wave, about = read_wave(file, settings), known.get(name)
            label = _described(name, {} if about is None else about)
        except (ValueError, OSError) as error:
            rejected.append((name, str(error)))
            continue
        usable += 1
        for place, part in _parts(wave, frames * settings.hop):
            yield f"{name}#{place}", "train", Clip(part, settings.rate, **label)
    if not usable:
        found = f"none of {len(rejected)} files usable: {reasons(rejected)}" if rejected else "no sound in it"
        raise ValueError(f"got {path} with {found}; expected files that end in {', '.join(SUFFIXES)}")


def fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of all files in ``path``: the same as long as they are."""
    return folders.fingerprint(path, _files(path))


def _files(path: Path) -> dict[str, Path]:
    """Sound and metadata, by their names below ``path``."""
    return folders.files(path, SUFFIXES, "sound")


# Sound


def read_wave(path: Path, settings: MelSettings) -> NDArray[np.float32]:
    """The sound of a file: one channel, at the settings' rate, within [-1, 1].

    Raises:
        ValueError: for a file that cannot be used, with the reason.
    """
    sound, rate = _decoded(path)
    if not np.isfinite(sound).all():
        raise ValueError(f"has {int((~np.isfinite(sound)).sum())} samples that are not finite")
    wave = resample(sound.mean(1), rate, settings.rate)
    if len(wave) < settings.n_fft:
        least = settings.n_fft / settings.rate
        raise ValueError(f"has {len(sound) / rate:.3g} s of sound; expected at least {least:.3g} s, one window")
    wave /= max(1.0, float(np.abs(wave).max()))
    return wave


def soundfile() -> Any:
    """The reader of sound files.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        return import_module("soundfile")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("got sound files and no soundfile; install it with `pip install soundfile`") from None


def _decoded(path: Path) -> tuple[NDArray[np.float32], int]:
    """(samples, channels), and samples per second."""
    reader = soundfile()
    if not path.stat().st_size:
        raise ValueError("is empty")
    try:
        about = reader.info(str(path))
        if about.frames * about.channels * 4 > LIMIT:
            raise ValueError(f"has {about.duration / 60:.0f} minutes of sound; expected at most 1 GiB of it: split it")
        sound, rate = reader.read(str(path), dtype="float32", always_2d=True)
    except reader.LibsndfileError as error:
        raise ValueError(f"cannot be read as sound ({str(error.error_string).strip(' .')})") from None
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"has {rate} samples per second; expected {RATES[0]} to {RATES[1]}")
    if not len(sound):
        raise ValueError("has no samples")
    return sound, rate


def resample(wave: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """The wave (samples,) at another rate.

    As the filter has a row for every place that a sample can take between two others, the ratio of odd rates is rounded
    to one of fewer places: by less than half a cent.
    """
    ratio = Fraction(rate, target)
    ratio = ratio.limit_denominator(max(1, int(PLACES / max(float(ratio), 1.0))))
    sound = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
    made: NDArray[np.float32] = functional.resample(sound, ratio.numerator, ratio.denominator).numpy()
    return made


def _parts(wave: NDArray[np.float32], samples: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Pieces of up to ``samples``; the first is there in any case."""
    for place, start in enumerate(range(0, len(wave), samples)):
        part = wave[start : start + samples]
        if place == 0 or len(part) >= samples // 2:
            yield place, part


# What is said of it


def _described(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a clip, from its row in the metadata and the folder that it lies in."""
    folders = PurePosixPath(name).parent.parts
    folder = "" if not folders or (len(folders) == 1 and folders[0] in FOLDERS) else folders[-1]
    instrument = str(about.get("instrument") or folder)
    caption = str(about.get("text") or ("" if about.get("instrument") else folder.replace("_", " ")))
    return {"caption": caption, "instrument": instrument, **{key: _number(about, key) for key in NUMBERS}}


def _number(about: Mapping[str, Any], name: str) -> float | None:
    text = about.get(name)
    if text is None or not str(text).strip():
        return None
    low, high = NUMBERS[name]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"has {name}={str(text)[:20]} in its metadata; expected a number from {low} to {high}")
    return value


def splits(names: Sequence[str]) -> NDArray[np.uint8]:
    """The split of each clip, as `read` named it: by its folder where there are such, else by the hash of its file.

    90 : 5 : 5; if that leaves no valid, the group next to it is taken.
    """
    files = [name.rpartition("#")[0] for name in names]
    tops = [FOLDERS.get(PurePosixPath(file).parts[0]) if "/" in file else None for file in files]
    if "train" in tops:
        return np.array([SPLITS.index(top or "train") for top in tops], np.uint8)
    buckets = np.array([_bucket(PurePosixPath(file).with_suffix("").as_posix()) for file in files])
    below = sorted({int(b) for b in buckets if b < 90})
    held = ((buckets >= 90) & (buckets < 95)).any()
    last = 90 if held or len(below) < 2 else below[-1]
    return np.where(buckets < last, 0, np.where(buckets < 95, 1, 2)).astype(np.uint8)


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) % 100
