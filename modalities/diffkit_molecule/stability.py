"""Atom and molecule stability, by two named protocols whose figures do not compare.

An atom is *stable* when the orders of its bonds sum to a valence that its element allows; a molecule is stable
when all its atoms are. Hydrogens count as atoms.

``kekule``  Bonds as the model drew them, kekulised, against `VALENCES`: keyed by element and formal charge, as in
            MiDi (Vignac et al. 2023, arXiv:2302.09048) and FlowMol (Dunn & Koes 2024, arXiv:2404.19739). Their
            table is looser: it lets a neutral carbon have 3 bonds and a neutral nitrogen 2. On the elements of QM9
            what is stable here is stable there, not the reverse.
``edm``     Bonds guessed from distances alone: EDM (Hoogeboom et al. 2022, arXiv:2203.17003), as in
            `qm9/bond_analyze.py` of its code. It knows no charges, and its margins are a compromise: QM9 itself
            scores 99.3 % of atoms and 95.1 % of molecules (measured).
"""

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

VALENCES: Final[Mapping[tuple[str, int], tuple[int, ...]]] = {
    ("H", 0): (1,),
    ("B", -1): (4,),
    ("B", 0): (3,),
    ("C", -1): (3,),
    ("C", 0): (4,),
    ("C", 1): (3,),
    ("N", -1): (2,),
    ("N", 0): (3,),
    ("N", 1): (4,),
    ("O", -1): (1,),
    ("O", 0): (2,),
    ("O", 1): (3,),
    ("F", 0): (1,),
    ("Si", 0): (4,),
    ("P", 0): (3, 5),
    ("P", 1): (4,),
    ("S", -1): (1,),
    ("S", 0): (2, 4, 6),
    ("S", 1): (3, 5),
    ("Cl", 0): (1,),
    ("Se", 0): (2, 4, 6),
    ("Br", 0): (1,),
    ("I", 0): (1,),
}
"""The ``kekule`` table: (element, formal charge) -> allowed sums of bond orders. What is not in it is unstable."""

EDM_VALENCES: Final[Mapping[str, int]] = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1, "S": 4, "Cl": 1, "Br": 1}
"""The ``edm`` table; sulphur's 4 is EDM's own."""

EDM_SINGLE: Final = (
    (74,),
    (109, 154),
    (101, 147, 145),
    (96, 143, 140, 148),
    (92, 135, 136, 142, 142),
    (134, 182, 168, 151, 158, 204),
    (127, 177, 175, 164, 166, 207, 199),
    (141, 194, 214, 172, 178, 225, 214, 228),
)
"""Lengths of single bonds in picometres, rows and columns in the order of `EDM_VALENCES`."""
EDM_DOUBLE: Final = {"CC": 134, "CN": 129, "CO": 120, "CS": 160, "NN": 125, "NO": 121, "OO": 121}
EDM_TRIPLE: Final = {"CC": 120, "CN": 116, "CO": 113, "NN": 110}
EDM_MARGINS: Final = (10, 5, 3)
"""Picometres by which a single, double and triple bond may be longer."""


def kekule_stable(mol: Chem.Mol) -> NDArray[np.bool_]:
    """Whether each atom has a valence of `VALENCES`: bool [n], with the hydrogens.

    A heavy-atom graph is given its hydrogens first, so that only too many bonds can show. A graph drawn with its
    hydrogens (atoms marked ``NoImplicit``, see `chem.graph_to_mol`) gets none.
    """
    mol = Chem.Mol(mol)
    if any(bond.GetIsAromatic() for bond in mol.GetBonds()):
        Chem.Kekulize(mol, clearAromaticFlags=True)
    mol.UpdatePropertyCache(strict=False)
    return np.array([_allowed(atom) for atom in Chem.AddHs(mol).GetAtoms()], dtype=np.bool_)


def _allowed(atom: Chem.Atom) -> bool:
    valence = sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds())
    return valence in VALENCES.get((atom.GetSymbol(), atom.GetFormalCharge()), ())


def edm_stable(mol: Chem.Mol) -> NDArray[np.bool_]:
    """Whether EDM's distances give each atom its valence: bool [n]. Needs a conformer, ignores the bonds."""
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    valences = edm_orders(symbols, mol.GetConformer().GetPositions()).sum(axis=1)
    return np.asarray(valences == [EDM_VALENCES.get(symbol, -1) for symbol in symbols], dtype=np.bool_)


def edm_orders(symbols: list[str], positions: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bond orders int64 [n, n] that EDM reads from the distances between elements at ``positions`` [n, 3] (angstrom).

    The order is the number of limits (length + margin) that a distance stays under: for every pair of elements the
    triple limit lies below the double, and that below the single. Elements outside the table form no bond.
    """
    index = np.array([_EDM_INDEX.get(symbol, len(EDM_VALENCES)) for symbol in symbols], dtype=np.int64)
    distance = 100 * np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return np.asarray((distance[..., None] < _EDM_LIMITS[index[:, None], index]).sum(axis=-1))


def _edm_limits() -> NDArray[np.float64]:
    """Limits of single, double and triple bonds in picometres [element, element, 3]; -inf where there is none.

    The last row and column stand for every element outside the table.
    """
    limits = np.full((len(EDM_VALENCES) + 1, len(EDM_VALENCES) + 1, 3), -np.inf)
    for (i, a), (j, b) in combinations_with_replacement(enumerate(EDM_VALENCES), 2):
        lengths = (EDM_SINGLE[j][i], EDM_DOUBLE.get(a + b, -np.inf), EDM_TRIPLE.get(a + b, -np.inf))
        limits[i, j] = limits[j, i] = np.add(lengths, EDM_MARGINS)
    return limits


_EDM_INDEX: Final = {symbol: i for i, symbol in enumerate(EDM_VALENCES)}
_EDM_LIMITS: Final = _edm_limits()
