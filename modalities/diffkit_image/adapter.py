"""Pictures for diffkit: the adapter.

A picture is one leaf:

    latent     (B, C, h, w)   Gaussian   what an autoencoder makes of it, each channel standardised by two numbers of
                                         the training set

with a mask (B, 1, h, w), as pictures of a batch may have different sizes, and the conditions ``category``, ``words``
and ``text``, any of which may be left open. The autoencoder is the one that ships, or one of `diffusers` by its folder.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit import registry, text
from diffkit.condition import Condition
from diffkit.modality import Batch, Dataset, Example, Modality, Request
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.space import Euclidean
from diffkit.typing import State
from diffkit_image import asking, buckets, readers, view
from diffkit_image.network import DiT
from diffkit_image.record import Picture, to_image, to_tensor
from diffkit_image.spread import askable, spread

__all__ = ["Image"]


@dataclass(frozen=True)
class Image(Modality):
    """The adapter. Its fields are a recipe's ``modality`` node.

    Args:
        conditions: what a sample can be asked for: category, words, and text (the ``text`` extra).
        autoencoder: a folder of one, or its name on the Hub; the one that ships where None.
        size: height and width in pixels of each sample, unless ``--condition size=WIDTHxHEIGHT`` asks for others; where
            None those that most training pictures have.
        encoder: of texts, as `diffkit.text` names it.
        encoder_width: of its vectors.
        format: of the files that are written: png, jpg or webp.
        statistics: what `dataset` measured: ``mean`` and ``scale`` of each channel, the ``categories``, the
            ``vocabulary``, the ``sizes`` of the training pictures, the most frequent first, and their ``names``, a list
            for each category.
    """

    conditions: Sequence[str] = ("category", "words", "text")
    autoencoder: str | None = None
    size: Sequence[int] | None = None
    encoder: str = text.MINILM
    encoder_width: int = text.WIDTH
    format: str = "png"
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        view.require_format(self.format)

    @property
    def categories(self) -> list[str]:
        """Names in the order of their numbers."""
        return list(self.statistics.get("categories", []))

    @property
    def vocabulary(self) -> list[str]:
        """Words in the order of their numbers."""
        return list(self.statistics.get("vocabulary", []))

    @property
    def _names(self) -> dict[str, list[str]]:
        """What the training pictures of each category are called."""
        known = self.statistics.get("names", [])
        return dict(zip(self.categories, [*known, *[[]] * (len(self.categories) - len(known))], strict=True))

    def dataset(self, split: str, **options: Any) -> Dataset:
        """Pictures; options are those of `diffkit_image.data.load`."""
        found: Dataset = _part("data").load(
            split=split,
            conditions=tuple(self.conditions),
            autoencoder=self.autoencoder,
            encoder=self.encoder,
            statistics=self.statistics or None,
            **options,
        )
        return found

    # ------------------------------------------------------------------------------------------- records

    def encode(self, record: Picture) -> Example:
        """A picture as standardised latents; what is no whole place of them is cut off around its middle."""
        pixels, factor = to_tensor(record.image), self._coder("cpu").factor
        tall, wide = (side // factor * factor for side in pixels.shape[1:])
        if not tall or not wide:
            size = f"{record.image.width}x{record.image.height}"
            raise ValueError(f"got a picture of {size} pixels; expected at least {factor}x{factor}")
        top, left = (pixels.shape[1] - tall) // 2, (pixels.shape[2] - wide) // 2
        pixels = pixels[:, top : top + tall, left : left + wide]
        with torch.no_grad():
            latent = self._coder("cpu").encode(pixels.unsqueeze(0))[0]
        mean, scale = self._moments(latent)
        mask = torch.ones(1, *latent.shape[1:], dtype=torch.bool)
        return Example({"latent": (latent - mean) / scale}, {"latent": mask}, self._known(record))

    def _known(self, record: Picture) -> dict[str, Tensor]:
        nothing = torch.tensor(float("nan"))
        asked = asking.understood(record.caption, {}, self.vocabulary, {}, encoder=True)
        category = self.categories.index(record.category) if record.category in self.categories else nothing
        found = {
            "category": torch.as_tensor(float(category)),
            "words": self._bag(asked.words) if asked.words else nothing.repeat(len(self.vocabulary)),
        }
        if "text" in self.conditions:
            found["text"] = self._vector(record.caption) if record.caption else nothing.repeat(self.encoder_width)
        return {name: found[name] for name in self.conditions}

    def _bag(self, words: Sequence[str]) -> Tensor:
        """(vocabulary,) 1 for each of the words, else 0."""
        numbers = {word: number for number, word in enumerate(self.vocabulary)}
        bag = torch.zeros(len(numbers))
        bag[[numbers[word] for word in words]] = 1
        return bag

    def _vector(self, said: str) -> Tensor:
        """(width,) of a text."""
        vector = torch.from_numpy(text.embed([said], self.encoder)[0])
        if len(vector) != self.encoder_width:
            raise ValueError(
                f"got vectors of width {len(vector)} from the encoder '{self.encoder}'; expected {self.encoder_width}: "
                f"train with modality.encoder_width={len(vector)}"
            )
        return vector

    def read(self, source: str, request: Request) -> Picture:
        """A picture in the size that is asked for, or else in that of its own shape which has about the usual area."""
        try:
            image, changed = readers.decode(Path(source))
        except ValueError as error:
            raise ValueError(f"got {source}, which {error}") from None
        if changed:
            warnings.warn(f"{source} {changed}", stacklevel=2)
        factor, asked = self._coder("cpu").factor, request.values.get("size")
        if asked is not None:
            return Picture(buckets.fitted(image, asking.size(asked, factor)))
        wide, tall = (int(side) for side in self._usual.split("x"))
        known = buckets.sizes(round((wide * tall) ** 0.5), factor)
        return Picture(buckets.fitted(image, buckets.nearest(image.height, image.width, known)))

    def decode(self, x: State, mask: State) -> list[Any]:
        """Pictures, each in its own size; None where a pixel is not a number."""
        latents = x["latent"].float()
        mean, scale = self._moments(latents)
        real, coder = mask["latent"], self._coder(str(latents.device))
        sizes = torch.stack([real.any(3).sum((1, 2)), real.any(2).sum((1, 2))], -1).tolist()
        with torch.no_grad():
            pictures = [
                coder.decode((latent * scale + mean)[:, :tall, :wide].unsqueeze(0))[0]
                for latent, (tall, wide) in zip(latents, sizes, strict=True)
            ]
        return [Picture(to_image(pixels)) if pixels.isfinite().all() else None for pixels in pictures]

    def labelled(self, records: Sequence[Picture | None], condition: Condition) -> list[Any]:
        return [record and self._labelled(record, condition, row) for row, record in enumerate(records)]

    def _labelled(self, record: Picture, condition: Condition, row: int) -> Picture:
        """Sample ``row``, saying what it was asked to be."""
        if "category" in condition.values and condition.present["category"][row]:
            record = replace(record, category=self.categories[int(condition.values["category"][row])])
        if "words" in condition.values and condition.present["words"][row]:
            bag = condition.values["words"][row].cpu()
            record = replace(record, caption=" ".join(self.vocabulary[k] for k in bag.nonzero().flatten().tolist()))
        return record

    # ------------------------------------------------------------------------------------------ requests

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        values, coder = dict(request.values), self._coder("cpu")
        tall, wide = asking.size(values.pop("size", self._usual), coder.factor)
        tall, wide = tall // coder.factor, wide // coder.factor
        x = torch.zeros(count, coder.channels, tall, wide)
        mask = torch.ones(count, 1, tall, wide, dtype=torch.bool)
        return Batch({"latent": x}, {"latent": mask}, self._condition(noise, request.prompt, values), noise.index)

    @property
    def _usual(self) -> str:
        """Width x height of a sample, where nobody asks for another."""
        tall, wide = (self.size or next(iter(self.statistics.get("sizes", [])), (64, 64)))[:2]
        return f"{wide}x{tall}"

    def _condition(self, noise: Noise, prompt: str | None, values: Mapping[str, str]) -> Condition:
        """What was asked for; where that was nothing, every sample is one of the things that were learnt."""
        asking.require_known(values, self.conditions)
        count, encoder = len(noise.index), "text" in self.conditions and text.installed(self.encoder)
        if prompt is None and not values:
            return self._whole(self._spread(noise, encoder), count)
        asked = asking.understood(prompt, values, self.vocabulary, self._names, encoder)
        found = {}
        if asked.category is not None:
            found["category"] = torch.tensor(float(self.categories.index(asked.category))).repeat(count)
        if asked.words:
            found["words"] = self._bag(asked.words).repeat(count, 1)
        if prompt is not None and encoder:
            found["text"] = self._vector(prompt).repeat(count, 1)
        if prompt is not None and not found.keys() & set(self.conditions):
            without = "text" in self.conditions  # an encoder, then
            raise ValueError(asking.not_understood(prompt, self.vocabulary, self._names, without))
        return self._whole(found, count)

    def _spread(self, noise: Noise, encoder: bool) -> dict[str, Tensor]:
        """A category and one of its names for each sample: over many numbers, evenly over both (`spread`).

        Categories alone where some have no names.
        """
        names = askable((category, name) for category, some in self._names.items() for name in some)
        whole = len(names) == len(self.categories)
        asked = spread(noise.index.tolist(), names if whole else {name: [name] for name in self.categories})
        if not asked:
            return {}
        found = {"category": torch.tensor([float(self.categories.index(category)) for category, _ in asked])}
        if not whole:
            return found
        if self.vocabulary:
            read = [asking.understood(name, {}, self.vocabulary, {}, encoder=True).words for _, name in asked]
            found["words"] = torch.stack([self._bag(words) for words in read])
        if encoder:
            found["text"] = torch.stack([self._vector(name) for _, name in asked])
        return found

    def _whole(self, found: Mapping[str, Tensor], count: int) -> Condition:
        """With every condition of the model, those that were not asked for as not given."""
        shapes = {"category": (count,), "words": (count, len(self.vocabulary)), "text": (count, self.encoder_width)}
        values = {name: found.get(name, torch.zeros(shapes[name])) for name in self.conditions}
        return Condition(values, {name: torch.full((count,), name in found) for name in self.conditions})

    # --------------------------------------------------------------------------------------------- model

    def process(self, **options: Any) -> Product:
        """The leaf's process; options are {latent: {schedule, prediction}}."""
        return Product({"latent": _gaussian(**options.get("latent", {}))})

    def network(self, **options: Any) -> nn.Module:
        return DiT(
            channels=len(self.statistics["mean"]),
            categories=len(self.categories) if "category" in self.conditions else 0,
            words=len(self.vocabulary) if "words" in self.conditions else 0,
            text=self.encoder_width if "text" in self.conditions else 0,
            **options,
        )

    def codec(self, **options: Any) -> Any:
        """The autoencoder in training; options are a recipe's ``codec`` node."""
        return _part("autoencoder_training").AutoencoderCodec.of(**options)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        """Against the training pictures; the floor is what held-out ones score, as they are, and encoded and decoded.

        Options are a recipe's ``data`` node.
        """
        found: Mapping[str, Metrics] = _part("metrics").report(self, samples, **options)
        return found

    def illustrate(self, samples: Sequence[Any], folder: Path, **options: Any) -> None:
        """``neighbours.png``: the nearest training pictures beside the first samples."""
        train = _part("metrics").sets(self, **options)[0]
        _part("neighbours").save_neighbours(samples, train, folder / "neighbours.png")

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        return view.save(samples, folder, self.format)

    def _coder(self, device: str) -> Any:
        return _autoencoder(self.autoencoder, device)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale (C, 1, 1) of the channels."""
        mean, scale = (
            torch.tensor(self.statistics[k], device=like.device).reshape(-1, 1, 1) for k in ("mean", "scale")
        )
        return mean, scale


def _gaussian(schedule: Any = "flow", prediction: Any = "velocity") -> Gaussian:
    return Gaussian(registry.build("schedule", schedule), Euclidean(), registry.build("prediction", prediction))


@cache
def _autoencoder(name: str | None, device: str) -> Any:
    found = _part("autoencoder").load(name)
    found.network.to(device)
    return found


def _part(name: str) -> Any:
    return import_module(f"diffkit_image.{name}")
