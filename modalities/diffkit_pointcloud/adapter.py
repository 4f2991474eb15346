"""Point clouds for diffkit: the adapter.

A cloud is one leaf:

    points     (B, N, 3)   Gaussian   coordinates, the bounding box centred at 0, its largest half-extent 1

(of a model with normals or colours (B, N, 6) or (B, N, 9): those, from -1 to 1, are further columns)
with a mask (B, N, 1), as clouds of a batch may have different numbers of points, and the conditions ``category`` and
``text``. A model of the condition ``given`` can be asked to complete a part of a cloud: its points come first, and stay
as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffkit import registry, text
from diffkit.condition import Condition
from diffkit.modality import Batch, Example, Modality, Request
from diffkit.naming import nearest
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.space import Euclidean
from diffkit.typing import State
from diffkit_pointcloud import classifier, data, metrics, view
from diffkit_pointcloud.catalogue import KINDS
from diffkit_pointcloud.cloud import Cloud, joined, normalise, rows
from diffkit_pointcloud.network import SetTransformer
from diffkit_pointcloud.prompts import category_of
from diffkit_pointcloud.readers import read_cloud

__all__ = ["PointCloud"]


@dataclass(frozen=True)
class PointCloud(Modality):
    """The adapter. Its fields are a recipe's ``modality`` node.

    Args:
        conditions: what a sample can be asked for: "category", "text", any words (needs the ``text`` extra), and
            "given", to complete the part of a cloud that is in a file.
        points: of each sample, unless ``--condition points=N`` asks for another number.
        format: of the files that are written: ply, glb, obj, npy or xyz.
        statistics: what `dataset` measured: names and sizes of the categories, and whether points have normals and
            colours.
    """

    conditions: Sequence[str] = ("category",)
    points: int = 2048
    format: str = "ply"
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        view.require_format(self.format)

    @property
    def categories(self) -> list[str]:
        """Names in the order of their numbers."""
        return list(self.statistics.get("categories", []))

    @property
    def _channels(self) -> int:
        return 3 + 3 * sum(bool(self.statistics.get(name)) for name in ("normals", "colours"))

    def dataset(self, split: str, **options: Any) -> data.CloudDataset:
        known = self.statistics or None
        return data.load(split=split, conditions=tuple(self.conditions), statistics=known, **options)

    def encode(self, record: Cloud) -> Example:
        points = torch.from_numpy(data.features(normalise(record), self.statistics))
        return Example(
            {"points": points}, {"points": torch.ones(len(points), 1, dtype=torch.bool)}, self._known(record)
        )

    def _known(self, record: Cloud) -> dict[str, torch.Tensor]:
        known = record.category in self.categories
        number = float(self.categories.index(record.category)) if known else float("nan")
        values = {"category": torch.tensor(number)}
        if "text" in self.conditions:
            values["text"] = torch.from_numpy(text.embedded([record.caption])[0])
        return {name: values[name] for name in self.conditions if name in values}

    def read(self, source: str, request: Request) -> Cloud:
        """A cloud of as many points as are asked for, or else as many as usual, if the file has them."""
        asked = request.values.get("points")
        count = self.points if asked is None else _count(asked)
        cloud = self._cloud(source, source, count)
        if asked is not None and len(cloud.points) < count:
            raise ValueError(f"got points={asked} and {source} with {len(cloud.points)}; expected no more than those")
        return rows(cloud, np.arange(min(count, len(cloud.points))))

    def decode(self, x: State, mask: State) -> list[Any]:
        points, real = x["points"].float().cpu().numpy(), mask["points"].squeeze(-1).cpu().numpy()
        return [data.from_features(p[r], self.statistics) for p, r in zip(points, real, strict=True)]

    def valid(self, record: Cloud) -> bool:
        return bool(np.isfinite(record.points).all())

    def labelled(self, records: Sequence[Cloud], condition: Condition) -> list[Any]:
        if "category" not in condition.values:
            return list(records)
        numbers, given = condition.values["category"].long().tolist(), condition.present["category"].tolist()
        names = [self.categories[k] if there else "" for k, there in zip(numbers, given, strict=True)]
        return [replace(r, category=name, caption=name) for r, name in zip(records, names, strict=True)]

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        """As many points as are asked for, of a category, around a part that is given."""
        values = dict(request.values)
        known = "given" in values and "given" in self.conditions
        part = normalise(self._part(values.pop("given"))) if known else None
        points = _count(values.pop("points", str(self._total(part))))
        asked = values.pop("category", None)
        if values:
            raise ValueError(
                f"got the condition {min(values)}; this model takes {', '.join((*self.conditions, 'points'))}"
            )
        if request.prompt is not None and asked is not None:
            raise ValueError(f"got the prompt {request.prompt!r} and category={asked}; expected one of them")
        if not {"category", "text"} & set(self.conditions) and (asked or request.prompt) is not None:
            raise ValueError("got a category or a prompt; this model was trained without categories")
        x, mask = torch.zeros(count, points, self._channels), torch.ones(count, points, 1, dtype=torch.bool)
        condition = self._condition(count, asked, request.prompt, noise)
        if part is None:
            return Batch({"points": x}, {"points": mask}, condition, noise.index)
        given = torch.arange(points).reshape(1, -1, 1).expand(count, -1, -1) < len(part.points)
        if bool(given.all()):
            raise ValueError(f"got points={points}, and {len(part.points)} of them given; expected more to be drawn")
        x[:, : len(part.points)] = torch.from_numpy(data.features(part, self.statistics))
        return Batch({"points": x}, {"points": mask}, condition, noise.index, {"points": given})

    def _part(self, path: str) -> Cloud:
        """The part of a cloud that is in a file; of a mesh, half as many points as a sample has."""
        return self._cloud(path, f"given={path}", self.points // 2)

    def _cloud(self, path: str, said: str, surface: int) -> Cloud:
        """The cloud in a file; of a mesh, ``surface`` points."""
        if not Path(path).is_file():
            raise ValueError(f"got {said}, which is no file; expected a mesh or a cloud")
        return read_cloud(Path(path), surface, bool(self.statistics.get("colours")))

    def _total(self, part: Cloud | None) -> int:
        """The points of a sample: as many as usual, and at least as many new ones as given ones."""
        return self.points if part is None else max(self.points, 2 * len(part.points))

    def completed(self, records: Sequence[Cloud], request: Request) -> list[Any]:
        """Where the part was: its own points, and the others around it."""
        part = self._part(request.values["given"])
        return [joined(part, rows(r, np.arange(len(part.points), len(r.points)))) for r in records]

    def _condition(self, count: int, category: str | None, prompt: str | None, noise: Noise) -> Condition:
        """What was asked for; where that was nothing, each sample's category is drawn as often as the data has it."""
        values, present = {}, {}
        if "text" in self.conditions:
            values["text"], present["text"] = self._words(count, prompt)
        if "category" in self.conditions and self.categories:
            understood = "text" in present and bool(present["text"].all())
            values["category"], present["category"] = self._numbers(count, category, prompt, noise, understood)
        return Condition(values, present)

    def _words(self, count: int, prompt: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's vector (count, 384), where there is a prompt and an encoder for it."""
        if prompt is None or not text.installed():
            return torch.zeros(count, text.WIDTH), torch.zeros(count, dtype=torch.bool)
        return torch.from_numpy(text.embed([prompt])).repeat(count, 1), torch.ones(count, dtype=torch.bool)

    def _numbers(
        self, count: int, category: str | None, prompt: str | None, noise: Noise, understood: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Categories (count,); not given where the prompt names none and is ``understood`` all the same."""
        given = torch.ones(count, dtype=torch.bool)
        if prompt is not None:
            try:
                category = category_of(prompt, self.categories)
            except ValueError:
                if understood:
                    return torch.zeros(count), ~given
                raise
        if category is None:
            share = torch.tensor(self.statistics["counts"], dtype=torch.float64).cumsum(0)
            u = noise.fold("category").uniform("points", ()).unsqueeze(1)
            return (u * share[-1] > share).sum(1).float(), given
        turns = torch.tensor(self._asked(category), dtype=torch.float32)
        return turns[noise.index.cpu() % len(turns)], given

    def _asked(self, category: str) -> list[int]:
        """The numbers of those categories in which samples take turns: one, several ("chair,lamp"), or each."""
        names = self.categories if category == "each" else [name.strip() for name in category.split(",")]
        for name in names:
            if name not in self.categories:
                known = ", ".join([*self.categories, "each"])
                raise ValueError(f"got category={name}; expected one of {known}{nearest(name, self.categories)}")
        return [self.categories.index(name) for name in names]

    def process(self, **options: Any) -> Product:
        """The leaf's process; options are {points: {schedule, prediction}}."""
        return Product({"points": _gaussian(**options.get("points", {}))})

    def network(self, **options: Any) -> nn.Module:
        categories = len(self.categories) if "category" in self.conditions else 0
        width = text.WIDTH if "text" in self.conditions else 0
        return SetTransformer(categories=categories, text=width, channels=self._channels, **options)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        """Against the test split; the floor is what the validation split scores."""
        valid, test, train = (self._clouds(split, options) for split in ("valid", "test", "train"))
        path = Path(__file__).parent / "weights" / "furniture" / "classifier.safetensors"
        judge = classifier.load(path) if set(self.categories) & set(KINDS) and path.exists() else None
        return metrics.with_floor(samples, valid, test, train, judge)

    def _clouds(self, split: str, options: Mapping[str, Any]) -> list[Cloud]:
        packed = self.dataset(split, **options).packed
        return [packed.cloud(m, self.points) for m in range(len(packed))]

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        return view.save(samples, folder, self.format)

    def illustrate(self, samples: Sequence[Any], folder: Path, **options: Any) -> None:
        """`neighbours.png`: samples beside their nearest training shapes."""
        view.save_neighbours(samples, self._clouds("train", options), folder / "neighbours.png")


def _gaussian(schedule: Any = "flow", prediction: Any = "velocity") -> Gaussian:
    return Gaussian(registry.build("schedule", schedule), Euclidean(), registry.build("prediction", prediction))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"got points={text}; expected a whole number of points, at least 1")
    return int(text)
