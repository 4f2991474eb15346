"""A set of clips in a folder: waves as 16-bit integers, their spectrograms, and labels; opened, not read.

waves.npy    int16 (N, S)         each at the start of its row, then zeros
mel.npy      float16 (N, T, M)    log-mel, likewise
labels.npz   numbers of each clip
about.json   names, captions, settings of the spectrograms, and what was left out
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings, log_mel

__all__ = ["SPLITS", "Packed", "gather", "load", "save"]

SPLITS = ("train", "valid", "test")
STEPS = 32767
CHUNK = 64

Found = tuple[str, str, Clip]
"""Name, split, and a clip at the settings' rate."""


@dataclass(frozen=True, eq=False)
class Packed:
    """N clips of up to T frames."""

    waves: NDArray[np.int16]  # [N, S]
    mel: NDArray[np.float16]  # [N, T, M]
    frames: NDArray[np.int32]  # [N] those that are real
    instrument: NDArray[np.int32]  # [N] index into instruments, -1 where unknown
    pitch: NDArray[np.float32]  # [N] NaN where unknown
    velocity: NDArray[np.float32]  # [N] NaN where unknown
    duration: NDArray[np.float32]  # [N] NaN where unknown
    splits: NDArray[np.uint8]  # [N] index into SPLITS
    moments: NDArray[np.float64]  # [N, 2] sum, and sum of squares, of the real frames of mel
    instruments: tuple[str, ...]
    names: tuple[str, ...]  # N, where each came from
    captions: tuple[str, ...]  # N, empty where there is none
    settings: MelSettings
    rejected: tuple[tuple[str, str], ...] = ()  # what could not be used, and why

    def __len__(self) -> int:
        return len(self.frames)

    def of(self, split: str) -> NDArray[np.int64]:
        """The rows of ``split``."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def label(self, n: int) -> Clip:
        """What is known of clip ``n``, without its sound."""
        instrument = self.instruments[self.instrument[n]] if self.instrument[n] >= 0 else ""
        pitch, velocity, duration = (float(v[n]) for v in (self.pitch, self.velocity, self.duration))
        return Clip(
            np.zeros(0, np.float32),
            self.settings.rate,
            self.captions[n],
            instrument,
            None if np.isnan(pitch) else round(pitch),
            None if np.isnan(velocity) else round(velocity),
            None if np.isnan(duration) else duration,
        )

    def wave(self, n: int) -> NDArray[np.float32]:
        """(samples,) of clip ``n``."""
        return self.waves[n, : self.frames[n] * self.settings.hop].astype(np.float32) / np.float32(STEPS)

    def clip(self, n: int) -> Clip:
        """Clip ``n``."""
        return replace(self.label(n), wave=self.wave(n))


_ROWS = ("frames", "instrument", "pitch", "velocity", "duration", "splits", "moments")


def gather(found: Iterable[Found], instruments: Sequence[str], settings: MelSettings, frames: int) -> Packed:
    """Clips as a set in memory; what is beyond ``frames`` of a clip is left out.

    An instrument that is none of ``instruments`` is numbered after them.
    """
    numbers = {name: k for k, name in enumerate(instruments)}
    waves, mels, about = zip(*_chunks(found, numbers, settings, frames), strict=True)
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in about]) for name in _ROWS}
    joined |= {name: tuple(word for part in about for word in part[name]) for name in ("names", "captions")}
    sound = np.concatenate(waves), np.concatenate(mels)
    return Packed(*sound, **joined, instruments=tuple(numbers), settings=settings)


def save(
    found: Iterable[Found],
    instruments: Sequence[str],
    settings: MelSettings,
    frames: int,
    folder: Path,
    rejected: Sequence[tuple[str, str]] = (),
) -> None:
    """Write what `gather` makes of clips to ``folder``, whole or not at all, some at a time.

    ``rejected`` is looked at last, so that reading ``found`` may add to it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write(found, instruments, settings, frames, part, rejected)
        part.chmod(0o755)
        if not folder.exists():  # another process may have been faster; theirs is the same
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(folder: Path) -> Packed:
    """What `save` wrote; waves and spectrograms stay on the disk until they are asked for."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    with np.load(folder / "labels.npz", allow_pickle=False) as file:
        rows = {name: file[name] for name in _ROWS}
    return Packed(
        np.load(folder / "waves.npy", mmap_mode="r"),
        np.load(folder / "mel.npy", mmap_mode="r"),
        **rows,
        instruments=tuple(about["instruments"]),
        names=tuple(about["names"]),
        captions=tuple(about["captions"]),
        settings=MelSettings(**about["settings"]),
        rejected=tuple((name, reason) for name, reason in about["rejected"]),
    )


def _write(
    found: Iterable[Found],
    instruments: Sequence[str],
    settings: MelSettings,
    frames: int,
    folder: Path,
    rejected: Sequence[tuple[str, str]],
) -> None:
    parts: list[dict[str, Any]] = []
    numbers = {name: k for k, name in enumerate(instruments)}
    shapes = ((frames * settings.hop,), (frames, settings.bands))
    with (folder / "waves.npy").open("wb") as waves, (folder / "mel.npy").open("wb") as mels:
        for file, shape, kind in zip((waves, mels), shapes, ("<i2", "<f2"), strict=True):
            _head(file, 0, shape, kind)
        for wave, mel, labels in _chunks(found, numbers, settings, frames):
            wave.tofile(waves)
            mel.tofile(mels)
            parts.append(labels)
        count = sum(len(part["frames"]) for part in parts)
        for file, shape, kind in zip((waves, mels), shapes, ("<i2", "<f2"), strict=True):
            _head(file, count, shape, kind)
    rows: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in _ROWS}
    np.savez_compressed(folder / "labels.npz", **rows)
    words = {name: [word for part in parts for word in part[name]] for name in ("names", "captions")}
    about = {"instruments": list(numbers), "settings": asdict(settings), "rejected": list(rejected), **words}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _head(file: IO[bytes], count: int, shape: tuple[int, ...], kind: str) -> None:
    """The head of an .npy file, which has the same length whatever the count."""
    file.seek(0)
    about = {"descr": kind, "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _chunks(
    found: Iterable[Found], numbers: dict[str, int], settings: MelSettings, frames: int
) -> Iterator[tuple[NDArray[np.int16], NDArray[np.float16], dict[str, Any]]]:
    """Waves, spectrograms and labels of some clips at a time; instruments that are new are added to ``numbers``."""
    rest = iter(found)
    while chunk := list(islice(rest, CHUNK)):
        clips = [clip for _, _, clip in chunk]
        lengths = np.array([min(len(clip.wave) // settings.hop, frames) for clip in clips], np.int32)
        waves = np.zeros((len(clips), frames * settings.hop), np.int16)
        for row, clip, length in zip(waves, clips, lengths, strict=True):
            row[: length * settings.hop] = np.rint(np.clip(clip.wave[: length * settings.hop], -1, 1) * STEPS)
        mel = _mel(waves, lengths, settings)
        real = mel.astype(np.float64) * (np.arange(frames) < lengths[:, None])[..., None]
        yield (
            waves,
            mel,
            {
                "frames": lengths,
                "instrument": np.array([_number(clip.instrument, numbers) for clip in clips], np.int32),
                **{name: _numbers(clips, name) for name in ("pitch", "velocity", "duration")},
                "splits": np.array([SPLITS.index(split) for _, split, _ in chunk], np.uint8),
                "moments": np.stack([real.sum((1, 2)), (real**2).sum((1, 2))], axis=1),
                "names": [name for name, _, _ in chunk],
                "captions": [clip.caption for clip in clips],
            },
        )


def _mel(waves: NDArray[np.int16], lengths: NDArray[np.int32], settings: MelSettings) -> NDArray[np.float16]:
    """Of each clip alone: what comes after it is not in its last frames."""
    sound = torch.from_numpy(waves).float() / STEPS
    mel = np.zeros((len(waves), waves.shape[1] // settings.hop, settings.bands), np.float16)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        mel[rows, :length] = log_mel(sound[rows, : length * settings.hop], settings).numpy()
    return mel


def _number(instrument: str, numbers: dict[str, int]) -> int:
    return numbers.setdefault(instrument, len(numbers)) if instrument else -1


def _numbers(clips: Sequence[Clip], name: str) -> NDArray[np.float32]:
    values = [getattr(clip, name) for clip in clips]
    return np.array([np.nan if value is None else value for value in values], np.float32)
