"""What a data type brings: the adapter's contract, and how the core finds adapters.

An adapter is a frozen dataclass with eight members (and ``valid``, where something can come out wrong, ``labelled``,
where an object can say what it was asked to be, ``completed``, where a part of one can be given, ``read``, where
samples can start from a file, ``illustrate``, where figures have pictures, and ``codec``, where an encoder or decoder
is trained). The core never imports one: it looks up the entry points of group ``diffkit.modalities``, so a stranger's
package is found exactly as ours are.

    [project.entry-points."diffkit.modalities"]
    molecule = "diffkit_molecule:modality"

The entry point names the class (or a function that makes the adapter from a recipe's options).

An adapter that can run models made elsewhere has, in the module of its entry point, a function ``adopt(name, index)``.
It is offered folders, or names on the Hub, that have a ``model_index.json`` (diffusers' format), and what that says. Of
a kind that it knows it returns the recipe, from which `diffkit.model.Model.of` builds a model with its weights;
otherwise None.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.inventory import entry_point, modality_names
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.typing import State

__all__ = ["Batch", "Dataset", "Example", "Modality", "Request", "adopted", "find_modality", "in_format"]


@dataclass(frozen=True)
class Example:
    """One item: its leaves and masks without a batch dimension, and its conditions as tensors (scalars are 0-d).

    A condition that the item does not have is NaN. ``given`` says which elements of a leaf (True) a network is shown
    as they are, at t = 0, and does not learn to draw: so it learns to complete what is given.
    """

    x: Mapping[str, Tensor]
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """B items: leaves (B, ...), masks that broadcast over them, conditions, and the number of each item.

    In a batch to be generated, ``x`` holds zeros that give the leaves their shapes, and data where ``given`` (boolean
    tensors that broadcast over the leaves) is True: the samples keep it as it is. ``start`` holds data that are noised,
    for samples to begin with in place of pure noise; empty where there are none.
    """

    x: Mapping[str, Tensor]
    mask: Mapping[str, Tensor]
    condition: Condition
    index: Tensor
    given: Mapping[str, Tensor] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Self:
        """The batch on ``device``."""
        return replace(
            self,
            x={k: v.to(device) for k, v in self.x.items()},
            mask={k: v.to(device) for k, v in self.mask.items()},
            condition=self.condition.map(lambda v: v.to(device)),
            index=self.index.to(device),
            given={k: v.to(device) for k, v in self.given.items()},
            start={k: v.to(device) for k, v in self.start.items()},
        )


class Dataset(Protocol):
    """A map-style dataset of examples.

    ``statistics`` are plain numbers and lists measured on the training split (marginals, sizes, scales); they go into
    the recipe, hence into the checkpoint, and the adapter is rebuilt from them.
    """

    @property
    def statistics(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Request:
    """What a person asks for, in the words of the command line.

    Args:
        prompt: in words.
        values: by name, as text.
        start: the file that samples start from, noised; see `diffkit.settings.Settings.strength`.
    """

    prompt: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None


class Modality(ABC):
    """The adapter of a data type. Subclasses are frozen dataclasses; their fields are a recipe's ``modality`` node."""

    @abstractmethod
    def dataset(self, split: str, **options: Any) -> Dataset:
        """The examples of ``split`` ("train", "valid" or "test"); options are a recipe's ``data`` node."""

    @abstractmethod
    def encode(self, record: Any) -> Example:
        """A native object as tensors.

        Raises:
            ValueError: if it cannot be represented, with the reason.
        """

    @abstractmethod
    def decode(self, x: State, mask: State) -> list[Any]:
        """Native objects from a batch of leaves; what is not valid comes back as it is, unrepaired."""

    def valid(self, record: Any) -> bool:
        """Whether a decoded object is what it should be; all are, unless an adapter knows better."""
        return record is not None

    def labelled(self, records: Sequence[Any], condition: Condition) -> list[Any]:
        """Decoded objects with what was asked for written on them, where they can carry it."""
        return list(records)

    def completed(self, records: Sequence[Any], request: Request) -> list[Any]:
        """Decoded objects of which a part was given by ``request``, in the terms of what was given."""
        return list(records)

    def read(self, source: str, request: Request) -> Any:
        """The native object in the file ``source``, for samples to start from; in the size that ``request`` asks for.

        Raises:
            ValueError: for data that are not read from files one by one, or a file that cannot be used.
            OSError: if there is no such file.
        """
        raise ValueError(f"got the file {source} to start from; this kind of data starts from pure noise: leave it out")

    @abstractmethod
    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        """The shapes, masks and conditions of ``count`` samples to be generated.

        Raises:
            ValueError: for a request that the model cannot serve.
        """

    @abstractmethod
    def process(self, **options: Any) -> Product:
        """The process of every leaf; options are a recipe's ``process`` node."""

    @abstractmethod
    def network(self, **options: Any) -> nn.Module:
        """The network; options are a recipe's ``network`` node."""

    @abstractmethod
    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        """Columns of figures: of the ``samples``, and of held-out data; options are a recipe's ``data`` node."""

    @abstractmethod
    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        """Write native files and ``preview.png`` into ``folder``; returns counts for ``run.json``.

        An adapter that can write several formats has a field ``format``, and refuses a wrong one when it is made.
        """

    def codec(self, **options: Any) -> Any:
        """What `diffkit.codec` trains, where a recipe has a ``codec`` node (the options): a `diffkit.codec.Codec`.

        Raises:
            ValueError: for data that has none.
        """
        raise ValueError("got a recipe with a codec; this kind of data has none that is trained: leave the node out")

    def illustrate(self, samples: Sequence[Any], folder: Path, **options: Any) -> None:  # noqa: B027  (may stay empty)
        """Pictures to go with `metrics`, into ``folder``; options are the same. None, unless an adapter has some."""


def find_modality(name: str) -> Any:
    """The adapter class of an installed modality.

    Raises:
        ValueError: for a name that is not installed, with those that are and the nearest.
    """
    return entry_point(name).load()


def adopted(name: str, index: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe of a model that was made elsewhere, by the first installed adapter that can run it.

    Args:
        name: a folder, or a name on the Hub.
        index: what its ``model_index.json`` says.

    Raises:
        ValueError: if none can.
    """
    for modality in modality_names():
        adopt = getattr(import_module(entry_point(modality).module), "adopt", None)
        recipe: Mapping[str, Any] | None = adopt(name, index) if adopt else None
        if recipe is not None:
            return recipe
    kind = index.get("_class_name", "no class")
    raise ValueError(f"got {name}, a model of {kind}; expected a kind that an installed modality can run: see the docs")


def in_format(modality: Modality, name: str) -> Modality:
    """The adapter that writes its files in the format ``name``.

    Raises:
        ValueError: for one that writes a single format, or not this one.
    """
    if "format" not in getattr(modality, "__dataclass_fields__", {}):
        raise ValueError(f"got format '{name}'; this kind of data is written in one format alone: leave it out")
    changed: Modality = replace(modality, format=name)  # type: ignore[type-var]
    return changed
