r"""Completion: a denoiser that is told a part of the data.

A network whose times are per element (`diffkit.typing`) can be shown clean elements beside noisy ones: those that are
given stand at t = 0, the rest at t, and a model that was trained so (`Example.given`) draws the rest to go with them.
It is the conditioning by clean tokens of diffusion forcing (B. Chen et al. 2024, arXiv:2407.01392) and of first-frame
conditioning in video models, and asks nothing of a sampler: that one sees plain numbers for times, and of a given
element the estimate

    x_0 = what is given,    eps = (x_t - alpha x_0) / sigma,

so that wherever its x_t began, it ends in x_0 up to rounding; `kept` then puts the very bits there. Classes are given
as the certain estimate. What a sampler believes of x_t where an element is given, the network never sees.

It goes innermost, below any guidance, which may call it with the batch several times over.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import CategoricalEstimate, Estimate, Estimates, GaussianEstimate
from diffkit.guidance.base import Guided
from diffkit.process import Categorical, Gaussian, Process
from diffkit.typing import Masks, State, Time, expand, leaf_time

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """Makes a denoiser know some elements of the data; its network has to take a time per element.

    Args:
        x0: leaves (B, ...), of which only the given elements count.
        where: for each leaf of which something is given a boolean tensor that broadcasts over it, True there.
    """

    x0: State
    where: Masks

    def __call__(self, denoise: Denoise) -> Denoise:
        return Guided(denoise, self._bend)

    def kept(self, x: State) -> dict[str, Tensor]:
        """``x`` with exactly what is given where it is given."""
        return {k: torch.where(self.where[k], self.x0[k], v) if k in self.where else v for k, v in x.items()}

    def _bend(
        self, denoise: Denoise, x_t: State, t: Time, condition: Condition, mask: Masks, target: Time | None
    ) -> Estimates:
        where = {k: _tiled(v, len(x_t[k])) for k, v in self.where.items()}
        x0 = {k: _tiled(self.x0[k], len(x_t[k])) for k in where}
        shown, times = dict(x_t), {k: leaf_time(t, k) for k in x_t}
        for k, given in where.items():
            shown[k] = torch.where(given, x0[k], x_t[k])
            time = torch.as_tensor(times[k], dtype=torch.float64, device=x_t[k].device)
            times[k] = torch.where(given, 0.0, expand(time, x_t[k]))
        said = denoise(shown, times, condition, mask, target)
        return {
            k: _certain(denoise.process[k], e, x0[k], x_t[k], leaf_time(t, k), where[k]) if k in where else e
            for k, e in said.items()
        }


def _tiled(v: Tensor, rows: int) -> Tensor:
    """The batch as many times over as guidance asks for it at once."""
    return v if len(v) == rows else torch.cat([v] * (rows // len(v)))


def _certain(
    process: Process, estimate: Estimate, x0: Tensor, x_t: Tensor, t: float | Tensor, where: Tensor
) -> Estimate:
    """The estimate in the terms of the one time ``t`` that the sampler knows, certain where an element is given."""
    if isinstance(estimate, CategoricalEstimate):
        assert isinstance(process, Categorical)
        sure = torch.log(F.one_hot(x0, process.classes).to(estimate.logits.dtype))
        return CategoricalEstimate(torch.where(where.unsqueeze(-1), sure, estimate.logits))
    assert isinstance(process, Gaussian)
    alpha, sigma = process.coefficients(t, x_t)
    least = torch.finfo(x_t.dtype).tiny
    noise = sigma.clamp(min=least) if isinstance(sigma, Tensor) else max(sigma, least)
    eps = torch.where(where, (x_t - alpha * x0) / noise, estimate.eps)
    return GaussianEstimate.known(torch.where(where, x0, estimate.x0), eps, alpha, sigma)
