"""The files that a set of generated molecules becomes."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rdkit import Chem

from diffkit_molecule import view
from diffkit_molecule.chem import Vocabulary, graph_to_mol

HEAVY = Vocabulary(("C", "N", "O"))
EXPLICIT = Vocabulary(("H", "C", "O"))
PENTAVALENT = graph_to_mol([0] * 6, [(0, i, 1) for i in range(1, 6)], HEAVY)
TWO_PIECES = graph_to_mol([0, 2], [], HEAVY)
ETHANOL = graph_to_mol([0, 0, 2], [(0, 1, 1), (1, 2, 1)], HEAVY)
WATER_POSITIONS = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
WATER = graph_to_mol([2, 0, 0], [(0, 1, 1), (0, 2, 1)], EXPLICIT, WATER_POSITIONS)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "molecules.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sdf(folder: Path) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(folder / "molecules.sdf"), removeHs=False))


def test_every_drawn_molecule_has_a_row_and_only_the_valid_are_in_the_sdf(tmp_path: Path) -> None:
    counts = view.save([PENTAVALENT, ETHANOL, None, TWO_PIECES], tmp_path)
    assert counts == {
        "drawn": 4,
        "valid": 1,
        "failed": {"does not sanitise: properties": 1, "not decoded": 1, "2 fragments": 1},
        "without_conformer": 0,
    }
    found = rows(tmp_path)
    assert [row["index"] for row in found] == ["0", "1", "2", "3"]
    assert [row["valid"] for row in found] == ["False", "True", "False", "False"]
    assert [row["smiles"] for row in found] == ["CC(C)(C)(C)C", "CCO", "", "C.O"]
    assert [row["reason"] for row in found] == ["does not sanitise: properties", "", "not decoded", "2 fragments"]
    (mol,) = sdf(tmp_path)
    assert mol.GetProp("index") == "1" and mol.GetProp("_Name") == "CCO"


def test_the_row_of_a_valid_molecule_has_its_properties(tmp_path: Path) -> None:
    view.save([ETHANOL], tmp_path)
    (row,) = rows(tmp_path)
    assert row["formula"] == "C2H6O"
    assert float(row["molecular_weight"]) == pytest.approx(46.069, abs=1e-3)
    assert (row["heavy_atoms"], row["hbd"], row["hba"], row["rings"]) == ("3", "1", "1", "0")
    assert float(row["tpsa"]) == pytest.approx(20.23)


def test_a_graph_is_given_hydrogens_and_a_conformer(tmp_path: Path) -> None:
    view.save([ETHANOL], tmp_path)
    (mol,) = sdf(tmp_path)
    assert mol.GetNumAtoms() == 9 and mol.GetConformer().Is3D()
    assert mol.GetProp("coordinates") == "ETKDGv3 + MMFF94"


def test_generated_coordinates_are_kept(tmp_path: Path) -> None:
    view.save([WATER], tmp_path)
    (mol,) = sdf(tmp_path)
    assert np.allclose(mol.GetConformer().GetPositions(), WATER_POSITIONS, atol=1e-4)
    assert mol.GetProp("coordinates") == "generated"


def test_a_molecule_without_embedding_is_written_flat_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "with_hydrogens_and_conformer", lambda mol, seed: None)
    assert view.save([ETHANOL], tmp_path)["without_conformer"] == 1
    (mol,) = sdf(tmp_path)
    assert mol.GetNumAtoms() == 9 and mol.GetProp("coordinates").startswith("flat")


def test_the_same_samples_make_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        view.save([ETHANOL, WATER, None], tmp_path / name)
    for name in ("molecules.csv", "preview.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [mol.GetConformer().GetPositions().tolist() for mol in sdf(tmp_path / "a")] == [
        mol.GetConformer().GetPositions().tolist() for mol in sdf(tmp_path / "b")
    ]


@pytest.mark.parametrize(("count", "grid"), [(0, (1, 1)), (1, (1, 1)), (3, (2, 2)), (16, (4, 4)), (30, (5, 5))])
def test_the_preview_is_a_grid(count: int, grid: tuple[int, int]) -> None:
    ethanol = Chem.MolFromSmiles("CCO")
    picture = Image.open(io.BytesIO(view.preview([ethanol] * count, "none of 4 is valid"))).convert("L")
    assert picture.size == (grid[0] * view.PANEL[0], grid[1] * view.PANEL[1])
    assert picture.getpixel((0, 0)) == 255
    assert picture.getextrema()[0] < 100  # something is drawn, be it words


def test_a_long_smiles_gives_way_to_formula_and_logp() -> None:
    assert view._legend(Chem.MolFromSmiles("CCO")) == "CCO"
    assert view._legend(Chem.MolFromSmiles("C" * 30)) == "C30H62   logP 11.9"


def test_nothing_drawn_still_makes_whole_files(tmp_path: Path) -> None:
    view.save([], tmp_path)
    assert rows(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"molecules.csv", "molecules.sdf", "preview.png"}


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    view.save([ETHANOL], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        view.save([WATER, None], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        view.save([ETHANOL], tmp_path / "out")
