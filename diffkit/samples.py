"""What a model drew, and how it goes to disk."""

import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffkit.data import pad
from diffkit.files import whole
from diffkit.modality import Modality, in_format
from diffkit.sample import Step
from diffkit.settings import Settings
from diffkit.stamp import stamp

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """Native objects, and how they came about.

    Args:
        modality: the adapter that knows how to write them.
        settings: as they were used.
        records: native objects, valid or not, in the order of ``numbers``.
        numbers: of the samples within their seed: number k is the same whatever was drawn beside it.
        drawn: how many were drawn, those left out by ``valid`` included.
        evaluations: network evaluations, of all that were drawn.
        seconds: the wall-clock time of drawing them.
        steps: of every batch, where they were recorded.
        origin: the names of the ``modality`` and of the ``model``, and its ``options``.
    """

    modality: Modality
    settings: Settings
    records: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    drawn: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    steps: list[tuple[Step, ...]] = field(default_factory=list)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.records[index]

    def __add__(self, other: "Samples") -> "Samples":
        """Both, one after the other."""
        joined = ("records", "numbers", "drawn", "evaluations", "seconds", "steps")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in joined})

    def valid(self) -> "Samples":
        """Those that the modality calls valid; ``drawn`` still counts them all."""
        kept = [i for i, record in enumerate(self.records) if self.modality.valid(record)]
        return replace(self, records=[self.records[i] for i in kept], numbers=[self.numbers[i] for i in kept])

    def save(self, folder: str | Path, format: str | None = None, **facts: Any) -> Mapping[str, Any]:
        """Write native files, ``preview.png``, ``run.json`` and, if steps were recorded, ``trajectory.safetensors``.

        Every PNG carries the settings as well (`diffkit.stamp`).

        Args:
            folder: made if missing.
            format: of the native files, where the modality has several; its own default where None.
            facts: what else ``run.json`` should say.

        Returns:
            What ``run.json`` says.

        Raises:
            ValueError: for a format that the modality does not write.
            OSError: if something cannot be written; a file that was there before is then as it was.
        """
        modality = self.modality if format is None else in_format(self.modality, format)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        before = _pictures(folder)
        facts |= {} if format is None else {"format": format}
        run = self._run() | facts | {"result": dict(modality.view(self.records, folder))}
        self._stamp(path for path, changed in _pictures(folder).items() if changed != before.get(path))
        if self.steps:
            with whole(folder / "trajectory.safetensors") as part:
                save_file(trajectory(self.steps), part)
        with whole(folder / "run.json") as part:
            part.write_text(json.dumps(run, indent=2, default=str) + "\n", encoding="utf-8")
        return run

    def _stamp(self, pictures: Iterable[Path]) -> None:
        """Write how they came about into pictures; one that is named by a number is that sample's alone."""
        for path in pictures:
            place = int(path.stem) if path.stem.isdecimal() else len(self.numbers)
            which = {"number": self.numbers[place]} if place < len(self.numbers) else {"numbers": _ranges(self.numbers)}
            stamp(path, {**self.origin, **which, "settings": self.settings.record()})

    def _run(self) -> dict[str, Any]:
        return {
            **self.origin,
            "count": len(self.records),
            "drawn": self.drawn,
            "numbers": _ranges(self.numbers),
            "settings": self.settings.record(),
            "evaluations_per_sample": self.evaluations / max(self.drawn, 1),
            "seconds": round(self.seconds, 3),
            "versions": _versions(),
        }


def trajectory(batches: Iterable[tuple[Step, ...]]) -> dict[str, Tensor]:
    """Recorded steps as tensors, samples of all batches together and padded to the largest.

    Returns:
        ``t`` (S,) and ``s`` (S,), the times at which each step began and ended; ``x_t/LEAF`` and ``x0/LEAF``
        (S, samples, ...), the noisy leaf and the estimate of the clean one at ``t``.
    """
    batches = list(batches)
    first = batches[0]
    tensors = {
        "t": torch.tensor([step.t for step in first], dtype=torch.float64),
        "s": torch.tensor([step.s for step in first], dtype=torch.float64),
    }
    for leaf in first[0].x_t:
        noisy = [torch.stack([step.x_t[leaf] for step in batch], 1) for batch in batches]
        clean = [torch.stack([step.estimates[leaf].x0 for step in batch], 1) for batch in batches]
        for name, parts in (("x_t", noisy), ("x0", clean)):
            samples = pad([sample.cpu() for part in parts for sample in part])
            tensors[f"{name}/{leaf}"] = samples.transpose(0, 1).contiguous()
    return tensors


def _pictures(folder: Path) -> dict[Path, int]:
    """The PNG files in a folder, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Consecutive runs as [first, last]: short however many there are."""
    ranges: list[list[int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ranges


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("diffkit", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
