"""diffusers, also where an audio library beside it is broken (`diffkit.torchaudio`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from diffkit.torchaudio import mend

__all__ = ["from_diffusers"]


def from_diffusers(name: str) -> Any:
    """The class ``name`` of diffusers.

    Raises:
        ValueError: if diffusers is not installed, or its version has no such class.
    """
    mend()
    try:
        return getattr(import_module("diffusers"), name)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ValueError("got pictures and no diffusers; install it with `pip install diffusers`") from None
    except AttributeError:
        version = import_module("diffusers").__version__
        raise ValueError(f"got class '{name}', which diffusers {version} does not have; install a newer one") from None
