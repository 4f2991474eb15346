"""A set transformer with latents: linear in the number of points, and trained at a few of them for use at many.

A small set of latent vectors reads from the points by cross-attention, is worked on by self-attention, and is written
back to the points, block by block: recurrent interface networks (Jabri et al. 2023, arXiv:2212.11972), for clouds of
any resolution as in PointInfinity (Huang et al. 2024, arXiv:2404.03566). Nothing in it depends on the order of the
points, and their number enters only through means (attention is one), so it can be sampled at 32 times the points it
was trained at. Points are given in waves as well (Tancik et al. 2020, arXiv:2006.10739), which resolve fine detail.

Time and conditions modulate both tracks with one modulation each that all blocks share and a learned offset in each
(adaLN-single; PixArt, Chen et al. 2024, arXiv:2310.00426), zero at first (adaLN-zero; Peebles & Xie 2023,
arXiv:2212.09748).

Shape suffixes:
    B: batch    N: points    L: latents    P: point width    D: latent width    C: condition width    X: a modulation
"""

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.nn.embeddings import TimeEmbedding
from diffkit.typing import Masks, NetworkTime, State, expand, leaf_time, masked

if TYPE_CHECKING:
    from diffkit.condition import Condition

__all__ = ["SetTransformer"]

CONDITION_WIDTH = 128
HEAD = 32
WAVES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Periods per unit of the waves in which coordinates are given."""


class SetTransformer(nn.Module):
    """Predicts a vector per point.

    Args:
        categories: number of categories; 0 for none.
        text: width of the text embedding; 0 for none.
        channels: numbers per point, of which the first three are its place.
        width: point width P, a multiple of 32.
        latent_width: latent width D, a multiple of 32.
        latents: number of latents L.
        blocks: read, think, write: how often.
        layers: of self-attention in each block.

    Raises:
        ValueError: for a width that is not a multiple of 32.
    """

    def __init__(
        self,
        *,
        categories: int = 0,
        text: int = 0,
        channels: int = 3,
        width: int = 128,
        latent_width: int = 160,
        latents: int = 64,
        blocks: int = 4,
        layers: int = 2,
    ) -> None:
        super().__init__()
        for name, value in {"width": width, "latent_width": latent_width}.items():
            if value < HEAD or value % HEAD:
                raise ValueError(f"got {name} {value}; expected a multiple of {HEAD}, the width of an attention head")
        self.register_buffer("waves", 2 * torch.pi * torch.tensor(WAVES), persistent=False)
        self.time = TimeEmbedding(CONDITION_WIDTH)
        self.category = nn.Embedding(categories + 1, CONDITION_WIDTH) if categories else None
        self.text = nn.Linear(text, CONDITION_WIDTH) if text else None
        self.no_text = nn.Parameter(torch.zeros(CONDITION_WIDTH)) if text else None
        self.embed = nn.Linear(channels + 6 * len(WAVES), width)
        self.latents = nn.Parameter(torch.randn(latents, latent_width) / latent_width**0.5)
        self.point_modulation = nn.Linear(CONDITION_WIDTH, 3 * width)
        self.latent_modulation = nn.Linear(CONDITION_WIDTH, 6 * latent_width)
        self.blocks = nn.ModuleList(Block(width, latent_width, layers) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels)
        self.skip = nn.Linear(CONDITION_WIDTH, 1)
        for layer in (self.point_modulation, self.latent_modulation, self.out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    waves: Tensor

    def forward(self, x: State, t: NetworkTime, condition: "Condition", mask: Masks) -> dict[str, Tensor]:
        """A vector per point.

        Args:
            x: ``points`` (B, N, channels).
            t: 0-d, (B,), or per point as :data:`diffkit.typing.NetworkTime` says.
            condition: ``category`` (B,) int64, ``text`` (B, width); a name that is missing counts as not given.
            mask: bool ``points`` (B, N, 1); without it every point is real.

        Returns:
            ``points`` (B, N, channels) float32, zero at padding.
        """
        points, real_BN1 = x["points"].float(), mask.get("points")
        points = masked(points, real_BN1)
        c_BNC = self._condition(points, leaf_time(t, "points"), condition)
        c_B1C = c_BNC if c_BNC.shape[1] == 1 else _mean(c_BNC, real_BN1)
        point_X, latent_X = self.point_modulation(F.silu(c_BNC)), self.latent_modulation(F.silu(c_B1C))
        x_BNP = self.embed(self._waves(points))
        z_BLD = self.latents.expand(len(points), -1, -1)
        real = None if real_BN1 is None else real_BN1.squeeze(-1)[:, None, None, :]
        for block in self.blocks:
            x_BNP, z_BLD = block(x_BNP, z_BLD, point_X, latent_X, real)
        said = self.out(self.norm(x_BNP)).float() + self.skip(c_BNC).float() * points
        return {"points": masked(said, real_BN1)}

    def _condition(self, points: Tensor, t: Tensor, condition: "Condition") -> Tensor:
        """(B, N, C), or with 1 in place of N where all points share it."""
        known = {"category": self.category, "text": self.text}
        unknown = sorted(name for name in condition.values if known.get(name) is None)
        if unknown:
            expected = sorted(name for name in known if known[name] is not None)
            raise ValueError(f"got conditions {unknown}; expected some of {expected}")
        time = expand(t, points)
        c_BNC: Tensor = self.time(time.squeeze(-1) if time.ndim else time)
        c_BNC = c_BNC.expand(len(points), *(c_BNC.shape[1:] if time.ndim else (1, -1)))
        if self.category is not None:
            c_BNC = c_BNC + self.category(self._classes(points, condition)).unsqueeze(1)
        if self.text is not None and self.no_text is not None:
            c_BNC = c_BNC + self._words(points, condition, self.text, self.no_text).unsqueeze(1)
        return c_BNC

    def _classes(self, points: Tensor, condition: "Condition") -> Tensor:
        """(B,): the category plus one, and 0 where it is not given."""
        if "category" not in condition.values:
            return torch.zeros(len(points), dtype=torch.int64, device=points.device)
        return torch.where(condition.present["category"], condition.values["category"].long() + 1, 0)

    @staticmethod
    def _words(points: Tensor, condition: "Condition", text: nn.Linear, absent: Tensor) -> Tensor:
        if "text" not in condition.values:
            return absent.expand(len(points), -1)
        present = condition.present["text"].unsqueeze(-1)
        given: Tensor = text(masked(condition.values["text"].float(), present))
        return torch.where(present, given, absent.to(given.dtype))

    def _waves(self, points: Tensor) -> Tensor:
        angles = (points[..., :3].unsqueeze(-1) * self.waves).flatten(2)
        return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def _mean(c_BNC: Tensor, real_BN1: Tensor | None) -> Tensor:
    """Over the real points, (B, 1, C)."""
    if real_BN1 is None:
        return c_BNC.mean(1, keepdim=True)
    return masked(c_BNC, real_BN1).sum(1, keepdim=True) / real_BN1.sum(1, keepdim=True).clamp(min=1)


class Attention(nn.Module):
    """Queries of one set from another set."""

    def __init__(self, width: int, source_width: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner)
        self.keys = nn.Linear(source_width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, source: Tensor, real: Tensor | None = None) -> Tensor:
        q = rearrange(self.query(x), "b n (h k) -> b h n k", k=HEAD)
        k, v = rearrange(self.keys(source), "b n (two h k) -> two b h n k", two=2, k=HEAD)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        said: Tensor = self.out(rearrange(attended, "b h n k -> b n (h k)"))
        return said


class Layer(nn.Module):
    """Self-attention and an MLP on the latents."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(6 * width))
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, width, width)
        self.mlp = _mlp(width)

    def forward(self, z_BLD: Tensor, latent_X: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (latent_X + self.offset).chunk(6, dim=-1)
        h_BLD = self.norm1(z_BLD) * (1 + scale1) + shift1
        z_BLD = z_BLD + (1 + gate1) * self.attention(h_BLD, h_BLD)
        changed: Tensor = z_BLD + (1 + gate2) * self.mlp(self.norm2(z_BLD) * (1 + scale2) + shift2)
        return changed


class Block(nn.Module):
    """The latents read the points, think, and are written back to the points, each of which then thinks alone."""

    def __init__(self, width: int, latent_width: int, layers: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(3 * width))
        self.point_norm1, self.point_norm2 = nn.LayerNorm(width), nn.LayerNorm(width, elementwise_affine=False)
        self.latent_norm1, self.latent_norm2 = nn.LayerNorm(latent_width), nn.LayerNorm(latent_width)
        self.read = Attention(latent_width, width, latent_width)
        self.layers = nn.ModuleList(Layer(latent_width) for _ in range(layers))
        self.write = Attention(width, latent_width, width)
        self.mlp = _mlp(width)

    def forward(
        self, x_BNP: Tensor, z_BLD: Tensor, point_X: Tensor, latent_X: Tensor, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Points are read into the latents, those are mixed, and written back to each point."""
        h_BNP = self.point_norm1(x_BNP)
        z_BLD = z_BLD + self.read(self.latent_norm1(z_BLD), h_BNP, real)
        for layer in self.layers:
            z_BLD = layer(z_BLD, latent_X)
        x_BNP = x_BNP + self.write(h_BNP, self.latent_norm2(z_BLD))
        shift, scale, gate = (point_X + self.offset).chunk(3, dim=-1)
        return x_BNP + (1 + gate) * self.mlp(self.point_norm2(x_BNP) * (1 + scale) + shift), z_BLD


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
