"""What a sample is asked to be: named values, each of which may be absent.

A condition is a mapping of values beside a mapping of flags that say, per sample, whether the value was
given. Networks put a learned null vector where it was not. Dropping a value in training and asking without
it in guidance are the same operation, so classifier-free guidance, negative conditions and any subset of
conditions need nothing more (Ho & Salimans 2022, arXiv:2207.12598).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Condition"]


@dataclass(frozen=True)
class Condition:
    """Named conditions of a batch.

    Args:
        values: name -> (B, ...) tensor.
        present: name -> (B,) bool, True where the value was given. Same names as ``values``.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.keys() != self.present.keys():
            raise ValueError(
                f"got values for {sorted(self.values)} and presence for {sorted(self.present)}; expected the same names"
            )

    @classmethod
    def of(cls, **values: Tensor) -> "Condition":
        """A condition whose values are given for every sample."""
        present = {k: torch.ones(len(v), dtype=torch.bool, device=v.device) for k, v in values.items()}
        return cls(values, present)

    @classmethod
    def cat(cls, conditions: Sequence["Condition"]) -> "Condition":
        """Stack conditions with the same names along the batch."""
        first = conditions[0]
        if any(c.values.keys() != first.values.keys() for c in conditions):
            raise ValueError(
                f"got conditions named {[sorted(c.values) for c in conditions]}; expected the same names in each"
            )
        return cls(
            {k: torch.cat([c.values[k] for c in conditions]) for k in first.values},
            {k: torch.cat([c.present[k] for c in conditions]) for k in first.present},
        )

    def null(self) -> "Condition":
        """The same names with nothing given: what an unconditional call sees."""
        return Condition(self.values, {k: torch.zeros_like(p) for k, p in self.present.items()})

    def drop(self, dropped: Mapping[str, Tensor]) -> "Condition":
        """Take away each value for the samples where ``dropped`` (name -> (B,) bool) is True."""
        return Condition(self.values, {k: p & ~dropped[k] if k in dropped else p for k, p in self.present.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """Apply ``function`` to every tensor (move to a device, take rows)."""
        return Condition(
            {k: function(v) for k, v in self.values.items()}, {k: function(p) for k, p in self.present.items()}
        )
