"""Weights of the small networks that stand beside a model, a classifier or a decoder: one safetensors file each.

In half precision, with what the network is built from (names, options) as JSON in the file's head. Nothing is
unpickled.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffkit.files import whole

__all__ = ["read", "write"]


def write(network: nn.Module, path: Path, **about: Any) -> None:
    """Write ``network`` to ``path``, whole or not at all; ``about`` is what `json` can write, by name."""
    state = {k: v.detach().cpu() for k, v in network.state_dict().items()}
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    with whole(path) as part:
        save_file(halves, part, {name: json.dumps(value) for name, value in about.items()})


def read(path: Path, *names: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights that `write` wrote, in single precision, and what it wrote of ``names``.

    Raises:
        ValueError: if there is no such file, or it is cut short, or it says nothing of one of the names.
    """
    try:
        with open(path, "rb"), safe_open(path, "pt") as file:  # the first, for an error that names the file
            head = file.metadata() or {}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
            about = {name: json.loads(head[name]) for name in names}
    except FileNotFoundError:
        raise ValueError(f"got {path}; expected a file of weights, and there is none") from None
    except KeyError as error:
        raise ValueError(
            f"got {path}, which does not say its {error.args[0]}; expected weights of another kind"
        ) from None
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"got {path}, which cannot be read: {' '.join(str(error).split())[:200]}") from None
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, about
