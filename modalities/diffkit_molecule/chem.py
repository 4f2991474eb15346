"""Molecules as labelled graphs, and back.

A molecule is a list of atom types and a list of bonds with the orders 1, 2 and 3. An atom type is an element
with its formal charge folded in ("C", "N+", "O-"), so that one categorical variable says all there is to
say of an atom. Aromatic systems are kekulised: an aromatic bond has no order of its own, and counting it
as single, as much published code does, makes every aromatic atom look wrong.

Heavy-atom graphs leave hydrogens to RDKit's valence model; explicit-hydrogen graphs carry every one of them
as an atom "H" and never gain another. Charges stay as they are written: nothing is neutralised, so a
zwitterion keeps both its ends. Stereochemistry is not part of a graph and is removed.

Encoding fails loudly (``ValueError`` with the reason) and decoding never fails, never sanitises and never repairs:
whether a decoded graph is a molecule is for :func:`check` to say.

    >>> vocabulary = Vocabulary(("C", "N", "O"))
    >>> graph = mol_to_graph(standardise("c1ccncc1"), vocabulary)
    >>> mol, reason = check(graph_to_mol(graph.atoms, graph.bonds, vocabulary))
    >>> canonical_smiles(mol)
    'c1ccncc1'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

MolT = TypeVar("MolT", bound=Chem.Mol)
BOND_TYPES = (Chem.BondType.ZERO, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
_ORDER = {bond: order for order, bond in enumerate(BOND_TYPES) if order}
_ATOM_TYPE = re.compile(r"([A-Z][a-z]?)(?:([+-])(\d*))?")


def atom_type(symbol: str, charge: int) -> str:
    """Name of an element with a formal charge: ``("N", 1)`` -> ``"N+"``, ``("S", -2)`` -> ``"S-2"``."""
    if charge == 0:
        return symbol
    return symbol + ("+" if charge > 0 else "-") + (str(abs(charge)) if abs(charge) > 1 else "")


def parse_atom_type(name: str) -> tuple[str, int]:
    """Element and formal charge of an atom type; the inverse of :func:`atom_type`."""
    match = _ATOM_TYPE.fullmatch(name)
    if match is None:
        raise ValueError(f"got atom type {name!r}; expected an element and a charge, such as 'C', 'N+' or 'S-2'")
    symbol, sign, size = match.groups()
    return symbol, 0 if sign is None else int(sign + (size or "1"))


@dataclass(frozen=True)
class Vocabulary:
    """The atom types a model knows; an atom's class is its position in ``types``."""

    types: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.types or len(set(self.types)) != len(self.types):
            raise ValueError(f"got atom types {self.types}; expected at least one, each named once")
        for name in self.types:
            parse_atom_type(name)

    def __len__(self) -> int:
        return len(self.types)

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.types)}

    @cached_property
    def parsed(self) -> tuple[tuple[str, int], ...]:
        """Element and formal charge of every class."""
        return tuple(parse_atom_type(name) for name in self.types)

    @property
    def hydrogens(self) -> bool:
        """Whether graphs of this vocabulary carry their hydrogens as atoms."""
        return "H" in self.types

    def index(self, name: str) -> int:
        """Class of an atom type; ``ValueError`` names what is not in the vocabulary."""
        try:
            return self._classes[name]
        except KeyError:
            raise ValueError(f"atom type {name} is not in the vocabulary ({' '.join(self.types)})") from None


@dataclass(frozen=True)
class Graph:
    """One molecule: ``atoms`` int64 [n], ``bonds`` int64 [b, 3] of (i, j, order) with i < j, ``positions``
    float32 [n, 3] in angstrom or None.
    """

    atoms: NDArray[np.int64]
    bonds: NDArray[np.int64]
    positions: NDArray[np.float32] | None = None


def standardise(smiles: str) -> Chem.Mol:
    """Parse a SMILES into the form that graphs are made of: see :func:`standardise_mol`."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise ValueError("RDKit cannot parse it")
    return standardise_mol(mol)


def standardise_mol(mol: Chem.Mol) -> Chem.Mol:
    """A kekulised copy without stereochemistry, isotopes and atom maps. Charges and explicit hydrogens stay.

    Raises:
        ValueError: with the reason, if the molecule is empty, does not sanitise or is in several fragments.
    """
    if mol.GetNumAtoms() == 0:
        raise ValueError("no atoms")
    clean, reason = check(mol)
    if clean is None:
        raise ValueError(reason)
    Chem.RemoveStereochemistry(clean)
    for atom in clean.GetAtoms():
        atom.SetIsotope(0)
        atom.SetAtomMapNum(0)
    Chem.Kekulize(clean, clearAromaticFlags=True)
    return clean


def canonical_smiles(mol: Chem.Mol) -> str:
    """Canonical aromatic SMILES without stereochemistry and explicit hydrogens: the key of a molecule.

    ``mol`` must sanitise.
    """
    copy = Chem.Mol(mol)
    Chem.SanitizeMol(copy)
    return str(Chem.MolToSmiles(Chem.RemoveHs(copy), isomericSmiles=False))


def type_names(mol: Chem.Mol) -> list[str]:
    """Atom type of every atom, in the order of the molecule."""
    return [atom_type(atom.GetSymbol(), atom.GetFormalCharge()) for atom in mol.GetAtoms()]


def mol_to_graph(mol: Chem.Mol, vocabulary: Vocabulary, hydrogens: bool = False) -> Graph:
    """Graph of a standardised molecule, with hydrogens as atoms (heavy atoms first) or without.

    Positions are those of the molecule's 3-D conformer, if it has one.

    Raises:
        ValueError: with the reason, for atoms outside the vocabulary, bonds that are not single, double or triple, and,
            where hydrogens are left out, atoms that the valence model would give others (radicals, unusual valences).
    """
    full = Chem.AddHs(mol, addCoords=True) if hydrogens else Chem.RemoveHs(mol, sanitize=False)
    atoms = np.array([vocabulary.index(name) for name in type_names(full)], dtype=np.int64)
    bonds = np.array(sorted(map(_bond, full.GetBonds())), dtype=np.int64).reshape(-1, 3)
    if not hydrogens:
        _require_implied_hydrogens(mol, graph_to_mol(atoms, bonds, vocabulary))
    return Graph(atoms, bonds, conformer_positions(full))


def _require_implied_hydrogens(mol: Chem.Mol, decoded: Chem.Mol) -> None:
    decoded.UpdatePropertyCache(strict=False)
    heavy = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    for atom, implied in zip(heavy, decoded.GetAtoms(), strict=True):
        found, expected = atom.GetTotalNumHs(includeNeighbors=True), implied.GetTotalNumHs()
        if found != expected:
            name = atom_type(atom.GetSymbol(), atom.GetFormalCharge())
            raise ValueError(f"{name} with {found} hydrogens, where its valence implies {expected}")


def _bond(bond: Chem.Bond) -> tuple[int, int, int]:
    i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
    if bond.GetBondType() not in _ORDER:
        raise ValueError(f"bond type {bond.GetBondType().name.lower()} is not single, double or triple")
    return i, j, _ORDER[bond.GetBondType()]


def conformer_positions(mol: Chem.Mol) -> NDArray[np.float32] | None:
    """Positions float32 [n, 3] in angstrom of the 3-D conformer, or None if there is none."""
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        return None
    return np.asarray(mol.GetConformer().GetPositions(), dtype=np.float32)


def graph_to_mol(
    atoms: Iterable[int],
    bonds: Iterable[Iterable[int]],
    vocabulary: Vocabulary,
    positions: NDArray[np.floating] | None = None,
) -> Chem.RWMol:
    """The molecule that a graph says, right or wrong: not sanitised, not repaired.

    ``atoms`` are classes [n], ``bonds`` rows (i, j, order) with order 1, 2 or 3, ``positions`` [n, 3] in angstrom. With
    a vocabulary that holds "H" no hydrogen is ever implied; without, RDKit fills valences when it sanitises.
    """
    mol = Chem.RWMol()
    for index in atoms:
        symbol, charge = vocabulary.parsed[int(index)]
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(vocabulary.hydrogens)
        mol.AddAtom(atom)
    for i, j, order in bonds:
        mol.AddBond(int(i), int(j), BOND_TYPES[int(order)])
    return mol if positions is None else with_positions(mol, positions)


def with_positions(mol: MolT, positions: NDArray[np.floating]) -> MolT:
    """``mol`` itself, its 3-D conformer now at ``positions`` [n, 3] in angstrom."""
    conformer = Chem.Conformer(len(positions))
    conformer.Set3D(True)
    conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)
    return mol


def check(mol: Chem.Mol) -> tuple[Chem.Mol | None, str]:
    """The sanitised copy of a valid molecule and "", or None and what is wrong with it.

    Valid means that RDKit sanitises it and that it is one fragment. Nothing is repaired and no fragment is rescued;
    the reason is RDKit's name of the step that failed ("properties" is a valence), or the number of fragments.
    """
    copy = Chem.Mol(mol)
    with rdBase.BlockLogs():
        failed = Chem.SanitizeMol(copy, catchErrors=True)
    if failed != Chem.SanitizeFlags.SANITIZE_NONE:
        return None, f"does not sanitise: {failed.name.removeprefix('SANITIZE_').lower()}"
    fragments = len(Chem.GetMolFrags(copy))
    return (copy, "") if fragments == 1 else (None, f"{fragments} fragments")


def with_hydrogens_and_conformer(mol: Chem.Mol, seed: int) -> Chem.Mol | None:
    """The molecule with explicit hydrogens and one 3-D conformer: ETKDGv3, relaxed with MMFF94 where it has parameters.

    The same seed gives the same conformer. None when RDKit finds no embedding.
    """
    mol = Chem.AddHs(mol)
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = seed  # type: ignore[assignment]  # the stub has it wrong
    with rdBase.BlockLogs():
        if rdDistGeom.EmbedMolecule(mol, settings) < 0:
            return None
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    return mol
