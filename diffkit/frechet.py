r"""The Fréchet distance of normal distributions fitted to features of two sets,

.. math:: |\mu_1 - \mu_2|^2 + tr(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

(D. Dowson and B. Landau 1982; of generative models, M. Heusel et al. 2017, arXiv:1706.08500). What the features are,
and the name of the figure, is the business of the modality that has them.
"""

import math

import torch
from torch import Tensor

__all__ = ["frechet"]


def frechet(x: Tensor, y: Tensor) -> float:
    """The distance of features (A, F) and (B, F); NaN for fewer than two of either.

    The trace of the root is the sum of the singular values of X Y^T / sqrt((A - 1) (B - 1)), X and Y being the centred
    features: of the roots of (Σ₁ Σ₂)'s eigenvalues, without a root of a matrix.
    """
    if min(len(x), len(y)) < 2:
        return math.nan
    x, y = x.double(), y.double()
    mean = (x.mean(0) - y.mean(0)).square().sum()
    left, right = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x, y))
    a, b = (torch.linalg.qr(v).R if len(v) > v.shape[1] else v for v in (left, right))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return max(float(mean + left.square().sum() + right.square().sum() - 2 * root), 0.0)
