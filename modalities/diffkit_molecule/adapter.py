"""Molecules for diffkit: the adapter.

A molecule is a product of leaves that one network denoises together:

    atoms      (B, N)     categorical   element with its formal charge
    bonds      (B, N, N)  categorical   none, single, double, triple; symmetric
    positions  (B, N, 3)  Gaussian      centre of mass at zero, in units of the data's deviation; where asked for

Without ``hydrogens`` the graph is that of the heavy atoms, and RDKit adds hydrogens on output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem
from torch import Tensor, nn

from diffkit import registry
from diffkit.condition import Condition
from diffkit.modality import Batch, Example, Modality, Request
from diffkit.noise import Noise
from diffkit.packages import cache_folder
from diffkit.process import Categorical, Gaussian, Process
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.space import ZeroCentreOfMass
from diffkit.typing import State
from diffkit_molecule import data, metrics, view
from diffkit_molecule.chem import Vocabulary, check, graph_to_mol, mol_to_graph, standardise_mol
from diffkit_molecule.network import GraphTransformer
from diffkit_molecule.readers import read_one
from diffkit_molecule.tensors import leaves, masks

__all__ = ["Molecule"]

VALENCES = {"H": 1, "B": 3, "C": 4, "N": 3, "O": 2, "F": 1, "Si": 4, "P": 5, "S": 6, "Cl": 1, "Se": 6, "Br": 1, "I": 1}
"""Largest sum of bond orders of a neutral atom. A feature the network sees; what is valid is for RDKit to say."""


@dataclass(frozen=True)
class Molecule(Modality):
    """The adapter. Its fields are a recipe's ``modality`` node.

    Args:
        vocabulary: atom types such as "C", "N+", "O-"; those of the training data where it is empty.
        hydrogens: whether hydrogens are atoms of the graph.
        positions: whether molecules have coordinates.
        conditions: names of scalar properties that a sample can be asked for.
        statistics: what `dataset` measured: sizes, marginals, the scale of positions, means of properties.
    """

    vocabulary: Sequence[str] = ()
    hydrogens: bool = False
    positions: bool = False
    conditions: Sequence[str] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def types(self) -> Vocabulary:
        """The atom types in the order of their classes."""
        return Vocabulary(tuple(self.vocabulary or self.statistics["vocabulary"]))

    def dataset(self, split: str, **options: Any) -> data.MoleculeDataset:
        """Molecules; options are those of `diffkit_molecule.data.load`."""
        return data.load(
            split=split,
            vocabulary=tuple(self.vocabulary) or None,
            hydrogens=self.hydrogens,
            positions=self.positions,
            conditions=tuple(self.conditions),
            **options,
        )

    def encode(self, record: Chem.Mol) -> Example:
        graph = mol_to_graph(standardise_mol(record), self.types, self.hydrogens)
        mask = masks(torch.tensor([len(graph.atoms)]), self.positions)
        scale = self.statistics["position_scale"] if self.positions else None
        return Example(leaves(graph, scale), {k: v[0] for k, v in mask.items()})

    def read(self, source: str, request: Request) -> Chem.Mol:
        """The first molecule of a file (SDF, SMILES, CSV), or of the SMILES ``source``; samples have its size."""
        return read_one(source, self.positions)

    def decode(self, x: State, mask: State) -> list[Any]:
        return [self._mol({k: v[m].cpu() for k, v in x.items()}, int(n)) for m, n in enumerate(mask["atoms"].sum(1))]

    def valid(self, record: Chem.Mol) -> bool:
        return check(record)[0] is not None

    def _mol(self, x: Mapping[str, Tensor], n: int) -> Chem.Mol:
        upper = torch.triu(x["bonds"][:n, :n], diagonal=1)
        rows = [(int(i), int(j), int(upper[i, j])) for i, j in upper.nonzero()]
        positions = x["positions"][:n].float().numpy() * self.statistics["position_scale"] if self.positions else None
        return graph_to_mol(x["atoms"][:n].tolist(), rows, self.types, positions)

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        """Sizes as often as in the training data; properties by name."""
        if request.prompt is not None:
            raise ValueError(
                f"got the prompt {request.prompt!r}; molecules take property values: --condition NAME=VALUE"
            )
        histogram = torch.tensor(self.statistics["sizes"], dtype=torch.float64)
        u = noise.fold("size").uniform("atoms", ()).unsqueeze(1)
        sizes = (u * histogram.sum() > histogram.cumsum(0)).sum(1)
        mask = masks(sizes, self.positions)
        shapes = {k: (*m.shape[:2], 3) if k == "positions" else tuple(m.shape) for k, m in mask.items()}
        x = {k: torch.zeros(s, dtype=torch.float32 if k == "positions" else torch.int64) for k, s in shapes.items()}
        return Batch(x, mask, self._condition(count, request.values), noise.index)

    def _condition(self, count: int, values: Mapping[str, str]) -> Condition:
        unknown = sorted(values.keys() - set(self.conditions))
        if unknown:
            raise ValueError(
                f"got the condition {unknown[0]}; this model takes {', '.join(self.conditions) or 'no conditions'}"
            )
        given = {}
        for name, text in values.items():
            mean, deviation = self.statistics["properties"][name]
            given[name] = torch.full((count,), (_number(name, text) - mean) / deviation)
        absent = {name: torch.zeros(count) for name in self.conditions if name not in given}
        present = {k: torch.full((count,), k in given) for k in self.conditions}
        return Condition({k: (given | absent)[k] for k in self.conditions}, present)

    def process(self, **options: Any) -> Product:
        """Every leaf's process.

        Args:
            options: {schedule, noise} for atoms and bonds, with noise "marginal" (the data's), "uniform" or
                "absorbing"; {schedule, prediction} for positions.
        """
        known: dict[str, Process] = {
            name: self._categorical(name, **options.get(name, {})) for name in ("atoms", "bonds")
        }
        if self.positions:
            known["positions"] = _gaussian(**options.get("positions", {}))
        return Product(known)

    def _categorical(self, name: str, schedule: Any = "flow", noise: str = "marginal") -> Categorical:
        marginal = tuple(self.statistics[name])
        if noise not in ("marginal", "uniform", "absorbing"):
            raise ValueError(f"got noise '{noise}' for {name}; expected marginal, uniform or absorbing")
        probabilities = marginal if noise == "marginal" else (1 / len(marginal),) * len(marginal)
        built = registry.build("schedule", schedule)
        return Categorical(probabilities, built, absorbing=noise == "absorbing", symmetric=name == "bonds")

    def network(self, **options: Any) -> nn.Module:
        valences = [VALENCES.get(symbol, 4) + charge for symbol, charge in self.types.parsed]
        return GraphTransformer(valences, positions=self.positions, conditions=tuple(self.conditions), **options)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        """Against the test split; the floor is what the validation split scores."""
        train, valid, test = (self.dataset(split, **options) for split in ("train", "valid", "test"))
        held_out = metrics.profile([test.records(m) for m in range(len(test))])
        fresh = [valid.records(m) for m in range(len(valid))]
        return metrics.with_floor(samples, fresh, train.smiles, held_out, cache_folder() / "fcd")

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        return view.save(samples, folder)


def _gaussian(schedule: Any = "cosine", prediction: Any = "x0") -> Gaussian:
    return Gaussian(registry.build("schedule", schedule), ZeroCentreOfMass(), registry.build("prediction", prediction))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"got {name}={text}; expected a number") from None
