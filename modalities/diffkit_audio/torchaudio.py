"""torchaudio, also where its compiled extension cannot be loaded.

Its wheel for Linux links CUDA libraries, so ``import torchaudio`` fails beside a CPU build of torch, although mel
spectrograms, Griffin-Lim and resampling in it are Python. Where (and only where) the import fails for that, the module
that loads the extension is replaced by one that says there is none, which torchaudio itself allows for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["functional", "transforms"]


def _torchaudio() -> Any:
    try:
        return import_module("torchaudio")
    except ModuleNotFoundError:
        raise ValueError("got sound and no torchaudio; install it with `pip install 'diffkit[audio]'`") from None
    except OSError:  # a library that the extension links is not there
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        stand_in: Any = ModuleType("torchaudio._extension")
        stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
        stand_in._check_cuda_version = lambda: None
        stand_in.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = stand_in
        return import_module("torchaudio")


_torchaudio()
functional: Any = import_module("torchaudio.functional")
transforms: Any = import_module("torchaudio.transforms")
