"""Ctrl-C and SIGTERM end a run between two steps, saved; a second Ctrl-C ends it at once."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from diffkit import checkpoint
from diffkit.fit import fit

Final = Callable[[Path], dict[str, Tensor]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("step", "during", "saved"), [(5, "step", 6), (8, "validation", 8), (11, "step", 12)])
def test_a_run_that_is_asked_to_stop_saves_and_resumes_exactly(
    toy: Callable[..., Any],
    at: Any,
    final: Final,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    step: int,
    during: str,
    saved: int,
) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    stop = at(step, lambda *_: os.kill(os.getpid(), number), during)
    if saved < 12:
        with pytest.raises(KeyboardInterrupt, match=rf"after step {saved}.*last\.ckpt"):
            fit(toy(), tmp_path / "stopped", quiet=True, callbacks=[stop])
    else:  # it was asked during its last step, and is done
        fit(toy(), tmp_path / "stopped", quiet=True, callbacks=[stop])
    assert "Ctrl-C again" in capfd.readouterr().err
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == saved

    fit(toy(), tmp_path / "stopped", quiet=True)
    fit(toy(), tmp_path / "whole", quiet=True)
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize("during", ["step", "validation"])
def test_a_second_ctrl_c_does_not_wait(toy: Callable[..., Any], at: Any, tmp_path: Path, during: str) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(toy(), tmp_path, quiet=True, callbacks=[at(8, twice, during)])
    assert signal.getsignal(signal.SIGINT) == before
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert step == {"step": 8, "validation": 4}[during]  # the last one that was due


def test_ctrl_c_does_not_end_the_processes_that_load_data(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_modality  # the plug-in

    load = toy_modality.Points.__getitem__

    def interrupted(dataset: Any, index: int) -> Any:
        if get_worker_info() is not None:
            signal.raise_signal(signal.SIGINT)  # a terminal sends it to every process
        return load(dataset, index)

    monkeypatch.setattr(toy_modality.Points, "__getitem__", interrupted)
    assert fit(toy(training={"workers": 1, "steps": 4}), tmp_path, quiet=True) is not None


def test_a_run_that_was_stopped_can_generate(toy: Callable[..., Any], at: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(toy(), tmp_path, quiet=True, callbacks=[at(2, lambda *_: os.kill(os.getpid(), signal.SIGINT))])
    assert len(checkpoint.load(tmp_path).generate(3)) == 3
    assert "3 of 12" in (tmp_path / "model" / "README.md").read_text()
