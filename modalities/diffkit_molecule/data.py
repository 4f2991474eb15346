"""Molecules as tensors: public sets, the shipped sample, and a person's own files.

An example has the leaves ``atoms`` int64 [N] (classes of the vocabulary), ``bonds`` int64 [N, N] (0 none, 1 single,
2 double, 3 triple; symmetric, zero diagonal) and, in 3-D, ``positions`` float32 [N, 3] with zero mean, in units of
``position_scale`` angstrom. Conditions are properties less their mean, over their standard deviation; an unknown one
is NaN.

Everything measured (marginals, sizes, scales) is measured on the train split, whichever split is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor

from diffkit.condition import Condition
from diffkit.modality import Batch, Example
from diffkit.naming import require_known
from diffkit_molecule import packed as packing
from diffkit_molecule.chem import BOND_TYPES, Vocabulary, check, graph_to_mol
from diffkit_molecule.descriptors import CONTINUOUS
from diffkit_molecule.packed import SPLITS, Packed
from diffkit_molecule.readers import read
from diffkit_molecule.sources import SOURCES, cached
from diffkit_molecule.tensors import masks

SAMPLE = Path(__file__).parent / "sample" / "qm9.npz"
"""2,000 molecules of QM9 that ship with the package."""


@dataclass(frozen=True, eq=False)
class MoleculeDataset:
    """A map-style dataset of the molecules of one split.

    Attributes:
        packed: the molecules.
        statistics: of the train split; see :func:`measure`.
        conditions: the properties that examples carry.
    """

    packed: Packed
    statistics: Mapping[str, Any]
    conditions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"got molecule {index} of {len(self)}")
        rows = np.array([index])
        x, mask = _dense(self.packed.select(rows), self.statistics["position_scale"])
        condition = {name: values[0] for name, values in self._conditions(rows).items()}
        return Example({k: v[0] for k, v in x.items()}, {k: v[0] for k, v in mask.items()}, condition)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch that `diffkit.data.collate` makes of these examples, some twenty times faster."""
        rows = np.asarray(indices, dtype=np.int64)
        x, mask = _dense(self.packed.select(rows), self.statistics["position_scale"])
        values = self._conditions(rows)
        present = {name: ~value.isnan() for name, value in values.items()}
        condition = Condition({name: value.nan_to_num() for name, value in values.items()}, present)
        return Batch(x, mask, condition, torch.from_numpy(rows))

    def _conditions(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        values = {}
        for name in self.conditions:
            mean, std = self.statistics["properties"][name]
            raw = self.packed.properties[rows, self.packed.property_names.index(name)]
            values[name] = torch.from_numpy((raw - np.float32(mean)) / np.float32(std))
        return values

    @property
    def smiles(self) -> list[str]:
        """Canonical SMILES of every molecule."""
        return list(self.packed.smiles)

    def records(self, index: int) -> Chem.Mol:
        """Molecule ``index`` of RDKit, sanitised, with its conformer in 3-D."""
        graph = self.packed.graph(index)
        mol, reason = check(graph_to_mol(graph.atoms, graph.bonds, self.packed.vocabulary, graph.positions))
        assert mol is not None, reason
        return mol


def _dense(packed: Packed, position_scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves and masks of molecules, padded with zeros to the largest."""
    mask = masks(torch.from_numpy(np.diff(packed.offsets)), packed.positions is not None)
    atoms = torch.zeros(mask["atoms"].shape, dtype=torch.int64)
    atoms[mask["atoms"]] = torch.from_numpy(packed.atoms.astype(np.int64))
    x = {"atoms": atoms, "bonds": torch.from_numpy(_adjacency(packed, atoms.shape[1]))}
    if packed.positions is not None:
        x["positions"] = torch.zeros(*atoms.shape, 3)
        x["positions"][mask["atoms"]] = torch.from_numpy(packed.positions) / position_scale
    return x, mask


def _adjacency(packed: Packed, size: int) -> NDArray[np.int64]:
    """Bond orders int64 [M, size, size], symmetric."""
    orders = np.zeros((len(packed), size, size), dtype=np.int64)
    molecule = np.repeat(np.arange(len(packed)), np.diff(packed.bond_offsets))
    i, j, order = packed.bonds.T
    orders[molecule, i, j] = orders[molecule, j, i] = order
    return orders


def load(
    source: str,
    split: str,
    hydrogens: bool = False,
    positions: bool = False,
    conditions: Sequence[str] = (),
    path: str | Path | None = None,
    vocabulary: Sequence[str] | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> MoleculeDataset:
    """The molecules of one split.

    Args:
        source: "sample" (shipped), "qm9" or "moses" (fetched and converted at the first use).
        split: "train", "valid" or "test"; MOSES has "test_scaffolds" as well.
        hydrogens: as atoms of the graph, or left to the valence model.
        positions: with the 3-D coordinates; molecules that have none are left out.
        conditions: properties that examples carry: of the source or the file, or those that RDKit computes.
        path: a file of SMILES, CSV or SDF to read in place of the source; what cannot be used of it is a warning.
        vocabulary: atom types, in the order of a model; by default those of the source or the file.
        statistics: of a model, whose scales are to be kept; by default they are measured.

    Raises:
        ValueError: for names that do not exist, a source that cannot give what is asked, or a file without molecules.
    """
    require_known("split", split, SPLITS)
    known = None if vocabulary is None else Vocabulary(tuple(vocabulary))
    if known and known.hydrogens != hydrogens:
        raise ValueError(
            f"got hydrogens={hydrogens} and the atom types {' '.join(known.types)}; expected them to agree on H"
        )
    whole = _whole(source, path, hydrogens, positions, tuple(conditions), known)
    for name in conditions:
        require_known("condition", name, whole.property_names)
    train = whole.select(np.flatnonzero(whole.splits == SPLITS.index("train")))
    if len(train) == 0:
        raise ValueError(f"got {path or source}, none of whose {len(whole)} molecules is for training; add more")
    chosen = train if split == "train" else whole.select(np.flatnonzero(whole.splits == SPLITS.index(split)))
    return MoleculeDataset(chosen, statistics or measure(train, conditions), tuple(conditions))


def _whole(
    source: str,
    path: str | Path | None,
    hydrogens: bool,
    positions: bool,
    conditions: tuple[str, ...],
    vocabulary: Vocabulary | None,
) -> Packed:
    """Every split of a set, in the form asked for."""
    if path is not None:
        changed = Path(path).stat().st_mtime_ns
        return _read_file(Path(path), changed, hydrogens, positions, conditions, vocabulary)
    require_known("source", source, ("sample", *SOURCES))
    packed = packing.load(SAMPLE) if source == "sample" else cached(source)
    packed = _in_form(packed, source, hydrogens, positions)
    return packed if vocabulary is None else packed.with_vocabulary(vocabulary)


def _in_form(packed: Packed, source: str, hydrogens: bool, positions: bool) -> Packed:
    if (positions and packed.positions is None) or (hydrogens and not packed.vocabulary.hydrogens):
        raise ValueError(f"got source '{source}', which has heavy-atom graphs alone; expected 'qm9' or an SDF as path")
    packed = packed.with_geometry() if positions else packed.without_positions()
    return packed if hydrogens or not packed.vocabulary.hydrogens else packed.without_hydrogens()


@lru_cache(maxsize=2)
def _read_file(
    path: Path,
    changed: int,
    hydrogens: bool,
    positions: bool,
    conditions: tuple[str, ...],
    vocabulary: Vocabulary | None,
) -> Packed:
    """A file as it stood when it was last ``changed``: parsed, and complained of, once for all splits."""
    computed = [name for name in conditions if name in CONTINUOUS]
    packed, report = read(path, vocabulary, hydrogens, positions, computed)
    if report.rejected:
        warnings.warn(str(report), stacklevel=4)
    return packed


def measure(packed: Packed, conditions: Sequence[str] = ()) -> dict[str, Any]:
    """What a model must know of its training molecules, as plain numbers and lists.

    Returns:
        ``vocabulary``: the atom types. ``sizes``: how many molecules have 0, 1, 2 ... atoms. ``atoms``: share of each
        class. ``bonds``: share of each order, none included, over all pairs of atoms of a molecule.
        ``position_scale``: standard deviation of a coordinate in angstrom (1 without positions). ``properties``:
        [mean, standard deviation] of each condition.
    """
    return {
        "vocabulary": list(packed.vocabulary.types),
        "sizes": np.bincount(np.diff(packed.offsets)).tolist(),
        "atoms": _shares(np.bincount(packed.atoms, minlength=len(packed.vocabulary))),
        "bonds": _shares(_bond_counts(packed)),
        "position_scale": 1.0 if packed.positions is None else float(packed.positions.std(dtype=np.float64)),
        "properties": {name: _mean_and_deviation(packed, name) for name in conditions},
    }


def _bond_counts(packed: Packed) -> NDArray[np.int64]:
    """Pairs of atoms of each bond order, none first."""
    sizes = np.diff(packed.offsets)
    counts = np.bincount(packed.bonds[:, 2], minlength=len(BOND_TYPES))
    counts[0] = (sizes * (sizes - 1) // 2).sum() - len(packed.bonds)
    return counts


def _shares(counts: NDArray[np.int64]) -> list[float]:
    """Probabilities by Laplace's rule: one more of each is counted, so that no class is impossible."""
    return [float(share) for share in (counts + 1) / (counts + 1).sum()]


def _mean_and_deviation(packed: Packed, name: str) -> list[float]:
    values = packed.properties[:, packed.property_names.index(name)].astype(np.float64)
    known = values[~np.isnan(values)]
    if len(known) == 0:
        raise ValueError(f"got condition '{name}', which no molecule of the train split has; leave it out")
    return [float(known.mean()), float(known.std()) or 1.0]
