"""Properties that RDKit computes from a molecule's graph: columns of `molecules.csv`, and what the KL compares."""

from collections.abc import Callable, Mapping
from typing import Final

from rdkit import Chem
from rdkit.Chem import QED, rdMolDescriptors

__all__ = ["CONTINUOUS", "COUNTS", "NAMES", "describe"]


def _logp(mol: Chem.Mol) -> float:
    logp, _ = rdMolDescriptors.CalcCrippenDescriptors(mol)
    return float(logp)


CONTINUOUS: Final[Mapping[str, Callable[[Chem.Mol], float]]] = {
    "molecular_weight": rdMolDescriptors._CalcMolWt,  # g/mol, the mean over isotopes; what Descriptors.MolWt calls
    "logp": _logp,  # Wildman & Crippen 1999
    "qed": QED.qed,  # drug-likeness in [0, 1], Bickerton et al. 2012
    "tpsa": rdMolDescriptors.CalcTPSA,  # polar surface in square angstrom, Ertl et al. 2000
}
COUNTS: Final[Mapping[str, Callable[[Chem.Mol], int]]] = {
    "heavy_atoms": rdMolDescriptors.CalcNumHeavyAtoms,
    "hbd": rdMolDescriptors.CalcNumHBD,  # hydrogen-bond donors
    "hba": rdMolDescriptors.CalcNumHBA,  # and acceptors
    "rings": rdMolDescriptors.CalcNumRings,
    "rotatable_bonds": rdMolDescriptors.CalcNumRotatableBonds,
}
NAMES: Final = (*CONTINUOUS, *COUNTS)


def describe(mol: Chem.Mol) -> dict[str, float]:
    """Every property of a sanitised molecule, with or without explicit hydrogens."""
    mol = Chem.RemoveHs(mol)
    return {name: function(mol) for name, function in {**CONTINUOUS, **COUNTS}.items()}
