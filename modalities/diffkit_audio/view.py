"""Generated clips as files: `0000.wav` and its spectrogram `0000.png`, and so on, and `preview.png` of the first.

The number of a file is that of the sample. A wave is written at its own rate, as 16-bit integers or as 32-bit floats;
one that would clip is made quieter until its peak is 1, as players cut what is above. What is no clip, for it is empty
or holds what is not a number, has no file and is counted. A file is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]
from numpy.typing import NDArray

from diffkit import naming
from diffkit.files import whole
from diffkit_audio import picture
from diffkit_audio.captions import note_name
from diffkit_audio.clip import Clip

__all__ = ["FORMATS", "peak_safe", "require_format", "save", "usable"]

FORMATS = {"wav": "PCM_16", "float": "FLOAT"}
"""Of the samples in a WAV file, as libsndfile calls them."""


def require_format(name: str) -> None:
    """A ValueError for a format that clips are not written in."""
    if name not in FORMATS:
        near = naming.nearest(name, FORMATS)
        raise ValueError(f"got format '{name}'; expected wav, of 16-bit samples, or float, of 32-bit ones{near}")


def usable(clip: Clip) -> bool:
    """Whether it is sound: at least one sample, and all of them numbers."""
    return len(clip.wave) > 0 and bool(np.isfinite(clip.wave).all())


def peak_safe(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """The wave, made quieter if it reaches beyond 1."""
    peak = np.abs(wave).max(initial=0.0)
    return wave / peak if peak > 1 else wave


def save(samples: Sequence[Clip | None], folder: Path | str, format: str = "wav") -> dict[str, Any]:
    """Write every one of ``samples``, its picture, and the contact sheet to ``folder``, made if missing.

    Returns how many were drawn, written and made quieter, their lengths and rates, and the format.

    Raises:
        ValueError: for a format that is none.
        OSError: if a file cannot be written.
    """
    require_format(format)
    folder = Path(folder)
    good = {number: clip for number, clip in enumerate(samples) if clip is not None and usable(clip)}
    for number, clip in good.items():
        with whole(folder / f"{number:04d}.wav") as part:
            soundfile.write(part, peak_safe(clip.wave), clip.rate, FORMATS[format], format="WAV")
        with whole(folder / f"{number:04d}.png") as part:
            picture.draw(clip).save(part)
    captions = [caption(number, good.get(number)) for number in range(len(samples))]
    with whole(folder / "preview.png") as part:
        picture.contact_sheet([good.get(number) for number in range(len(samples))], captions).save(part)
    facts = {
        "seconds": sorted({round(clip.seconds, 3) for clip in good.values()}),
        "rates": sorted({clip.rate for clip in good.values()}),
        "made_quieter": sum(bool(np.abs(clip.wave).max() > 1) for clip in good.values()),
    }
    return {"drawn": len(samples), "written": len(good), **facts, "format": format}


def caption(number: int, clip: Clip | None) -> str:
    """``0003  Flute, A5, velocity 40, 0.5 s`` of a clip that was asked to be that."""
    if clip is None:
        return f"{number:04d}"
    said = [clip.instrument or clip.caption]
    if clip.instrument:
        said += [note_name(clip.pitch)] if clip.pitch is not None else []
        said += [f"velocity {clip.velocity}"] if clip.velocity is not None else []
        said += [f"{clip.duration:g} s"] if clip.duration is not None else []
    return f"{number:04d}  {', '.join(said)}".rstrip()
