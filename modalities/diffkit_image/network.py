"""A transformer over the places of a latent picture (DiT; Peebles and Xie 2023, arXiv:2212.09748).

A token is a patch of places, with all of their channels. It is told where it is in waves of two coordinates, which are
0 in the middle of the picture, in units of half the side of a square of the same area: a picture of another size or
shape is composed alike. Among themselves tokens see how many patches apart they are (axial rotary positions).

The condition is a vector: time, category, words and text are each embedded, added up and mixed (`Mixer`). It modulates
every block (`diffkit.nn.transformer`) and is added to every token. Words are a bag: the sum of their vectors over the
root of their number, so that it is as long for many as for one.

Shape suffixes:
    B: batch    N: channels    P: patch    L: patches    D: width    C: condition width    X: a modulation
"""

from typing import TYPE_CHECKING

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.nn.embeddings import FourierFeatures, TimeEmbedding
from diffkit.nn.transformer import Block, Mixer, axial
from diffkit.typing import Masks, NetworkTime, State, expand, leaf_time, masked

if TYPE_CHECKING:
    from diffkit.condition import Condition

__all__ = ["DiT"]


class DiT(nn.Module):
    """Predicts a number per channel and place.

    Args:
        channels: of the latent, N.
        categories: how many have a number; 0 for none.
        words: how many have a number; 0 for none.
        text: width of the text embedding; 0 for none.
        patch: places along a side of a token.
        width: of a token, D, a multiple of 32.
        condition: width of the condition, C.
        hidden: width within the blocks' MLPs.
        layers: blocks.
        mixers: residual layers that mix the condition.

    Raises:
        ValueError: for a width that is not a multiple of 32.
    """

    def __init__(
        self,
        *,
        channels: int,
        categories: int = 0,
        words: int = 0,
        text: int = 0,
        patch: int = 1,
        width: int = 160,
        condition: int = 64,
        hidden: int = 416,
        layers: int = 5,
        mixers: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.time = TimeEmbedding(condition)
        self.category = nn.Embedding(categories + 1, condition) if categories else None
        self.words, self.no_words = _or_nothing(words, condition, bias=False)
        self.text, self.no_text = _or_nothing(text, condition)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * condition), nn.SiLU())
        self.mixers = nn.Sequential(*(Mixer(2 * condition) for _ in range(mixers)))
        self.modulation = nn.Linear(2 * condition, 6 * width)
        self.tint = nn.Linear(2 * condition, width)
        self.waves = FourierFeatures(32, low=0.125, high=4.0)
        self.where = nn.Linear(64, width)
        self.embed = nn.Linear(patch**2 * channels, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch**2 * channels)
        self.skip = nn.Linear(2 * condition, 1)
        for layer in (self.modulation, self.out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: State, t: NetworkTime, condition: "Condition", mask: Masks) -> dict[str, Tensor]:
        """A number per channel and place.

        Args:
            x: ``latent`` (B, N, h, w).
            t: 0-d, (B,), or per place (B, 1, h, w), as :data:`diffkit.typing.NetworkTime` says.
            condition: ``category`` (B,), ``words`` (B, words) of 0 and 1, ``text`` (B, width); a name that is missing
                counts as not given.
            mask: bool ``latent`` (B, 1, h, w), True in a rectangle at the beginning; without it every place is real.

        Returns:
            ``latent`` (B, N, h, w) float32, zero at padding.
        """
        latent, real_B1hw = x["latent"].float(), mask.get("latent")
        latent = masked(latent, real_B1hw)
        tall, wide = latent.shape[2:]
        c_BLC = self.mixers(self.mix(self._condition(latent, real_B1hw, leaf_time(t, "latent"), condition)))
        places_L2 = torch.stack(_grid(-(-tall // self.patch), -(-wide // self.patch), latent.device), -1)
        x_BLD = self.embed(self._patches(latent)) + self.tint(c_BLC) + self._where(places_L2, latent, real_B1hw)
        modulation_X, turn = self.modulation(c_BLC), axial(places_L2)
        real = None if real_B1hw is None else self._pooled(real_B1hw, "max").transpose(1, 2).unsqueeze(1)
        for block in self.blocks:
            x_BLD = block(x_BLD, modulation_X, turn, real)
        said = self._places(self.out(self.norm(x_BLD)).float(), tall, wide)
        gain = self.skip(c_BLC).float()
        gain = gain.unsqueeze(-1) if gain.shape[1] == 1 else self._places(gain.repeat(1, 1, self.patch**2), tall, wide)
        return {"latent": masked(said + gain * latent, real_B1hw)}

    # ------------------------------------------------------------------------------------------- patches

    def _whole(self, x_BNhw: Tensor) -> Tensor:
        """With zeros below and to the right, so that the places are whole patches."""
        below, right = (-size % self.patch for size in x_BNhw.shape[2:])
        return F.pad(x_BNhw, (0, right, 0, below)) if below or right else x_BNhw

    def _patches(self, x_BNhw: Tensor) -> Tensor:
        return rearrange(self._whole(x_BNhw), "b n (h p) (w q) -> b (h w) (p q n)", p=self.patch, q=self.patch)

    def _places(self, x_BLX: Tensor, tall: int, wide: int) -> Tensor:
        """What `_patches` took apart, (B, N, tall, wide)."""
        rows, p = -(-tall // self.patch), self.patch
        whole = rearrange(x_BLX, "b (h w) (p q n) -> b n (h p) (w q)", h=rows, p=p, q=p)
        return whole[..., :tall, :wide]

    def _pooled(self, x_BNhw: Tensor, how: str) -> Tensor:
        """(B, L, N), of each patch."""
        return reduce(self._whole(x_BNhw), "b n (h p) (w q) -> b (h w) n", how, p=self.patch, q=self.patch)

    def _where(self, places_L2: Tensor, latent: Tensor, real_B1hw: Tensor | None) -> Tensor:
        """Where each token is in its picture, (B or 1, L, D)."""
        if real_B1hw is None:
            sizes_B2 = torch.tensor([latent.shape[2:]], device=latent.device)
        else:
            sizes_B2 = torch.stack([real_B1hw.any(3).sum((1, 2)), real_B1hw.any(2).sum((1, 2))], -1)
        sides = (sizes_B2 / self.patch).clamp(min=1e-3).unsqueeze(1)
        coordinates = (2 * places_L2 + 1 - sides) / sides.prod(-1, keepdim=True).sqrt()
        said: Tensor = self.where(self.waves(coordinates).flatten(-2))
        return said

    # ----------------------------------------------------------------------------------------- condition

    def _condition(self, latent: Tensor, real_B1hw: Tensor | None, t: Tensor, condition: "Condition") -> Tensor:
        """(B, L, C), or with 1 in place of L where all patches share it."""
        expected = [k for k in ("category", "words", "text") if getattr(self, k) is not None]
        unknown = sorted(set(condition.values) - set(expected))
        if unknown:
            raise ValueError(f"got conditions {unknown}; expected some of {expected}")
        c_BLC = self._time(expand(t, latent), latent, real_B1hw).expand(len(latent), -1, -1)
        absent = torch.zeros(len(latent), dtype=torch.bool, device=latent.device)
        if self.category is not None:
            there = condition.present.get("category", absent)
            number = condition.values.get("category", absent).long()
            c_BLC = c_BLC + self.category(torch.where(there, number + 1, 0)).unsqueeze(1)
        if self.words is not None and self.no_words is not None:
            c_BLC = c_BLC + _given("words", condition, self.words, self.no_words, absent, count=True).unsqueeze(1)
        if self.text is not None and self.no_text is not None:
            c_BLC = c_BLC + _given("text", condition, self.text, self.no_text, absent).unsqueeze(1)
        return c_BLC

    def _time(self, time: Tensor, latent: Tensor, real_B1hw: Tensor | None) -> Tensor:
        """(1 or B, 1 or L, C): of a time per place the mean over each patch."""
        if time.ndim == 0 or time.shape[1:] == (1, 1, 1):
            embedded: Tensor = self.time(time.reshape(-1, 1))
            return embedded
        if time.shape[1] != 1:
            raise ValueError(f"got a time of shape {tuple(time.shape)}; expected one for all channels of a place")
        there = latent.new_ones(latent[:, :1].shape) if real_B1hw is None else real_B1hw.to(latent.dtype)
        codes = self.time(time.squeeze(1)).permute(0, 3, 1, 2)
        return self._pooled(codes * there, "sum") / self._pooled(there, "sum").clamp(min=1)


def _or_nothing(width: int, condition: int, bias: bool = True) -> tuple[nn.Linear | None, nn.Parameter | None]:
    """How vectors of a width are read, and what stands for none; neither for width 0."""
    if not width:
        return None, None
    return nn.Linear(width, condition, bias=bias), nn.Parameter(torch.zeros(condition))


def _given(
    name: str, condition: "Condition", read: nn.Linear, nothing: Tensor, absent: Tensor, count: bool = False
) -> Tensor:
    """(B, C) of a vector per sample; ``count``: divided by the root of the number of ones in it."""
    if name not in condition.values:
        return nothing.expand(len(absent), -1)
    present = condition.present[name].unsqueeze(-1)
    vector = masked(condition.values[name].float(), present)
    if count:
        vector = vector / vector.sum(-1, keepdim=True).clamp(min=1).sqrt()
    said: Tensor = read(vector)
    return torch.where(present, said, nothing.to(said.dtype))


def _grid(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row (L,) and the column of every patch."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return y.flatten(), x.flatten()
