"""What every sampler is given and gives back."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from diffkit.condition import Condition
from diffkit.denoiser import Denoise
from diffkit.estimate import Estimates
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.typing import Masks, State

__all__ = ["Call", "Sampler", "SamplerState", "check_eta"]


def check_eta(eta: float, name: str) -> None:
    """Refuse a stochasticity outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"got {name} = {eta}; expected a number from 0 (deterministic) to 1 (ancestral)")


@dataclass(frozen=True)
class Call:
    """A denoiser with its condition and mask filled in: ``call(x_t, t) -> estimates``."""

    denoise: Denoise
    condition: Condition
    mask: Masks

    @property
    def process(self) -> Product:
        """The process of the samples."""
        return self.denoise.process

    def __call__(self, x_t: State, t: Tensor) -> Estimates:
        return self.denoise(x_t, t, self.condition, self.mask)

    def bridge(
        self, x_t: State, estimates: Estimates, t: Tensor, s: Tensor, noise: Noise, eta: float, categorical_eta: float
    ) -> dict[str, Tensor]:
        """`Product.bridge` under this mask, with a stochasticity for each kind of leaf."""
        etas = {k: eta if k in self.process.gaussian else categorical_eta for k in self.process}
        return self.process.bridge(x_t, estimates, t, s, noise, self.mask, etas)


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands.

    Args:
        x: the leaves at the current time.
        history: (t, estimates) of the evaluations that began each step so far, newest first, as many as the
            sampler remembers (at least the last, for trajectories).
    """

    x: State
    history: tuple[tuple[Tensor, Estimates], ...] = field(default=())


class Sampler(Protocol):
    """Steps from time t to s < t.

    Gaussian leaves take the sampler's own step and categorical ones their bridge, from the same network calls.
    """

    def init(self, x: State) -> SamplerState:
        """The state at the first time."""
        ...

    def update(self, state: SamplerState, t: Tensor, s: Tensor, denoise: Call, noise: Noise) -> SamplerState:
        """The state at ``s`` from the one at ``t`` (0-d float64 tensors)."""
        ...
