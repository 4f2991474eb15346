"""A person's mistake is one line that says what was given and what would do; nothing is left half done."""

import pickle
import resource
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffkit.cli import main


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    assert code not in (0, None)
    said = capsys.readouterr().err.strip().split("\n")
    assert "Traceback" not in said[-1]
    assert len([line for line in said if "error:" in line]) == 1
    return said[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "molecul"], "did you mean 'molecule'?"),
        (["generate", "molecule", "--sampler", "ddmi"], "did you mean 'ddim'?"),
        (["generate", "molecule", "--sampler", "ddim:etta=1"], "etta"),
        (["generate", "molecule", "--sampler", "ddim:eta=2"], "expected a number from 0"),
        (
            ["generate", "molecule", "--sampler", "first_hitting"],
            "none of which has absorbing noise; expected at least",
        ),
        (["generate", "molecule", "--jump", "confidence"], "use the jump posterior or tau_leaping"),
        (["generate", "molecule", "--jump", "remask:strategy=capp"], "expected 'cap' or 'rescale'"),
        (["generate", "molecule", "--grid", "karas"], "did you mean 'karras'?"),
        (["generate", "molecule", "--seeed", "1"], "did you mean '--seed'?"),
        (["generate", "molecule", "-n", "0"], "expected a whole number, 1 or more"),
        (["generate", "molecule", "--steps", "0"], "expected a whole number, 1 or more"),
        (["generate", "molecule", "--guidance", "3"], "leave guidance out"),
        (["generate", "molecule", "--condition", "gap=1"], "this model takes no conditions"),
        (["generate", "molecule", "--condition", "gap"], "expected NAME=VALUE"),
        (["generate", "molecule", "a small alcohol"], "--condition NAME=VALUE"),
        (["generate", "molecule", "--interval", "1", "0", "--guidance", "2"], "0 <= low <= high <= 1"),
        (["generate", "molecule", "--device", "gpu0"], "expected cpu or cuda"),
        (["generate", "molecule", "--negative", "gap=1"], "guidance above 1"),
        (["generate", "molecule", "--times", "1", "0.5", "--steps", "3"], "expected one or the other"),
        (["generate", "molecule", "--times", "0.2", "0.5"], "expected them to fall strictly"),
        (["generate", "molecule", "--times", "1"], "expected a list of at least two"),
        (["generate", "molecule", "--schedule", "ve"], "expected one whose alpha falls to (almost) 0"),
        (["generate", "molecule", "--schedule", "cosin"], "did you mean 'cosine'?"),
        (["generate", "molecule", "--guider", "cgf", "--guidance", "2"], "did you mean 'cfg'?"),
        (["generate", "molecule", "--guider", "cfg:scale=3", "--guidance", "2"], "expected it as --guidance"),
        (["generate", "molecule", "--guider", "top_p", "--guidance", "2"], "which has no scale"),
        (["generate", "molecule", "--guider", "skip_layers:layers=nope", "--guidance", "2"], "got the layer 'nope'"),
        (["generate", "molecule", "--top-p", "0"], "got"),
        (["generate", "molecule", "--strength", "0.6"], "no file to start from"),
        (["generate", "molecule", "--from", "CCO", "--strength", "1.5"], "expected above 0 (the file) and at most 1"),
        (["generate", "molecule", "--from", "none.sdf"], "none.sdf: No such file"),
        (["generate", "molecule", "--from", "chair"], "no file, and no SMILES either"),
        (
            ["generate", "molecule", "--grid", "steps=4,8", "seed=1,2", "top-p=1"],
            "expected one knob or two that differ",
        ),
        (["generate", "molecule", "--grid", "steps=4,4"], "expected values that differ"),
        (["generate", "molecule", "--grid", "steps=4,many"], "got steps=many in --grid; got 'many'; expected a whole"),
        (["generate", "molecule", "--grid", "seed=1.5"], "got seed=1.5 in --grid; expected a number"),
        (["generate", "molecule", "--grid", "batch-size=1,2"], "expected a condition or one of prompt"),
        (["generate", "molecule", "--grid", "stesp=1,2"], "this model takes no conditions"),
        (["generate", "molecule", "--grid", "karras", "--grid", "power"], "expected one, and knobs as KNOB=V1,V2"),
        (["generate", "molecule", "--grid", "strength=0.5,1"], "no file to start from"),
        (["generate", "molecule", "--first", "-1"], "from 0 or above"),
        (["evaluate", "molecule", "--grid", "steps=1,2"], "expected the name of a time grid"),
        (["generate", "molecule", "--format", "glb"], "written in one format alone: leave it out"),
    ],
)
def test_a_wrong_request_names_what_would_do(
    arguments: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert said in complaint(capsys, *arguments, "--model", model, "--out", out)
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "molecule/qm8"], "did you mean 'molecule/qm9'?"),
        (["train", "molecule/qm9", "trainin.steps=1"], "trainin.steps"),
        (["train", "molecule/qm9", "--stpes=1"], "which this command does not take"),
        (["list", "sampler"], "did you mean 'samplers'?"),
        (["evaluate", "molecul"], "did you mean 'molecule'?"),
        (["generate", "molecule", "--model", "molecule/qm8"], "expected a folder with model.safetensors"),
        (["generat"], "invalid choice"),
    ],
)
def test_a_wrong_name_lists_what_exists(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in complaint(capsys, *arguments)


def test_what_carries_no_settings_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "odd.json").write_text(
        '{"model": "molecule", "settings": {"sampler": {"name": "x", "a": [1, 2]}, '
        '"steps": 2, "grid": "power"}, "count": 1}'
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for what, said in {
        "plain.png": "which carries no settings",
        "other.json": "which is no record of a run",
        "none.png": "No such file",
        "full": "run.json: No such file",
        "odd.json": "which no flag can say",
    }.items():
        assert said in complaint(capsys, "show", tmp_path / what)
    flags = ["--model", "molecule", "--steps", "1", "-n", "1", "--quiet", "--out", tmp_path / "run"]
    assert main(["generate", "molecule", *map(str, flags)]) == 0
    assert "expected a new folder" in complaint(capsys, "show", tmp_path / "run", "--rerun", "--out", tmp_path / "full")
    assert "run/run.json" in complaint(capsys, "show", tmp_path / "run" / "molecules.csv")


def damaged(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "damaged"))


def test_a_truncated_checkpoint(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged(model, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a whole safetensors file" in complaint(capsys, "generate", "molecule", "--model", folder)


def test_a_pickle_in_place_of_a_checkpoint_is_not_opened(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    folder = damaged(model, tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "pickled checkpoints are not loaded" in complaint(capsys, "generate", "molecule", "--model", folder)
    assert not (tmp_path / "sprung").exists()


def test_a_recipe_cannot_name_code(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged(model, tmp_path)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("schedule: flow", "schedule: os.system", 1))
    assert "got schedule 'os.system'" in complaint(capsys, "generate", "molecule", "--model", folder)
    recipe.write_text("!!python/object/apply:os.system ['true']")
    assert "is not YAML" in complaint(capsys, "generate", "molecule", "--model", folder)


def test_weights_of_another_recipe(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged(model, tmp_path)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("width: 32", "width: 64"))
    assert "do not fit" in complaint(capsys, "generate", "molecule", "--model", folder)


def test_an_output_folder_that_is_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    said = complaint(capsys, "generate", "molecule", "--model", model, "--out", tmp_path / "out")
    assert "File exists" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(model: Path, tmp_path: Path, diffkit) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "molecules.csv").write_text("of an earlier run\n")
    limit = (200, 200)  # bytes that a file may have: the next one fails as on a full disk
    ended = diffkit(
        "generate", "molecule", "--model", model, "--out", tmp_path, "-n", 8,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "molecules.csv").read_text() == "of an earlier run\n"
    assert [path.name for path in tmp_path.iterdir()] == ["molecules.csv"]
