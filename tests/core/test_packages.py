"""Packages of data: what is asked for, what is refused, and what comes out."""

import hashlib
import io
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from diffkit import packages
from diffkit.packages import Package, cache_folder, fetched, unpacked


def package(manager="pip", name="some-data", version="1.2", content=b""):
    return Package(manager, name, version, hashlib.sha256(content).hexdigest(), "MIT", 1)


def tar(**files: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return made.getvalue()


def deb(members: dict[str, bytes]) -> bytes:
    content = b"!<arch>\n"
    for name, body in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n"
        content += head.encode() + body + b"\n" * (len(body) % 2)
    return content


def wheel(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


CONTENT = {
    "apt": deb({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar(song=b"la")}),
    "pip": wheel(song=b"la"),
    "npm": tar(song=b"la"),
}


@pytest.mark.parametrize(
    ("manager", "name", "file", "asked"),
    [
        ("apt", "some-data", "some-data_1.2_all.deb", "apt-get download some-data=1.2"),
        ("pip", "some-data", "some_data-1.2-py3-none-any.whl", "some-data==1.2"),
        ("npm", "@some/data", "some-data-1.2.tgz", "npm pack --silent @some/data@1.2"),
    ],
)
def test_each_manager_has_its_names(manager, name, file, asked):
    found = package(manager, name)
    assert found.file == file
    assert " ".join(found.command).endswith(asked)


def test_a_colon_in_a_version_of_debian_is_written_as_apt_writes_it():
    assert package("apt", version="2:1.0-1").file == "some-data_2%3a1.0-1_all.deb"


@pytest.mark.parametrize("manager", CONTENT)
def test_a_package_in_the_downloads_folder_is_unpacked_and_leaves_nothing(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_DOWNLOADS", str(tmp_path))
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("a download was tried"))
    known = package(manager, content=CONTENT[manager])
    (tmp_path / known.file).write_bytes(CONTENT[manager])
    with unpacked(known) as folder:
        assert (folder / "song").read_bytes() == b"la"
    assert not folder.exists()


@pytest.mark.parametrize("manager", CONTENT)
def test_a_package_that_is_not_the_one_it_should_be_is_refused(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_DOWNLOADS", str(tmp_path))
    known = replace(package(manager), sha256="0" * 64)
    (tmp_path / known.file).write_bytes(CONTENT[manager])
    with pytest.raises(ValueError, match=r"SHA-256 .* expected 0000"), fetched(known):
        pass


def test_a_file_that_leads_out_of_the_folder_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_DOWNLOADS", str(tmp_path))
    content = tar(**{"../outside": b"bad"})
    known = package("npm", content=content)
    (tmp_path / known.file).write_bytes(content)
    with pytest.raises(tarfile.FilterError), unpacked(known):
        pass


def test_the_data_of_a_debian_package_is_found():
    assert packages._data(deb({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": b"it"})) == b"it"
    with pytest.raises(ValueError, match=r"without data\.tar"):
        packages._data(deb({"debian-binary": b"2.0\n"}))


@pytest.mark.parametrize(
    ("manager", "said"),
    [
        ("pip", "`pip download --no-deps some-data==1.2`"),
        ("apt", "`apt-get download some-data=1.2`"),
        ("npm", "`npm pack"),
    ],
)
def test_a_failed_download_says_what_to_do(manager, said, tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFKIT_DOWNLOADS", raising=False)
    monkeypatch.setattr(sys, "executable", "false")
    monkeypatch.setenv("PATH", str(tmp_path))  # where no client is
    (tmp_path / "false").symlink_to("/bin/false")
    with pytest.raises(ConnectionError, match=said) as failed, fetched(package(manager)):
        pass
    assert "set DIFFKIT_DOWNLOADS to its folder" in str(failed.value)


def test_the_cache_is_where_it_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DIFFKIT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "diffkit"
