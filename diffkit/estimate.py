"""What a denoiser says of one leaf: the clean data behind a noisy one.

Guidance weighs several estimates of the same x_t; the weights sum to one, so x_t = alpha x_0 + sigma eps still
holds for a weighed Gaussian estimate, and weighed logits are still logits. A class that is ruled out (log-probability
-inf, as in the padding and wherever an absorbing process has kept an element) stays ruled out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["CategoricalEstimate", "Estimate", "Estimates", "GaussianEstimate", "weigh"]

_RULED_OUT = -1e4
"""A log-probability whose exponential is zero, and that can be weighed where -inf - (-inf) could not."""


@dataclass(frozen=True)
class GaussianEstimate:
    """The posterior mean of the data and of the noise, both of the leaf's shape."""

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class CategoricalEstimate:
    """Log-probabilities of the clean class, (*leaf, K); padding holds a certain class 0."""

    logits: Tensor

    @property
    def x0(self) -> Tensor:
        """The likeliest class of every element."""
        return self.logits.argmax(-1)


Estimate: TypeAlias = GaussianEstimate | CategoricalEstimate
Estimates: TypeAlias = dict[str, Estimate]


def _sum(terms: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    total = weights[0] * terms[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total + weight * term
    return total


def weigh(estimates: Sequence[Estimate], weights: Sequence[Tensor | float]) -> Estimate:
    """The estimates of one leaf, summed with ``weights`` that add up to one and broadcast over the leaf."""
    gaussian = [e for e in estimates if isinstance(e, GaussianEstimate)]
    if len(gaussian) == len(estimates):
        return GaussianEstimate(_sum([e.x0 for e in gaussian], weights), _sum([e.eps for e in gaussian], weights))
    categorical = [e.logits.clamp(min=_RULED_OUT) for e in estimates if isinstance(e, CategoricalEstimate)]
    assert len(categorical) == len(estimates), "estimates of one leaf are of one kind"
    return CategoricalEstimate(_sum(categorical, weights).log_softmax(-1))
