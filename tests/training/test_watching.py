"""What a person sees of a run, and what is left to look at afterwards."""

import json
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffkit import checkpoint
from diffkit.fit import fit


def test_the_terminal_shows_the_run_and_none_of_lightnings_notices(
    toy: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(toy(), tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert [line.split("  ")[0] for line in lines[:3]] == ["step 4", "step 8", "step 12"]
    assert "valid/loss" in lines[0] and "train/loss" in lines[0] and "samples/drawn 16" in lines[0]
    assert len(lines) == 4 and "12/12 steps" in lines[3] and "samples/s" in lines[3] and "loss" in lines[3]


def test_quiet_is_quiet(toy: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(toy(), tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_tensorboard_has_the_losses_and_a_picture_of_every_validation(
    toy: Callable[..., Any], at: Any, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        fit(toy(), tmp_path, quiet=True, callbacks=[at(6, lambda *_: exec("raise RuntimeError"))])
    fit(toy(), tmp_path, quiet=True)
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0})
    events.Reload()
    assert {"train/loss", "train/colour", "train/point", "valid/loss", "samples/red"} <= set(events.Tags()["scalars"])
    # Steps 5 and 6 were trained twice, before and after the failure: what was logged first is purged.
    assert [event.step for event in events.Scalars("train/loss")] == list(range(12))
    assert [event.step for event in events.Images("samples")] == [3, 7, 11]


def test_a_run_folder_holds_the_recipe_the_samples_and_a_model_that_loads(
    toy: Callable[..., Any], tmp_path: Path
) -> None:
    fit(toy(), tmp_path, quiet=True)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe["modality"]["statistics"] == {"radius": 1.0}
    assert recipe == checkpoint.load(tmp_path).recipe
    assert (tmp_path / "samples" / "preview.png").exists()
    assert json.loads((tmp_path / "samples" / "run.json").read_text())["count"] == 16


def head(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "model" / "README.md").read_text().split("---")[1]))


def test_the_card_says_what_was_done(toy: Callable[..., Any], tmp_path: Path) -> None:
    card = {
        "license": "mit",
        "tags": ["toys"],
        "sources": {"box": "A box of toys."},
        "citations": ["A. Child, Toys, 1998"],
    }
    fit(toy(card=card, data={"source": "box"}, training={"seed": 5}), tmp_path, command="diffkit train toy", quiet=True)
    assert head(tmp_path) == {
        "license": "mit",
        "library_name": "diffkit",
        "tags": ["diffusion", "toy", "toys"],
        "datasets": ["box"],
    }
    text = (tmp_path / "model" / "README.md").read_text()
    for said in ("| steps | 12 of 12 |", "| samples seen | 96 |", "| seed | 5 |", "decay 0.9", "valid/loss"):
        assert said in text
    for said in ("    diffkit train toy", "A box of toys.", "- A. Child, Toys, 1998", "| torch |", "| parameters |"):
        assert said in text


def test_the_card_claims_no_licence_for_a_file_of_ones_own(toy: Callable[..., Any], tmp_path: Path) -> None:
    card = {"license": "mit", "sources": {"box": "A box of toys."}}
    fit(toy(card=card, data={"source": "box", "path": "home/mine.csv"}), tmp_path, quiet=True)
    assert head(tmp_path).keys() == {"library_name", "tags"}
    text = (tmp_path / "model" / "README.md").read_text()
    assert "A box of toys" not in text and "`mine.csv`" in text


def test_the_wall_time_of_a_resumed_run_is_that_of_all_its_parts(
    toy: Callable[..., Any], at: Any, tmp_path: Path
) -> None:
    def seconds() -> float:
        return float(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Saver"]["seconds"])

    with pytest.raises(KeyboardInterrupt):
        fit(
            toy(),
            tmp_path,
            quiet=True,
            callbacks=[at(6, lambda *_: (time.sleep(0.5), signal.raise_signal(signal.SIGINT)))],
        )
    first = seconds()
    fit(toy(), tmp_path, quiet=True)
    assert 0.5 < first < seconds()
