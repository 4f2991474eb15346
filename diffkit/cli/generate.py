"""``diffkit generate``: samples as native files, with a preview picture."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.cli import options, sheet

__all__ = ["add", "run"]

COUNT, CELL = 16, 1
"""How many samples there are, and in each cell of a sheet, unless one says."""

EXAMPLES = """examples:
  diffkit generate molecule -n 16 --seed 7 --out out/
  diffkit generate molecule --steps 50 --sampler ancestral --valid-only
  diffkit generate molecule --model runs/mine --condition gap=0.2 --guidance 2
  diffkit generate audio "bright electric piano, C4" -n 4 --steps 20
  diffkit generate pointcloud "armchair" --from sofa.obj --strength 0.5
  diffkit generate audio --condition instrument=Flute pitch=72 velocity=100 seconds=1
  diffkit generate audio "flute, A4" --grid steps=2,5,20 guidance=1,3

writes native files, preview.png and run.json (all settings, versions, seed, evaluations, seconds) into --out"""


def add(commands: Any) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "generate",
        help="draw samples from a model",
        description="Draw samples from a shipped or trained model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("modality", help="kind of data, see `diffkit list`")
    command.add_argument("prompt", nargs="?", help="what is asked for, in words, where the model takes them")
    options.add_sampling(command, count=COUNT)
    command.add_argument("--first", type=int, default=0, metavar="N", help="number of the first sample (default 0)")
    command.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where to write (default out/)")
    command.add_argument("--format", metavar="NAME", help="of the native files, where there are several: glb, float")
    command.add_argument("--valid-only", action="store_true", help="draw again until all samples are valid")
    command.add_argument("--trajectory", action="store_true", help="keep t, x_t and the x0 estimate of every step")
    command.set_defaults(run=run, command=command, count=None)


def run(given: argparse.Namespace) -> int:
    """Draw, write, and say what was written."""
    from diffkit.cli.drawing import draw, facts, open_model, read_settings
    from diffkit.modality import in_format

    knobs = sheet.read_grid(given)
    given.count = given.count or (CELL if knobs else COUNT)
    model = open_model(given)
    if given.format is not None:
        in_format(model.modality, given.format)  # before the work, in case there is no such format
    if knobs:
        return sheet.run(model, given, knobs)
    settings = read_settings(model, given)
    given.out.mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be written
    samples, complete = draw(model, settings, given, valid_only=given.valid_only, record=given.trajectory)
    report = samples.save(given.out, given.format, **facts(model, settings, complete))
    if not given.quiet:
        print(_summary(report, given.out))
    if not complete:
        print(
            f"diffkit: stopped after {len(samples)} of {given.count} samples, which are in {given.out}", file=sys.stderr
        )
    return 0 if complete else 130


def _summary(report: Mapping[str, Any], folder: Path) -> str:
    drawn = "" if report["drawn"] == report["count"] else f" ({report['drawn']} drawn)"
    said = ", ".join(f"{key} {value}" for key, value in report["result"].items() if not isinstance(value, dict))
    return (
        f"{report['count']} samples{drawn} in {report['seconds']:.1f} s, "
        f"{report['evaluations_per_sample']:g} evaluations each: {said}\n{folder / 'preview.png'}"
    )
