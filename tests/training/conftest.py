"""A tiny data type that comes as a plug-in, and a recipe that trains it in a second."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffkit.inventory import recipe_folder

PLUGIN = Path(__file__).parent / "plugin"
TOY = """
modality: {name: toy}
data: {}
network: {}
process: {}
training: {steps: 12, batch_size: 8, warmup: 4, ema: 0.9, validate_every: 4, checkpoint_every: 4}
trainer: {accelerator: cpu, log_every_n_steps: 1}
sampling: {steps: 2}
"""

Recipe = dict[str, Any]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Recipe:
    nested = {k: merged(base[k], v) if isinstance(v, Mapping) and isinstance(base.get(k), Mapping) else v for k, v in over.items()}
    return {**base, **nested}


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The toy is installed, for these tests alone; where is returned."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it is too small for more, and equal to the bit whatever ran before
    yield PLUGIN
    torch.set_num_threads(threads)


@pytest.fixture
def toy() -> Callable[..., Recipe]:
    """A resolved recipe of the toy; keyword arguments such as ``training={"steps": 3}`` override it."""
    base = yaml.safe_load((recipe_folder() / "base.yaml").read_text())
    return lambda **over: merged(merged(base, yaml.safe_load(TOY)), over)
