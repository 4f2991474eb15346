"""Public sets of molecules, fetched as packages and converted once to the cache.

What is kept is one packed file in the folder ``molecule`` of the cache; `diffkit.packages` says how a package is had.

QM9 (Ramakrishnan et al., Scientific Data 1, 140022, 2014; package ``qm9pack``, MIT): molecules of up to nine heavy
atoms with DFT geometries and 15 properties. MOSES (Polykovskiy et al., Frontiers in Pharmacology 11, 565644, 2020;
package ``molsets``, MIT): drug-like molecules from ZINC.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from diffkit.packages import Package, cache_folder, fetched
from diffkit_molecule import packed
from diffkit_molecule.chem import Vocabulary, standardise, with_positions
from diffkit_molecule.descriptors import CONTINUOUS
from diffkit_molecule.packed import Molecule, Packed, Rejected, pack

logger = logging.getLogger(__name__)
Row = Mapping[str, str]
CHUNK = 2_000
"""Molecules converted at a time by one worker."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and how to read it: ``rows`` opens the wheel, ``molecule`` reads one row."""

    package: Package
    vocabulary: Vocabulary
    rows: Callable[[ZipFile], Iterator[Row]]
    molecule: Callable[[Row], Molecule]
    positions: bool


def cached(name: str) -> Packed:
    """A public set from the cache; the first time it is fetched and converted, which takes minutes.

    Raises ``ConnectionError`` if the package cannot be had and ``ValueError`` if it is not the file it should be.
    """
    path = cache_folder() / "molecule" / f"{name}-v1.npz"
    if not path.exists():
        packed.save(convert(SOURCES[name]), path)
    return packed.load(path)


def write_sample(path: Path, count: int = 2_000, seed: int = 0) -> None:
    """Write a random part of QM9, geometries included: how the sample in this package was made."""
    whole = cached("qm9").with_geometry()
    chosen = np.random.default_rng(seed).choice(len(whole), count, replace=False)
    packed.save(whole.select(np.sort(chosen)), path)


def convert(source: Source) -> Packed:
    """Fetch a set and pack all of it, on every core. What cannot be packed is counted in the log."""
    with fetched(source.package) as path, ZipFile(path) as wheel, ProcessPoolExecutor() as workers:
        chunks = _chunks(source.rows(wheel))
        results = list(workers.map(_convert_chunk, itertools.repeat(source), chunks))
    for where, reason in itertools.chain.from_iterable(rejected for _, rejected in results):
        logger.warning("%s %s: %s", source.package.name, where, reason)
    return packed.concatenate([part for part, _ in results])


def _convert_chunk(source: Source, rows: list[Row]) -> tuple[Packed, Rejected]:
    return pack(map(source.molecule, rows), source.vocabulary, source.positions)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk


def _csv_rows(binary: Iterable[bytes]) -> Iterator[Row]:
    return csv.DictReader(line.decode() for line in binary)


# QM9

_QM9_PROPERTIES = {
    "dipole": "Dipole_debye",
    "polarizability": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "u0": "InternalEnergy_0K_au",
    "u298": "InternalEnergy_298K_au",
    "h298": "Enthalphy_298K_au",
    "g298": "GibbsFreeEnergy_298K_au",
    "cv": "Heatcapacity_Cv_cal_mol_K",
    "rotation_a": "RotA_GHz",
    "rotation_b": "RotB_GHz",
    "rotation_c": "RotC_GHz",
}
_QM9_COLUMNS = ("Index", "SMILES", "Elements", "XYZ_Ang", *_QM9_PROPERTIES.values())


def _qm9_rows(wheel: ZipFile) -> Iterator[Row]:
    for part in (1, 2, 3):
        with wheel.open(f"qm9pack/data/qm9_part{part}.csv") as file:
            for row in _csv_rows(file):
                yield {column: row[column] for column in _QM9_COLUMNS}


def _qm9_molecule(row: Row) -> Molecule:
    """A molecule with explicit hydrogens; without a conformer where the geometry is not that of the SMILES."""
    mol = standardise(row["SMILES"])
    properties = {name: float(row[column]) for name, column in _QM9_PROPERTIES.items()}
    return Molecule.of(_placed(mol, row), f"molecule {row['Index']}", properties, CONTINUOUS)


def _placed(mol: Chem.Mol, row: Row) -> Chem.Mol:
    xyz = np.array(ast.literal_eval(row["XYZ_Ang"]))
    positions = match_geometry(mol, ast.literal_eval(row["Elements"]), xyz)
    return mol if positions is None else with_positions(Chem.AddHs(mol), positions)


def match_geometry(mol: Chem.Mol, elements: list[str], xyz: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Positions in the order of ``AddHs(mol)``, or None where the geometry is of another molecule.

    The heavy atoms of ``elements`` and ``xyz`` [n, 3] (angstrom) stand in the order of ``mol``; a hydrogen belongs to
    the nearest of them. Every atom must get the hydrogens it has in ``mol``, and no bond may be longer than 1.3 times
    the sum of its covalent radii (those of QM9 stay below 1.25, or were broken).
    """
    is_heavy = np.array(elements) != "H"
    heavy, hydrogens = xyz[is_heavy], xyz[~is_heavy]
    full = Chem.AddHs(mol)
    if [atom.GetSymbol() for atom in mol.GetAtoms()] != [element for element in elements if element != "H"]:
        return None
    owner = np.linalg.norm(hydrogens[:, None] - heavy[None], axis=-1).argmin(axis=1)
    expected = [atom.GetNeighbors()[0].GetIdx() for atom in full.GetAtoms() if atom.GetIdx() >= len(heavy)]
    if sorted(owner) != sorted(expected):
        return None
    placed = np.concatenate([heavy, hydrogens])
    placed[len(heavy) + np.argsort(expected, kind="stable")] = hydrogens[np.argsort(owner, kind="stable")]
    return placed if _longest_bond(full, placed) < 1.3 else None


def _longest_bond(mol: Chem.Mol, xyz: NDArray[np.float64]) -> float:
    """Length over the sum of covalent radii, the most of all bonds."""
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(atom.GetAtomicNum()) for atom in mol.GetAtoms()])
    i, j = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]).reshape(-1, 2).T
    return float(np.max(np.linalg.norm(xyz[i] - xyz[j], axis=-1) / (radii[i] + radii[j]), initial=0.0))


# MOSES


_MOSES_PROPERTIES = ("molecular_weight", "logp", "tpsa")  # QED would take an hour of one core


def _moses_rows(wheel: ZipFile) -> Iterator[Row]:
    for split in ("train", "test", "test_scaffolds"):
        with gzip.open(io.BytesIO(wheel.read(f"moses/dataset/data/{split}.csv.gz"))) as file:
            yield from ({"SMILES": row["SMILES"], "split": split} for row in _csv_rows(file))


def _moses_molecule(row: Row) -> Molecule:
    """A heavy-atom molecule.

    The published test sets stay whole; of the training set, what `packed.split_of` calls valid is held out.
    """
    molecule = Molecule.of(standardise(row["SMILES"]), row["SMILES"], {}, _MOSES_PROPERTIES)
    held_out = row["split"] == "train" and molecule.split == "valid"
    return molecule if held_out else replace(molecule, split=row["split"])


SOURCES = {
    "qm9": Source(
        package=Package(
            "pip", "qm9pack", "1.0.3", "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0", "MIT", 104
        ),
        vocabulary=Vocabulary(("C", "N", "O", "F", "N+", "O-", "C-", "N-", "H")),
        rows=_qm9_rows,
        molecule=_qm9_molecule,
        positions=True,
    ),
    "moses": Source(
        package=Package(
            "pip", "molsets", "0.3.1", "7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34", "MIT", 52
        ),
        vocabulary=Vocabulary(("C", "N", "O", "F", "S", "Cl", "Br")),
        rows=_moses_rows,
        molecule=_moses_molecule,
        positions=False,
    ),
}
