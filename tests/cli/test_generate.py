"""``diffkit generate`` writes what it says, and only that."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rdkit import Chem
from safetensors.torch import load_file

import diffkit as package
from diffkit.cli import main
from diffkit.cli.options import node
from diffkit.samples import Samples


def generate(model: Path, out: Path, *flags: str, count: int = 6) -> int:
    return main(["generate", "molecule", "--model", str(model), "-n", str(count), "--out", str(out), *flags])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "molecules.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_sample_has_its_row_and_the_run_is_on_record(tmp_path: Path) -> None:
    flags = ["-n", "20", "--seed", "3", "--steps", "10", "--sampler", "ddim:eta=0.5", "--out", str(tmp_path)]
    assert main(["generate", "molecule", *flags]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    table = rows(tmp_path)
    assert [int(row["index"]) for row in table] == list(range(20))
    assert run["count"] == run["drawn"] == 20
    assert run["evaluations_per_sample"] == 10
    assert run["settings"]["seed"] == 3
    assert run["settings"]["sampler"] == {"name": "ddim", "eta": 0.5}
    assert run["versions"]["torch"] == torch.__version__
    valid = sum(row["valid"] == "True" for row in table)
    assert run["result"]["valid"] == valid
    assert len(Chem.SDMolSupplier(str(tmp_path / "molecules.sdf"))) == valid > 0
    assert Image.open(tmp_path / "preview.png").size[0] > 100
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_equal_seeds_give_equal_molecules_whatever_the_batch(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "a", "--seed", "1")
    generate(model, tmp_path / "b", "--seed", "1", "--batch-size", "4")
    generate(model, tmp_path / "c", "--seed", "2")
    a, b, c = ([row["smiles"] for row in rows(tmp_path / name)] for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    "flags",
    [
        ["--times", "1", "0.5", "0.2", "0"],
        ["--schedule", "cosine", "--steps", "3"],
        ["--top-p", "0.9", "--jump", "tau_leaping:eta=2", "--steps", "3"],
        ["--guider", "skip_layers:layers=layers.0", "--guidance", "1.5", "--steps", "3"],
        ["--sampler", "unipc:order=3", "--grid", "karras:rho=5", "--steps", "3"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_knob_of_sampling_is_a_flag_and_on_record(model: Path, tmp_path: Path, flags: list[str]) -> None:
    assert generate(model, tmp_path, *flags) == 0
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert settings["steps"] == 3
    assert len(rows(tmp_path)) == 6
    if flags[0] == "--times":
        assert settings["grid"] == {"name": "explicit", "times": [1.0, 0.5, 0.2, 0.0]}
    if flags[0] == "--sampler":
        assert settings["sampler"] == {"name": "unipc", "order": 3}


def test_a_trajectory_holds_every_step_of_every_sample(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path, "--trajectory", "--batch-size", "4", "--steps", "3", "--grid", "power:power=2")
    kept = load_file(tmp_path / "trajectory.safetensors")
    assert kept["t"].tolist() == pytest.approx([1.0, 4 / 9, 1 / 9])
    assert kept["s"].tolist() == pytest.approx([4 / 9, 1 / 9, 0.0])
    for leaf in ("atoms", "bonds"):
        assert kept[f"x_t/{leaf}"].shape == kept[f"x0/{leaf}"].shape
        assert kept[f"x_t/{leaf}"].shape[:2] == (3, 6)


def test_only_valid_ones_where_asked_and_how_many_it_took(tmp_path: Path) -> None:
    assert main(["generate", "molecule", "-n", "32", "--steps", "4", "--valid-only", "--out", str(tmp_path)]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert {row["valid"] for row in rows(tmp_path)} == {"True"}
    assert run["count"] == len(rows(tmp_path)) == 32
    assert run["drawn"] > 32  # four steps are too few for all to be


def test_a_model_that_draws_no_valid_ones_is_not_asked_for_ever(model: Path, tmp_path: Path) -> None:
    assert generate(model, tmp_path, "--valid-only", count=2) == 1
    assert not list(tmp_path.iterdir())


def test_guidance_counts_both_evaluations(conditional: Path, tmp_path: Path) -> None:
    flags = ("--condition", "dipole=3", "--guidance", "2", "--negative", "dipole=0")
    assert generate(conditional, tmp_path, *flags) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["evaluations_per_sample"] == 8
    assert run["settings"]["request"]["values"] == {"dipole": "3"}


def test_python_says_the_same_as_the_command_line(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "cli", "--seed", "5")
    samples = package.load(str(model)).generate(6, seed=5)
    assert isinstance(samples, Samples)
    samples.save(tmp_path / "python")
    assert rows(tmp_path / "cli") == rows(tmp_path / "python")


def test_ctrl_c_keeps_the_batches_that_are_done(model: Path, tmp_path: Path) -> None:
    flags = ["-n", "100000", "--batch-size", "8", "--steps", "2", "--model", str(model), "--out", str(tmp_path)]
    # The interrupt comes from inside, after a number of batches, as a terminal would send it.
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from diffkit import model\n"
        "plain, done = model.Model._batch, []\n"
        "def batch(*given):\n"
        "    done.append(1)\n"
        "    if len(done) == 4: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plain(*given)\n"
        "model.Model._batch = batch\n"
        "from diffkit.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    call = [sys.executable, "-c", program, "generate", "molecule", *flags]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130
    assert "stopped after 24 of 100000 samples" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(rows(tmp_path)) == 24
    assert json.loads((tmp_path / "run.json").read_text())["complete"] is False


def test_options_of_a_component_are_numbers_truths_and_words() -> None:
    told = {"name": "unipc", "order": 3, "lower_final": True, "variant": "bh1"}
    assert node("unipc:order=3,lower_final=True,variant=bh1") == told
    assert node("karras:rho=7.0,whole=false") == {"name": "karras", "rho": 7.0, "whole": False}


def test_a_prompt_may_stand_after_flags(tmp_path: Path) -> None:
    given = ["generate", "pointcloud", "--steps", "2", "-n", "1", "--quiet", "--out", str(tmp_path), "a sofa"]
    assert main(given) == 0
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["request"]["prompt"] == "a sofa"
