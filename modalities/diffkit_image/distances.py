r"""Distances between sets of pictures, by the features that a network has of them.

- the *Fréchet distance* of normal distributions fitted to both, :math:`|\mu_1 - \mu_2|^2 + tr(\Sigma_1 + \Sigma_2 - 2
  (\Sigma_1 \Sigma_2)^{1/2})` (D. Dowson and B. Landau 1982; of pictures, M. Heusel et al. 2017, arXiv:1706.08500). It
  is biased: it falls with the number of pictures, and compares with nothing of other features or numbers;
- the *kernel distance*, the squared maximum mean discrepancy with the kernel :math:`k(x, y) = (x^T y / d + 1)^3`
  (M. Bińkowski et al. 2018, arXiv:1801.01401, section 4), by the unbiased estimate of A. Gretton et al. 2012 (JMLR 13,
  equation 3). Being unbiased it may be negative, for sets of which neither is further from the other than chance has
  it. Its standard error is the jackknife's (B. Efron and C. Stein 1981) over the first set, the second taken as it is.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffkit.files import whole
from diffkit.packages import cache_folder

__all__ = ["Eye", "cached", "kernel"]


@dataclass(frozen=True)
class Eye:
    """A network that pictures are compared by.

    Args:
        version: of its weights, and of what is made of them; features in the cache are of one version.
        see: pictures (B, 4, 64, 64) as the judges see them, to features (B, F).
    """

    version: str
    see: Callable[[Tensor], Tensor]


def cached(name: str, eye: Eye, pixels: Tensor) -> Tensor:
    """Features (B, F) that the eye ``name`` has of pictures (B, 4, 64, 64), from the cache where it saw them before.

    The file is named by the eye, its version and the pictures, so that it is never another's.
    """
    content = (pixels * 127.5 + 127.5).round().byte().contiguous().numpy()
    digest = hashlib.sha256(f"{name} {eye.version} {content.shape} ".encode() + content.tobytes()).hexdigest()
    path = cache_folder() / "image" / "features" / f"{name}-{digest[:16]}.npy"
    if not path.exists():
        features = eye.see(pixels).float().numpy()
        with whole(path) as part, part.open("wb") as file:
            np.save(file, features)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def kernel(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The kernel distance of features (A, F) and (B, F), and its standard error.

    NaN for fewer than two of either; so is the error for fewer than three of ``x``.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return math.nan, math.nan
    within, between, reference = (_cubic(a.double(), b.double()) for a, b in ((x, x), (x, y), (y, y)))
    rows, columns = within.sum(1) - within.diagonal(), between.sum(1)
    rest = (reference.sum() - reference.trace()) / (m * (m - 1))
    value = rows.sum() / (n * (n - 1)) + rest - 2 * columns.sum() / (n * m)
    if n < 3:
        return float(value), math.nan
    without = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2)) + rest - 2 * (columns.sum() - columns) / ((n - 1) * m)
    spread = (without - without.mean()).square().sum() * (n - 1) / n
    return float(value), float(spread.sqrt())


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
