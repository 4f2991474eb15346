r"""Guidance: a function from a denoiser to a denoiser.

Guidance bends the estimate and knows nothing of samplers, so any guidance goes with any sampler, and several
compose in the order written. Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) has one convention here,

    guided = u + scale (c - u)

so 1 is no guidance and 0 is unconditional. It acts on x_0 and eps of a Gaussian leaf and on the logits of a
categorical one (there it is p_u (p_c / p_u)^scale, renormalised; Nisonoff et al. 2024, arXiv:2406.01572). A
negative condition takes the place of the empty one. Within ``interval`` of times alone it costs less and
keeps diversity (Kynkäänniemi et al. 2024, arXiv:2404.07724).

A temperature T takes p(x_0 | x_t)^(1/T), renormalised, for a categorical leaf: above 1 samples are more varied, below 1
more typical. A Gaussian leaf's estimate is a mean and has none.

A new guidance is a frozen dataclass whose ``__call__`` takes a `Denoise` and gives one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import CategoricalEstimate, Estimate, Estimates, weigh
from diffkit.product import Product
from diffkit.typing import Masks, State, Time, expand, leaf_time

__all__ = ["ClassifierFree", "Temperature"]


@dataclass(frozen=True)
class ClassifierFree:
    """u + scale (c - u) for every leaf.

    Args:
        scale: 1 is no guidance.
        negative: what to steer away from; None is the empty condition. Its batch may be 1.
        interval: (low, high) times, ends included, within which guidance acts; outside, the conditional estimate
            stands.
    """

    scale: float = 2.0
    negative: Condition | None = None
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_interval(self.interval)

    def __call__(self, denoise: Denoise) -> "Denoise":
        return _Guided(denoise, self)


@dataclass(frozen=True)
class Temperature:
    """p(x_0 | x_t)^(1/value), renormalised, for every categorical leaf.

    Args:
        value: above 0; 1 changes nothing.
        interval: (low, high) times, ends included, within which it acts. By default the early ones alone, where a
            sample takes its outline: near the data a temperature above 1 would only put errors into it.
    """

    value: float = 1.0
    interval: tuple[float, float] = (0.3, 1.0)

    def __post_init__(self) -> None:
        _check_interval(self.interval)
        if not self.value > 0:
            raise ValueError(f"got a temperature of {self.value}; expected a number above 0 (1 changes nothing)")

    def __call__(self, denoise: Denoise) -> "Denoise":
        return _Tempered(denoise, self)


def _check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"got the interval {interval}; expected 0 <= low <= high <= 1 (0 is data, 1 noise)")


@dataclass(frozen=True)
class _Tempered:
    inner: Denoise
    temperature: Temperature

    @property
    def process(self) -> Product:
        return self.inner.process

    def __call__(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Estimates:
        estimates = self.inner(x_t, t, condition, mask)
        return {name: self._tempered(e, x_t[name], leaf_time(t, name)) for name, e in estimates.items()}

    def _tempered(self, estimate: Estimate, x: Tensor, t: Tensor) -> Estimate:
        if not isinstance(estimate, CategoricalEstimate):
            return estimate
        low, high = self.temperature.interval
        inside = (low <= t) & (t <= high)
        power = expand(torch.where(inside, 1 / self.temperature.value, 1.0), x).to(estimate.logits)
        power = power.unsqueeze(-1) if power.ndim > 0 else power
        return CategoricalEstimate((power * estimate.logits).log_softmax(-1))


@dataclass(frozen=True)
class _Guided:
    inner: Denoise
    guidance: ClassifierFree

    @property
    def process(self) -> Product:
        return self.inner.process

    def __call__(self, x_t: State, t: Time, condition: Condition, mask: Masks) -> Estimates:
        if not condition.values:
            raise ValueError(
                "got guidance for a sample without a condition; expected at least one conditional value: "
                "leave guidance out, or use a model trained with conditions"
            )
        if not self._acts(t):
            return self.inner(x_t, t, condition, mask)
        batch = len(next(iter(x_t.values())))
        given, avoided = self._calls(x_t, t, condition, mask, batch)
        return {name: self._weigh(given[name], avoided[name], x_t[name], leaf_time(t, name)) for name in given}

    def _acts(self, t: Time) -> bool:
        """False only where a plain number says so; times per sample are weighed one by one."""
        low, high = self.guidance.interval
        outside = isinstance(t, Tensor) and t.ndim == 0 and t.device.type == "cpu" and not low <= float(t) <= high
        return self.guidance.scale != 1.0 and not outside

    def _calls(self, x_t: State, t: Time, condition: Condition, mask: Masks, batch: int) -> tuple[Estimates, Estimates]:
        """Both estimates from one call on a doubled batch."""
        negative = self.guidance.negative
        other = condition.null() if negative is None else negative.map(lambda v: v.expand(batch, *v.shape[1:]))
        time = _twice(t, batch) if isinstance(t, Tensor) else {k: _twice(u, batch) for k, u in t.items()}
        masks = {k: _twice(m, batch) for k, m in mask.items()}
        both = self.inner(
            {k: torch.cat([v, v]) for k, v in x_t.items()}, time, Condition.cat([condition, other]), masks
        )
        return {k: _rows(e, slice(batch)) for k, e in both.items()}, {
            k: _rows(e, slice(batch, None)) for k, e in both.items()
        }

    def _weigh(self, given: Estimate, avoided: Estimate, x: Tensor, t: Tensor) -> Estimate:
        low, high = self.guidance.interval
        inside = (low <= t) & (t <= high)
        scale = expand(1 + (self.guidance.scale - 1) * inside.to(t.dtype), x)
        if scale.ndim > 0:
            scale = scale.to(x.device, x.dtype) if x.is_floating_point() else scale.to(x.device).unsqueeze(-1)
        return weigh([given, avoided], [scale, 1 - scale])


def _twice(tensor: Tensor, batch: int) -> Tensor:
    """A time or a mask for the doubled batch; one that broadcasts over the batch does so still."""
    return torch.cat([tensor, tensor]) if tensor.ndim > 0 and tensor.shape[0] == batch else tensor


def _rows(estimate: Estimate, rows: slice) -> Estimate:
    return type(estimate)(**{k: v[rows] for k, v in vars(estimate).items()})
