"""What a set of generated molecules is worth, each figure with the number it was counted over.

A sample is a molecule as decoded: an RDKit molecule that nobody has sanitised, or None. Nothing is repaired, and no
largest fragment is rescued:

- *valid*: RDKit sanitises it **and** it is one fragment; a share of all that were drawn;
- *unique*: different canonical SMILES, a share of the valid;
- *novel*: not in the training set, a share of the unique. (QM9 lists nearly all small molecules: novelty says little.)
- stability by two protocols: `diffkit_molecule.stability`;
- FCD and KL of properties against held-out molecules, over the valid: `diffkit_molecule.distribution`;
- with coordinates, bond lengths, bond angles and strain, over the valid: `diffkit_molecule.geometry`.

No figure means much without its *floor*, what real molecules score: `with_floor` puts held-out molecules of
another split, in the same number, through the same function.

    >>> samples = [Chem.MolFromSmiles(smiles) for smiles in ("CCO", "CCO", "CCN", "C.C")]
    >>> validity(samples)["valid"]
    Metric(value=0.75, n=4, of='molecules drawn', unit='share')
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from diffkit.report import Metric, Metrics
from diffkit_molecule.chem import canonical_smiles, check
from diffkit_molecule.descriptors import CONTINUOUS, COUNTS, NAMES, describe
from diffkit_molecule.distribution import fcd, kl_continuous, kl_counts
from diffkit_molecule.geometry import ByKind, angles, by_kind, lengths, strain, wasserstein
from diffkit_molecule.stability import edm_stable, kekule_stable

Samples = Sequence[Chem.Mol | None]
NOT_DECODED = "not decoded"


def share(hits: Iterable[bool], of: str) -> Metric:
    """The share of true among ``hits``."""
    found = list(hits)
    return Metric(sum(found) / len(found) if found else math.nan, len(found), of, "share")


@dataclass(frozen=True)
class Profile:
    """The valid molecules of a set, and what the distances compare, measured once."""

    mols: Sequence[Chem.Mol]
    smiles: Sequence[str]
    properties: Mapping[str, NDArray[np.floating[Any]]]
    lengths: ByKind
    angles: ByKind


def profile(samples: Samples) -> Profile:
    """Measure the valid molecules among ``samples``: about 600 graphs a second, most of it QED."""
    mols = [mol for mol, _ in map(verdict, samples) if mol is not None]
    rows = [describe(mol) for mol in mols]
    solid = [mol for mol in mols if mol.GetNumConformers()]
    return Profile(
        mols=mols,
        smiles=[canonical_smiles(mol) for mol in mols],
        properties={name: np.array([row[name] for row in rows], dtype=np.float64) for name in NAMES},
        lengths=by_kind(solid, lengths),
        angles=by_kind(solid, angles),
    )


def verdict(sample: Chem.Mol | None) -> tuple[Chem.Mol | None, str]:
    """The sanitised molecule and "", or None and the reason: `chem.check`, for samples that may be None."""
    return (None, NOT_DECODED) if sample is None else check(sample)


def evaluate(samples: Samples, train_smiles: Collection[str], held_out: Profile, folder: Path | None = None) -> Metrics:
    """Every figure of ``samples`` by name.

    Args:
        samples: molecules as decoded.
        train_smiles: canonical SMILES (`chem.canonical_smiles`) of the training set.
        held_out: the `profile` of real molecules that were not trained on. Shapes are compared where both have them.
        folder: where the FCD moments of ``held_out`` are kept for the next time.
    """
    drawn = profile(samples)
    return {
        **validity(samples),
        "unique": uniqueness(drawn.smiles),
        "novel": novelty(drawn.smiles, train_smiles),
        **stability(samples),
        "fcd": _fcd(drawn, held_out, folder),
        **divergences(drawn, held_out),
        **(shapes(drawn, held_out) if drawn.lengths and held_out.lengths else {}),
    }


def with_floor(
    samples: Samples, fresh: Samples, train_smiles: Collection[str], held_out: Profile, folder: Path | None = None
) -> dict[str, Metrics]:
    """`evaluate` of the samples, and of as many ``fresh`` real molecules, neither trained on nor in ``held_out``.

    They are taken evenly from all of ``fresh``, for sets such as QM9 begin with their smallest molecules.
    """
    chosen = np.linspace(0, len(fresh) - 1, min(len(samples), len(fresh))).astype(int)
    sets = {"model": samples, "held-out (floor)": [fresh[i] for i in chosen]}
    return {name: evaluate(found, train_smiles, held_out, folder) for name, found in sets.items()}


def validity(samples: Samples) -> Metrics:
    """Shares of all samples: valid, sanitised, connected, and failed for each reason (sanitising comes first)."""
    reasons = [_failure(verdict(sample)[1]) for sample in samples]
    connected = (sample is not None and len(Chem.GetMolFrags(sample)) == 1 for sample in samples)
    drawn = "molecules drawn"
    return {
        "valid": share((reason == "" for reason in reasons), drawn),
        "sanitised": share((reason in ("", "fragments") for reason in reasons), drawn),
        "connected": share(connected, drawn),
        **{f"failed/{name}": share((reason == name for reason in reasons), drawn) for name in _by_count(reasons)},
    }


def _failure(reason: str) -> str:
    """A reason of `chem.check` in a word: "does not sanitise: kekulize" -> "kekulize", "2 fragments" -> "fragments"."""
    return "fragments" if reason.endswith(" fragments") else reason.rpartition(": ")[2]


def _by_count(reasons: Iterable[str]) -> list[str]:
    return [reason for reason, _ in Counter(reasons).most_common() if reason]


def uniqueness(smiles: Sequence[str]) -> Metric:
    """Share of different SMILES among those of the valid molecules."""
    return Metric(len(set(smiles)) / len(smiles) if smiles else math.nan, len(smiles), "valid molecules", "share")


def novelty(smiles: Iterable[str], train_smiles: Collection[str]) -> Metric:
    """Share of the different SMILES that are not in the training set."""
    known = frozenset(train_smiles)
    return share((line not in known for line in set(smiles)), "unique valid molecules")


def stability(samples: Samples) -> Metrics:
    """Stable atoms and molecules, over all samples; by EDM's protocol too where there are coordinates.

    A sample that was not decoded is one unstable molecule without atoms.
    """
    solid = [sample for sample in samples if sample is not None and sample.GetNumConformers()]
    return _stability("kekule", samples, kekule_stable) | (_stability("edm", samples, edm_stable) if solid else {})


def _stability(protocol: str, samples: Samples, stable: Callable[[Chem.Mol], NDArray[np.bool_]]) -> Metrics:
    atoms = [np.zeros(0, bool) if sample is None else stable(sample) for sample in samples]
    return {
        f"stable_atoms/{protocol}": share(np.concatenate([np.zeros(0, bool), *atoms]).tolist(), "atoms drawn"),
        f"stable_molecules/{protocol}": share((bool(len(a) and a.all()) for a in atoms), "molecules drawn"),
    }


def _fcd(drawn: Profile, held_out: Profile, folder: Path | None) -> Metric:
    """FCD, or NaN and why there is none."""
    n = len(drawn.smiles)
    try:
        return Metric(fcd(drawn.smiles, held_out.smiles, folder), n, f"valid, against {len(held_out.smiles)} held out")
    except (ModuleNotFoundError, ValueError) as error:
        return Metric(math.nan, n, str(error))


def divergences(drawn: Profile, held_out: Profile) -> Metrics:
    """KL of every property in nats, and GuacaMol's summary of them: the mean of exp(-KL), 1 at best."""
    n, of = len(drawn.mols), f"valid, against {len(held_out.mols)} held out"
    kinds = dict.fromkeys(CONTINUOUS, kl_continuous) | dict.fromkeys(COUNTS, kl_counts)
    kl = {name: f(held_out.properties[name], drawn.properties[name]) for name, f in kinds.items()}
    score = float(np.exp(-np.array(list(kl.values()))).mean())
    return {f"kl/{name}": Metric(value, n, of) for name, value in kl.items()} | {"kl_score": Metric(score, n, of)}


def shapes(drawn: Profile, held_out: Profile) -> Metrics:
    """Wasserstein distances of bond lengths and angles, and the median strain, of molecules with coordinates."""
    relaxed = [energy for mol in drawn.mols if (energy := strain(mol)) is not None]
    median = float(np.median(relaxed)) if relaxed else math.nan
    return {
        "bond_length_w1": _wasserstein("bonds", drawn.lengths, held_out.lengths, "angstrom"),
        "bond_angle_w1": _wasserstein("angles", drawn.angles, held_out.angles, "degrees"),
        "strain_median": Metric(median, len(relaxed), "valid molecules that MMFF94 knows", "kcal/mol"),
    }


def _wasserstein(what: str, drawn: ByKind, held_out: ByKind, unit: str) -> Metric:
    distance = wasserstein(drawn, held_out)
    of = f"{what} of valid molecules, of kinds that {100 * distance.coverage:.1f} % of those held out have"
    return Metric(distance.value, sum(map(len, drawn.values())), of, unit)
