"""torchaudio, also where its compiled extension cannot be loaded.

Its wheel for Linux links CUDA libraries, so ``import torchaudio`` fails beside a CPU build of torch, although mel
spectrograms, Griffin-Lim and resampling in it are Python; and `transformers`, which imports it where it is installed,
fails with it, and `diffusers` with that. Where (and only where) the import fails for that, the module that loads the
extension is replaced by one that says there is none, which torchaudio itself allows for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["mend"]


def mend() -> bool:
    """Import it, mended where it has to be; whether it is installed at all."""
    try:
        import_module("torchaudio")
    except ModuleNotFoundError:
        return False
    except OSError:  # a library that the extension links is not there
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        stand_in: Any = ModuleType("torchaudio._extension")
        stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
        stand_in._check_cuda_version = lambda: None
        stand_in.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = stand_in
        import_module("torchaudio")
    return True
