"""A pipeline's network in the terms of diffkit: its own code of the time, its conditions, and its number format."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.schedule import RectifiedFlow, Schedule, VEKarras, VPTable
from diffkit_image.pipelines.families import Family

__all__ = ["LEAF", "PipelineNetwork", "time_code"]

LEAF = "latent"
NEAR = 5e-4
"""How far from a step of the table a time is still that step: float32 keeps a step of 1,000 to 6e-5."""


def time_code(schedule: Schedule, t: Tensor) -> Tensor:
    """What a network of diffusers is given of the time ``t`` (B,) of our schedule, float32.

    The step k = t T - 1 of a table, not rounded where it is between two; 1000 sigma of a flow; log(sigma) / 4 of EDM.
    """
    t = t.double()
    if isinstance(schedule, VPTable):
        place = (t * len(schedule.betas) - 1).clamp(min=0)
        return torch.where((place - place.round()).abs() < NEAR, place.round(), place).float()
    sigma = schedule(t)[1]
    if isinstance(schedule, VEKarras):
        return (sigma.clamp(min=1e-20).log() / 4).float()
    assert isinstance(schedule, RectifiedFlow)
    return (1000 * sigma).float()


class PipelineNetwork(nn.Module):
    """The part of a pipeline that denoises. The other parts go with it from device to device.

    Args:
        pipe: a pipeline of diffusers.
        family: how it is asked.
        schedule: that it was trained with.
        offload: its weights stay in the host's memory, and visit the device one by one.
    """

    def __init__(self, pipe: Any, family: Family, schedule: Schedule, offload: bool = False) -> None:
        super().__init__()
        self.denoiser = getattr(pipe, family.part)
        self.pipe, self.family, self.schedule, self.offload = pipe, family, schedule, offload
        self._nothing: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        place: torch.device = self.pipe._execution_device
        return place

    def to(self, device: torch.device | str) -> "PipelineNetwork":  # type: ignore[override]
        """The network, and the rest of its pipeline, on ``device``."""
        if self.offload and torch.device(device).type != "cpu":
            self.pipe.enable_sequential_cpu_offload(device=device)
        else:
            self.pipe.to(device)
        return self

    def nothing(self) -> dict[str, Tensor]:
        """What stands for absent conditions, a batch of 1."""
        if not self._nothing:
            with torch.no_grad():
                self._nothing = self.family.nothing(self.pipe)
        return self._nothing

    def forward(
        self, x: Mapping[str, Tensor], t: Tensor, condition: Condition, mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """{latent: (B, C, h, w)} in the format of ``x``, computed in that of the weights."""
        latent, dtype = x[LEAF], self.denoiser.dtype
        values = {k: self._value(condition, k, empty.to(latent.device)) for k, empty in self.nothing().items()}
        values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}
        said = self.family.ask(self.pipe, latent.to(dtype), time_code(self.schedule, t), values)
        return {LEAF: said.to(latent.dtype)}

    def _value(self, condition: Condition, name: str, empty: Tensor) -> Tensor:
        """A condition (B, ...), with what stands for an absent one where it was not given."""
        given = condition.values[name]
        present = condition.present[name].reshape(-1, *(1,) * (given.ndim - 1))
        return torch.where(present, given.to(empty.dtype), empty)
