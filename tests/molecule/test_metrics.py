"""Figures of merit against cases worked out by hand, and on real molecules, which must score as perfect."""

import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from diffkit.report import table
from diffkit_molecule import data, distribution, geometry, metrics, stability
from diffkit_molecule.chem import Vocabulary, canonical_smiles, graph_to_mol

HEAVY = Vocabulary(("C", "N", "O", "N+", "O-"))
EXPLICIT = Vocabulary(("H", "C", "N", "O", "N+"))
needs_fcd = pytest.mark.skipif(find_spec("fcd_torch") is None, reason="needs fcd_torch")

PENTAVALENT = graph_to_mol([0] * 6, [(0, i, 1) for i in range(1, 6)], HEAVY)  # C with five bonds to C
TWO_PIECES = graph_to_mol([0, 0, 2], [(0, 1, 1)], HEAVY)  # C-C and O
REAL = ["CCO", "CC(=O)N", "c1ccncc1", "C1CC1C#N", "C[NH3+]", "OCC1CO1", "CC(C)=O", "N#CC=O", "c1ccoc1", "CCCCO"]


def molecules(*smiles: str) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(line) for line in smiles]


def conformer(smiles: str, seed: int = 1) -> Chem.Mol:
    """With hydrogens, at its MMFF94 minimum."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=seed)
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=5000)
    return mol


# Validity, uniqueness, novelty


def test_validity_counts_each_failure_over_all_that_were_drawn() -> None:
    found = metrics.validity([*molecules("CCO", "C"), PENTAVALENT, TWO_PIECES, None])
    assert {name: metric.value for name, metric in found.items()} == {
        "valid": 2 / 5,
        "sanitised": 3 / 5,
        "connected": 3 / 5,  # too many bonds are still one piece
        "failed/properties": 1 / 5,
        "failed/fragments": 1 / 5,
        "failed/not decoded": 1 / 5,
    }
    assert all(metric.n == 5 for metric in found.values())


def test_uniqueness_is_over_the_valid_and_novelty_over_the_unique() -> None:
    kekule_forms = [
        graph_to_mol([0] * 6, [(i, (i + 1) % 6, 1 + (i + shift) % 2) for i in range(6)], HEAVY) for shift in (0, 1)
    ]
    drawn = metrics.profile([*kekule_forms, *molecules("OCC", "CCO", "CN"), PENTAVALENT])
    assert drawn.smiles == ["c1ccccc1", "c1ccccc1", "CCO", "CCO", "CN"]
    assert metrics.uniqueness(drawn.smiles) == metrics.Metric(3 / 5, 5, "valid molecules", "share")
    assert metrics.novelty(drawn.smiles, ["CCO", "CCC"]) == metrics.Metric(2 / 3, 3, "unique valid molecules", "share")


def test_nothing_valid_has_no_uniqueness() -> None:
    found = metrics.evaluate([None], [], metrics.profile(molecules(*REAL)))
    assert found["valid"].value == 0
    assert math.isnan(found["unique"].value) and found["unique"].n == 0
    assert str(found["unique"]) == "n/a" and found["unique"].record()["value"] is None


# Stability from explicit bonds


@pytest.mark.parametrize(
    ("smiles", "atoms"),
    [("C", 5), ("c1ccccc1", 12), ("C[N+](=O)[O-]", 7), ("C[NH3+]", 8), ("[C-]#[O+]", 2), ("CS(C)(=O)=O", 11)],
)
def test_molecules_are_stable_with_their_hydrogens(smiles: str, atoms: int) -> None:
    stable = stability.kekule_stable(Chem.MolFromSmiles(smiles))
    assert len(stable) == atoms and stable.all()


def test_a_fifth_bond_of_carbon_is_one_unstable_atom() -> None:
    stable = stability.kekule_stable(PENTAVALENT)
    assert (~stable).tolist() == [True] + [False] * 20  # six carbons and fifteen hydrogens


def test_explicit_hydrogens_are_never_completed() -> None:
    methyl = graph_to_mol([1, 0, 0, 0], [(0, i, 1) for i in (1, 2, 3)], EXPLICIT)
    assert stability.kekule_stable(methyl).tolist() == [False, True, True, True]


def test_stability_counts_samples_that_were_not_decoded() -> None:
    found = metrics.stability([*molecules("C"), PENTAVALENT, None])
    assert found["stable_atoms/kekule"] == metrics.Metric(25 / 26, 26, "atoms drawn", "share")
    assert found["stable_molecules/kekule"] == metrics.Metric(1 / 3, 3, "molecules drawn", "share")
    assert "stable_atoms/edm" not in found


# Stability from distances, by EDM's table

METHANE = [  # angstrom; QM9, dsgdb9nsd_000001
    [-0.0126981359, 1.0858041578, 0.0080009958],
    [0.002150416, -0.0060313176, 0.0019761204],
    [1.0117308433, 1.4637511618, 0.0002765748],
    [-0.540815069, 1.4475266138, -0.8766437152],
    [-0.5238136345, 1.4379326443, 0.9063972942],
]


@pytest.mark.parametrize(
    ("a", "b", "angstrom", "order"),
    [
        ("C", "C", 1.229, 3),  # 120 + 3 pm
        ("C", "C", 1.231, 2),
        ("C", "C", 1.389, 2),  # 134 + 5 pm
        ("C", "C", 1.391, 1),
        ("C", "C", 1.639, 1),  # 154 + 10 pm
        ("C", "C", 1.641, 0),
        ("O", "C", 1.159, 3),
        ("S", "C", 1.649, 2),
        ("H", "H", 0.5, 1),
        ("Br", "H", 1.509, 1),
        ("Xe", "H", 0.5, 0),
    ],
)
def test_edm_bond_orders_at_their_limits(a: str, b: str, angstrom: float, order: int) -> None:
    positions = np.array([[0.0, 0.0, 0.0], [angstrom, 0.0, 0.0]])
    assert stability.edm_orders([a, b], positions).tolist() == [[0, order], [order, 0]]


def test_edm_limits_are_nested_as_counting_them_needs() -> None:
    limits = stability._EDM_LIMITS
    assert np.array_equal(limits, limits.transpose(1, 0, 2))
    assert ((limits[..., :-1] > limits[..., 1:]) | np.isinf(limits[..., 1:])).all()


def test_methane_is_stable_and_methyl_is_not() -> None:
    bonds = [(0, i, 1) for i in range(1, 5)]
    methane = graph_to_mol([1, 0, 0, 0, 0], bonds, EXPLICIT, np.array(METHANE))
    assert stability.edm_stable(methane).all()
    methyl = graph_to_mol([1, 0, 0, 0], bonds[:3], EXPLICIT, np.array(METHANE[:4]))
    assert stability.edm_stable(methyl).tolist() == [False, True, True, True]


def test_edm_knows_no_charges() -> None:
    ammonium = conformer("[NH4+]")
    assert stability.kekule_stable(ammonium).all()
    assert stability.edm_stable(ammonium).tolist() == [False, True, True, True, True]


# Distributions


def test_frechet_of_gaussians_by_hand() -> None:
    standard = (np.zeros(2), np.eye(2))
    other = (np.array([3.0, 0.0]), np.diag([4.0, 9.0]))
    assert distribution.frechet(standard, other) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert distribution.frechet(other, other) == pytest.approx(0, abs=1e-9)


def test_frechet_stands_a_singular_covariance() -> None:
    flat = (np.zeros(2), np.diag([1.0, 0.0]))
    assert distribution.frechet(flat, (np.zeros(2), np.eye(2))) == pytest.approx(1)


def test_kl_of_counts_by_hand() -> None:
    reference, samples = np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 1, 1])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distribution.kl_counts(reference, samples) == pytest.approx(expected)
    assert distribution.kl_counts(reference, reference) == 0
    assert distribution.kl_counts(reference, np.zeros(4)) > 10  # half of the reference is missing


def test_kl_of_shifted_gaussians() -> None:
    draw = np.random.default_rng(0).standard_normal
    reference, samples = draw(20_000), 1 + draw(20_000)
    assert distribution.kl_continuous(reference, samples) == pytest.approx(0.5, rel=0.1)  # shift^2 / 2
    assert distribution.kl_continuous(reference, reference) == 0
    assert math.isnan(distribution.kl_continuous(reference, np.ones(5)))


@needs_fcd
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fcd_torch's use of scipy
def test_fcd_agrees_with_fcd_torch() -> None:
    from fcd_torch.utils import calculate_frechet_distance

    a, b = REAL, [smiles + "C" for smiles in REAL]
    moments = [distribution.chemnet_moments(smiles) for smiles in (a, b)]
    expected = calculate_frechet_distance(*moments[0], *moments[1])
    assert distribution.fcd(a, b) == pytest.approx(expected, rel=1e-4)
    assert distribution.fcd(a, a) == pytest.approx(0, abs=1e-3)


@needs_fcd
def test_moments_of_the_reference_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = distribution.chemnet_moments(REAL, tmp_path)
    monkeypatch.setattr(distribution, "chemnet_activations", lambda smiles: pytest.fail("computed again"))
    again = distribution.chemnet_moments(REAL, tmp_path)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_without_fcd_torch_the_figure_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcd_torch", None)
    distribution._chemnet.cache_clear()
    real = molecules(*REAL)
    found = metrics.evaluate(real, [], metrics.profile(real))["fcd"]
    assert math.isnan(found.value) and "pip install fcd_torch" in found.of


# Geometry


def test_lengths_and_angles_of_water() -> None:
    half = math.radians(104.5 / 2)
    positions = 0.96 * np.array([[0, 0, 0], [math.sin(half), math.cos(half), 0], [-math.sin(half), math.cos(half), 0]])
    water = graph_to_mol([3, 0, 0], [(0, 1, 1), (0, 2, 1)], EXPLICIT, positions)
    assert list(geometry.lengths(water)) == [("H-O", pytest.approx(0.96)), ("H-O", pytest.approx(0.96))]
    assert list(geometry.angles(water)) == [("H-O-H", pytest.approx(104.5))]


def test_kinds_do_not_depend_on_the_order_of_atoms() -> None:
    acid = conformer("c1ccccc1C(=O)Cl")
    shuffled = Chem.RenumberAtoms(acid, list(reversed(range(acid.GetNumAtoms()))))
    kinds = sorted(kind for kind, _ in geometry.angles(acid))
    assert kinds == sorted(kind for kind, _ in geometry.angles(shuffled))
    assert set(kinds) == {"C:C:C", "C:C-H", "C-C:C", "C-C=O", "C-C-Cl", "Cl-C=O"}


def test_wasserstein_of_shifted_values_is_the_shift() -> None:
    values = np.random.default_rng(0).normal(1.5, 0.1, 1000)
    assert geometry.wasserstein1(values, values + 0.07) == pytest.approx(0.07)
    assert geometry.wasserstein1(np.array([0.0, 1.0]), np.array([0.0, 0.0, 3.0, 3.0])) == pytest.approx(1.0)


def test_wasserstein_weights_kinds_by_the_reference_and_says_what_it_left_out() -> None:
    reference = {"C-C": np.zeros(6), "C=O": np.zeros(2), "C#N": np.zeros(2)}
    samples = {"C-C": np.full(1, 0.1), "C=O": np.full(9, 0.5), "N-N": np.ones(3)}
    found = geometry.wasserstein(samples, reference)
    assert found.value == pytest.approx((6 * 0.1 + 2 * 0.5) / 8)
    assert found.coverage == pytest.approx(8 / 10)
    assert math.isnan(geometry.wasserstein({}, reference).value)


def test_strain_is_what_relaxing_sets_free() -> None:
    mol = conformer("CCO")
    assert geometry.strain(mol) == pytest.approx(0, abs=1e-3)
    stretched = Chem.Mol(mol)
    stretched.GetConformer().SetPositions(1.1 * mol.GetConformer().GetPositions())
    before = stretched.GetConformer().GetPositions()
    assert (geometry.strain(stretched) or 0) > 10
    assert np.array_equal(stretched.GetConformer().GetPositions(), before)


def test_strain_of_atoms_on_top_of_each_other_is_infinite() -> None:
    mol = conformer("CCO")
    mol.GetConformer().SetPositions(np.zeros((mol.GetNumAtoms(), 3)))
    assert geometry.strain(mol) == math.inf


def test_strain_needs_parameters() -> None:
    assert geometry.strain(conformer("CB(C)C")) is None


# All of it


@pytest.fixture(scope="module")
def qm9() -> list[Chem.Mol]:
    """The shipped sample of QM9, with hydrogens and coordinates."""
    splits = [data.load("sample", split, hydrogens=True, positions=True) for split in ("train", "valid", "test")]
    return [split.records(i) for split in splits for i in range(len(split))]


def test_qm9_is_stable_as_far_as_each_protocol_can_tell(qm9: list[Chem.Mol]) -> None:
    found = metrics.stability(qm9)
    assert found["stable_atoms/kekule"].value == found["stable_molecules/kekule"].value == 1
    assert found["stable_atoms/edm"].value == pytest.approx(0.993, abs=0.003)  # all of QM9: 0.9935
    assert found["stable_molecules/edm"].value == pytest.approx(0.951, abs=0.015)  # 0.9509


def test_two_parts_of_qm9_have_the_same_shapes(qm9: list[Chem.Mol]) -> None:
    found = metrics.shapes(metrics.profile(qm9[::10]), metrics.profile(qm9[5::10]))
    assert found["bond_length_w1"].value < 0.005  # angstrom
    assert found["bond_angle_w1"].value < 1.5  # degrees
    assert 1 < found["strain_median"].value < 8  # B3LYP minima are not MMFF94's


def test_the_floor_is_taken_from_all_of_the_real_molecules() -> None:
    real = molecules(*("C" * n for n in range(1, 10)))
    found = metrics.with_floor(molecules("C", "CO", "CN"), real, ["C", "CCCCC"], metrics.profile(real))
    assert found["held-out (floor)"]["novel"] == metrics.Metric(1 / 3, 3, "unique valid molecules", "share")


def test_real_molecules_score_as_perfect() -> None:
    real = [conformer(smiles) for smiles in REAL]
    drawn = [conformer(smiles, seed=2) for smiles in REAL]
    train = [canonical_smiles(mol) for mol in real[:5]]
    columns = metrics.with_floor(drawn, real, train, metrics.profile(real))
    for found in columns.values():
        perfect = ("valid", "sanitised", "connected", "unique", "stable_atoms/kekule", "stable_molecules/kekule")
        assert [found[name].value for name in perfect] == [1.0] * len(perfect)
        assert found["novel"].value == 0.5
        assert found["kl_score"].value == pytest.approx(1)
        assert found["strain_median"].value == pytest.approx(0, abs=0.01)
    assert columns["held-out (floor)"]["bond_length_w1"].value == 0
    assert 0 < columns["model"]["bond_angle_w1"].value < 5
    assert {name: metric.n for name, metric in columns["model"].items() if name.startswith("kl/")} == {
        f"kl/{name}": 10 for name in metrics.NAMES
    }


def test_the_table_lines_up_and_states_every_denominator() -> None:
    share, distance = (
        metrics.Metric(0.975, 10_000, "molecules drawn", "share"),
        metrics.Metric(0.1, 9, "bonds", "angstrom"),
    )
    lines = table({"model": {"valid": share, "w1": distance}, "floor": {"valid": share}}).split("\n")
    assert lines == [
        "       model             floor             over",
        "valid  97.50 % (10,000)  97.50 % (10,000)  molecules drawn",
        "w1     0.1 angstrom (9)  -                 bonds",
    ]
