"""How far apart two sets of molecules are: Frechet ChemNet distance, and KL divergence of properties.

FCD (Preuer et al. 2018, arXiv:1803.09518) is the Frechet distance between Gaussians fitted to the activations
of ChemNet, a network trained to predict bioassays from SMILES:

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

Small sets bias it upward, for their 512 x 512 covariances are poorly known: N molecules of QM9 against N others give
about 740 / N (0.75 at 1,000, 0.25 at 3,000, 0.12 at 6,000). Figures compare only at equal sizes, beside the floor.

The KL divergence is GuacaMol's (Brown et al. 2019, arXiv:1811.09621), KL(reference || samples) in nats: it grows
where the reference has what the samples lack.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit.files import whole

Floats = NDArray[np.floating[Any]]
Moments = tuple[Floats, Floats]
"""Mean [d] and covariance [d, d]."""

SMILES_LENGTH = 350  # characters that ChemNet reads
KDE_POINTS = 1000
DENSITY_FLOOR = 1e-10
"""Added to both densities, as in GuacaMol, so that what the samples lack costs much but not everything."""


def fcd(samples: Sequence[str], reference: Sequence[str], folder: Path | None = None) -> float:
    """Frechet ChemNet distance between two lists of canonical SMILES; the reference's moments are kept in ``folder``.

    Errors are those of `chemnet_moments`.
    """
    return frechet(chemnet_moments(samples), chemnet_moments(reference, folder))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet distance between two Gaussians.

    tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2): symmetric, hence real and
    stable, which the matrix root of A B is not when a covariance is nearly singular.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(covariance_a + covariance_b) - 2 * overlap)


def chemnet_moments(smiles: Sequence[str], folder: Path | None = None) -> Moments:
    """Moments of ChemNet's activations over canonical SMILES.

    With ``folder`` they are kept in a file there, named by the hash of the list, and read from it the next time.

    Raises:
        ValueError: below two molecules.
        ModuleNotFoundError: without the package fcd_torch, which carries the network.
    """
    if len(smiles) < 2:
        raise ValueError(f"got {len(smiles)} molecules; FCD needs 2 at least, and thousands to mean something")
    if folder is None:
        return _moments(chemnet_activations(smiles))
    digest = hashlib.sha256("\n".join(smiles).encode()).hexdigest()
    path = folder / f"chemnet-{digest[:16]}.npz"
    if not path.exists():
        mean, covariance = _moments(chemnet_activations(smiles))
        with whole(path) as part:
            np.savez(part, mean=mean, covariance=covariance)
    with np.load(path) as arrays:
        return arrays["mean"], arrays["covariance"]


def _moments(x: Floats) -> Moments:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def chemnet_activations(smiles: Sequence[str], batch_size: int = 512) -> Floats:
    """ChemNet's last hidden layer: float64 [len(smiles), 512]; about 250 molecules a second on one core."""
    network, one_hot = _chemnet()
    rows = []
    for start in range(0, len(smiles), batch_size):
        text = np.stack([one_hot(line, SMILES_LENGTH) for line in smiles[start : start + batch_size]])
        x = torch.from_numpy(text / text.shape[-1]).float().transpose(1, 2)  # the scale ChemNet was trained at
        with torch.no_grad():
            rows.append(network(x).double().numpy())
    return np.concatenate(rows)


@cache
def _chemnet() -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[str, int], Floats]]:
    """The network and its one-hot code of a SMILES; the rest of fcd_torch calls what new numpy and scipy drop."""
    try:
        package, utils = import_module("fcd_torch"), import_module("fcd_torch.utils")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("FCD needs the package fcd_torch, which is missing: pip install fcd_torch") from error
    return package.FCD().model, utils.get_one_hot


def kl_continuous(reference: Floats, samples: Floats) -> float:
    """KL of a continuous property [n], [m], with Gaussian kernels.

    The densities are taken at 1,000 points from the least to the greatest value of both sets. NaN where a set has fewer
    than two distinct values, hence no width.
    """
    if min(len(np.unique(reference)), len(np.unique(samples))) < 2:
        return math.nan
    both = np.concatenate([reference, samples])
    x = np.linspace(both.min(), both.max(), KDE_POINTS)
    return _kl(_density(reference, x), _density(samples, x))


def kl_counts(reference: Floats, samples: Floats) -> float:
    """KL of a whole-number property [n], [m], with one bin per number.

    (GuacaMol's ten bins over the reference's range merge numbers, and drop the samples outside.) NaN if a set is empty.
    """
    if not len(reference) or not len(samples):
        return math.nan
    values = np.union1d(reference, samples)
    return _kl(*((values == column[:, None]).mean(axis=0) for column in (reference, samples)))


def _density(data: Floats, x: Floats) -> Floats:
    """Kernel density estimate of ``data`` [n] at the points ``x`` [k]; Scott's rule: width = deviation n^(-1/5)."""
    width = data.std(ddof=1) * len(data) ** -0.2
    kernels = [np.exp(-0.5 * ((point - data) / width) ** 2).mean() for point in x]
    return np.asarray(kernels / (width * math.sqrt(2 * math.pi)))


def _kl(p: Floats, q: Floats) -> float:
    """KL(p || q) in nats of two histograms or densities on the same bins."""
    p, q = ((density + DENSITY_FLOOR) / (density + DENSITY_FLOOR).sum() for density in (p, q))
    return float((p * np.log(p / q)).sum())
