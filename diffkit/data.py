"""Batches from examples, and an order of the data that can be taken up again anywhere.

The order is a function of (seed, step): the items of global step k are the same on any number of ranks, and
a run resumed at step k sees what the unbroken run would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from diffkit.condition import Condition
from diffkit.modality import Batch, Dataset, Example

__all__ = ["Batches", "Sealed", "StepSampler", "collate", "pad"]


def pad(tensors: Sequence[Tensor]) -> Tensor:
    """Stack, each tensor at the start of a zero tensor of the largest size along every axis."""
    size = tuple(max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True))
    if all(t.shape == size for t in tensors):
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros((len(tensors), *size))
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(n) for n in tensor.shape)] = tensor
    return stacked


def collate(items: Sequence[tuple[int, Example]]) -> Batch:
    """Numbered examples, padded to the largest, as one batch. A condition that is NaN is not present."""
    examples = [example for _, example in items]
    values = {k: torch.stack([e.condition[k] for e in examples]) for k in examples[0].condition}
    present = {k: ~torch.isnan(v).flatten(1).any(1) if v.ndim > 1 else ~torch.isnan(v) for k, v in values.items()}
    return Batch(
        x={k: pad([e.x[k] for e in examples]) for k in examples[0].x},
        mask={k: pad([e.mask[k] for e in examples]) for k in examples[0].mask},
        condition=Condition({k: torch.nan_to_num(v) for k, v in values.items()}, present),
        index=torch.tensor([number for number, _ in items]),
        given={k: pad([e.given[k] for e in examples]) for k in examples[0].given},
    )


class Sealed:
    """A batch that trainers hand on without looking inside.

    Sharded training would round the numbers of a dataclass to the precision of the weights, noise-free data included.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def to(self, device: torch.device) -> "Sealed":
        """On ``device``; from pinned memory without waiting for it."""
        return self._each(lambda v: v.to(device, non_blocking=v.is_pinned()))

    def pin_memory(self) -> "Sealed":
        """In memory that a GPU can fetch from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Sealed":
        b = self.batch
        leaves, masks, given = ({k: function(v) for k, v in tensors.items()} for tensors in (b.x, b.mask, b.given))
        return Sealed(Batch(leaves, masks, b.condition.map(function), function(b.index), given))


@dataclass(frozen=True)
class Batches(TorchDataset[Batch]):
    """A dataset that is asked for whole batches at once: through its own ``batch(indices)`` where it has one."""

    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        together: Callable[[Sequence[int]], Batch] | None = getattr(self.dataset, "batch", None)
        if together is not None:
            return together(indices)
        return collate([(index, self.dataset[index]) for index in indices])


@dataclass(frozen=True)
class StepSampler(Sampler[list[int]]):
    """Batches of item numbers for steps ``start`` to ``stop``, reshuffled at each pass over the data.

    Args:
        length: items in the dataset.
        batch_size: items of one step on all ranks together, a multiple of ``world_size``.
        seed: of the order.
        start, stop: the first step, and the one after the last.
        rank, world_size: this process takes items rank, rank + world_size, ... of every batch.
        groups: a number for each item; all items of a batch then have the same one, and the last batch of a group is
            filled up with items that were already seen.
    """

    length: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world_size: int = 1
    groups: Sequence[int] | None = None

    def __len__(self) -> int:
        """Batches of the whole run: Lightning counts those before ``start`` as already seen."""
        return self.stop

    def __iter__(self) -> Iterator[list[int]]:
        if self.groups is not None:
            yield from self._grouped(torch.as_tensor(self.groups))
            return
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            batch = []
            for place in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size):
                if place // self.length != epoch:
                    epoch = place // self.length
                    order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + epoch))
                batch.append(int(order[place % self.length]))
            yield batch

    def _grouped(self, groups: Tensor) -> Iterator[list[int]]:
        batches = sum(-(-int(count) // self.batch_size) for count in groups.bincount())
        epoch, rows = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // batches != epoch:
                epoch = step // batches
                generator = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(self.length, generator=generator)
                parts = [self._filled(order[groups[order] == group]) for group in groups.unique()]
                rows = torch.cat(parts)[torch.randperm(batches, generator=generator)]
            yield rows[step % batches, self.rank :: self.world_size].tolist()

    def _filled(self, items: Tensor) -> Tensor:
        """(batches, batch_size) of the items of a group."""
        rows = -(-len(items) // self.batch_size)
        return items.repeat(-(-rows * self.batch_size // len(items)))[: rows * self.batch_size].view(rows, -1)
