"""``diffkit list``: what there is. Imports neither torch nor any adapter."""

import argparse
from typing import Any

__all__ = ["add", "run"]

PLURALS = {"process": "processes", "guidance": "guidance", "times": "times"}


def add(commands: Any) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "list", help="what there is: modalities, models, recipes, samplers, ...", description="What there is."
    )
    command.add_argument("kind", nargs="?", help="one line of it alone, e.g. `diffkit list samplers`")
    command.set_defaults(run=run, command=command)


def catalogue() -> dict[str, list[str]]:
    """Kind -> names."""
    from diffkit.inventory import modality_names, recipe_names, shipped
    from diffkit.registry import REGISTRY

    installed = {"modalities": modality_names(), "models": list(shipped()), "recipes": recipe_names()}
    return installed | {PLURALS.get(kind, f"{kind}s"): list(known) for kind, known in REGISTRY.items()}


def run(given: argparse.Namespace) -> int:
    """Print it."""
    known = catalogue()
    if given.kind is not None:
        from diffkit.naming import nearest

        if given.kind not in known:
            raise ValueError(f"got '{given.kind}'; expected one of {', '.join(known)}{nearest(given.kind, known)}")
        print("\n".join(known[given.kind]))
        return 0
    width = max(map(len, known))
    for kind, names in known.items():
        print(f"{kind:<{width}}  {', '.join(names) or '(none)'}")
    return 0
