"""A small U-Net over a spectrogram as a picture, behind a transformer over patches of it.

A patch of four frames has 512 numbers and its token 192, which also say all that other tokens want to know: enough for
which note it is, too little for the texture that little noise leaves to be said. Convolutions see every number, and
what they learn of texture holds in every band. Each number has a gain of its own: 1 / t where it is to become what the
network chooses, as in silence, and less where it is to be kept. (Such a detailer is Chen et al. 2025's, of images,
arXiv:2511.18822.)

The finer of its two resolutions has cells of two frames and two bands; the coarser, where it meets the tokens, of four
and four. Every convolution sees zeros where there is padding. Channels come last, which a CPU is quickest with.

Shape suffixes:
    B: batch    L: patches    D: width of a token    C: condition width    K: what cells know of the condition
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CELL", "Cells", "Refiner"]

CELL = 4
"""Frames, and bands, of a coarse cell: the frames of a patch."""
CONTEXT = 8
"""Numbers that a patch's token gives each of its cells."""
KNOWN = 64
"""K."""


class Refiner(nn.Module):
    """What is added to what the patches say, nothing at first.

    Args:
        bands: of a frame, M.
        width: of a token, D.
        condition: width of the condition, C.
        fine: channels of the finer cells.
        coarse: channels of the coarser ones.
    """

    def __init__(self, bands: int, width: int, condition: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.cells = -(-bands // CELL)
        self.stem = _convolution(8, fine)
        self.bands = nn.Parameter(torch.zeros(2 * self.cells, fine))
        self.context = nn.Linear(width, CONTEXT * self.cells)
        self.join = nn.Linear(CONTEXT, coarse)
        self.condition = nn.Sequential(nn.Linear(condition, KNOWN), nn.SiLU())
        self.first = Cells(fine, fine)
        self.down = _convolution(fine, coarse, 2)
        self.middle = nn.ModuleList(Cells(coarse, coarse) for _ in range(2))
        self.up = nn.Linear(coarse, fine)
        self.last = Cells(2 * fine, fine)
        self.out = _convolution(fine, 8)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, frames: Tensor, said: Tensor, x_BLD: Tensor, c_BLC: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is to be added to ``said`` (B, T, M), and to the gain of ``frames`` (B, T, M), of whole patches.

        Args:
            frames: (B, T, M), zero at padding.
            said: what the patches say of each number, zero at padding.
            x_BLD: tokens.
            c_BLC: the condition, of each patch or with 1 in place of L.
            real: (B, T, 1), floating, 0 at padding.
        """
        bands, finer = frames.shape[2], reduce(real, "b (t p) 1 -> b t 1 1", "max", p=CELL // 2)
        coarser = reduce(real, "b (t p) 1 -> b t 1 1", "max", p=CELL)
        both = F.pad(torch.stack([frames, said], -1), (0, 0, 0, CELL * self.cells - bands))
        c_BLK = self.condition(c_BLC)
        c_finer = c_BLK if c_BLK.shape[1] == 1 else c_BLK.repeat_interleave(2, 1)
        fine = _over(self.stem, rearrange(both, "b (t p) (m q) k -> b t m (p q k)", p=2, q=2))
        fine = fine + self.bands.to(fine.dtype)
        fine = self.first(fine, c_finer, finer)
        coarse = _over(self.down, fine * finer.to(fine.dtype))
        coarse = coarse + self.join(rearrange(self.context(x_BLD), "b l (m k) -> b l m k", k=CONTEXT))
        for block in self.middle:
            coarse = block(coarse, c_BLK, coarser)
        wide = self.up(coarse).repeat_interleave(2, 1).repeat_interleave(2, 2)
        made = F.silu(self.last(torch.cat([fine, wide], -1), c_finer, finer))
        made = _over(self.out, made * finer.to(made.dtype)).float()
        more, share = rearrange(made, "b t m (p q k) -> k b (t p) (m q)", p=2, q=2, k=2)[..., :bands]
        return more, share


class Cells(nn.Module):
    """Two convolutions over time and bands, modulated by the condition, and added to what they read."""

    def __init__(self, inward: int, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(KNOWN, 2 * inward)
        self.one, self.two = _convolution(inward, width), _convolution(width, width)
        self.keep = nn.Identity() if inward == width else nn.Linear(inward, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c_BLK: Tensor, real: Tensor) -> Tensor:
        """(B, L, cells, inward) to (B, L, cells, width); ``c_BLK`` may have 1 in place of L."""
        shift, scale = self.modulation(c_BLK).unsqueeze(2).chunk(2, -1)
        h = F.silu(_normal(x) * (1 + scale) + shift)
        h = F.silu(_normal(_over(self.one, h * real.to(h.dtype))))
        changed: Tensor = self.keep(x) + _over(self.two, h * real.to(h.dtype))
        return changed


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _convolution(inward: int, outward: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inward, outward, 3, stride, 1, bias=False)


def _over(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of (B, L, cells, width), whose channels come last in memory too."""
    seen: Tensor = convolution(x.permute(0, 3, 1, 2))
    return seen.permute(0, 2, 3, 1)
