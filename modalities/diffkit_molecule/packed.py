"""A set of molecules in a few flat arrays, and in one file.

Molecule m owns the atoms ``offsets[m]:offsets[m + 1]`` and the bonds ``bond_offsets[m]:bond_offsets[m + 1]``; a bond is
(i, j, order) with i < j counted from the molecule's first atom. QM9 with its geometries takes some 30 MB on disk, loads
in under a second, and needs neither RDKit nor pickle to be read.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from diffkit.files import whole
from diffkit_molecule.chem import Graph, Vocabulary, canonical_smiles, mol_to_graph
from diffkit_molecule.descriptors import CONTINUOUS

SPLITS = ("train", "valid", "test", "test_scaffolds")
MAX_ATOMS = 255
"""Most atoms of one molecule: a bond's ends are stored as bytes."""

Rejected = list[tuple[str, str]]
"""What could not be used, as (where, reason): ("line 7", "3 fragments")."""


def split_of(smiles: str) -> str:
    """The split of a molecule by its canonical SMILES: 80% train, 10% valid, 10% test.

    The first 8 hexadecimal digits of its SHA-256, as a number modulo 100: 0-79 train, 80-89 valid, 90-99 test. It
    depends on nothing else, so a molecule that occurs twice, or in two sets, never straddles splits.
    """
    bucket = int(hashlib.sha256(smiles.encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "valid" if bucket < 90 else "test"


@dataclass(frozen=True)
class Molecule:
    """One molecule as a reader hands it over.

    ``mol`` is standardised (see `chem`), with a 3-D conformer if it has a geometry; ``smiles`` is canonical;
    ``properties`` go by name; ``split`` is one of ``SPLITS``; ``where`` says where it was read ("line 7").
    """

    mol: Chem.Mol
    smiles: str
    properties: dict[str, float]
    split: str
    where: str

    @classmethod
    def of(cls, mol: Chem.Mol, where: str, properties: Mapping[str, float], computed: Iterable[str]) -> Molecule:
        """A molecule with its key and its split, and with the ``computed`` properties of RDKit that it lacks.

        Those are names in `descriptors.CONTINUOUS`.
        """
        smiles = canonical_smiles(mol)
        plain = Chem.MolFromSmiles(smiles)
        added = {name: CONTINUOUS[name](plain) for name in computed if name not in properties}
        return cls(mol, smiles, {**properties, **added}, split_of(smiles), where)


@dataclass(frozen=True)
class Packed:
    """M molecules as flat arrays, with A atoms, B bonds and P properties; see the module's docstring."""

    vocabulary: Vocabulary
    atoms: NDArray[np.uint8]  # [A] classes
    offsets: NDArray[np.int64]  # [M + 1]
    bonds: NDArray[np.uint8]  # [B, 3]
    bond_offsets: NDArray[np.int64]  # [M + 1]
    positions: NDArray[np.float32] | None  # [A, 3] in angstrom, NaN where a molecule has no geometry
    smiles: NDArray[np.object_]  # [M] canonical
    splits: NDArray[np.uint8]  # [M] index into SPLITS
    property_names: tuple[str, ...]  # P
    properties: NDArray[np.float32]  # [M, P], NaN where unknown

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def graph(self, m: int) -> Graph:
        """Graph of molecule ``m``."""
        atoms = slice(self.offsets[m], self.offsets[m + 1])
        bonds = self.bonds[self.bond_offsets[m] : self.bond_offsets[m + 1]]
        positions = None if self.positions is None else self.positions[atoms]
        return Graph(self.atoms[atoms].astype(np.int64), bonds.astype(np.int64), positions)

    def select(self, indices: NDArray[np.int64]) -> Packed:
        """The molecules ``indices``, in that order."""
        atoms, offsets = _ragged_rows(self.offsets, indices)
        bonds, bond_offsets = _ragged_rows(self.bond_offsets, indices)
        return replace(
            self,
            atoms=self.atoms[atoms],
            offsets=offsets,
            bonds=self.bonds[bonds],
            bond_offsets=bond_offsets,
            positions=None if self.positions is None else self.positions[atoms],
            smiles=self.smiles[indices],
            splits=self.splits[indices],
            properties=self.properties[indices],
        )

    def with_geometry(self) -> Packed:
        """Only the molecules whose positions are known."""
        assert self.positions is not None
        return self.select(np.flatnonzero(~np.isnan(self.positions[self.offsets[:-1], 0])))

    def without_positions(self) -> Packed:
        """The graphs alone."""
        return replace(self, positions=None)

    def with_vocabulary(self, vocabulary: Vocabulary) -> Packed:
        """The same molecules in the classes of another vocabulary, which must hold all their atom types."""
        classes = [vocabulary.index(name) for name in self.vocabulary.types]
        return replace(self, vocabulary=vocabulary, atoms=np.array(classes, dtype=np.uint8)[self.atoms])

    def without_hydrogens(self) -> Packed:
        """The heavy-atom graphs of explicit-hydrogen ones; positions go with the atoms that stay."""
        types = tuple(name for name in self.vocabulary.types if name != "H")
        heavy = self.atoms != self.vocabulary.index("H")
        before = np.concatenate([[0], np.cumsum(heavy)])  # heavy atoms before each atom, over the whole set
        first = np.repeat(self.offsets[:-1], np.diff(self.bond_offsets))[:, None]
        ends = self.bonds[:, :2] + first
        stays = heavy[ends].all(axis=1)
        bonds = np.column_stack([before[ends] - before[first], self.bonds[:, 2]])[stays]
        classes = np.array([types.index(name) if name != "H" else 0 for name in self.vocabulary.types], np.uint8)
        return replace(
            self,
            vocabulary=Vocabulary(types),
            atoms=classes[self.atoms[heavy]],
            offsets=before[self.offsets],
            bonds=bonds.astype(np.uint8),
            bond_offsets=np.concatenate([[0], np.cumsum(stays)])[self.bond_offsets],
            positions=None if self.positions is None else self.positions[heavy],
        )


def _ragged_rows(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices of the chosen rows of a ragged array, and the offsets of the rows chosen."""
    sizes = np.diff(offsets)[rows]
    chosen = _offsets(sizes)
    return np.arange(chosen[-1]) + np.repeat(offsets[rows] - chosen[:-1], sizes), chosen


def _offsets(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def pack(molecules: Iterable[Molecule], vocabulary: Vocabulary, positions: bool) -> tuple[Packed, Rejected]:
    """Pack molecules, and list those that do not fit. A vocabulary with "H" packs explicit hydrogens."""
    kept: list[Molecule] = []
    graphs: list[Graph] = []
    rejected: Rejected = []
    for molecule in molecules:
        try:
            graphs.append(_graph(molecule.mol, vocabulary))
            kept.append(molecule)
        except ValueError as error:
            rejected.append((molecule.where, str(error)))
    return _flatten(kept, graphs, vocabulary, positions), rejected


def _graph(mol: Chem.Mol, vocabulary: Vocabulary) -> Graph:
    graph = mol_to_graph(mol, vocabulary, vocabulary.hydrogens)
    if len(graph.atoms) > MAX_ATOMS:
        raise ValueError(f"more than {MAX_ATOMS} atoms")
    return graph


def _flatten(kept: Sequence[Molecule], graphs: Sequence[Graph], vocabulary: Vocabulary, positions: bool) -> Packed:
    names = tuple(dict.fromkeys(name for molecule in kept for name in molecule.properties))
    table = [[molecule.properties.get(name, np.nan) for name in names] for molecule in kept]
    none = np.zeros((0, 3))
    return Packed(
        vocabulary=vocabulary,
        atoms=np.concatenate([none[:, 0], *(graph.atoms for graph in graphs)]).astype(np.uint8),
        offsets=_offsets([len(graph.atoms) for graph in graphs]),
        bonds=np.concatenate([none, *(graph.bonds for graph in graphs)]).astype(np.uint8),
        bond_offsets=_offsets([len(graph.bonds) for graph in graphs]),
        positions=np.concatenate([none, *map(_centred, graphs)]).astype(np.float32) if positions else None,
        smiles=np.array([molecule.smiles for molecule in kept], dtype=object),
        splits=np.array([SPLITS.index(molecule.split) for molecule in kept], dtype=np.uint8),
        property_names=names,
        properties=np.array(table, dtype=np.float32).reshape(len(kept), len(names)),
    )


def _centred(graph: Graph) -> NDArray[np.float32]:
    """Positions with zero mean, NaN if there are none."""
    if graph.positions is None:
        return np.full((len(graph.atoms), 3), np.nan, dtype=np.float32)
    centred: NDArray[np.float32] = graph.positions - graph.positions.mean(axis=0)
    return centred


def concatenate(parts: Sequence[Packed]) -> Packed:
    """One set of several that have the same vocabulary and properties."""
    positions = [part.positions for part in parts if part.positions is not None]
    return replace(
        parts[0],
        atoms=np.concatenate([part.atoms for part in parts]),
        offsets=_offsets(np.concatenate([np.diff(part.offsets) for part in parts])),
        bonds=np.concatenate([part.bonds for part in parts]),
        bond_offsets=_offsets(np.concatenate([np.diff(part.bond_offsets) for part in parts])),
        positions=np.concatenate(positions) if positions else None,
        smiles=np.concatenate([part.smiles for part in parts]),
        splits=np.concatenate([part.splits for part in parts]),
        properties=np.concatenate([part.properties for part in parts]),
    )


_ARRAYS = ("atoms", "offsets", "bonds", "bond_offsets", "splits", "properties")


def save(packed: Packed, path: Path) -> None:
    """Write one compressed npz, whole or not at all."""
    arrays: dict[str, Any] = {name: getattr(packed, name) for name in _ARRAYS}
    arrays |= {name: _text(getattr(packed, name)) for name in ("smiles", "property_names")}
    arrays["vocabulary"] = _text(packed.vocabulary.types)
    if packed.positions is not None:
        arrays["positions"] = packed.positions
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Packed:
    """Read what :func:`save` wrote; ``ValueError`` if the file is something else or cut short."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _read(file)
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"got {path}, which is not a whole file of packed molecules ({error}); delete it") from error


def _read(file: Any) -> Packed:
    return Packed(
        vocabulary=Vocabulary(tuple(_lines(file["vocabulary"]))),
        positions=file["positions"].astype(np.float32) if "positions" in file else None,
        smiles=np.array(_lines(file["smiles"]), dtype=object),
        property_names=tuple(_lines(file["property_names"])),
        **{name: file[name] for name in _ARRAYS},
    )


def _text(lines: Iterable[str]) -> NDArray[np.uint8]:
    """Strings as bytes: numpy's own arrays of strings take four bytes a character, all as long as the longest."""
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _lines(text: NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode().split("\n") if text.size else []
