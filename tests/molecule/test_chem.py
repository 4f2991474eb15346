"""Molecules as graphs, and back."""

import numpy as np
import pytest
from rdkit import Chem

from diffkit_molecule.chem import (
    Vocabulary,
    atom_type,
    canonical_smiles,
    check,
    graph_to_mol,
    mol_to_graph,
    parse_atom_type,
    standardise,
    standardise_mol,
    with_hydrogens_and_conformer,
)
from diffkit_molecule.data import load

HEAVY = Vocabulary(("C", "N", "O", "F", "N+", "O-", "C-", "N-", "S", "Cl"))
EXPLICIT = Vocabulary((*HEAVY.types, "H"))
MOLECULES = (
    "C",
    "c1ccncc1",
    "c1cc[nH]c1",
    "c1ccc2[nH]ccc2c1",
    "[NH3+]CC(=O)[O-]",
    "C[N+](=O)[O-]",
    "CS(=O)(=O)Cl",
    "[C-]#[N+]C",
    "C[n+]1cc[nH]c1",
)


def decode(smiles: str, vocabulary: Vocabulary) -> tuple[Chem.Mol | None, str]:
    graph = mol_to_graph(standardise(smiles), vocabulary, vocabulary.hydrogens)
    return check(graph_to_mol(graph.atoms, graph.bonds, vocabulary, graph.positions))


@pytest.mark.parametrize(
    ("name", "symbol", "charge"), [("C", "C", 0), ("N+", "N", 1), ("S-2", "S", -2), ("Cl", "Cl", 0)]
)
def test_atom_types_are_elements_with_charges(name, symbol, charge):
    assert parse_atom_type(name) == (symbol, charge)
    assert atom_type(symbol, charge) == name


@pytest.mark.parametrize("types", [(), ("C", "C"), ("c",), ("C", "N++"), ("+",)])
def test_a_vocabulary_that_makes_no_sense_is_refused(types):
    with pytest.raises(ValueError, match="expected"):
        Vocabulary(types)


@pytest.mark.parametrize("vocabulary", [HEAVY, EXPLICIT], ids=["heavy", "explicit"])
@pytest.mark.parametrize("smiles", MOLECULES)
def test_round_trip(smiles, vocabulary):
    mol, reason = decode(smiles, vocabulary)
    assert mol is not None, reason
    assert canonical_smiles(mol) == Chem.CanonSmiles(smiles)


@pytest.mark.parametrize("hydrogens", [False, True])
def test_round_trip_of_real_molecules(hydrogens):
    """The canonical SMILES was written from the set's own SMILES, before there was a graph."""
    dataset = load("sample", "test", hydrogens=hydrogens)
    assert [canonical_smiles(dataset.records(i)) for i in range(len(dataset))] == dataset.smiles


def test_aromatic_rings_are_kekulised():
    graph = mol_to_graph(standardise("c1ccccc1"), HEAVY)
    assert sorted(graph.bonds[:, 2]) == [1, 1, 1, 2, 2, 2]


def test_graph_of_formaldehyde_by_hand():
    graph = mol_to_graph(standardise("C=O"), EXPLICIT, hydrogens=True)
    assert [EXPLICIT.types[i] for i in graph.atoms] == ["C", "O", "H", "H"]
    assert graph.bonds.tolist() == [[0, 1, 2], [0, 2, 1], [0, 3, 1]]
    assert graph.positions is None


def test_stereochemistry_isotopes_and_atom_maps_are_left_out():
    assert canonical_smiles(standardise("[13CH3:1][C@H](N)/C=C/F")) == Chem.CanonSmiles("CC(N)C=CF")


def test_charges_stay_as_written():
    assert canonical_smiles(standardise("[NH3+]CC(=O)[O-]")) == "[NH3+]CC(=O)[O-]"


def test_positions_survive():
    mol = with_hydrogens_and_conformer(Chem.MolFromSmiles("CCO"), seed=3)
    graph = mol_to_graph(mol, EXPLICIT, hydrogens=True)
    decoded = graph_to_mol(graph.atoms, graph.bonds, EXPLICIT, graph.positions)
    assert graph.positions.shape == (9, 3)
    np.testing.assert_allclose(decoded.GetConformer().GetPositions(), mol.GetConformer().GetPositions(), atol=1e-6)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("CBr", "Br is not in the vocabulary"),
        ("C[S-]", "S- is not in"),
        ("[CH2]C", "C with 2 hydrogens, where its valence implies 3"),
    ],
)
def test_what_a_graph_cannot_say_is_refused_with_the_reason(smiles, reason):
    with pytest.raises(ValueError, match=reason):
        mol_to_graph(standardise(smiles), HEAVY)


def test_bonds_beyond_triple_are_refused():
    mol = Chem.MolFromSmiles("CC")
    mol.GetBondWithIdx(0).SetBondType(Chem.BondType.QUADRUPLE)
    with pytest.raises(ValueError, match="quadruple"):
        mol_to_graph(mol, HEAVY)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(", "cannot parse"), ("", "no atoms"), ("CC.O", "2 fragments"), ("C[Na].[Cl-]", "fragments")],
)
def test_what_is_no_single_molecule_is_refused(smiles, reason):
    with pytest.raises(ValueError, match=reason):
        standardise(smiles)


@pytest.mark.parametrize(
    ("atoms", "bonds", "reason"),
    [
        ([0] * 6, [(0, k, 1) for k in range(1, 6)], "properties"),  # a carbon with five neighbours
        ([0, 2], [(0, 1, 3)], "properties"),  # an oxygen with three bonds
        ([0, 0, 0], [(0, 1, 1)], "2 fragments"),
    ],
)
def test_a_wrong_graph_decodes_unrepaired_and_check_says_why(atoms, bonds, reason):
    mol = graph_to_mol(atoms, bonds, HEAVY)
    assert (mol.GetNumAtoms(), mol.GetNumBonds()) == (len(atoms), len(bonds))
    checked, why = check(mol)
    assert checked is None
    assert reason in why


def test_check_leaves_its_argument_alone():
    mol = graph_to_mol([0, 0], [(0, 1, 1)], HEAVY)
    checked, _ = check(mol)
    assert checked.GetAtomWithIdx(0).GetTotalNumHs() == 3
    assert mol.NeedsUpdatePropertyCache()


def test_explicit_graphs_never_gain_a_hydrogen():
    mol, _ = check(graph_to_mol([EXPLICIT.index("C"), EXPLICIT.index("H")], [(0, 1, 1)], EXPLICIT))
    assert mol.GetAtomWithIdx(0).GetTotalNumHs(includeNeighbors=True) == 1


def test_conformers_follow_the_seed():
    first, again, other = (with_hydrogens_and_conformer(Chem.MolFromSmiles("CCCCO"), seed) for seed in (1, 1, 2))
    assert first.GetNumAtoms() == 15
    assert np.array_equal(first.GetConformer().GetPositions(), again.GetConformer().GetPositions())
    assert not np.array_equal(first.GetConformer().GetPositions(), other.GetConformer().GetPositions())


def test_a_radical_drawn_with_its_hydrogens_is_refused_without_them():
    """What the hydrogens said would be lost with them, and the valence model would add one."""
    mol = standardise_mol(Chem.AddHs(standardise("[CH2]C")))
    with pytest.raises(ValueError, match="C with 2 hydrogens"):
        mol_to_graph(mol, HEAVY)
    graph = mol_to_graph(mol, EXPLICIT, hydrogens=True)
    decoded, _ = check(graph_to_mol(graph.atoms, graph.bonds, EXPLICIT))
    assert canonical_smiles(decoded) == "[CH2]C"
