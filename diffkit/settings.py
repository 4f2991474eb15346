"""How samples are drawn.

A recipe's ``sampling`` node, the keywords of `Model.generate` and the flags of the command line all come down to this,
and ``run.json`` records it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from diffkit.modality import Request

__all__ = ["Node", "Settings"]

Node: TypeAlias = str | Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """How samples are drawn. Equal settings give equal samples, to the rounding of another ``batch_size``.

    Args:
        steps: of the time grid, at least 1.
        sampler, grid, jump: registry names, or nodes with options. The jump is the rule of the categorical leaves.
        schedule: that samples are drawn under; the model's own where None.
        guidance: scale s of u + s (c - u); 1 is none.
        guider: registry name of the guidance, or a node with options.
        interval: times within which guidance acts.
        temperature: of the categorical leaves, above 0; see `diffkit.guidance.Temperature`.
        top_p: of the categorical leaves, in (0, 1]; see `diffkit.guidance.TopP`.
        request: what is asked for.
        strength: where the request has a file to start from, and only there: the time in (0, 1] to which it is noised,
            the grid's own that is nearest. 1 is pure noise.
        negative: what to steer away from.
        seed: any integer.
        batch_size: samples per network call.
        precision: "32" or "bf16" (matrix products in bfloat16).
    """

    steps: int
    sampler: Node
    grid: Node
    jump: Node = "posterior"
    schedule: Node | None = None
    guidance: float = 1.0
    guider: Node = "cfg"
    interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_p: float = 1.0
    request: Request = Request()
    strength: float | None = None
    negative: Request | None = None
    seed: int = 0
    batch_size: int = 256
    precision: str = "32"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"got a batch size of {self.batch_size}; expected at least 1")
        if self.precision not in ("32", "bf16"):
            raise ValueError(f"got precision '{self.precision}'; expected 32 or bf16")
        if self.strength is None and self.request.start is not None:
            raise ValueError("got a file to start from and no strength; expected one above 0 and at most 1")
        if self.strength is not None and self.request.start is None:
            raise ValueError(f"got a strength of {self.strength} and no file to start from; expected both or none")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"got a strength of {self.strength}; expected above 0 (the file) and at most 1 (noise)")

    def record(self) -> dict[str, Any]:
        """Plain data for a JSON file: the same for equal settings, whether a recipe or a flag said them."""
        said = asdict(self)
        nodes = {name: _plain(said[name]) for name in ("sampler", "grid", "jump", "schedule", "guider")}
        numbers = {name: float(said[name]) for name in ("guidance", "temperature", "top_p")}
        strength = None if self.strength is None else float(self.strength)
        return said | nodes | numbers | {"strength": strength, "interval": [float(t) for t in self.interval]}


def _plain(node: Node | None) -> str | dict[str, Any] | None:
    """A node with its name first, or the name alone where it has no options."""
    if node is None or isinstance(node, str):
        return node
    options = {k: v for k, v in node.items() if k != "name"}
    return {"name": node["name"], **options} if options else str(node["name"])
