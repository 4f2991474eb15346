"""A person's own molecules: SMILES, CSV and SDF files.

- ``.smi``, ``.txt``: a SMILES is the first word of a line; what follows it is ignored, and so is a heading.
- ``.csv``: a column ``smiles``, ``canonical_smiles`` or so; numeric columns are properties.
- ``.sdf``: records with or without coordinates; numeric fields are properties.

What cannot be used is counted and named by line or record, and the rest is used. A file of which nothing can be used
is an error.
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem, rdBase

from diffkit_molecule.chem import (
    Vocabulary,
    standardise,
    standardise_mol,
    type_names,
    with_hydrogens_and_conformer,
)
from diffkit_molecule.packed import Molecule, Packed, Rejected, pack

SMILES_COLUMNS = ("smiles", "canonical_smiles", "isosmiles", "smi")
SHOWN = 3
"""Lines or records named for one reason."""


@dataclass(frozen=True)
class Entry:
    """What stands in a file at ``where`` ("line 7"): a SMILES, or the molecule of a record (None if unreadable)."""

    where: str
    content: str | Chem.Mol | None
    properties: dict[str, float]


@dataclass(frozen=True)
class Report:
    """How much of a file was used: ``rejected`` are the others of its ``total`` entries, with reasons."""

    path: Path
    total: int
    rejected: Rejected

    def __str__(self) -> str:
        used = f"{self.path}: {self.total - len(self.rejected)} of {self.total} molecules used"
        return f"{used}; left out: {self.reasons()}" if self.rejected else used

    def reasons(self) -> str:
        """Every reason with its count and first places, the most frequent first."""
        counts = Counter(reason for _, reason in self.rejected)
        return "; ".join(f"{reason} ({self._places(reason, count)})" for reason, count in counts.most_common())

    def _places(self, reason: str, count: int) -> str:
        places = [where for where, why in self.rejected if why == reason][:SHOWN]
        return ", ".join(places) + (f" and {count - SHOWN} more" if count > SHOWN else "")


def read(
    path: Path,
    vocabulary: Vocabulary | None,
    hydrogens: bool,
    positions: bool,
    descriptors: Sequence[str] = (),
) -> tuple[Packed, Report]:
    """Pack the molecules of a file.

    Args:
        path: a file of one of the kinds in the module's docstring.
        vocabulary: the atom types to know; None takes those of the file, the most frequent first.
        hydrogens: as atoms of the graph.
        positions: take the 3-D coordinates; then every atom of the graph must have them.
        descriptors: properties to compute where the file does not have them (names in `descriptors.CONTINUOUS`).

    Raises:
        ValueError: for an unknown kind of file, or one without a single molecule that can be used.
        OSError: if the file cannot be read.
    """
    molecules: list[Molecule] = []
    rejected: Rejected = []
    for entry in _entries(path):
        try:
            molecules.append(_molecule(entry, hydrogens, positions, descriptors))
        except ValueError as error:
            rejected.append((entry.where, str(error)))
    total = len(molecules) + len(rejected)
    packed, misfits = pack(molecules, vocabulary or observed_vocabulary(molecules, hydrogens), positions)
    report = Report(path, total, rejected + misfits)
    if len(packed) == 0:
        raise ValueError(_useless(report, positions))
    return packed, report


def _useless(report: Report, positions: bool) -> str:
    expected = "an SDF with 3-D coordinates and explicit hydrogens" if positions else "at least one molecule"
    found = f"none of {report.total} usable: {report.reasons()}" if report.total else "nothing in it"
    return f"got {report.path} with {found}; expected {expected}; check the file and its kind"


def read_one(source: str, positions: bool = False) -> Chem.Mol:
    """The first molecule of a file, or that of a SMILES; with coordinates, RDKit's where it has none of its own.

    Raises:
        ValueError: for what is neither, or cannot be used.
    """
    path = Path(source)
    if path.suffix.lower() in _READERS or path.exists():
        mol = _first(path)
    else:
        try:
            mol = standardise(source)
        except ValueError as error:
            raise ValueError(f"got {source}, which is no file, and no SMILES either: {error}") from None
    if not positions or (mol.GetNumConformers() and mol.GetConformer().Is3D()):
        return mol
    solid = with_hydrogens_and_conformer(mol, seed=0)
    if solid is None:
        raise ValueError(f"got {source}, for which RDKit finds no conformer; expected an SDF with 3-D coordinates")
    return solid


def _first(path: Path) -> Chem.Mol:
    entries = _entries(path)
    entry = next(entries, None)
    if entry is None:
        raise ValueError(f"got {path}, with nothing in it; expected a molecule")
    if next(entries, None) is not None:
        warnings.warn(f"{path} holds several molecules; the first is taken", stacklevel=3)
    try:
        return _molecule(entry, hydrogens=False, positions=False, descriptors=()).mol
    except ValueError as error:
        raise ValueError(f"got {path} with a first molecule that cannot be used: {error}") from None


def observed_vocabulary(molecules: Sequence[Molecule], hydrogens: bool) -> Vocabulary:
    """The atom types that occur, the most frequent first; "H" is last, and only there if hydrogens are atoms."""
    counts = Counter(name for molecule in molecules for name in type_names(molecule.mol) if name != "H")
    types = sorted(counts, key=lambda name: (-counts[name], name))
    return Vocabulary((*types, "H") if hydrogens else tuple(types) or ("C",))


def _molecule(entry: Entry, hydrogens: bool, positions: bool, descriptors: Sequence[str]) -> Molecule:
    if entry.content is None:
        raise ValueError("RDKit cannot read it")
    mol = standardise(entry.content) if isinstance(entry.content, str) else standardise_mol(entry.content)
    if positions:
        _require_coordinates(mol, hydrogens)
    return Molecule.of(mol, entry.where, entry.properties, descriptors)


def _require_coordinates(mol: Chem.Mol, hydrogens: bool) -> None:
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        raise ValueError("no 3-D coordinates")
    if hydrogens and Chem.AddHs(mol).GetNumAtoms() > mol.GetNumAtoms():
        raise ValueError("hydrogens without coordinates")


def _entries(path: Path) -> Iterator[Entry]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"got {path}; expected a file that ends in {', '.join(_READERS)}")
    return reader(path)


def _smiles_entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            words = line.split()
            if words and not (number == 1 and words[0].lower() in SMILES_COLUMNS):
                yield Entry(f"line {number}", words[0], {})


def _csv_entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or ()
        column = next((name for name in names if name.strip().lower() in SMILES_COLUMNS), None)
        if column is None:
            raise ValueError(f"got {path} with columns {', '.join(names) or '(none)'}; expected one named 'smiles'")
        for row in rows:
            yield Entry(f"line {rows.line_num}", (row[column] or "").strip(), _numbers(row))


def _sdf_entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file, rdBase.BlockLogs():
        supplier = Chem.ForwardSDMolSupplier(file, sanitize=False, removeHs=False)
        for number, mol in enumerate(supplier, start=1):
            yield Entry(f"record {number}", mol, {} if mol is None else _numbers(mol.GetPropsAsDict()))


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".smi": _smiles_entries,
    ".txt": _smiles_entries,
    ".csv": _csv_entries,
    ".sdf": _sdf_entries,
}


def _numbers(fields: dict[str, object]) -> dict[str, float]:
    """The fields that are numbers."""
    numbers = {}
    for name, value in fields.items():
        try:
            numbers[name] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return numbers
