"""What cannot be trained is refused in one line, and what was saved before stays as it was."""

import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from diffkit.fit import fit


def step_of(folder: Path) -> int:
    return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])


def test_a_folder_with_other_files_is_refused(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"something else \(thesis.tex\); expected a new"):
        fit(toy(), tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_an_os_error(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        fit(toy(), tmp_path / "file" / "run", quiet=True)


def test_a_run_is_not_taken_up_with_another_recipe(toy: Callable[..., Any], tmp_path: Path) -> None:
    fit(toy(), tmp_path, quiet=True)
    other = toy(training={"learning_rate": 0.5}, network={"width": 8})
    with pytest.raises(ValueError, match=r"got network.width=8 \(was None\), training.learning_rate=0.5 \(was 0.001\)"):
        fit(other, tmp_path, quiet=True)
    assert step_of(tmp_path) == 12


def test_a_recipe_that_was_refused_can_be_mended_in_the_same_folder(toy: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="17"):
        fit(toy(trainer={"precision": "17"}), tmp_path, quiet=True)
    assert fit(toy(), tmp_path, quiet=True) is not None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_short_is_named(toy: Callable[..., Any], tmp_path: Path, share: float) -> None:
    fit(toy(training={"steps": 4}), tmp_path, quiet=True)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"last.ckpt, which is cut short or no checkpoint; remove it"):
        fit(toy(training={"steps": 4}), tmp_path, quiet=True)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/diffkit-test-was-here"),))


@pytest.mark.parametrize("write", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil))])
def test_a_pickle_in_its_place_runs_no_code(toy: Callable[..., Any], tmp_path: Path, write: Any) -> None:
    trace = Path("/tmp/diffkit-test-was-here")
    fit(toy(training={"steps": 4}), tmp_path, quiet=True)
    write(Evil(), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="cut short or no checkpoint"):
        fit(toy(training={"steps": 4}), tmp_path, quiet=True)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:no preview")
@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    toy: Callable[..., Any], at: Any, tmp_path: Path, every: int
) -> None:
    def poison(_: L.Trainer, module: L.LightningModule) -> None:
        next(module.parameters()).data[0] = torch.nan

    with pytest.raises(ValueError, match=r"not a finite number at step .*training.learning_rate"):
        fit(toy(trainer={"log_every_n_steps": every}), tmp_path, quiet=True, callbacks=[at(5, poison)])
    assert step_of(tmp_path) == 4


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(
    toy: Callable[..., Any], at: Any, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*last.ckpt: .*; that of step 4 is kept"):
            fit(toy(), tmp_path, quiet=True, callbacks=[at(6, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert step_of(tmp_path) == 4
    assert not list(tmp_path.glob(".last*"))
    fit(toy(), tmp_path, quiet=True)
    assert step_of(tmp_path) == 12


def test_what_a_killed_save_left_is_cleared_away(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / ".last-abc.ckpt").write_bytes(b"half of it")
    fit(toy(training={"steps": 4}), tmp_path, quiet=True)
    assert not (tmp_path / ".last-abc.ckpt").exists()


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"trainer": {"devices": 3}}, "batch_size=8 for 3 devices x 1 accumulated batches; expected a multiple of 3"),
        ({"trainer": {"accumulate_grad_batches": 5}}, "expected a multiple of 5"),
        ({"trainer": {"precision": "17"}}, "Lightning refuses.*17"),
        ({"trainer": {"horses": 4}}, "Lightning refuses.*horses"),
        ({"trainer": {"accelerator": "cpuu"}}, "Lightning refuses.*cpuu"),
        ({"training": {"lerning_rate": 4}}, "training.lerning_rate.*did you mean 'learning_rate'"),
        ({"training": {"times": "unifrom"}}, "did you mean 'uniform'"),
        ({"data": {"valid": 0}}, "nothing is in the valid split"),
        ({"modality": {"name": "toi"}}, "did you mean 'toy'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    toy: Callable[..., Any], tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(toy(**over), tmp_path, quiet=True)


def test_a_preview_that_fails_is_a_warning(toy: Callable[..., Any], tmp_path: Path) -> None:
    recipe = toy(modality={"broken_view": True}, training={"steps": 4})
    with pytest.warns(UserWarning, match="no preview at step 4: no colours today"):
        assert fit(recipe, tmp_path, quiet=True) is not None
