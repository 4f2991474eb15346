"""``diffkit show``: the command line that it prints draws the same again, to the bit."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import diffkit
from diffkit import stamp
from diffkit.cli import main
from diffkit.cli.show import flags

RUNS = {
    "as it is": [],
    "all numbers": ["--steps", "3", "--seed", "9", "--temperature", "1.3", "--top-p", "0.9", "--batch-size", "2"],
    "components": ["--sampler", "ddim:eta=0.5", "--jump", "tau_leaping:eta=2.0", "--grid", "power:power=2"],
    "times": ["--times", "1", "0.6", "0.1", "0"],
    "a file": ["--from", "CC(C)O", "--strength", "0.4"],
    "asked": ["--condition", "dipole=2", "--guidance", "2", "--guider", "apg", "--interval", "0.1", "0.9"],
    "against": ["--guidance", "1.5", "--negative", "dipole=0", "--precision", "bf16", "--schedule", "cosine"],
    "later ones": ["--first", "3"],
    "options": ["--option", "hydrogens=False"],
    "a sheet": ["--grid", "power:power=3", "steps=2,3", "dipole=1,2"],
}


def shown(capsys: pytest.CaptureFixture[str], what: Path) -> list[str]:
    capsys.readouterr()
    assert main(["show", str(what)]) == 0
    return shlex.split(capsys.readouterr().out)


@pytest.mark.parametrize("said", RUNS.values(), ids=RUNS)
def test_the_line_that_is_shown_draws_the_same(
    said: list[str], conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["generate", "molecule", "--model", str(conditional), "-n", "3", *said, "--out", str(first)]) == 0
    word, *rest = shown(capsys, first)
    assert word == "diffkit"
    assert "--option" not in said or rest[rest.index("--option") + 1] == "hydrogens=False"
    assert main([*rest, "--out", str(second)]) == 0
    for a in first.rglob("*"):
        b = second / a.relative_to(first)
        if a.name == "run.json":
            told, again = (json.loads(f.read_text()) for f in (a, b))
            assert told["settings"] == again["settings"] and told["numbers"] == again["numbers"]
        elif a.is_file():
            assert a.read_bytes() == b.read_bytes(), a
    assert shown(capsys, second) == [word, *rest]
    if "sheet" not in said:
        picture = first / ("grid.png" if (first / "grid.png").exists() else "preview.png")
        assert shown(capsys, picture) == [word, *rest]


def test_only_valid_ones_are_drawn_again_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["generate", "molecule", "-n", "12", "--steps", "4", "--valid-only", "--out", str(tmp_path / "a")]
    assert main(drawn) == 0
    assert "--valid-only" in shown(capsys, tmp_path / "a")
    assert main(["show", str(tmp_path / "a"), "--rerun", "--out", str(tmp_path / "b")]) == 0
    assert "3 of 3 files are equal" in capsys.readouterr().out


def test_a_picture_of_one_sample_is_drawn_again_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["generate", "pointcloud", "sofa", "-n", "2", "--steps", "1", "--condition", "points=64"]
    assert main([*drawn, "--out", str(tmp_path / "a"), "--format", "npy"]) == 0
    words = shown(capsys, tmp_path / "a")
    assert words[words.index("--format") + 1] == "npy"
    facts = stamp.read(tmp_path / "a" / "preview.png")
    assert facts is not None and facts["numbers"] == [[0, 1]]
    one = {k: v for k, v in facts.items() if k != "numbers"} | {"number": 1}
    words = flags(one, tmp_path)
    assert words[words.index("-n") + 1] == words[words.index("--first") + 1] == "1"


def test_a_number_is_that_of_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"prompt": "flute, A4", "condition": {"seconds": 0.25}, "steps": 1, "first": 6}
    samples = diffkit.load("audio").generate(2, batch_size=1, **asked)
    (tmp_path / "0005.png").write_bytes(b"not of this run")
    samples.save(tmp_path)
    assert [stamp.read(tmp_path / f"000{k}.png")["number"] for k in (0, 1)] == [6, 7]  # type: ignore[index]
    assert stamp.read(tmp_path / "preview.png")["numbers"] == [[6, 7]]  # type: ignore[index]
    assert (tmp_path / "0005.png").read_bytes() == b"not of this run"
    assert main(["show", str(tmp_path / "0001.png"), "--rerun", "--out", str(tmp_path / "again")]) == 0
    assert "1 of 1 files are equal" in capsys.readouterr().out
    Image.new("RGB", Image.open(tmp_path / "0001.png").size).save(tmp_path / "black.png")
    stamp.stamp(tmp_path / "black.png", stamp.read(tmp_path / "0001.png") or {})
    assert main(["show", str(tmp_path / "black.png"), "--rerun", "--out", str(tmp_path / "other")]) == 1
    assert "not black.png (by 2" in capsys.readouterr().out


def test_what_differs_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["generate", "molecule", "--model", str(model), "-n", "2", "--out", str(tmp_path / "a")]
    assert main(drawn) == 0
    (tmp_path / "a" / "molecules.csv").write_text("other")
    assert main(["show", str(tmp_path / "a"), "--rerun", "--out", str(tmp_path / "b")]) == 1
    assert "2 of 3 files are equal" in (said := capsys.readouterr().out) and "not molecules.csv" in said


def test_a_stamp_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    path, info = tmp_path / "a.png", PngInfo()
    info.add_text("other", "stays")
    info.add_text("diffkit", "goes")
    picture = Image.effect_noise((17, 5), 60).convert("RGBA")
    picture.save(path, pnginfo=info)
    plain = path.read_bytes()
    stamp.stamp(path, {"words": "é – 猫"})
    stamp.stamp(path, {"words": "é – 猫", "more": [1, 2.5]})
    again = Image.open(path)
    assert again.tobytes() == picture.tobytes()
    assert (again.info["other"], list(again.info)) == ("stays", ["diffkit", "other"])
    assert stamp.read(path) == {"words": "é – 猫", "more": [1, 2.5]}
    assert plain[plain.index(b"IDAT") :] == path.read_bytes()[path.read_bytes().index(b"IDAT") :]
    picture.convert("RGB").save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    stamp.stamp(tmp_path / "a.jpg", {})
    assert (tmp_path / "a.jpg").read_bytes() == before and stamp.read(tmp_path / "a.jpg") is None
