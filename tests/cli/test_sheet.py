"""``--grid KNOB=V1,V2 KNOB=V1,V2``: cells are the runs that flags say, and the sheet has a place for each."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffkit import stamp
from diffkit.cli import main


def draw(model: Path, out: Path, *flags: str, kind: str = "molecule") -> int:
    return main(["generate", kind, "--model", str(model), "--out", str(out), "--quiet", *flags])


def table(folder: Path) -> str:
    return (folder / "molecules.csv").read_text()


def test_a_cell_is_the_run_that_its_flags_say(model: Path, tmp_path: Path) -> None:
    assert draw(model, tmp_path / "grid", "--grid", "steps=2,3", "seed=5,6,7", "-n", "3") == 0
    for row, seed in enumerate((5, 6, 7)):
        for column, steps in enumerate((2, 3)):
            cell = tmp_path / "grid" / f"{row}-{column}_steps={steps}_seed={seed}"
            assert draw(model, tmp_path / cell.name, "--steps", str(steps), "--seed", str(seed), "-n", "3") == 0
            assert table(cell) == table(tmp_path / cell.name)
            told, said = (json.loads((f / "run.json").read_text())["settings"] for f in (cell, tmp_path / cell.name))
            assert told == said


def test_the_noise_is_the_same_in_all_cells(model: Path, tmp_path: Path) -> None:
    assert draw(model, tmp_path, "--grid", "temperature=1,1.0,2", "-n", "4") == 0
    same, again, other = (table(tmp_path / f"0-{k}_temperature={v}") for k, v in enumerate(("1", "1.0", "2")))
    assert same == again != other


def test_the_sheet_has_labels_and_a_place_for_every_cell(model: Path, tmp_path: Path) -> None:
    assert draw(model, tmp_path, "--grid", "steps=1,2,3", "guidance=1", "--grid", "karras") == 0
    sheet = Image.open(tmp_path / "grid.png")
    panel = Image.open(tmp_path / "0-0_steps=1_guidance=1" / "preview.png")
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["cells"] == sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert run["grid"] == {"steps": ["1", "2", "3"], "guidance": ["1"]}
    assert {json.loads(path.read_text())["settings"]["grid"] for path in tmp_path.glob("*/run.json")} == {"karras"}
    assert sheet.size[0] >= 3 * panel.size[0] and sheet.size[1] >= panel.size[1] + 17
    assert sheet.crop((0, 0, sheet.size[0], 25)).getextrema() != ((255, 255),) * 3
    facts = stamp.read(tmp_path / "grid.png")
    assert facts is not None and facts["grid"] == run["grid"] and facts["settings"] == run["settings"]


def test_any_condition_is_a_knob_and_so_are_files_and_strengths(conditional: Path, tmp_path: Path) -> None:
    assert draw(conditional, tmp_path / "a", "--grid", "dipole=1,4", "guidance=2,3", "--steps", "1") == 0
    asked = [
        json.loads((tmp_path / "a" / name / "run.json").read_text())["settings"]
        for name in ("0-1_dipole=4_guidance=2", "1-0_dipole=1_guidance=3")
    ]
    assert [(s["request"]["values"], s["guidance"]) for s in asked] == [({"dipole": "4"}, 2.0), ({"dipole": "1"}, 3.0)]
    assert draw(conditional, tmp_path / "b", "--grid", "from=CCO,C/C=C/C", "strength=0.5,1", "--steps", "2") == 0
    files = sorted(path.parent.name for path in (tmp_path / "b").glob("*/run.json"))
    assert files == [
        "0-0_from=CCO_strength=0.5",
        "0-1_from=C-C=C-C_strength=0.5",
        "1-0_from=CCO_strength=1",
        "1-1_from=C-C=C-C_strength=1",
    ]


def test_the_prompt_may_stand_behind_the_knobs_and_any_modality_has_a_sheet(tmp_path: Path) -> None:
    flags = ["--grid", "steps=1,2", "a sofa", "--condition", "points=64"]
    assert main(["generate", "pointcloud", *flags, "--quiet", "--out", str(tmp_path)]) == 0
    settings = json.loads((tmp_path / "0-1_steps=2" / "run.json").read_text())["settings"]
    assert settings["request"]["prompt"] == "a sofa" and settings["steps"] == 2
    assert (tmp_path / "0-1_steps=2" / "0000.ply").exists()


def test_where_one_cell_cannot_be_none_is_drawn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(model, tmp_path / "out", "--grid", "sampler=ddim,ddmi") == 1
    assert "did you mean 'ddim'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
