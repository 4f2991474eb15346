"""``diffkit train``: a recipe through Lightning."""

import argparse
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

EXAMPLES = """examples:
  diffkit train molecule/sample                                     # the shipped sample, no network, two minutes
  diffkit train molecule/qm9 training.batch_size=512 network.width=256
  diffkit train molecule/qm9 data.path=mine.smi --out runs/mine
  diffkit train molecule/qm9 trainer.devices=8 trainer.strategy=ddp
  diffkit train molecule/qm9 --out runs/mine                        # again: takes up where it stopped

`diffkit train RECIPE --show` prints the whole recipe; every line can be overridden as KEY=VALUE (Hydra's syntax)"""


def add(commands: Any) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "train",
        help="train a model from a recipe",
        description="Train a model from a recipe, or take up a run that was stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("recipe", help="see `diffkit list`")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    command.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default runs/RECIPE/DATE-TIME)")
    command.add_argument("--show", action="store_true", help="print the recipe and stop")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run, command=command)


def run(given: argparse.Namespace) -> int:
    """Compose the recipe and fit it."""
    from diffkit import recipe as recipes

    recipe = recipes.load(given.recipe, given.overrides)
    if given.show:
        import yaml

        print(yaml.safe_dump(recipe, sort_keys=False), end="")
        return 0
    from diffkit.fit import fit
    from diffkit.model import Model

    folder = given.out or _folder(given.recipe)
    model = fit(recipe, folder, command=" ".join(["diffkit", *sys.argv[1:]]), quiet=given.quiet)
    if model is not None:  # the first of several processes
        print(folder / "model")
    if isinstance(model, Model):
        print(f"  diffkit generate {given.recipe.split('/')[0]} --model {folder}")
    return 0


def _folder(recipe: str) -> Path:
    """A new run folder named by the time; the processes that a distributed run starts take their parent's."""
    if "LOCAL_RANK" not in os.environ:
        os.environ["DIFFKIT_RUN"] = str(Path("runs") / recipe / datetime.now().strftime("%Y%m%d-%H%M%S"))
    return Path(os.environ["DIFFKIT_RUN"])
