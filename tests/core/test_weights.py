"""Weights beside a model: what is written is read, and a bad file is named in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffkit import weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = network()
    weights.write(one, tmp_path / "a.safetensors", names=["a", "b"], width=3)
    state, about = weights.read(tmp_path / "a.safetensors", "names", "width")
    assert about == {"names": ["a", "b"], "width": 3}
    other = network()
    other.load_state_dict(state)
    for name, value in one.state_dict().items():
        assert value.dtype == other.state_dict()[name].dtype
        torch.testing.assert_close(value.half().float(), other.state_dict()[name].float())


@pytest.mark.parametrize("name", ["missing", "empty", "a text", "cut short", "of another kind"])
def test_a_bad_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    weights.write(network(), path, names=[])
    content = {"empty": b"", "a text": b"not weights at all", "cut short": path.read_bytes()[:200]}
    if name == "missing":
        path.unlink()
    elif name == "of another kind":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content[name])
    with pytest.raises(ValueError, match=r"expected|cannot be read") as caught:
        weights.read(path, "names")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
