"""Shapes of generated conformers: bond lengths, bond angles and strain.

Lengths and angles are compared kind by kind, since over all bonds at once a long C=O could pay for a short C-C. A kind
is written with elements and bonds, "C=O" or "C:C-H"; ":" is aromatic as RDKit perceives it, so that the drawn Kekule
form does not matter. Each kind has a Wasserstein-1 distance, in angstrom or degrees; their mean is weighted by the
kind's frequency in the reference, as in MiDi (Vignac et al. 2023, arXiv:2302.09048).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

Floats = NDArray[np.floating[Any]]
ByKind = Mapping[str, Floats]
"""Kind of bond or angle -> measured values [n]."""

RELAX_STEPS = 2000
SYMBOLS = {
    Chem.BondType.SINGLE: "-",
    Chem.BondType.DOUBLE: "=",
    Chem.BondType.TRIPLE: "#",
    Chem.BondType.AROMATIC: ":",
}


def lengths(mol: Chem.Mol) -> Iterator[tuple[str, float]]:
    """Kind and length in angstrom of every bond of a sanitised molecule with a conformer."""
    positions = mol.GetConformer().GetPositions()
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        yield _kind(mol, i, j), float(np.linalg.norm(positions[i] - positions[j]))


def angles(mol: Chem.Mol) -> Iterator[tuple[str, float]]:
    """Kind and size in degrees of every angle between two bonds of an atom."""
    positions = mol.GetConformer().GetPositions()
    for atom in mol.GetAtoms():
        centre = atom.GetIdx()
        for i, k in combinations([neighbor.GetIdx() for neighbor in atom.GetNeighbors()], 2):
            yield _kind(mol, i, centre, k), _angle(positions[i] - positions[centre], positions[k] - positions[centre])


def _kind(mol: Chem.Mol, *path: int) -> str:
    """Elements and bonds along a path of atoms, in whichever direction sorts first."""
    symbols = [mol.GetAtomWithIdx(i).GetSymbol() for i in path]
    bonds = [SYMBOLS[mol.GetBondBetweenAtoms(i, j).GetBondType()] for i, j in pairwise(path)]
    parts = [symbols[0], *chain.from_iterable(zip(bonds, symbols[1:], strict=True))]
    return min("".join(parts), "".join(reversed(parts)))


def _angle(u: Floats, v: Floats) -> float:
    """Angle in degrees; atan2 keeps its digits near 0 and 180, where arccos loses them."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v)), u @ v)))


def by_kind(mols: Iterable[Chem.Mol], measure: Callable[[Chem.Mol], Iterable[tuple[str, float]]]) -> ByKind:
    """What `lengths` or `angles` finds in all of the molecules."""
    values = defaultdict(list)
    for mol in mols:
        for kind, value in measure(mol):
            values[kind].append(value)
    return {kind: np.array(found) for kind, found in values.items()}


def wasserstein1(a: Floats, b: Floats) -> float:
    """Wasserstein-1 distance of two samples [n], [m]: the area between their distribution functions."""
    steps = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(values), steps[:-1], side="right") / len(values) for values in (a, b)]
    return float(np.abs(below[0] - below[1]) @ np.diff(steps))


@dataclass(frozen=True)
class Distance:
    """Mean distance over the kinds that both sets have; ``coverage`` is their share of the reference's values."""

    value: float
    coverage: float


def wasserstein(samples: ByKind, reference: ByKind) -> Distance:
    """Wasserstein-1 distance kind by kind, averaged with the reference's frequencies.

    A kind that the samples lack has no distance: ``coverage`` says how much is left. NaN where nothing is.
    """
    shared = sorted(samples.keys() & reference.keys())
    if not shared:
        return Distance(math.nan, 0.0)
    counts = np.array([len(reference[kind]) for kind in shared])
    distances = [wasserstein1(samples[kind], reference[kind]) for kind in shared]
    coverage = counts.sum() / sum(map(len, reference.values()))
    return Distance(float(counts @ distances / counts.sum()), float(coverage))


def strain(mol: Chem.Mol) -> float | None:
    """MMFF94 energy in kcal/mol that relaxing the conformer to its nearest minimum sets free.

    For a sanitised molecule with explicit hydrogens, which is not changed. None where MMFF94 lacks parameters, infinity
    where atoms lie so close that nothing can be relaxed.
    """
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        return None
    mol = Chem.Mol(mol)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol))
    before = field.CalcEnergy()
    try:
        with rdBase.BlockLogs():
            field.Minimize(maxIts=RELAX_STEPS)
    except RuntimeError:  # "bad direction in linearSearch": the gradient is not finite
        return math.inf
    released = before - field.CalcEnergy()
    return released if math.isfinite(released) else math.inf
