"""A person's own shapes: meshes and clouds, one file, a folder of them at any depth, or a zip.

- ``.obj``, ``.ply``, ``.stl``, ``.off``, ``.glb``, ``.gltf``: meshes, scenes with all their parts, clouds; by trimesh.
- ``.npy``: an array (N, 3), or with more columns; see below.
- ``.xyz``: a point per line; lines that begin with # and a heading are passed over.
- ``.pcd``: ASCII or binary; points that are NaN are missing by that format's convention, and left out.
- ``.zip``: any of these.

Normals and colours are read where they are: of meshes (`diffkit_pointcloud.meshes`), of the vertices of a PLY or OBJ,
in a PCD's fields ``normal_x`` and so on and ``rgb``, and in three or six more columns of an array or a line. Of those,
three that all have length 1 are a normal, and three whole numbers up to 255, or others from 0 to 1, a colour; more
columns, or ones that are neither, are passed over.

The category of a file is the folder it lies in, below the one that was given. Captions, and categories where there are
no folders, come from ``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` and ``caption`` (or ``text``), and
``category``. What cannot be used is named with its reason, and the rest is used. Nothing usable is an error.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from diffkit.folders import reasons
from diffkit_pointcloud.catalogue import bucket_of
from diffkit_pointcloud.cloud import Cloud, normalise, rows
from diffkit_pointcloud.meshes import MESHES, load_mesh, sample_surface
from diffkit_pointcloud.packed import Packed, pack

__all__ = ["LIMIT", "SUFFIXES", "Report", "read", "read_cloud"]

LIMIT = 1 << 30
"""The largest file that is read, in bytes: a mesh takes some ten times as much in memory."""
KEPT = 16384
"""The most points that are kept of a shape."""


@dataclass(frozen=True)
class Report:
    """How much was used: ``rejected`` are the others of the ``total`` files, with reasons."""

    path: Path
    total: int
    rejected: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        used = f"{self.path}: {self.total - len(self.rejected)} of {self.total} files used"
        return f"{used}; left out: {reasons(self.rejected)}" if self.rejected else used


def read(path: Path, normals: bool = False, colours: bool = False) -> tuple[Packed, Report]:
    """Pack the shapes in ``path``, a file, a folder or a zip; those that have ``normals`` and ``colours``, if asked to.

    Raises:
        ValueError: if nothing there can be used, with the reasons.
        FileNotFoundError: if there is nothing there.
    """
    if not path.exists():
        raise FileNotFoundError(f"got {path}, which does not exist; expected a file, a folder or a zip of shapes")
    names: list[str] = []
    clouds: list[Cloud] = []
    rejected: list[tuple[str, str]] = []
    for name, cloud in _clouds(path, rejected, normals, colours):
        names.append(name)
        clouds.append(cloud)
    report = Report(path, len(clouds) + len(rejected), rejected)
    if not clouds:
        found = (
            f"none of {report.total} files usable: {reasons(report.rejected)}" if report.total else "no shapes in it"
        )
        raise ValueError(f"got {path} with {found}; expected files that end in {', '.join(SUFFIXES)}")
    return pack(clouds, names, _splits(names), None, normals, colours), report


def read_cloud(path: Path, surface: int = KEPT, colours: bool = False) -> Cloud:
    """One file as at most 16,384 points; if it is a mesh, ``surface`` points drawn evenly from it.

    A mesh's ``colours`` are read if asked for, and all else that a file has of normals and colours.

    Raises:
        ValueError: for a file that cannot be used, with the reason.
    """
    if path.suffix.lower() not in SUFFIXES[:-1]:
        raise ValueError(f"got {path.name}; expected a file that ends in {', '.join(SUFFIXES[:-1])}")
    _require_size(path.stat().st_size)
    suffix = path.suffix.lower()
    shape = load_mesh(path, colours) if suffix in MESHES else _READERS[suffix](path)
    seed = int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)
    if not isinstance(shape, Cloud):
        return sample_surface(shape, surface, seed)
    if len(shape.points) > KEPT:
        shape = rows(shape, np.sort(np.random.default_rng(seed).choice(len(shape.points), KEPT, replace=False)))
    # so that any first part of it is a random part
    return rows(shape, np.random.default_rng(seed).permutation(len(shape.points)))


def _require_size(size: int) -> None:
    if size > LIMIT:
        raise ValueError(f"has {size / 2**30:.1f} GiB; expected at most {LIMIT >> 30}: split it, or simplify the mesh")


def _clouds(path: Path, rejected: list[tuple[str, str]], normals: bool, colours: bool) -> Iterator[tuple[str, Cloud]]:
    """Every shape that can be used, by the name of its file; what cannot be is added to ``rejected``."""
    with _folder(path, rejected) as root:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        known = {} if root.is_file() else _metadata(root, rejected)
        for file in files:
            name = file.name if root.is_file() else file.relative_to(root).as_posix()
            if file.suffix.lower() == ".zip":
                within = _clouds(file, rejected, normals, colours)
                yield from ((f"{name}/{inner}", cloud) for inner, cloud in within)
            elif file.suffix.lower() in SUFFIXES:
                try:
                    cloud = read_cloud(file, colours=colours)
                    for wanted, what, there in (
                        (normals, "normals", cloud.normals),
                        (colours, "colours", cloud.colours),
                    ):
                        if wanted and there is None:
                            raise ValueError(f"has no {what}")
                    yield name, _described(normalise(cloud), name, known.get(name, {}))
                except (ValueError, OSError) as error:
                    rejected.append((name, _plain(error)))
            elif root.is_file():
                raise ValueError(f"got {path}; expected a folder, or a file that ends in {', '.join(SUFFIXES)}")


def _plain(error: Exception) -> str:
    return re.sub(r"^got ", "has ", str(error)).splitlines()[0] if str(error) else type(error).__name__


def _described(cloud: Cloud, name: str, known: Mapping[str, str]) -> Cloud:
    parent = PurePosixPath(name).parent.name
    category = known.get("category") or parent
    caption = known.get("caption") or known.get("text") or PurePosixPath(name).stem.replace("_", " ")
    return replace(cloud, caption=caption, category=category)


def _metadata(root: Path, rejected: list[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Rows of the metadata files below ``root``, by the name of the file that each describes."""
    known = {}
    for file in sorted([*root.rglob("metadata.csv"), *root.rglob("metadata.jsonl")]):
        name = file.relative_to(root).as_posix()
        try:
            for row in _rows(file):
                described = (file.parent / row["file_name"]).relative_to(root).as_posix()
                known[described] = {key: str(value) for key, value in row.items() if key and value}
        except (ValueError, KeyError, TypeError) as error:
            rejected.append((name, f"is not rows with a file_name ({type(error).__name__})"))
    return known


def _rows(file: Path) -> Iterator[Mapping[str, str]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
        else:
            yield from (json.loads(line) for line in lines if line.strip())


@contextmanager
def _folder(path: Path, rejected: list[tuple[str, str]]) -> Iterator[Path]:
    """``path``, or the folder into which it was unpacked if it is a zip."""
    if path.suffix.lower() != ".zip" or path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with ZipFile(path) as archive:
                for member in archive.infolist():
                    _extract(archive, member, Path(scratch), rejected)
        except BadZipFile:
            rejected.append((path.name, "is not a whole zip"))
        yield Path(scratch)


def _extract(archive: ZipFile, member: ZipInfo, folder: Path, rejected: list[tuple[str, str]]) -> None:
    """One member, if it stays in the folder and below the limit."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if member.is_dir():
        return
    if name.is_absolute() or ".." in name.parts or re.match(r"^[A-Za-z]:", str(name)):
        rejected.append((member.filename, "leads outside of the zip's folder"))
        return
    try:
        _require_size(member.file_size)
        archive.extract(member, folder)
    except (ValueError, OSError, BadZipFile, RuntimeError, NotImplementedError) as error:
        rejected.append((member.filename, _plain(error)))


def _splits(names: Sequence[str]) -> list[str]:
    """By the hash of each name, as `catalogue.split_of`; if that leaves no valid, the nearest group to it."""
    buckets = [bucket_of(PurePosixPath(name).with_suffix("").as_posix()) for name in names]
    last = 80
    if not any(80 <= b < 90 for b in buckets) and len({b for b in buckets if b < 80}) > 1:
        last = max(b for b in buckets if b < 80)
    return ["train" if b < last else "valid" if b < 90 else "test" for b in buckets]


# Formats


def _table(array: NDArray[np.generic]) -> Cloud:
    """Columns as a cloud: points, and three or six more by what their numbers can be."""
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"has an array of shape {array.shape} and type {array.dtype}; expected numbers (N, 3)")
    values = np.asarray(array, dtype=np.float64)
    known: dict[str, NDArray[np.float64]] = {}
    for first in (3, 6) if values.shape[1] in (6, 9) else ():
        if first < values.shape[1]:
            three = values[:, first : first + 3]
            known.setdefault(_meaning(three), three)
    normals, colours = known.get("normals"), known.get("colours")
    return Cloud(
        values[:, :3].astype(np.float32),
        None if normals is None else normals.astype(np.float32),
        None if colours is None else _bytes(colours),
    )


def _meaning(three: NDArray[np.float64]) -> str:
    if not len(three) or not np.isfinite(three).all():
        return ""
    if np.allclose(np.linalg.norm(three, axis=1), 1, atol=1e-2):
        return "normals"
    whole = bool((three == np.rint(three)).all()) and three.max() <= 255
    return "colours" if three.min() >= 0 and (whole or three.max() <= 1) else ""


def _bytes(colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours from 0 to 1, or to 255 as whole numbers, as bytes."""
    return np.rint(colours if colours.max() > 1 else colours * 255).astype(np.uint8)


def _npy(path: Path) -> Cloud:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"cannot be read as .npy ({str(error).splitlines()[0]})") from None
    return _table(array)


def _xyz(path: Path) -> Cloud:
    found: list[list[float]] = []
    skipped = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.replace(",", " ").split()
            if not words or words[0].startswith("#"):
                continue
            try:
                numbers = [float(w) for w in words[:9]]
            except ValueError:
                numbers = []
            if len(numbers) < 3:
                skipped += 1
            else:
                found.append(numbers)
    if skipped > 2:
        raise ValueError(f"cannot be read as .xyz ({skipped} lines without three numbers)")
    width = min(map(len, found), default=3)
    return _table(np.array([numbers[:width] for numbers in found], dtype=np.float64).reshape(-1, width))


def _pcd(path: Path) -> Cloud:
    content = path.read_bytes()
    header, kind, body = _pcd_parts(content)
    fields, sizes, types = header["FIELDS"], [int(v) for v in header["SIZE"]], header["TYPE"]
    counts = [int(v) for v in header.get("COUNT", ["1"] * len(fields))]
    number = int(header["POINTS"][0])
    row = np.dtype(
        [
            (f, f"<{ {'F': 'f', 'I': 'i', 'U': 'u'}[t] }{s}", (c,))
            for f, s, t, c in zip(fields, sizes, types, counts, strict=True)
        ]
    )
    if kind == "ascii":
        columns = np.cumsum([0, *counts])
        words = np.array(body.split()).reshape(number, -1)
        table = {f: words[:, columns[k]].astype(row[f].base) for k, f in enumerate(fields) if counts[k]}
    elif kind == "binary":
        binary = np.frombuffer(body, row, number)
        table = {f: binary[f][:, 0] for k, f in enumerate(fields) if counts[k]}
    else:
        raise ValueError(f"is PCD of kind {kind}; expected ascii or binary: save it again without compression")
    return _fields(table)


def _fields(table: Mapping[str, NDArray[Any]]) -> Cloud:
    """A PCD's columns: x y z, normal_x and so on, and rgb, three bytes of four that may be called a number."""
    points = np.stack([table[axis].astype(np.float32) for axis in "xyz"], axis=1)
    names = ("normal_x", "normal_y", "normal_z")
    normals = np.stack([table[n].astype(np.float32) for n in names], 1) if set(names) <= set(table) else None
    packed = table.get("rgb", table.get("rgba"))
    colours = None
    if packed is not None and packed.dtype.itemsize == 4:
        bits = np.ascontiguousarray(packed).view(np.uint32)
        colours = np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1).astype(np.uint8)
    return rows(Cloud(points, normals, colours), np.flatnonzero(~np.isnan(points).any(1)))


def _pcd_parts(content: bytes) -> tuple[dict[str, list[str]], str, bytes]:
    """The header's lines by their first word, the kind of the data, and the data."""
    found = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", content, re.MULTILINE)
    if found is None:
        raise ValueError("cannot be read as .pcd (no DATA line)")
    lines = content[: found.start()].decode("ascii", "replace").splitlines()
    header = {line.split()[0]: line.split()[1:] for line in lines if line.strip() and not line.startswith("#")}
    missing = [word for word in ("FIELDS", "SIZE", "TYPE", "POINTS") if not header.get(word)]
    if missing or not {"x", "y", "z"} <= set(header["FIELDS"]):
        raise ValueError(f"cannot be read as .pcd (no {', '.join(missing) or 'fields x y z'})")
    return header, found[1].decode(), content[found.end() :]


_READERS: Mapping[str, Callable[[Path], Cloud]] = {".npy": _npy, ".xyz": _xyz, ".pcd": _pcd}
SUFFIXES = (*MESHES, *_READERS, ".zip")
"""Of the files that are read."""
