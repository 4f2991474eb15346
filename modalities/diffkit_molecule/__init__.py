"""Molecules: graphs of atoms and bonds, with or without positions. See `diffkit_molecule.adapter`."""

from diffkit_molecule.adapter import Molecule

modality = Molecule

__all__ = ["Molecule", "modality"]
