"""diffkit: one diffusion core for any kind of data.

    >>> model = diffkit.load("molecule")
    >>> samples = model.generate(16, steps=100, seed=7)
    >>> samples.save("out/")

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.checkpoint import load
    from diffkit.condition import Condition
    from diffkit.denoiser import Denoiser
    from diffkit.guidance import ClassifierFree
    from diffkit.model import Model
    from diffkit.noise import Noise
    from diffkit.process import Categorical, Gaussian
    from diffkit.product import Product
    from diffkit.samples import Samples
    from diffkit.settings import Settings

__version__ = "0.1.0"

_PLACES = {
    "Categorical": "process",
    "ClassifierFree": "guidance",
    "Condition": "condition",
    "Denoiser": "denoiser",
    "Gaussian": "process",
    "Model": "model",
    "Noise": "noise",
    "Product": "product",
    "Samples": "samples",
    "Settings": "settings",
    "load": "checkpoint",
}

__all__ = [*_PLACES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'diffkit' has no attribute '{name}'")
    return getattr(import_module(f"diffkit.{_PLACES[name]}"), name)
