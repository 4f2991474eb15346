"""Pictures of clips, drawn with NumPy and Pillow: log-mel spectrograms, time to the right, frequency upwards.

Brightness is amplitude in decibels, from 80 below the loudest amplitude a clip can have up to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings, log_mel

__all__ = ["contact_sheet", "draw"]

PANEL = (320, 192)
"""Pixels of a clip on the contact sheet."""
CAPTION = 26
GAP = 12
SHOWN = 24
DECIBELS = 80.0
BACKGROUND, INK = (250, 250, 252), (72, 76, 86)
RAMP = np.array([[12, 12, 30], [52, 24, 94], [126, 36, 108], [202, 66, 78], [244, 136, 50], [252, 222, 130]], float)
"""Colours of amplitude, from silence up."""


def draw(clip: Clip, size: tuple[int, int] = (640, 256)) -> Image.Image:
    """The spectrogram of a clip, as a picture of ``size`` pixels."""
    levels = _levels(clip)
    place = levels * (len(RAMP) - 1)
    channels = [np.interp(place, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)]
    image = Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))
    return image.resize(size, Image.Resampling.BILINEAR)


def _levels(clip: Clip) -> NDArray[np.float64]:
    """(bands, frames) in [0, 1], the highest band first; what is not a number is silent."""
    settings = MelSettings(rate=clip.rate, high=clip.rate / 2)
    wave = np.nan_to_num(np.asarray(clip.wave, np.float32), posinf=0, neginf=0)
    short = max(settings.n_fft + settings.hop - len(wave), 0)
    mel = log_mel(torch.from_numpy(np.pad(wave, (0, short))), settings).double().numpy()
    frames = max(len(wave) // settings.hop, 1)
    decibels: NDArray[np.float64] = 20 / math.log(10) * mel[:frames].T[::-1]
    return np.clip(1 + decibels / DECIBELS, 0, 1)


def contact_sheet(clips: Sequence[Clip | None], captions: Sequence[str]) -> Image.Image:
    """The first clips, each over its caption; an empty panel where there is none."""
    shown = list(zip(clips, captions, strict=True))[:SHOWN]
    columns = min(4, max(1, math.ceil(math.sqrt(len(shown)))))
    rows = max(1, -(-len(shown) // columns))
    wide, tall = PANEL[0] + GAP, PANEL[1] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * wide + GAP, rows * tall + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (clip, caption) in enumerate(shown):
        left, top = GAP + number % columns * wide, GAP + number // columns * tall
        if clip is not None:
            sheet.paste(draw(clip, PANEL), (left, top))
        pen.text((left, top + PANEL[1] + 5), _fit(caption, font), INK, font=font)
    return sheet


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """As much of a line as a panel is wide."""
    text = " ".join(text.split())[:200]
    while text and font.getlength(text) > PANEL[0]:
        text = text[:-2].rstrip("…") + "…"
    return text
