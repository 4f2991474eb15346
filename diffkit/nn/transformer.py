r"""A transformer over a sequence or a grid: rotary positions, normalised queries and keys, and modulation by a vector.

Rotary positions (Su et al. 2021, arXiv:2104.09864, eq. 34) turn the pair (i, i + width / 2) of a head's query and key
by the angle position * 10000^(-2i / width), so that their product depends on the distance alone and sequences of any
length can be read. On a plane each axis turns half of the pairs, at rates of a smaller base, as there are fewer places
along it (axial; Heo et al. 2024, arXiv:2403.13298). Queries and keys are of RMS 1 up to a learned scale (Henry
et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442), which keeps attention from collapsing at high
learning rates. A block is modulated by one modulation that all blocks share plus an offset of its own (adaLN-single;
Chen et al. 2024, arXiv:2310.00426). The vector behind it is mixed by residual perceptrons, which run once a sample.

Shape suffixes:
    B: batch    L: tokens    D: width    H: heads    K: width of a head    X: a modulation, 6 D
    C: width of the vector
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HEAD", "Attention", "Block", "Mixer", "axial", "rotary"]

HEAD = 32
"""Width of an attention head."""


def rotary(positions: Tensor, width: int = HEAD, base: float = 10000.0) -> Tensor:
    """The angles' cosines and sines, (2, L, width / 2), of ``positions`` (L,)."""
    rates = base ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions.float().unsqueeze(-1) * rates
    return torch.stack([angles.cos(), angles.sin()])


def axial(places: Tensor, width: int = HEAD, base: float = 100.0) -> Tensor:
    """Those of ``places`` (L, 2) on a plane: half of the pairs turn with each of their two numbers.

    Raises:
        ValueError: for a width whose pairs cannot be halved.
    """
    if width % 4:
        raise ValueError(f"got width {width}; expected a multiple of 4: pairs for each of two axes")
    return torch.cat([rotary(along, width // 2, base) for along in places.unbind(-1)], -1)


def _turn(x_BHLK: Tensor, turn: Tensor) -> Tensor:
    """Every pair of numbers turned by its position's angle; the pairs are (i, i + K / 2)."""
    (cos, sin), (a, b) = turn.to(x_BHLK.dtype), x_BHLK.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Self-attention. ``width`` is a multiple of `HEAD`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < HEAD or width % HEAD:
            raise ValueError(f"got width {width}; expected a multiple of {HEAD}, the width of an attention head")
        self.inward = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(HEAD), nn.RMSNorm(HEAD)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, turn: Tensor, real: Tensor | None = None) -> Tensor:
        """``real`` (B, 1, 1, L) is True where there is something to attend to."""
        q, k, v = rearrange(self.inward(x_BLD), "b l (three h k) -> three b h l k", three=3, k=HEAD)
        q, k = (
            _turn(norm(y.to(norm.weight.dtype)), turn).to(v.dtype)
            for norm, y in ((self.query_norm, q), (self.key_norm, k))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        said: Tensor = self.out(rearrange(attended, "b h l k -> b l (h k)"))
        return said


class Block(nn.Module):
    """Attention and an MLP, both modulated."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(6 * width))
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor, modulation_X: Tensor, turn: Tensor, real: Tensor | None = None) -> Tensor:
        """``modulation_X`` (B, 1 or L, 6 D) is 0 where nothing is modulated."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation_X + self.offset).chunk(6, dim=-1)
        h_BLD = self.norm1(x_BLD) * (1 + scale1) + shift1
        x_BLD = x_BLD + (1 + gate1) * self.attention(h_BLD, turn, real)
        changed: Tensor = x_BLD + (1 + gate2) * self.mlp(self.norm2(x_BLD) * (1 + scale2) + shift2)
        return changed


class Mixer(nn.Module):
    """A perceptron of twice the width, added to what it reads; of no effect at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, c_BLC: Tensor) -> Tensor:
        changed: Tensor = c_BLC + self.narrow(F.silu(self.widen(self.norm(c_BLC))))
        return changed
