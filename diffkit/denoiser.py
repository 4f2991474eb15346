r"""Denoiser: a network and the process it was trained for, as a statement about clean data.

The network's contract is ``network(x, t, condition, mask) -> {leaf: output}``. What it sees is the denoiser's
business alone: the time code (t itself or the log-SNR) and the scale of its input. Both training
and sampling go through ``output``, so they cannot differ. Where leaves may have different times or time codes, the
network is given a mapping of times; with one leaf it is always given a tensor.

A denoiser can *serve* another process than it was trained for. For a Gaussian leaf, two schedules at equal
log-SNR hold the same x_t up to a factor, so the time is matched and x_t rescaled; a categorical leaf is
matched by the probability of having kept its class. The estimate of x_0 and eps does not depend on the scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.estimate import Estimates
from diffkit.process import Categorical, Process
from diffkit.product import Product
from diffkit.schedule import Schedule
from diffkit.typing import Masks, State, Time, expand, leaf_time

__all__ = ["Denoise", "Denoiser", "Network", "log_snr_code"]

Network = Callable[[State, Time, Condition, Masks], Mapping[str, Tensor]]
TimeCode = Callable[[Schedule, Tensor], Tensor]


class Denoise(Protocol):
    """What samplers call and guidance wraps."""

    @property
    def process(self) -> Product:
        """The process whose x_t is expected."""
        ...

    def __call__(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Estimates:
        """The estimate of every leaf."""
        ...


def log_snr_code(schedule: Schedule, t: Tensor) -> Tensor:
    """log-SNR / 4, kept within +-5: -2 times the time code c_noise of EDM (Karras et al. 2022, table 1)."""
    return (schedule.log_snr(t) / 4).clamp(-5, 5)


def _match_schedule(trained: Process, served: Process, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, t) of ``served`` as the process ``trained`` would have them."""
    if trained.schedule == served.schedule:
        return x_t, t
    t = t.to(torch.float64)
    if isinstance(trained, Categorical):
        return x_t, _time_of_alpha(trained.schedule, served.schedule(t)[0])
    matched = trained.schedule.time(served.schedule.log_snr(t))
    old, new = sum(served.schedule(expand(t, x_t))), sum(trained.schedule(expand(matched, x_t)))
    return (x_t * (new / old)).to(x_t.dtype), matched


def _kind(process: Process) -> str:
    """What of a process a network depends on besides the schedule."""
    if isinstance(process, Categorical):
        return f"Categorical({process.probabilities}, absorbing={process.absorbing}, symmetric={process.symmetric})"
    return f"{type(process).__name__}({getattr(process, 'space', '')})"


def _time_of_alpha(schedule: Schedule, alpha: Tensor) -> Tensor:
    low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
    for _ in range(60):
        middle = (low + high) / 2
        above = schedule(middle)[0] > alpha
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


@dataclass(frozen=True)
class Denoiser:
    """A network with the process it serves.

    Args:
        network: see `Network`; called with the time on the device of its input.
        process: the process whose x_t it is given.
        trained: the process it was trained for, where that is another (same leaves, other schedules).
        time_code: what of the time the network sees; None is t itself.
        input_scale: the data's standard deviation where the network's Gaussian inputs are to be scaled to unit
            variance (c_in of EDM); None leaves them alone.
    """

    network: Network
    process: Product
    trained: Product | None = None
    time_code: TimeCode | None = None
    input_scale: float | None = None

    def under(self, process: Product) -> "Denoiser":
        """The same network serving ``process``, which may differ from its own in the schedules alone.

        Raises:
            ValueError: if it differs in the leaves, their spaces, or what noise is.
        """
        trained = self.trained or self.process
        kinds = {k: _kind(p) for k, p in trained.leaves.items()}, {k: _kind(p) for k, p in process.leaves.items()}
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"got a process of {kinds[1]} for a network trained on {kinds[0]}; expected other schedules and "
                "nothing else: a network cannot serve leaves, spaces or noise that it has not seen"
            )
        return Denoiser(self.network, process, trained, self.time_code, self.input_scale)

    def output(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Mapping[str, Tensor]:
        """The network's raw output at its own process's ``x_t``."""
        process = self.trained or self.process
        return self.network(self._scaled(process, x_t, t), self._time(process, x_t, t), condition, mask)

    def __call__(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Estimates:
        if self.trained is None:
            return self.process.estimate(self.output(x_t, t, condition, mask), x_t, t, mask)
        pairs = {k: _match_schedule(self.trained[k], self.process[k], x_t[k], leaf_time(t, k)) for k in self.process}
        x_t, t = {k: x for k, (x, _) in pairs.items()}, {k: u for k, (_, u) in pairs.items()}
        return self.trained.estimate(self.output(x_t, t, condition, mask), x_t, t, mask)

    def _scaled(self, process: Product, x_t: State, t: Time) -> State:
        if self.input_scale is None:
            return x_t
        scaled = dict(x_t)
        for name, leaf in process.gaussian.items():
            alpha, sigma = leaf.coefficients(leaf_time(t, name), x_t[name])
            scaled[name] = x_t[name] / torch.sqrt(sigma**2 + (alpha * self.input_scale) ** 2)
        return scaled

    def _time(self, process: Product, x_t: State, t: Time) -> Time:
        if isinstance(t, Tensor) and self.time_code is None:
            return _on(t, next(iter(x_t.values())))
        codes = {k: _on(self._code(process[k], leaf_time(t, k)), x_t[k]) for k in process}
        return codes if len(codes) > 1 else next(iter(codes.values()))

    def _code(self, process: Process, t: Tensor) -> Tensor:
        return t if self.time_code is None else self.time_code(process.schedule, t.to(torch.float64))


def _on(t: Tensor, x: Tensor) -> Tensor:
    """``t`` beside ``x`` in float32; a number becomes (B,) without a copy from host memory."""
    if t.ndim == 0 and t.device.type == "cpu":
        return torch.full((x.shape[0],), float(t), device=x.device)
    return t.to(x.device, torch.float32).expand(x.shape[0]) if t.ndim == 0 else t.to(x.device, torch.float32)
