"""Flags that mean the same in every command, and how their text is read."""

import argparse
from typing import Any

__all__ = ["add_sampling", "node", "pairs", "positive", "values"]


def positive(text: str) -> int:
    """A whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got '{text}'; expected a whole number, 1 or more")
    return number


def node(text: str) -> dict[str, Any]:
    """A component by name, with options after a colon: ``ddim`` or ``sde_dpmpp_2m:eta=0.5``."""
    name, _, rest = text.partition(":")
    options = dict(_pair(part) for part in rest.split(",") if part)
    return {"name": name} | {key: _value(value) for key, value in options.items()}


def _value(text: str) -> bool | int | float | str:
    """A number or a truth, or a word where it is neither."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def pairs(texts: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, any number of times."""
    return dict(_pair(text) for text in texts or [])


def values(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, any number of times, each value read as what it is."""
    return {name: _value(value) for name, value in pairs(texts).items()}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise ValueError(f"got '{text}'; expected NAME=VALUE")
    return name.strip(), value.strip()


def add_sampling(command: argparse.ArgumentParser, count: int) -> None:
    """The flags of drawing samples."""
    flag = command.add_argument
    flag("-n", "--count", type=positive, default=count, metavar="N", help=f"how many samples (default {count})")
    flag(
        "--model",
        metavar="NAME",
        help="a shipped model, a run folder, or a diffusers pipeline: a folder or a name on the Hub (default: the "
        "modality's own)",
    )
    flag("--option", action="extend", nargs="+", metavar="NAME=VALUE", help="of the model's adapter: precision=16, ...")
    flag("--steps", type=positive, metavar="N", help="steps of the sampler (default: the model's own)")
    flag("--sampler", type=str, metavar="NAME", help="see `diffkit list`; options after a colon: ddim:eta=0.5")
    flag("--jump", type=str, metavar="NAME", help="the rule of categories: posterior:eta=0 (default: the model's own)")
    flag(
        "--grid",
        action="append",
        nargs="+",
        metavar="NAME",
        help="the time grid: power:power=2, log_snr, karras, ...; or, of generate, one or two knobs KNOB=V1,V2: "
        "every pair of values on one labelled sheet, grid.png",
    )
    flag(
        "--times",
        type=float,
        nargs="+",
        metavar="T",
        help="the times themselves, falling from 1 (noise) to 0, in place of --steps and --grid",
    )
    flag("--schedule", metavar="NAME", help="draw under another noise schedule than the model was trained with")
    flag("--guidance", type=float, metavar="S", help="u + S (c - u); 1 is none (default: the model's own)")
    flag("--guider", metavar="NAME", help="how: cfg, apg, zero_star, skip_layers:layers=layers.3 (default cfg)")
    flag(
        "--interval",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="times within which guidance acts; 0 is data, 1 noise",
    )
    flag(
        "--temperature",
        type=float,
        metavar="T",
        help="of categories; above 1 is more varied (default: the model's own)",
    )
    flag("--top-p", type=float, metavar="P", help="of categories: the likeliest that make up P (default 1, all)")
    flag("--condition", action="extend", nargs="+", metavar="NAME=VALUE", help="values asked for, one or several")
    flag("--from", dest="start", metavar="FILE", help="start from a file of this kind of data, noised")
    flag(
        "--strength",
        type=float,
        metavar="T",
        help="how far it is noised: the time to start at, above 0 and at most 1, pure noise (default: the model's own)",
    )
    flag("--negative", metavar="TEXT", help="steer away from a prompt, or from NAME=VALUE")
    flag("--seed", type=int, default=0, metavar="N", help="equal seeds give equal samples (default 0)")
    flag("--batch-size", type=positive, metavar="N", help="samples per network call (default: the model's own, or 256)")
    flag("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:1 (default: cuda if there is one)")
    flag("--precision", choices=("32", "bf16"), default="32", help="of the network's matrix products (default 32)")
    flag("--quiet", action="store_true", help="print nothing but errors")
