"""Molecules as tensors: the masks and leaves that the network sees."""

import torch
from torch import Tensor

from diffkit_molecule.chem import Graph

__all__ = ["leaves", "masks"]


def masks(sizes: Tensor, positions: bool) -> dict[str, Tensor]:
    """The masks of molecules of ``sizes`` (B,) atoms: bonds join two real atoms that differ."""
    atoms = torch.arange(int(sizes.max()) if len(sizes) else 0) < sizes.unsqueeze(1)
    off_diagonal = ~torch.eye(atoms.shape[1], dtype=torch.bool)
    mask = {"atoms": atoms, "bonds": atoms.unsqueeze(1) & atoms.unsqueeze(2) & off_diagonal}
    return mask | ({"positions": atoms.unsqueeze(2)} if positions else {})


def leaves(graph: Graph, position_scale: float | None = None) -> dict[str, Tensor]:
    """The leaves of one molecule, without a batch dimension; positions where their unit (angstrom) is given.

    Raises:
        ValueError: if positions are asked for and the graph has none.
    """
    n = len(graph.atoms)
    bonds = torch.zeros(n, n, dtype=torch.int64)
    i, j, order = torch.from_numpy(graph.bonds).unbind(1)
    bonds[i, j] = bonds[j, i] = order
    x = {"atoms": torch.from_numpy(graph.atoms), "bonds": bonds}
    if position_scale is None:
        return x
    if graph.positions is None:
        raise ValueError("got a molecule without 3-D coordinates; expected one with a conformer")
    positions = torch.from_numpy(graph.positions) / position_scale
    return x | {"positions": positions - positions.mean(0)}
