"""Samples that start from a file: at the grid's own time, from the file noised to it, and like it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import torch
from PIL import Image
from rdkit import Chem

import diffkit
from diffkit.cli import main
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.settings import Settings
from diffkit_molecule import Molecule
from diffkit_pointcloud.cloud import Cloud
from diffkit_pointcloud.formats import FORMATS


def a_cloud(folder: Path) -> str:
    points = np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32)
    (folder / "cube.ply").write_bytes(FORMATS["ply"](Cloud(points)))
    return str(folder / "cube.ply")


def a_sound(folder: Path) -> str:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(11025) / 11025)
    soundfile.write(folder / "a.wav", wave, 11025)
    return str(folder / "a.wav")


def a_picture(folder: Path) -> str:
    image = Image.new("RGBA", (80, 64), (0, 0, 0, 0))
    image.paste((250, 200, 40, 255), (20, 12, 60, 52))
    image.save(folder / "a.png")
    return str(folder / "a.png")


MADE = {
    "molecule": lambda folder: "CC(=O)Nc1ccccc1",
    "pointcloud": a_cloud,
    "audio": a_sound,
    "image": a_picture,
}


@pytest.fixture(params=MADE)
def started(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, str]:
    return diffkit.load(request.param), MADE[request.param](tmp_path)


def test_the_first_state_is_the_file_noised_to_a_time_of_the_grid(started: tuple[Model, str]) -> None:
    model, file = started
    drawn = model.generate(3, start=file, strength=0.55, steps=4, grid="power", seed=2, record=True, batch_size=2)
    x0 = model.modality.encode(model.modality.read(file, Request())).x
    for batch, rows, first in zip(drawn.steps, (2, 1), (0, 2), strict=True):
        assert [(step.t, step.s) for step in batch] == [(0.5, 0.25), (0.25, 0.0)]
        noise = Noise.of(2, rows, start=first)
        for name, leaf in model.denoiser.process.leaves.items():
            x = torch.stack([x0[name]] * rows)
            expected = leaf.corrupt(x, 0.5, noise.fold("start"), name, torch.ones_like(x, dtype=torch.bool))
            torch.testing.assert_close(batch[0].x_t[name], expected, atol=1e-5, rtol=0)
            if isinstance(leaf, Gaussian) and x.numel() > 500:
                alpha, sigma = leaf.schedule.at(0.5)
                assert ((batch[0].x_t[name] - alpha * x) / sigma).std().item() == pytest.approx(1, abs=0.1)


def test_a_little_noise_changes_little(started: tuple[Model, str]) -> None:
    model, file = started
    example = model.modality.encode(model.modality.read(file, Request()))
    (record,) = model.generate(1, start=file, strength=1e-3, grid={"name": "explicit", "times": [1, 1e-3, 0]}, steps=2)
    again = model.modality.encode(record).x
    for name, leaf in example.x.items():
        if not leaf.is_floating_point():
            if "positions" not in example.x:
                assert torch.equal(leaf.flatten().sort().values, again[name].flatten().sort().values)
        elif name == "points":
            assert torch.allclose(leaf, again[name], atol=0.02)


def test_what_is_not_asked_for_is_left_to_the_file(tmp_path: Path) -> None:
    audio, sound = diffkit.load("audio"), a_sound(tmp_path)
    noise = Noise.of(0, 2)
    for said, given in (
        (Request(None, {}, sound), False),
        (Request(None, {"seconds": "1"}, sound), False),
        (Request("flute, A4", {}, sound), True),
        (Request(None, {"pitch": "A4"}, sound), True),
    ):
        present = audio._layout(2, noise, said).condition.present
        assert any(bool(p.any()) for p in present.values()) is given


def test_sizes_are_those_of_the_file_or_the_ones_asked_for(tmp_path: Path) -> None:
    audio, sound = diffkit.load("audio"), a_sound(tmp_path)
    lengths = [audio.modality.read(sound, Request(None, v)).seconds for v in ({}, {"seconds": "0.5"}, {"seconds": "3"})]
    assert lengths == pytest.approx([1, 0.5, 3], abs=0.05)
    shapes, cloud = diffkit.load("pointcloud"), a_cloud(tmp_path)
    assert len(shapes.modality.read(cloud, Request()).points) == 300
    assert len(shapes.modality.read(cloud, Request(None, {"points": "100"})).points) == 100
    with pytest.raises(ValueError, match=r"got points=400 and .* with 300"):
        shapes.modality.read(cloud, Request(None, {"points": "400"}))


def test_molecules_are_read_from_smiles_and_files_with_coordinates_where_a_model_needs_them(tmp_path: Path) -> None:
    flat, solid = Molecule(("C", "O"), statistics={}), Molecule(("C", "O", "H"), hydrogens=True, positions=True)
    (tmp_path / "two.smi").write_text("CCO first\nC second\n")
    with pytest.warns(UserWarning, match="holds several molecules; the first is taken"):
        assert Chem.MolToSmiles(flat.read(str(tmp_path / "two.smi"), Request())) == "CCO"
    made = solid.read("CO", Request())
    assert made.GetNumAtoms() == 6 and made.GetConformer().Is3D()
    with Chem.SDWriter(str(tmp_path / "own.sdf")) as writer:
        writer.write(made)
    own = solid.read(str(tmp_path / "own.sdf"), Request())
    assert np.allclose(own.GetConformer().GetPositions(), made.GetConformer().GetPositions(), atol=1e-3)


def test_the_command_line_says_it_and_the_run_is_on_record(tmp_path: Path) -> None:
    flags = ["--from", "CCO", "--strength", "0.5", "--steps", "4", "--grid", "power", "-n", "2", "--quiet"]
    assert main(["generate", "molecule", *flags, "--out", str(tmp_path)]) == 0
    run: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["request"]["start"] == "CCO"
    assert run["settings"]["strength"] == 0.5
    assert run["started_at"] == 0.5
    assert run["evaluations_per_sample"] == 2


def test_a_model_has_a_strength_of_its_own_where_nobody_says_one() -> None:
    model = diffkit.load("molecule")
    assert model.settings(request=Request(None, {}, "CCO")).strength == 0.6
    assert model.settings().strength is None


@pytest.mark.parametrize(("strength", "start"), [(None, "CCO"), (0.5, None), (0.0, "CCO"), (1.1, "C"), (-1.0, "C")])
def test_a_strength_belongs_to_a_file_and_is_above_0_and_at_most_1(strength: float | None, start: str | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        Settings(4, "ddim", "power", strength=strength, request=Request(start=start))
