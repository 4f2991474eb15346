"""A stranger's data type, small enough to train in a second: a colour, one of three, and a point in the plane.

Its network has dropout, and its data a condition that is sometimes missing: a step draws every kind of random number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from diffkit.condition import Condition
from diffkit.modality import Batch, Example, Modality, Request
from diffkit.noise import Noise
from diffkit.process import Categorical, Gaussian
from diffkit.product import Product

SIZES = {"train": 200, "valid": 40, "test": 40}


@dataclass(frozen=True)
class Points:
    split: str
    size: int
    statistics: Mapping[str, Any] = field(default_factory=lambda: {"radius": 1.0})

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        angle = 2 * math.pi * Noise(0, torch.tensor([index])).fold(self.split).uniform("angle", ())[0]
        colour = torch.tensor([index % 3])
        point = torch.stack([angle.cos(), angle.sin()]).float() + colour
        side = torch.tensor(math.nan) if index % 5 == 0 else point[0].sign()
        return Example({"colour": colour, "point": point}, {}, {"side": side})


class Net(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.colour = nn.Embedding(3, width)
        self.rest = nn.Linear(4, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU())
        self.heads = nn.ModuleDict({"colour": nn.Linear(width, 3), "point": nn.Linear(width, 2)})

    def forward(
        self, x: Mapping[str, Tensor], t: Tensor, condition: Condition, mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        side = torch.where(condition.present["side"], condition.values["side"], 0.0)
        rest = torch.cat([x["point"], t[:, None], side[:, None]], 1)
        hidden = self.body(self.colour(x["colour"][:, 0]) + self.rest(rest))
        return {"colour": self.heads["colour"](hidden)[:, None], "point": self.heads["point"](hidden)}


@dataclass(frozen=True)
class Squeeze:
    """Points through one number and back, against a critic that tells them from the data."""

    network: nn.Module
    critic: nn.Module | None

    def losses(self, batch: Batch, noise: Noise, step: int) -> dict[str, Tensor]:
        real = batch.x["point"] + 0.1 * noise.normal("crop", (2,)).float()
        made = self.network(real)
        terms = {"distance": (made - real).square().mean()}
        if self.critic is not None:
            fixed = {k: v.detach() for k, v in self.critic.named_parameters()}
            terms["fooled"] = -0.1 * functional_call(self.critic, fixed, made).mean()
            terms["critic"] = (1 - self.critic(real)).relu().mean() + (1 + self.critic(made.detach())).relu().mean()
        return terms


@dataclass(frozen=True)
class Toy(Modality):
    statistics: Mapping[str, Any] = field(default_factory=dict)
    broken_view: bool = False

    def dataset(self, split: str, **options: Any) -> Points:
        return Points(split, options.get(split, SIZES[split]))

    def encode(self, record: Any) -> Example:
        return Example({"colour": torch.tensor([record[0]]), "point": torch.tensor(record[1])})

    def decode(self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> list[Any]:
        return [(int(colour), point.tolist()) for colour, point in zip(x["colour"], x["point"], strict=True)]

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        absent = Condition({"side": torch.zeros(count)}, {"side": torch.zeros(count, dtype=torch.bool)})
        x = {"colour": torch.zeros(count, 1, dtype=torch.int64), "point": torch.zeros(count, 2)}
        return Batch(x, {}, absent, noise.index)

    def process(self, **options: Any) -> Product:
        return Product({"colour": Categorical((1 / 3, 1 / 3, 1 / 3)), "point": Gaussian()})

    def network(self, width: int = 16, dropout: float = 0.1) -> nn.Module:
        return Net(width, dropout)

    def codec(self, adversarial: bool = True) -> Squeeze:
        network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))
        return Squeeze(network, nn.Linear(2, 1) if adversarial else None)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Any]:
        return {}

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        if self.broken_view:
            raise RuntimeError("no colours today")
        Image.new("RGB", (8, 8)).save(folder / "preview.png")
        return {"drawn": len(samples), "red": sum(colour == 0 for colour, _ in samples)}
