"""diffusers, also where an audio library beside it is broken.

diffusers imports transformers where that is installed, and transformers imports torchaudio; the wheel of torchaudio for
Linux links CUDA libraries, so that fails beside a CPU build of torch, and takes diffusers' models with it. Where (and
only where) it fails for that, the module that loads the extension is replaced by one that says there is none, which
torchaudio itself allows for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["from_diffusers"]


def from_diffusers(name: str) -> Any:
    """The class ``name`` of diffusers.

    Raises:
        ValueError: if diffusers is not installed, or its version has no such class.
    """
    _mend_torchaudio()
    try:
        return getattr(import_module("diffusers"), name)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ValueError("got pictures and no diffusers; install it with `pip install 'diffkit[image]'`") from None
    except AttributeError:
        version = import_module("diffusers").__version__
        raise ValueError(f"got class '{name}', which diffusers {version} does not have; install a newer one") from None


def _mend_torchaudio() -> None:
    try:
        import_module("torchaudio")
    except ModuleNotFoundError:
        pass
    except OSError:  # a library that the extension links is not there
        for module in [module for module in sys.modules if module.split(".")[0] == "torchaudio"]:
            del sys.modules[module]
        stand_in: Any = ModuleType("torchaudio._extension")
        stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
        stand_in._check_cuda_version = lambda: None
        stand_in.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = stand_in
        import_module("torchaudio")
