"""``diffkit evaluate``: figures of merit, beside what held-out data scores."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.cli import options, sheet

if TYPE_CHECKING:
    from diffkit.model import Model
    from diffkit.report import Metrics

__all__ = ["add", "run"]

EXAMPLES = """examples:
  diffkit evaluate molecule -n 10000
  diffkit evaluate molecule --model runs/mine -n 1000 --steps 20 --out figures/
  diffkit evaluate molecule --model runs/mine -n 1000 --likelihood

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
    command.add_argument(
        "--likelihood",
        action="store_true",
        help="no samples: how probable the model finds N held-out ones, by the variational bound, without conditions",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="write metrics.json and the samples here as well")
    command.set_defaults(run=run, command=command)


def run(given: argparse.Namespace) -> int:
    """Draw, measure, print."""
    from diffkit.cli.drawing import command_line, draw, open_model, read_settings

    if sheet.read_grid(given):
        raise ValueError("got knobs in --grid, which are for `diffkit generate`; expected the name of a time grid")
    model = open_model(given)
    settings = read_settings(model, given)
    if given.likelihood:
        return _report({"held-out data": _likelihood(model, given, settings.batch_size)}, given)
    samples, complete = draw(model, settings, given)
    if not complete:
        print(f"diffkit: stopped after {len(samples)} of {given.count} samples; nothing was measured", file=sys.stderr)
        return 130
    if not given.quiet:
        each = samples.evaluations / samples.drawn
        print(
            f"{len(samples)} samples, {each:g} evaluations each, in {samples.seconds:.0f} s; measuring", file=sys.stderr
        )
    columns = model.modality.metrics(samples.records, **model.recipe["data"])
    if given.out is not None:
        samples.save(given.out, command=command_line())
        model.modality.illustrate(samples.records, given.out, **model.recipe["data"])
    return _report(columns, given)


def _report(columns: "Mapping[str, Metrics]", given: argparse.Namespace) -> int:
    """Print the figures, and write them where a folder was given."""
    from diffkit.files import whole
    from diffkit.report import table

    print(table(columns))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        records = {name: {k: metric.record() for k, metric in column.items()} for name, column in columns.items()}
        with whole(given.out / "metrics.json") as part:
            part.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    return 0


def _likelihood(model: "Model", given: argparse.Namespace, size: int) -> "Metrics":
    """Bits per dimension of the first held-out items, and the nats of each of their leaves."""
    from diffkit.data import Batches
    from diffkit.likelihood import Bound, bits_per_dim, log_likelihood
    from diffkit.noise import Noise
    from diffkit.report import Metric

    held_out = Batches(model.modality.dataset("test", **model.recipe["data"]))
    count, parts = min(given.count, len(held_out)), []
    for start in range(0, count, size):
        batch = held_out.__getitems__(range(start, min(start + size, count))).to(model.device)
        noise, condition = Noise(given.seed, batch.index), batch.condition.null()
        found = log_likelihood(
            model.denoiser, batch.x, noise=noise, method=Bound(), condition=condition, mask=batch.mask
        )
        parts.append(found)
    leaves = {k: -sum(float(part.nats[k].sum()) for part in parts) / count for k in parts[0].nats}
    bits = {"bits per dimension, at most": Metric(bits_per_dim(parts), count, "samples")}
    return bits | {f"nats of {k}, at most": Metric(v, count, "samples") for k, v in leaves.items()}
