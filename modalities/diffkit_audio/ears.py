"""Feature nets that are no part of diffkit, for Fréchet distances besides that of the classifier's features.

`aisfx` (the package of that name, MIT) is a network of sound effects (A. Ma and A. Lerch 2022, arXiv:2208.09096).
Its package wants other libraries for its spectrograms. They are made here as it tells Essentia to make them: 96 HTK
bands of unit sum over the power in Hann windows of 2048 samples at 44.1 kHz, log10(1 + 10^4 x), over its training
maximum.
"""

from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit_audio.classifier import SETTINGS
from diffkit_audio.torchaudio import functional

__all__ = ["aisfx", "installed"]

RATE, WINDOW, HOP, BANDS, FRAMES, LARGEST = 44100, 2048, 1024, 96, 100, 9.457798957824707
"""Of its spectrograms; 100 frames are a block, of which there is one of what lasts two seconds."""


def installed() -> dict[str, Callable[[Tensor], Tensor]]:
    """The nets that are there, by name, as `metrics.Ear`."""
    return {"aisfx": aisfx()} if util.find_spec("aisfx") else {}


def aisfx() -> Callable[[Tensor], Tensor]:
    """Waves (B, samples) at the classifier's rate to the 512 features that `aisfx` has of their first 2.3 s."""
    network = import_module("aisfx.models.cnn2d").EmbeddingNet("max", 3, 1, 64)
    path = Path(import_module("aisfx").__file__ or "").parent / "models" / "checkpoint.pth"
    # Beside the weights the file has counts of classes, numbers of numpy under the module names of its version 1.
    scalar = np.int64(0).__reduce__()[0]
    counts: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype(np.int64))]
    with torch.serialization.safe_globals(counts):
        weights, _ = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({k.removeprefix("embedding_net."): v for k, v in weights.items() if k.startswith("emb")})
    network.eval().to(memory_format=torch.channels_last)
    return lambda waves: _features(network, waves)


@torch.no_grad()
def _features(network: Any, waves: Tensor) -> Tensor:
    parts = []
    for part in waves.split(16):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(network(_spectrograms(part)).float())
    return torch.cat([torch.zeros(0, 512), *parts])


def _spectrograms(waves: Tensor) -> Tensor:
    """(B, samples) to (B, 100, 96), with silence after shorter ones."""
    fast = functional.resample(waves, SETTINGS.rate, RATE)
    fast = torch.nn.functional.pad(fast, (0, max(FRAMES * HOP + WINDOW - fast.shape[1], 0)))
    window = torch.hann_window(WINDOW)
    power = torch.stft(fast, WINDOW, HOP, window=window, center=False, return_complex=True).abs().square()
    triangles = functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, BANDS, RATE, None, "htk")
    bands = power[..., :FRAMES].mT @ (triangles / triangles.sum(0).clamp(min=1e-9))
    found: Tensor = (1 + 1e4 * bands).log10() / LARGEST
    return found
