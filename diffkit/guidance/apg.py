r"""Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416): high scales without oversaturation.

With the update d = c - u in x_0, and a radius r that it may not leave, d <- d min(1, r / |d|), it is split into what is
parallel to the conditional x_0 and what is orthogonal. The parallel part makes x_0 larger, and is weighted by eta:

    guided = c + (scale - 1) (d_orthogonal + eta d_parallel),    d_parallel = <d, c> / <c, c> c

At eta = 1 and without a radius that is u + scale (c - u). Norm and product run over the real elements of a sample.

The paper's reverse momentum (its algorithm 1) is left out: it makes the update a running sum over the steps, and an
estimate here depends on x_t alone. Samplers ask at times of their own choice, twice in a step or again after a rejected
one, and a sum over calls would hold something else for each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.estimate import Estimate, GaussianEstimate
from diffkit.guidance.base import dot
from diffkit.guidance.cfg import Contrast
from diffkit.typing import Coefficient, masked

__all__ = ["AdaptiveProjected"]


@dataclass(frozen=True)
class AdaptiveProjected(Contrast):
    """Guidance whose update is clipped and mostly orthogonal to x_0; categorical leaves take u + scale (c - u).

    Args:
        scale: 1 is no guidance.
        negative: what to steer away from; None is the empty condition. Its batch may be 1.
        interval: (low, high) times, ends included, within which guidance acts; outside, the conditional estimate
            stands.
        split: two calls of the network in place of one on a doubled batch, to save memory.
        eta: the weight of the parallel part; 1 keeps all of it.
        radius: the largest norm of the update c - u in x_0, above 0. The paper's for images: 2.5 to 15.
    """

    eta: float = 0.0
    radius: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.eta):
            raise ValueError(f"got eta = {self.eta}; expected a finite number, such as 0 (no parallel part) or 1 (all)")
        if not self.radius > 0:
            raise ValueError(f"got a radius of {self.radius}; expected a number above 0 (inf clips nothing)")

    def gaussian(
        self, c: GaussianEstimate, u: GaussianEstimate, scale: Coefficient, t: float | Tensor, mask: Tensor | None
    ) -> Estimate:
        x0 = masked(c.x0, mask)
        update = masked(c.x0 - u.x0, mask)
        length = dot(update, update).sqrt()
        kept = torch.where(length > self.radius, self.radius / length, 1.0)
        along = dot(update, x0) / dot(x0, x0).clamp(min=torch.finfo(length.dtype).tiny)
        projected = update - (1 - self.eta) * along * x0
        return c.shifted(((scale - 1) * kept * projected).to(x0.dtype))
