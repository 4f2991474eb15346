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
    from diffkit.files import whole
    from diffkit.report import table

    model = open_model(given)
    samples, complete = draw(model, read_settings(model, given), given)
    if not complete:
        print(f"diffkit: stopped after {len(samples)} of {given.count} samples; nothing was measured", file=sys.stderr)
        return 130
    if not given.quiet:
        each = samples.evaluations / samples.drawn
        print(
            f"{len(samples)} samples, {each:g} evaluations each, in {samples.seconds:.0f} s; measuring", file=sys.stderr
        )
    columns = model.modality.metrics(samples.records, **model.recipe["data"])
    print(table(columns))
    if given.out is not None:
        samples.save(given.out, command=" ".join(["diffkit", *sys.argv[1:]]))
        records = {name: {k: metric.record() for k, metric in column.items()} for name, column in columns.items()}
        with whole(given.out / "metrics.json") as part:
            part.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    return 0
