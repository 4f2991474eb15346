"""A person's folder of files, and what is said of them, as Hugging Face's data folders have it.

``metadata.csv`` or ``metadata.jsonl``, in the folder or below, has a row for each file that it describes, named by
``file_name`` from where the metadata lie. What cannot be used is kept by its name, with the reason, so that it can be
told at the end and the rest be used.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["METADATA", "files", "fingerprint", "metadata", "reasons"]

METADATA = ("metadata.csv", "metadata.jsonl")
SHOWN = 8
"""Files named in a report."""
Rejected = list[tuple[str, str]]


def files(path: Path, suffixes: Sequence[str], what: str, beside: Sequence[str] = ()) -> dict[str, Path]:
    """The files in ``path`` that end in one of ``suffixes`` and the metadata, by their names below it, in order.

    Args:
        path: a folder, or one such file.
        suffixes: in lower case, with the dot.
        what: they are, for the error.
        beside: suffixes of what may lie beside them.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: for a file of another kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"got {path}, which does not exist; expected a folder or a file of {what}")
    if path.is_file():
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"got {path}; expected a folder, or a file that ends in {', '.join(suffixes)}")
        return {path.name: path}
    every = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    wanted = (*suffixes, *METADATA, *beside)
    return {n: f for n, f in every.items() if n.lower().endswith(wanted) and not f.name.startswith(".")}


def fingerprint(path: Path, found: Mapping[str, Path]) -> str:
    """A hash of the names, sizes and times of the files ``found`` in ``path``: the same as long as they are."""
    lines = [f"{name}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for name, file in found.items()]
    return hashlib.sha256("\n".join([str(path.resolve()), *lines]).encode()).hexdigest()


def metadata(found: Mapping[str, Path], rejected: Rejected) -> dict[str, Mapping[str, Any]]:
    """Rows by the names of their files; what is no row, or names no file here, is added to ``rejected``."""
    known: dict[str, Mapping[str, Any]] = {}
    for name, file in found.items():
        if file.name.lower() not in METADATA:
            continue
        for row in _rows(name, file, rejected):
            said = str(row.get("file_name") or "").replace("\\", "/")
            at = (PurePosixPath(name).parent / said).as_posix()
            if not said:
                rejected.append((name, "has a row without file_name"))
            elif at not in found:
                rejected.append((at, f"is not there, though {name} names it"))
            else:
                known[at] = row
    return known


def _rows(name: str, file: Path, rejected: Rejected) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if file.suffix.lower() == ".csv":
            try:
                yield from csv.DictReader(line.replace("\0", "") for line in lines)
            except csv.Error as error:
                rejected.append((name, f"cannot be read to its end ({error})"))
            return
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError:
                row = ()
            if isinstance(row, dict):
                yield row
            elif row is not None:
                rejected.append((name, f"has no JSON object in line {number}"))


def reasons(found: Sequence[tuple[str, str]]) -> str:
    """The first names with their reasons, and how many more there are."""
    shown = [f"{name} {reason}" for name, reason in found[:SHOWN]]
    return "; ".join(shown) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
