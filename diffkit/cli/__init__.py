"""The command line. Each command is a module with ``add(commands)``, which describes it, and ``run(arguments)``.

Describing imports nothing heavy, so ``diffkit --help`` and ``diffkit list`` answer at once. A person's mistake is one
line on stderr and exit code 1 (2 for a flag that does not exist); Ctrl-C is 130; DIFFKIT_DEBUG=1 shows the traceback.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from diffkit import __version__
from diffkit.cli import evaluate, generate, listing, show, train
from diffkit.naming import nearest

__all__ = ["main", "parser"]

COMMANDS = (generate, show, train, evaluate, listing)

EXAMPLES = """examples:
  diffkit generate molecule -n 16 --seed 7 --out out/
  diffkit show out/preview.png
  diffkit train molecule/qm9 trainer.devices=8 trainer.strategy=ddp
  diffkit evaluate molecule -n 10000
  diffkit list"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="diffkit",
        description="Generate, train and evaluate diffusion models of any kind of data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"diffkit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    warnings.formatwarning = _warning
    given, rest = parser().parse_known_args(arguments)
    try:
        _place(given, rest)
        return int(given.run(given) or 0)
    except KeyboardInterrupt as stop:
        print(f"diffkit: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("DIFFKIT_DEBUG"):
            raise
        print(f"diffkit: error: {_line(error)}", file=sys.stderr)
        return 1


def _place(given: argparse.Namespace, rest: Sequence[str]) -> None:
    """A prompt and overrides may stand after flags, where argparse leaves them over; anything else is a mistake."""
    for text in rest:
        if not text.startswith("-") and getattr(given, "prompt", "") is None:
            given.prompt = text
            continue
        if text.startswith("-") or "=" not in text or not hasattr(given, "overrides"):
            known = [flag for action in given.command._actions for flag in action.option_strings]
            close = nearest(text.split("=")[0], known)
            given.command.error(f"got '{text}', which this command does not take{close} (see --help)")
        given.overrides.append(text)


def _warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> str:
    """A warning as one line, without the place in the code that gave it."""
    return f"diffkit: {'warning' if category is UserWarning else category.__name__}: {message}\n"


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
