"""Drawing samples as the command line asks for them: shared by ``generate`` and ``evaluate``."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffkit.cli.options import node, pairs, values

if TYPE_CHECKING:
    import torch

    from diffkit.model import Model
    from diffkit.samples import Samples
    from diffkit.settings import Settings

__all__ = ["command_line", "draw", "facts", "open_model", "read_settings"]


def open_model(given: argparse.Namespace) -> "Model":
    """The model that was asked for, of the modality that was asked for, on its device."""
    from diffkit import checkpoint
    from diffkit.modality import find_modality

    find_modality(given.modality.split("/")[0])  # a wrong name is named before a missing model is
    model = checkpoint.load(given.model or given.modality, _device(given.device), values(given.option))
    name = model.recipe["modality"]["name"]
    if name != given.modality.split("/")[0]:
        raise ValueError(f"got model '{given.model}', which makes data of kind {name}; expected {given.modality}")
    return model


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float64)  # which Apple's GPUs do not have, and the noise needs
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(f"got device '{name}', which cannot be used here; expected cpu or cuda") from None
    return device


def read_settings(model: "Model", given: argparse.Namespace) -> "Settings":
    """The settings that the flags say, over the model's own."""
    from diffkit.modality import Request

    negative = None
    if given.negative is not None:
        negative = Request(None, pairs([given.negative])) if "=" in given.negative else Request(given.negative)
    return model.settings(
        steps=given.steps if given.times is None else len(given.times) - 1,
        sampler=node(given.sampler) if given.sampler else None,
        grid=_grid(given),
        jump=node(given.jump) if given.jump else None,
        schedule=node(given.schedule) if given.schedule else None,
        guidance=given.guidance,
        guider=node(given.guider) if given.guider else None,
        interval=tuple(given.interval),
        temperature=given.temperature,
        top_p=given.top_p,
        request=Request(getattr(given, "prompt", None), pairs(given.condition), given.start),
        strength=given.strength,
        negative=negative,
        seed=given.seed,
        batch_size=given.batch_size,
        precision=given.precision,
    )


def _grid(given: argparse.Namespace) -> dict[str, Any] | None:
    if given.times is None:
        return node(given.grid) if given.grid else None
    if given.grid or given.steps:
        raise ValueError("got --times and --steps or --grid; expected one or the other: the times say both")
    return {"name": "explicit", "times": tuple(given.times)}


def draw(
    model: "Model", settings: "Settings", given: argparse.Namespace, *, valid_only: bool = False, record: bool = False
) -> tuple["Samples", bool]:
    """The samples, and whether they are all there: Ctrl-C keeps the batches that are done."""
    from diffkit.samples import Samples

    samples = Samples(model.modality, settings=settings, origin=model.origin)
    first: int = getattr(given, "first", 0)
    batches = -(-given.count // settings.batch_size)
    with _progress(given, batches * (len(model.times(settings)) - 1)) as progress:
        wanted: dict[str, Any] = {"valid_only": valid_only, "record": record, "progress": progress}
        try:
            for part in model.stream(given.count, settings, first=first, **wanted):
                samples = samples + part
        except KeyboardInterrupt:
            if not len(samples):
                raise
            return samples, False
    return samples, True


def command_line() -> str:
    """What was typed, as it can be typed again."""
    return shlex.join(["diffkit", *sys.argv[1:]])


def facts(model: "Model", settings: "Settings", complete: bool) -> dict[str, Any]:
    """What ``run.json`` says beside what the samples say themselves."""
    started = {} if settings.strength is None else {"started_at": model.times(settings)[0]}
    return {"command": command_line(), "complete": complete, **started}


@contextmanager
def _progress(given: argparse.Namespace, total: int) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]] | None]:
    """A progress bar over the steps of all batches, on stderr, where a person is looking."""
    if given.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sampling", total=total)

        def watch(items: Iterable[Any]) -> Iterator[Any]:
            for item in items:
                yield item
                bar.advance(task)

        yield watch
