"""``diffkit show``: the settings of a picture or a run, as the command line that says them, and the run once more."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffkit.cli import generate, options

__all__ = ["add", "flags", "run"]

EXAMPLES = """examples:
  diffkit show out/
  diffkit show out/preview.png
  diffkit show out/0003.png --rerun --out again/

prints a command line that draws the same samples. With --rerun they are drawn, and every file is compared with the
one that was there: exit code 1 where they differ. Of a picture of one sample that sample alone is drawn, which can
differ from the one drawn among others by rounding"""


USUAL = {"batch_size": 256, "precision": "32"}
"""Of those settings that no recipe changes: they need not be said."""


def add(commands: Any) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "show",
        help="how samples were drawn, and the same once more",
        description="Print the settings of samples as a command line, and run it again.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("what", type=Path, metavar="FILE", help="a picture, a run.json, or a folder of samples")
    command.add_argument("--rerun", action="store_true", help="draw the same samples again, into a new folder")
    command.add_argument("--out", type=Path, default=Path("rerun"), metavar="DIR", help="that folder (default rerun/)")
    command.add_argument("--device", default="auto", metavar="NAME", help="cpu or cuda (default: cuda if there is one)")
    command.add_argument("--quiet", action="store_true", help="with --rerun: print nothing but errors")
    command.set_defaults(run=run, command=command)


def run(given: argparse.Namespace) -> int:
    """Print, and run again where asked to."""
    facts, folder = _facts(given.what)
    said = flags(facts, given.what)
    if not given.rerun:
        print(shlex.join(["diffkit", "generate", *said]))
        return 0
    if given.out.exists() and any(given.out.iterdir()):
        raise ValueError(f"got --out {given.out}, which holds something; expected a new folder")
    quiet = ["--quiet"] if given.quiet else []
    code = _generate([*said, "--out", str(given.out), "--device", given.device, *quiet])
    if code:
        return code
    if "number" in facts:
        compared = {given.what: given.out / f"0000{given.what.suffix}"}
    else:
        compared = {folder / path.relative_to(given.out): path for path in sorted(given.out.rglob("*"))}
    return _compare({old: new for old, new in compared.items() if old.is_file() and old.name != "run.json"}, given)


def _generate(said: Sequence[str]) -> int:
    top = argparse.ArgumentParser(prog="diffkit")
    generate.add(top.add_subparsers())
    given = top.parse_args(["generate", *said])
    return int(given.run(given))


def _compare(pairs: Mapping[Path, Path], given: argparse.Namespace) -> int:
    """Say which files are equal bit for bit; 1 if one is not."""
    others = [
        old.name + _apart(old, new)
        for old, new in pairs.items()
        if not new.is_file() or old.read_bytes() != new.read_bytes()
    ]
    if not given.quiet:
        equal = f"{len(pairs) - len(others)} of {len(pairs)} files are equal to those of {given.what}, bit for bit"
        print(equal + (f"; not {', '.join(others)}" if others else ""))
    return 1 if others else 0


def _apart(old: Path, new: Path) -> str:
    """How far two pictures of one size are apart; nothing of other files."""
    from PIL import Image, ImageChops

    if {old.suffix, new.suffix} != {".png"} or not new.is_file():
        return ""
    with Image.open(old) as a, Image.open(new) as b:
        if a.size != b.size:
            return " (another size)"
        extremes = ImageChops.difference(a.convert("RGBA"), b.convert("RGBA")).getextrema()
    most = max(int(high) for _, high in extremes)  # type: ignore[misc]
    return f" (by {most} of 255 at most)"


def _facts(what: Path) -> tuple[dict[str, Any], Path]:
    """What a picture or the run beside a file says, and the folder of the run."""
    from diffkit.stamp import read

    if what.is_dir() or what.suffix == ".json":
        file = what / "run.json" if what.is_dir() else what
        return _json(file), file.parent
    facts = read(what)
    if facts is None and (what.parent / "run.json").is_file():
        raise ValueError(f"got {what}, which carries no settings; expected a PNG that does, or {what.parent}/run.json")
    if facts is None:
        raise ValueError(f"got {what}, which carries no settings; expected a PNG that diffkit wrote, or a run.json")
    return facts, what.parent


def _json(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "settings" not in facts:
        raise ValueError(f"got {file}, which is no record of a run; expected the run.json of `diffkit generate`")
    return facts


def flags(facts: Mapping[str, Any], where: Path) -> list[str]:
    """The words after ``diffkit generate`` that draw what ``facts`` say.

    Raises:
        ValueError: for settings that no flag can say, as they come from Python.
    """
    settings, knobs = facts["settings"], facts.get("grid", {})
    request = settings.get("request") or {}
    said = _request(request, settings, where) | _numbers(facts) | _nodes(settings, where)
    said |= {
        f"--{name.replace('_', '-')}": [str(settings[name])]
        for name in ("strength", "guidance", "temperature", "top_p", "seed", "batch_size", "precision")
        if settings.get(name) not in (None, USUAL.get(name))
    }
    if settings.get("interval", [0.0, 1.0]) != [0.0, 1.0]:
        said["--interval"] = [str(t) for t in settings["interval"]]
    kept = {flag: words for flag, words in said.items() if flag[2:] not in knobs}
    if knobs:
        kept.setdefault("--grid", [])
        kept["--grid"] += [f"{name}={','.join(values)}" for name, values in knobs.items()]
    modality = facts.get("modality") or str(facts.get("model", "")).split("/")[0]
    prompt = [] if request.get("prompt") is None or "prompt" in knobs else [request["prompt"]]
    return [modality, *prompt, *(word for flag, words in kept.items() for word in (flag, *words))]


def _numbers(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """The model, and which samples: one, those of a run, or from the first on the valid ones alone."""
    said = {"--model": [facts["model"]]} if facts.get("model") else {}
    runs = [[facts["number"]] * 2] if "number" in facts else facts.get("numbers") or []
    count = sum(last - first + 1 for first, last in runs)
    if facts.get("options"):
        said["--option"] = [f"{name}={value}" for name, value in facts["options"].items()]
    said |= {"--format": [facts["format"]]} if facts.get("format") else {}
    said["-n"] = [str(count)]
    if runs and runs[0][0]:
        said["--first"] = [str(runs[0][0])]
    return said | ({"--valid-only": []} if len(runs) > 1 else {})


def _request(request: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> dict[str, list[str]]:
    """What was asked for by name, what to start from, and what to steer away from."""
    said: dict[str, list[str]] = {}
    if request.get("values"):
        said["--condition"] = [f"{name}={value}" for name, value in request["values"].items()]
    if request.get("start") is not None:
        said["--from"] = [request["start"]]
    if (negative := settings.get("negative")) is not None:
        words = [negative["prompt"]] if negative["prompt"] is not None else []
        words += [f"{name}={value}" for name, value in negative["values"].items()]
        if len(words) != 1 or ("=" in words[0]) == (negative["prompt"] is not None):
            raise _unsaid("negative", negative, where)
        said["--negative"] = words
    return said


def _nodes(settings: Mapping[str, Any], where: Path) -> dict[str, list[str]]:
    """Components by name and options; a grid that lists its times is said by them."""
    said: dict[str, list[str]] = {}
    grid = settings["grid"]
    if isinstance(grid, dict) and grid["name"] == "explicit":
        said["--times"] = [str(t) for t in grid["times"]]
    else:
        said["--steps"] = [str(settings["steps"])]
    for name in ("sampler", "grid", "jump", "schedule", "guider"):
        told = settings.get(name)
        if told is None or (name == "grid" and "--times" in said):
            continue
        plain = {"name": told} if isinstance(told, str) else told
        text = ",".join(f"{k}={v}" for k, v in plain.items() if k != "name")
        text = f"{plain['name']}:{text}" if text else plain["name"]
        try:
            same = options.node(text) == plain
        except ValueError:
            same = False
        if not same:
            raise _unsaid(name, told, where)
        said[f"--{name}"] = [text]
    return said


def _unsaid(name: str, value: Any, where: Path) -> ValueError:
    return ValueError(f"got {where} with {name} {value}, which no flag can say; expected a run of the command line")
