"""What this modality uses of torchaudio, also where its compiled extension cannot be loaded (`diffkit.torchaudio`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from diffkit.torchaudio import mend

__all__ = ["functional", "transforms"]

if not mend():
    raise ValueError("got sound and no torchaudio; install it with `pip install 'diffkit[audio]'`")
functional: Any = import_module("torchaudio.functional")
transforms: Any = import_module("torchaudio.transforms")
