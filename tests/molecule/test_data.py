"""Molecules as datasets: the shipped sample, public sets, and a person's own files."""

import gzip
import hashlib
import math
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from rdkit import Chem

from diffkit import packages
from diffkit.data import collate
from diffkit.packages import Package
from diffkit_molecule import packed as packing
from diffkit_molecule import sources
from diffkit_molecule.chem import Vocabulary, canonical_smiles, check, standardise, with_hydrogens_and_conformer
from diffkit_molecule.data import SAMPLE, load
from diffkit_molecule.packed import Molecule, pack, split_of
from diffkit_molecule.sources import match_geometry

# The split is a function of the SMILES: alkanes and alcohols enough that each split has some.
OWN = [*("C" * n for n in range(1, 12)), *("C" * n + "O" for n in range(1, 12))]
FORMS = {"graph": {}, "explicit": {"hydrogens": True}, "3d": {"hydrogens": True, "positions": True}}


@pytest.fixture(autouse=True)
def no_cache_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("a download was tried"))


def write_sdf(path, smiles, conformers=True, **fields):
    with Chem.SDWriter(str(path)) as writer:
        for text in smiles:
            mol = Chem.MolFromSmiles(text)
            mol = with_hydrogens_and_conformer(mol, seed=1) if conformers else mol
            for name, value in fields.items():
                mol.SetProp(name, value)
            writer.write(mol)
    return path


def all_splits(**options):
    parts = [load("sample", split, **options) for split in ("train", "valid", "test")]
    return [smiles for part in parts for smiles in part.smiles]


# The shipped sample


def test_the_sample_is_small_and_split_by_the_stated_rule():
    assert SAMPLE.stat().st_size < 1_000_000
    parts = {split: load("sample", split) for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 2_000
    for split, part in parts.items():
        for smiles in part.smiles:
            bucket = int(hashlib.sha256(smiles.encode()).hexdigest()[:8], 16) % 100
            assert split == ("train" if bucket < 80 else "valid" if bucket < 90 else "test")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_leaves_are_well_formed(form):
    dataset = load("sample", "valid", **form)
    for index in range(0, len(dataset), 10):
        example = dataset[index]
        atoms, bonds = example.x["atoms"], example.x["bonds"]
        n = len(atoms)
        assert atoms.dtype == bonds.dtype == torch.int64
        assert bonds.shape == (n, n)
        assert torch.equal(bonds, bonds.T)
        assert bonds.diagonal().eq(0).all()
        assert int(bonds.max()) <= 3
        assert example.mask["atoms"].all()
        assert torch.equal(example.mask["bonds"], ~torch.eye(n, dtype=torch.bool))
        if "positions" in form:
            assert example.x["positions"].shape == (n, 3)
            assert example.mask["positions"].shape == (n, 1)
            torch.testing.assert_close(example.x["positions"].mean(0), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_batch_is_the_collated_examples(form):
    dataset = load("sample", "valid", conditions=("gap", "logp"), **form)
    rows = [7, 0, 31]
    fast, slow = dataset.batch(rows), collate([(row, dataset[row]) for row in rows])
    for kind in ("x", "mask"):
        assert getattr(fast, kind).keys() == getattr(slow, kind).keys()
        assert all(torch.equal(getattr(fast, kind)[leaf], value) for leaf, value in getattr(slow, kind).items())
    assert all(torch.equal(fast.condition.values[name], value) for name, value in slow.condition.values.items())
    assert all(torch.equal(fast.condition.present[name], value) for name, value in slow.condition.present.items())
    assert torch.equal(fast.index, slow.index)


def test_heavy_atom_graphs_are_the_explicit_ones_without_hydrogens():
    heavy, explicit = load("sample", "test"), load("sample", "test", hydrogens=True)
    assert "H" not in heavy.packed.vocabulary.types
    for index in range(0, len(heavy), 20):
        bare = Chem.RemoveHs(explicit.records(index))
        assert [a.GetSymbol() for a in bare.GetAtoms()] == [a.GetSymbol() for a in heavy.records(index).GetAtoms()]
        assert canonical_smiles(bare) == heavy.smiles[index]


def test_geometries_are_chemical():
    """A C-H bond is 1.09 angstrom long, give or take a little: atoms and positions are in the same order."""
    dataset = load("sample", "test", hydrogens=True, positions=True)
    pattern = Chem.MolFromSmarts("[CX4]-[H]")
    lengths = []
    for index in range(0, len(dataset), 10):
        mol = dataset.records(index)
        xyz = mol.GetConformer().GetPositions()
        lengths += [float(np.linalg.norm(xyz[i] - xyz[j])) for i, j in mol.GetSubstructMatches(pattern)]
    assert len(lengths) > 100
    assert min(lengths) > 1.05
    assert max(lengths) < 1.15


def test_conditions_are_standardised_by_the_train_split():
    train = load("sample", "train", conditions=("gap", "qed"))
    values = train.batch(range(len(train))).condition.values
    for name in ("gap", "qed"):
        assert abs(float(values[name].mean())) < 1e-4
        assert float(values[name].std()) == pytest.approx(1, abs=1e-2)
    assert load("sample", "test", conditions=("gap", "qed")).statistics == train.statistics


def test_a_model_s_statistics_replace_those_of_the_data():
    own = load("sample", "test", conditions=("gap",)).statistics | {"properties": {"gap": [1.0, 2.0]}}
    dataset = load("sample", "test", conditions=("gap",), statistics=own)
    raw = dataset.packed.properties[0, dataset.packed.property_names.index("gap")]
    assert float(dataset[0].condition["gap"]) == pytest.approx((raw - 1) / 2)


def test_atom_types_can_be_put_in_the_order_of_a_model():
    order = ("O", "C", "N", "N+", "O-", "C-", "N-", "F", "S")
    dataset, plain = load("sample", "test", vocabulary=order), load("sample", "test")
    assert dataset.statistics["vocabulary"] == list(order)
    assert [canonical_smiles(dataset.records(i)) for i in range(20)] == plain.smiles[:20]
    with pytest.raises(ValueError, match="N is not in the vocabulary"):
        load("sample", "test", vocabulary=("C", "O"))


def test_statistics_of_two_molecules_by_hand(tmp_path):
    """Propane and propene, both in the train split: 3 atoms and 3 pairs each, and one more of each class and order."""
    assert {split_of("CCC"), split_of("C=CC"), split_of("CO")} == {"train"}
    (tmp_path / "own.smi").write_text("CCC\nC=CC\nCO\n")
    statistics = load("qm9", "train", path=tmp_path / "own.smi").statistics
    assert statistics["vocabulary"] == ["C", "O"]
    assert statistics["sizes"] == [0, 0, 1, 2]
    assert statistics["atoms"] == pytest.approx([8 / 10, 2 / 10])
    assert statistics["bonds"] == pytest.approx([3 / 11, 5 / 11, 2 / 11, 1 / 11])
    assert statistics["position_scale"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "qm8"}, "got source 'qm8'; expected one of sample, qm9, moses; did you mean 'qm9'"),
        ({"split": "validation"}, "expected one of train, valid, test"),
        ({"conditions": ("logP",)}, "did you mean 'logp'"),
        ({"hydrogens": True, "vocabulary": ("C", "N")}, "agree on H"),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(options, message):
    with pytest.raises(ValueError, match=message):
        load(**({"source": "sample", "split": "test"} | options))


# A person's own files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.smi", "\n".join(OWN)),
        ("own.txt", "SMILES name\n" + "\n".join(f"{smiles}\tmolecule {i}" for i, smiles in enumerate(OWN))),
        ("own.csv", "id,Canonical_SMILES,price\n" + "\n".join(f'"{i}",{smiles},{i}.5' for i, smiles in enumerate(OWN))),
        ("bom.csv", "\ufeffsmiles\n" + "\n".join(OWN)),
    ],
)
def test_text_files_are_read_whole(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = all_splits(path=tmp_path / name)
    assert sorted(read) == sorted(OWN)


def test_numeric_columns_and_computed_properties_are_conditions(tmp_path):
    rows = [f"{smiles},{len(smiles)}" for smiles in OWN]
    rows[0] = f"{OWN[0]},unknown"
    (tmp_path / "own.csv").write_text("smiles,length\n" + "\n".join(rows))
    dataset = load("qm9", "train", path=tmp_path / "own.csv", conditions=("length", "molecular_weight"))
    mean, deviation = dataset.statistics["properties"]["length"]
    for index, smiles in enumerate(dataset.smiles):
        value = float(dataset[index].condition["length"])
        assert math.isnan(value) if smiles == OWN[0] else value == pytest.approx((len(smiles) - mean) / deviation)
    methane = dataset.packed.properties[
        dataset.smiles.index("C"), dataset.packed.property_names.index("molecular_weight")
    ]
    assert methane == pytest.approx(16.043, abs=1e-3)


def test_bad_lines_are_counted_and_named_and_the_rest_is_used(tmp_path):
    lines = [*OWN, "", "C(", "CC.O", "c1ccc", "CBr", "C(C)(C)(C)(C)C", "C((", "C)"]
    (tmp_path / "own.smi").write_text("\n".join(lines))
    with pytest.warns(UserWarning) as caught:
        read = all_splits(path=tmp_path / "own.smi", vocabulary=("C", "O"))
    assert sorted(read) == sorted(OWN)
    assert len(caught) == 1, "once for all splits"
    message = str(caught[0].message)
    assert "22 of 29 molecules used" in message
    assert "cannot parse it (line 24, line 26, line 28 and 2 more)" in message
    assert "2 fragments (line 25)" in message
    assert "Br is not in the vocabulary (C O) (line 27)" in message


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "own.smi"
    path.write_text("CCC\n")
    assert all_splits(path=path) == ["CCC"]
    path.write_text("CCC\nC=CC\n")
    assert all_splits(path=path) == ["CCC", "C=CC"]


def test_sdf_with_coordinates(tmp_path):
    path = write_sdf(tmp_path / "own.sdf", OWN, melting="12.5", vendor="none")
    dataset = load("qm9", "train", hydrogens=True, positions=True, path=path, conditions=("melting",))
    assert set(dataset.smiles) == {smiles for smiles in OWN if split_of(smiles) == "train"}
    assert dataset.statistics["vocabulary"][-1] == "H"
    assert "vendor" not in dataset.packed.property_names
    real = torch.cat([dataset[i].x["positions"] for i in range(len(dataset))])
    assert float(real.std()) == pytest.approx(1, abs=1e-2)


def test_sdf_without_coordinates_serves_graphs_alone(tmp_path):
    path = write_sdf(tmp_path / "flat.sdf", OWN, conformers=False)
    assert sorted(all_splits(path=path)) == sorted(OWN)
    with pytest.raises(ValueError, match=r"no 3-D coordinates.*expected an SDF with 3-D coordinates"):
        load("qm9", "train", hydrogens=True, positions=True, path=path)


def test_hydrogens_are_never_placed_by_guess(tmp_path):
    with Chem.SDWriter(str(tmp_path / "bare.sdf")) as writer:
        writer.write(Chem.RemoveHs(with_hydrogens_and_conformer(Chem.MolFromSmiles("CCC"), seed=1)))
    with pytest.raises(ValueError, match="hydrogens without coordinates"):
        load("qm9", "train", hydrogens=True, positions=True, path=tmp_path / "bare.sdf")
    assert load("qm9", "train", positions=True, path=tmp_path / "bare.sdf")[0].x["positions"].shape == (3, 3)


def test_bad_records_of_an_sdf_are_named(tmp_path):
    path = write_sdf(tmp_path / "own.sdf", ["CCC", "CCO", "C=CC"])
    records = path.read_text().split("$$$$\n")
    records[1] = "broken\n\n\n  x  y\nM  END\n"
    path.write_text("$$$$\n".join(records))
    with pytest.warns(UserWarning, match=r"2 of 3 molecules used; left out: RDKit cannot read it \(record 2\)"):
        assert sorted(all_splits(path=path)) == ["C=CC", "CCC"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.sdf", b"", "nothing in it"),
        ("garbage.sdf", bytes(range(256)) * 8, "expected at least one molecule"),
        ("empty.smi", b"", "nothing in it"),
        ("heading.smi", b"smiles\n", "nothing in it"),
        ("bad.smi", b"C(\nxyz\n", r"none of 2 usable: RDKit cannot parse it \(line 1, line 2\)"),
        ("garbage.smi", bytes(range(128, 256)) * 8, "none of"),
        ("other.csv", b"name,mass\na,1\n", "columns name, mass; expected one named 'smiles'"),
        ("empty.csv", b"", r"columns \(none\)"),
        ("own.xyz", b"CCC\n", "expected a file that ends in .smi, .txt, .csv, .sdf"),
    ],
)
def test_files_without_molecules_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("qm9", "train", path=tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load("qm9", "train", path=tmp_path / "none.smi")


def test_molecules_too_large_for_a_byte_are_named(tmp_path):
    (tmp_path / "own.smi").write_text("CCC\n" + "C" * 256 + "\n")
    with pytest.warns(UserWarning, match=r"more than 255 atoms \(line 2\)"):
        assert load("qm9", "train", path=tmp_path / "own.smi").smiles == ["CCC"]


# Packed files, and the packages that sets come from


def test_packed_files_round_trip_and_damage_is_noticed(tmp_path):
    molecules = [Molecule.of(standardise(smiles), "", {"x": 1.0}, ()) for smiles in OWN]
    packed, _ = pack(molecules, Vocabulary(("C", "O", "H")), positions=False)
    path = tmp_path / "own.npz"
    packing.save(packed, path)
    again = packing.load(path)
    assert again.vocabulary == packed.vocabulary
    assert list(again.smiles) == list(packed.smiles)
    assert again.property_names == ("x",)
    for name in ("atoms", "offsets", "bonds", "bond_offsets", "splits", "properties"):
        np.testing.assert_array_equal(getattr(again, name), getattr(packed, name))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a whole file of packed molecules"):
        packing.load(path)


def test_concatenating_is_the_inverse_of_selecting():
    whole = packing.load(SAMPLE)
    parts = [whole.select(np.arange(0, 700)), whole.select(np.arange(700, len(whole)))]
    again = packing.concatenate(parts)
    for name in ("atoms", "offsets", "bonds", "bond_offsets", "positions", "smiles", "splits", "properties"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_geometry_is_matched_by_distance_whatever_the_order_of_hydrogens():
    mol = with_hydrogens_and_conformer(Chem.MolFromSmiles("OCC"), seed=1)
    xyz = mol.GetConformer().GetPositions()
    shuffled = [3, 0, 8, 1, 4, 2, 7, 5, 6]  # heavy atoms 0, 1, 2 stay in order
    elements = [mol.GetAtomWithIdx(i).GetSymbol() for i in shuffled]
    placed = match_geometry(standardise("OCC"), elements, xyz[shuffled])
    full = Chem.AddHs(standardise("OCC"))
    for bond in full.GetBonds():
        assert np.linalg.norm(placed[bond.GetBeginAtomIdx()] - placed[bond.GetEndAtomIdx()]) < 1.6


def test_a_geometry_of_another_molecule_is_not_matched():
    mol = with_hydrogens_and_conformer(Chem.MolFromSmiles("OCC"), seed=1)
    xyz, elements = mol.GetConformer().GetPositions(), [atom.GetSymbol() for atom in mol.GetAtoms()]
    assert match_geometry(standardise("OCC"), elements, xyz) is not None
    assert match_geometry(standardise("COC"), elements, xyz) is None
    assert match_geometry(standardise("CCO"), elements, xyz) is None
    assert match_geometry(standardise("OCC"), elements, xyz * 1.5) is None


def test_qm9_rows_become_molecules_with_geometry_and_properties():
    row = {
        "Index": "3",
        "SMILES": "O",
        "Elements": "['O','H','H']",
        "XYZ_Ang": "[[0.0,0.0,0.1173],[0.0,0.7572,-0.4692],[0.0,-0.7572,-0.4692]]",
    } | {column: "1.5" for column in sources._QM9_PROPERTIES.values()}
    molecule = sources._qm9_molecule(row)
    assert molecule.smiles == "O"
    assert molecule.properties["gap"] == 1.5
    assert molecule.properties["molecular_weight"] == pytest.approx(18.015, abs=1e-3)
    assert check(molecule.mol)[0].GetConformer().Is3D()
    assert molecule.where == "molecule 3"


def test_moses_keeps_its_published_test_sets():
    splits = {sources._moses_molecule({"SMILES": s, "split": "test_scaffolds"}).split for s in OWN}
    assert splits == {"test_scaffolds"}
    for smiles in OWN:
        held_out = split_of(smiles) == "valid"
        assert sources._moses_molecule({"SMILES": smiles, "split": "train"}).split == ("valid" if held_out else "train")


def test_a_set_is_fetched_checked_converted_and_then_cached(tmp_path, monkeypatch):
    package = Package("pip", "molsets", "0.0", "", "MIT", 1)
    path = tmp_path / package.file
    with zipfile.ZipFile(path, "w") as wheel:
        for split, rows in {"train": OWN, "test": ["CCN"], "test_scaffolds": ["C1CC1", "C[Si]"]}.items():
            wheel.writestr(f"moses/dataset/data/{split}.csv.gz", gzip.compress("\n".join(["SMILES", *rows]).encode()))
    package = replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(sources.SOURCES, "moses", replace(sources.SOURCES["moses"], package=package))
    monkeypatch.setenv("DIFFKIT_DOWNLOADS", str(tmp_path))
    assert load("moses", "test").smiles == ["CCN"]
    path.unlink()
    assert load("moses", "test_scaffolds").smiles == ["C1CC1"]
    assert set(load("moses", "train").smiles) | set(load("moses", "valid").smiles) == set(OWN)
    with pytest.raises(ValueError, match="heavy-atom graphs alone"):
        load("moses", "train", hydrogens=True)
