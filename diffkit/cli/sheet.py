"""``--grid KNOB=V1,V2 KNOB=V1,V2``: every pair of the values drawn from the same noise, on one labelled sheet.

The first knob goes to the right, the second, where there is one, downwards. A cell is the adapter's own ``preview.png``
of the samples that ``diffkit generate`` draws with these two values, and a folder with all that it writes.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.cli.options import pairs

if TYPE_CHECKING:
    from PIL import Image

    from diffkit.model import Model
    from diffkit.settings import Settings

__all__ = ["KNOBS", "read_grid", "run"]

KNOBS = {
    "prompt": "prompt",
    "negative": "negative",
    "from": "start",
    "strength": "strength",
    "steps": "steps",
    "sampler": "sampler",
    "grid": "grid",
    "jump": "jump",
    "schedule": "schedule",
    "guidance": "guidance",
    "guider": "guider",
    "temperature": "temperature",
    "top-p": "top_p",
    "seed": "seed",
}
"""What can be turned, and where a flag keeps it; any other name is a condition's."""
CELL, GAP, LINE, ASIDE = 512, 10, 17, 240
"""Pixels: the longest side of a cell, between cells, of a label's line, and the widest label beside a row."""
PAPER, INK = (255, 255, 255), (52, 56, 66)

Knobs = Mapping[str, Sequence[str]]


def read_grid(given: argparse.Namespace) -> Knobs:
    """The knobs of ``--grid``; leaves the name of a time grid there, and takes a prompt that stands behind them.

    Raises:
        ValueError: for more than two knobs, or values that are missing or there twice.
    """
    names, said = [], []
    for group in given.grid or []:
        for place, text in enumerate(group):
            if re.match(r"[\w-]+=", text):
                said.append(text)
            elif place and getattr(given, "prompt", "") is None:
                given.prompt = text
            else:
                names.append(text)
    if len(names) > 1:
        raise ValueError(f"got the time grids {', '.join(names)}; expected one, and knobs as KNOB=V1,V2")
    given.grid = names[0] if names else None
    knobs = {name: [v.strip() for v in values.split(",")] for name, values in pairs(said).items()}
    if len(said) > 2 or len(knobs) < len(said):
        raise ValueError(f"got --grid {' '.join(said)}; expected one knob or two that differ")
    for name, values in knobs.items():
        if "" in values or len(set(values)) < len(values):
            raise ValueError(f"got {name}={','.join(values)}; expected values that differ, with a comma between them")
    return knobs


def run(model: "Model", given: argparse.Namespace, knobs: Knobs) -> int:
    """Draw every cell, and the sheet of them."""
    from diffkit.cli.drawing import read_settings

    cells = {key: _turned(given, turned) for key, turned in _cells(knobs).items()}
    settings = {key: read_settings(model, cell) for key, cell in cells.items()}
    for each in settings.values():  # before the work: no cell is drawn if one cannot be
        model.check(each)
    given.out.mkdir(parents=True, exist_ok=True)
    pictures: dict[tuple[int, int], Image.Image] = {}
    complete = True
    for key, cell in cells.items():
        complete = complete and _draw(model, cell, settings[key], given.out / _folder(key, knobs), pictures, key)
    first = settings[0, 0].record()
    _save(given, knobs, pictures, _shared(model, given, knobs) | {"settings": first})
    if not given.quiet:
        print(f"{len(pictures)} cells of {given.count} samples: {', '.join(knobs)}\n{given.out / 'grid.png'}")
    if not complete:
        print(f"diffkit: stopped after {len(pictures)} of {len(cells)} cells", file=sys.stderr)
    return 0 if complete else 130


def _shared(model: "Model", given: argparse.Namespace, knobs: Knobs) -> dict[str, Any]:
    """What all cells have in common."""
    known = {} if given.format is None else {"format": given.format}
    return {**model.origin, "grid": dict(knobs), "numbers": [[given.first, given.first + given.count - 1]], **known}


def _cells(knobs: Knobs) -> dict[tuple[int, int], dict[str, str]]:
    """(row, column) -> the value of each knob."""
    across, down = (*knobs.items(), ("", [""]))[:2]
    return {
        (row, column): {name: value for name, value in ((across[0], right), (down[0], below)) if name}
        for row, below in enumerate(down[1])
        for column, right in enumerate(across[1])
    }


def _turned(given: argparse.Namespace, values: Mapping[str, str]) -> argparse.Namespace:
    """What was ``given``, with knobs at other values, as if their flags had said them."""
    changed = argparse.Namespace(**vars(given))
    actions = {action.dest: action for action in given.command._actions}
    for name, text in values.items():
        place = KNOBS.get(name.replace("_", "-"))
        if place is None:
            if hasattr(given, name.replace("-", "_")):
                raise ValueError(f"got the knob {name}; expected a condition or one of {', '.join(KNOBS)}")
            changed.condition = [*(changed.condition or []), f"{name}={text}"]
            continue
        try:
            setattr(changed, place, (actions[place].type or str)(text))
        except (ValueError, argparse.ArgumentTypeError) as error:
            said = str(error) if isinstance(error, argparse.ArgumentTypeError) else "expected a number"
            raise ValueError(f"got {name}={text} in --grid; {said}") from None
    return changed


def _draw(
    model: "Model",
    given: argparse.Namespace,
    settings: "Settings",
    folder: Path,
    pictures: dict[tuple[int, int], "Image.Image"],
    key: tuple[int, int],
) -> bool:
    """Draw a cell into ``folder``, and add its picture; False if it was stopped."""
    from PIL import Image

    from diffkit.cli.drawing import draw, facts

    try:
        samples, complete = draw(model, settings, given, valid_only=given.valid_only, record=given.trajectory)
    except KeyboardInterrupt:
        if not pictures:
            raise
        return False
    samples.save(folder, given.format, **facts(model, settings, complete))
    with Image.open(folder / "preview.png") as preview:
        pictures[key] = _on_paper(preview)
    return complete


def _folder(key: tuple[int, int], knobs: Knobs) -> str:
    """``0-1_steps=4_guidance=3``: row and column, and what they stand for."""
    said = [re.sub(r"[^\w.=+-]+", "-", f"{name}={value}")[:60] for name, value in _cells(knobs)[key].items()]
    return "_".join(["-".join(map(str, key)), *said])


def _save(
    given: argparse.Namespace, knobs: Knobs, pictures: Mapping[tuple[int, int], "Image.Image"], facts: dict[str, Any]
) -> None:
    """Write ``grid.png`` and ``run.json``."""
    from diffkit.cli.drawing import command_line
    from diffkit.files import whole
    from diffkit.stamp import stamp

    with whole(given.out / "grid.png") as part:
        _sheet(pictures, knobs).save(part)
    stamp(given.out / "grid.png", facts)
    cells = [_folder(key, knobs) for key in pictures]
    with whole(given.out / "run.json") as part:
        part.write_text(json.dumps({"command": command_line(), **facts, "cells": cells}, indent=2) + "\n", "utf-8")


def _on_paper(picture: "Image.Image") -> "Image.Image":
    """A picture without transparency, no larger than a cell."""
    from PIL import Image

    clear = picture.convert("RGBA")
    paper = Image.new("RGBA", clear.size, (*PAPER, 255))
    made = Image.alpha_composite(paper, clear).convert("RGB")
    made.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return made


def _sheet(pictures: Mapping[tuple[int, int], "Image.Image"], knobs: Knobs) -> "Image.Image":
    """Cells under the values of the first knob and beside those of the second; one that was not drawn is empty."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    across, down = (*([f"{name} {value}" for value in values] for name, values in knobs.items()), [""])[:2]
    wide, tall = (max(picture.size[axis] for picture in pictures.values()) for axis in (0, 1))
    aside = min(ASIDE, round(max(font.getlength(label) for label in down)))
    left, top = aside + (2 if aside else 1) * GAP, GAP + LINE + GAP // 2
    size = (left + len(across) * (wide + GAP), top + len(down) * (tall + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(across):
        pen.text((left + column * (wide + GAP), GAP), _fit(label, font, wide), INK, font=font)
    for row, label in enumerate(down):
        pen.text((GAP, top + row * (tall + GAP) + (tall - LINE) // 2), _fit(label, font, aside), INK, font=font)
    for (row, column), picture in pictures.items():
        sheet.paste(picture, (left + column * (wide + GAP), top + row * (tall + GAP)))
    return sheet


def _fit(label: str, font: Any, width: int) -> str:
    """As much of a label as there is room for."""
    label = " ".join(label.split())[:200]
    while label and font.getlength(label) > width + 1:
        label = label[:-2].rstrip("…") + "…"
    return label
