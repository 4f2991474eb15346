"""What every sampler is given and gives back.

A sampler sees plain numbers for times, and tensors. What it wants of an estimate it takes as a sum u x_0 + w eps
(`GaussianEstimate.combine`), whose weights are plain numbers too: nothing in a step waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import CategoricalEstimate, Estimates, GaussianEstimate
from diffkit.jumps import Jump, Posterior
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.typing import Masks, State, Time, leaf_time

__all__ = ["Call", "Sampler", "SamplerState", "check_eta", "coordinate", "slope", "slope_weights"]


T = TypeVar("T")


def check_eta(eta: float, name: str) -> None:
    """Refuse a stochasticity outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"got {name} = {eta}; expected a number from 0 (deterministic) to 1 (ancestral)")


@dataclass(frozen=True)
class Call:
    """A denoiser with its condition, its mask and the rule of its classes filled in: ``call(x_t, t) -> estimates``.

    ``grid`` holds the times of the loop that makes the call, for methods that look ahead; nothing where there is none.
    """

    denoise: Denoise
    condition: Condition = field(default_factory=Condition)
    mask: Masks = field(default_factory=dict)
    jump: Jump = field(default_factory=Posterior)
    grid: tuple[float, ...] = ()

    @property
    def process(self) -> Product:
        """The process of the samples."""
        return self.denoise.process

    def __call__(self, x_t: State, t: Time, target: Time | None = None) -> Estimates:
        if target is None:
            return self.denoise(x_t, t, self.condition, self.mask)
        return self.denoise(x_t, t, self.condition, self.mask, target)

    def gaussian(self, step: Callable[[str, Gaussian, GaussianEstimate], T], estimates: Estimates) -> dict[str, T]:
        """``step(name, process, estimate)`` of every real-valued leaf."""
        x_s = {}
        for k, process in self.process.gaussian.items():
            estimate = estimates[k]
            assert isinstance(estimate, GaussianEstimate)
            x_s[k] = step(k, process, estimate)
        return x_s

    def jumps(self, x_t: State, estimates: Estimates, t: Time, s: Time, noise: Noise) -> dict[str, Tensor]:
        """Every categorical leaf at ``s``."""
        x_s = {}
        for k, process in self.process.categorical.items():
            estimate = estimates[k]
            assert isinstance(estimate, CategoricalEstimate)
            x_s[k] = self.jump(process, x_t[k], estimate, leaf_time(t, k), leaf_time(s, k), noise, k, self.mask.get(k))
        return x_s

    def bridge(
        self, x_t: State, estimates: Estimates, t: Time, s: Time, noise: Noise, eta: float = 0.0
    ) -> dict[str, Tensor]:
        """Every leaf at ``s``: the real-valued ones by a draw from their bridge (DDIM), the others by their jump."""
        process = self.denoise.process
        x_s = self.jumps(x_t, estimates, t, s, noise) if process.categorical else {}
        for k, p in process.gaussian.items():
            x_s[k] = p.bridge(x_t[k], estimates[k], leaf_time(t, k), leaf_time(s, k), noise, k, self.mask.get(k), eta)
        return x_s


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands.

    Args:
        x: the leaves at the current time.
        estimates: those that began the step just taken, for trajectories; None before the first.
        memory: what the sampler itself wants to remember; nobody else looks at it.
    """

    x: State
    estimates: Estimates | None = None
    memory: Any = None


class Sampler(Protocol):
    """Steps from time t to s < t.

    Gaussian leaves take the sampler's own step and categorical ones their jump, from the same network calls.
    """

    def init(self, x: State) -> SamplerState:
        """The state at the first time."""
        ...

    def update(self, state: SamplerState, t: float, s: float, denoise: Call, noise: Noise) -> SamplerState:
        """The state at ``s`` from the one at ``t``."""
        ...


def coordinate(process: Gaussian, t: float) -> tuple[float, float]:
    """(scale, u): y = x_t / scale goes along dy/du = `slope` in the coordinate u of the leaf's schedule."""
    alpha, sigma = process.schedule.at(t)
    if process.schedule.coordinate == "flow":
        return alpha + sigma, sigma / (alpha + sigma)
    return alpha, sigma / alpha


def slope(process: Gaussian, estimate: GaussianEstimate) -> Tensor:
    """dy/du of an estimate; see `slope_weights`."""
    return estimate.combine(*slope_weights(process))


def slope_weights(process: Gaussian) -> tuple[float, float]:
    """Of x_0 and eps in dy/du: it is eps in the coordinate "ratio", eps - x_0 in the coordinate "flow"."""
    return (-1.0 if process.schedule.coordinate == "flow" else 0.0), 1.0
