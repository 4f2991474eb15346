"""A transformer over time: a token is a patch of four frames of a spectrogram, with all of their bands.

Behind it, a small U-Net sees every number again (`diffkit_audio.refiner`).

The condition is a vector: time, instrument, pitch, velocity, duration and text are each embedded, added up and mixed by
a perceptron, as deep as the spectrum of an instrument at a pitch asks for: it runs once a clip and costs little. It
modulates every block (`diffkit.nn.transformer`) and is added to every token. Tokens are told when they are, in waves of
seconds, as notes begin at 0; among themselves they see how far apart they are (rotary positions).

Shape suffixes:
    B: batch    T: frames    M: bands    L: patches    D: width    C: condition width    X: a modulation
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.nn.embeddings import FourierFeatures, ScalarEmbedding, TimeEmbedding
from diffkit.nn.transformer import Block, Mixer, rotary
from diffkit.typing import Masks, NetworkTime, State, expand, leaf_time, masked
from diffkit_audio.refiner import CELL, Refiner

if TYPE_CHECKING:
    from diffkit.condition import Condition

__all__ = ["PATCH", "Spectrogram"]

PATCH = CELL
"""Frames of a patch."""
SCALARS = {"pitch": (65.0, 17.0), "velocity": (80.0, 32.0), "duration": (0.75, 0.5)}
"""About the mean and the deviation of what is asked for, by which it is standardised."""


class Spectrogram(nn.Module):
    """Predicts a number per band and frame.

    Args:
        bands: of a frame, M.
        instruments: how many have a number; 0 for none.
        scalars: those of `SCALARS` that are conditions.
        text: width of the text embedding; 0 for none.
        width: of a token, D, a multiple of 32.
        condition: width of the condition, C.
        hidden: width within the blocks' MLPs.
        layers: blocks.
        mixers: residual layers that mix the condition.
        refine: channels of the finer and of the coarser convolutions that follow; empty for none.

    Raises:
        ValueError: for a width that is not a multiple of 32, or another number of ``refine`` than none or two.
    """

    def __init__(
        self,
        *,
        bands: int = 128,
        instruments: int = 0,
        scalars: tuple[str, ...] = (),
        text: int = 0,
        width: int = 192,
        condition: int = 128,
        hidden: int = 640,
        layers: int = 6,
        mixers: int = 2,
        refine: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if len(refine) not in (0, 2):
            raise ValueError(
                f"got refine={list(refine)}; expected [FINE, COARSE], two numbers of channels, or [] for none"
            )
        self.time = TimeEmbedding(condition)
        self.instrument = nn.Embedding(instruments + 1, condition) if instruments else None
        self.scalars = nn.ModuleDict({name: ScalarEmbedding(condition, 64) for name in scalars})
        self.text = nn.Linear(text, condition) if text else None
        self.no_text = nn.Parameter(torch.zeros(condition)) if text else None
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * condition), nn.SiLU())
        self.mixers = nn.Sequential(*(Mixer(2 * condition) for _ in range(mixers)))
        self.modulation = nn.Linear(2 * condition, 6 * width)
        self.tint = nn.Linear(2 * condition, width)
        self.when = nn.Sequential(FourierFeatures(64, low=0.005, high=1.0), nn.Linear(64, width))
        self.embed = nn.Linear(PATCH * bands, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, PATCH * bands)
        self.skip = nn.Linear(2 * condition, 1)
        self.refine = Refiner(bands, width, 2 * condition, *refine) if refine else None
        for layer in (self.modulation, self.out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: State, t: NetworkTime, condition: "Condition", mask: Masks) -> dict[str, Tensor]:
        """A number per band and frame.

        Args:
            x: ``mel`` (B, T, M).
            t: 0-d, (B,), or per frame as :data:`diffkit.typing.NetworkTime` says.
            condition: ``instrument``, ``pitch``, ``velocity`` and ``duration`` (B,), ``text`` (B, width); a name
                that is missing counts as not given.
            mask: bool ``mel`` (B, T, 1); without it every frame is real.

        Returns:
            ``mel`` (B, T, M) float32, zero at padding.
        """
        frames, real_BT1 = x["mel"].float(), mask.get("mel")
        frames = masked(frames, real_BT1)
        c_BLC = self.mixers(self.mix(self._condition(frames, real_BT1, leaf_time(t, "mel"), condition)))
        x_BLD = self.embed(_patches(frames)) + self.tint(c_BLC)
        places = torch.arange(x_BLD.shape[1], device=frames.device)
        x_BLD = x_BLD + self.when(places)
        modulation_X, turn = self.modulation(c_BLC), rotary(places)
        real = None if real_BT1 is None else reduce(_whole(real_BT1), "b (l p) 1 -> b 1 1 l", "max", p=PATCH)
        for block in self.blocks:
            x_BLD = block(x_BLD, modulation_X, turn, real)
        x_BLD, count = self.norm(x_BLD), frames.shape[1]
        said = rearrange(self.out(x_BLD).float(), "b l (p m) -> b (l p) m", p=PATCH)[:, :count]
        gain = _frames(self.skip(c_BLC).float(), count)
        if self.refine is not None:
            there = torch.ones_like(frames[..., :1]) if real_BT1 is None else real_BT1.to(frames.dtype)
            more, share = self.refine(_whole(frames), _whole(said * there), x_BLD, c_BLC, _whole(there))
            said, gain = said + more[:, :count], gain + share[:, :count]
        return {"mel": masked(said + gain * frames, real_BT1)}

    def _condition(self, frames: Tensor, real_BT1: Tensor | None, t: Tensor, condition: "Condition") -> Tensor:
        """(B, L, C), or with 1 in place of L where all patches share it."""
        expected = [k for k in ("instrument", "text") if getattr(self, k) is not None] + sorted(self.scalars)
        unknown = sorted(set(condition.values) - set(expected))
        if unknown:
            raise ValueError(f"got conditions {unknown}; expected some of {expected}")
        time = expand(t, frames)
        c_BLC: Tensor = self.time(time.squeeze(-1) if time.ndim else time)
        if time.ndim and time.shape[1] > 1:
            c_BLC = _means(
                c_BLC.expand(len(frames), -1, -1), torch.ones_like(frames[..., :1]) if real_BT1 is None else real_BT1
            )
        c_BLC = c_BLC.expand(len(frames), *(c_BLC.shape[1:] if time.ndim else (1, -1)))
        absent = torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
        if self.instrument is not None:
            there = condition.present.get("instrument", absent)
            number = condition.values.get("instrument", absent).long()
            c_BLC = c_BLC + self.instrument(torch.where(there, number + 1, 0)).unsqueeze(1)
        for name, embedding in self.scalars.items():
            mean, deviation = SCALARS[name]
            value = (condition.values.get(name, absent).float() - mean) / deviation
            c_BLC = c_BLC + embedding(value, condition.present.get(name, absent)).unsqueeze(1)
        if self.text is not None and self.no_text is not None:
            c_BLC = c_BLC + self._words(absent, condition, self.text, self.no_text).unsqueeze(1)
        return c_BLC

    @staticmethod
    def _words(absent: Tensor, condition: "Condition", text: nn.Linear, no_text: Tensor) -> Tensor:
        if "text" not in condition.values:
            return no_text.expand(len(absent), -1)
        present = condition.present["text"].unsqueeze(-1)
        given: Tensor = text(masked(condition.values["text"].float(), present))
        return torch.where(present, given, no_text.to(given.dtype))


def _frames(x_BLD: Tensor, count: int) -> Tensor:
    """Of each patch to its frames; what all patches share stays as it is."""
    return x_BLD if x_BLD.shape[1] == 1 else x_BLD.repeat_interleave(PATCH, 1)[:, :count]


def _whole(x_BT: Tensor) -> Tensor:
    """With zeros behind, so that the frames are whole patches."""
    short = -x_BT.shape[1] % PATCH
    return F.pad(x_BT, (0, 0, 0, short)) if short else x_BT


def _means(c_BTC: Tensor, real_BT1: Tensor) -> Tensor:
    """Over the real frames of each patch, (B, L, C)."""
    total = reduce(_whole(c_BTC * real_BT1), "b (l p) c -> b l c", "sum", p=PATCH)
    return total / reduce(_whole(real_BT1.to(c_BTC.dtype)), "b (l p) 1 -> b l 1", "sum", p=PATCH).clamp(min=1)


def _patches(frames: Tensor) -> Tensor:
    return rearrange(_whole(frames), "b (l p) m -> b l (p m)", p=PATCH)
