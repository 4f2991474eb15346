"""The files and pictures that clouds become."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffkit_pointcloud import picture, view
from diffkit_pointcloud.cloud import Cloud
from diffkit_pointcloud.formats import FORMATS, glb, npy, obj, ply, xyz

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (50, 3)).astype(np.float32)
NORMALS = (POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)).astype(np.float32)
COLOURS = RNG.integers(0, 256, (50, 3)).astype(np.uint8)
BARE = Cloud(POINTS)
FULL = Cloud(POINTS, NORMALS, COLOURS, caption="sofa,\nrouge é", category="sofa")
BROKEN = Cloud(np.full((5, 3), np.nan, np.float32))
EMPTY = Cloud(np.zeros((0, 3), np.float32))


def parsed_ply(content: bytes) -> tuple[list[str], np.ndarray]:
    """Header lines and table, by the specification."""
    head, body = content.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    kinds = {"float": "<f4", "uchar": "u1"}
    rows = [line.split() for line in lines if line.startswith("property")]
    table = np.frombuffer(body, [(name, kinds[kind]) for _, kind, name in rows])
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    assert len(table) == count
    return lines, table


def columns(table: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([table[name] for name in names], 1)


def test_ply_holds_points_normals_colours_and_the_caption_on_one_line() -> None:
    lines, table = parsed_ply(ply(FULL))
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "comment sofa, rouge ?"]
    assert np.array_equal(columns(table, "x", "y", "z"), POINTS)
    assert np.array_equal(columns(table, "nx", "ny", "nz"), NORMALS)
    assert np.array_equal(columns(table, "red", "green", "blue"), COLOURS)


def test_ply_of_points_alone() -> None:
    lines, table = parsed_ply(ply(BARE))
    assert table.dtype.names == ("x", "y", "z") and "comment" not in " ".join(lines)
    assert np.array_equal(columns(table, "x", "y", "z"), POINTS)


def parsed_glb(content: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(content[20 : 20 + size])
    bytes_, kind = struct.unpack_from("<I4s", content, 20 + size)
    assert kind == b"BIN\0" and bytes_ % 4 == 0 and 28 + size + bytes_ == length
    return document, content[28 + size :]


def test_glb_holds_the_same() -> None:
    document, content = parsed_glb(glb(FULL))
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0 and document["nodes"][0]["name"] == FULL.caption

    def values(name: str, dtype: str, width: int) -> np.ndarray:
        accessor = document["accessors"][primitive["attributes"][name]]
        region = document["bufferViews"][accessor["bufferView"]]
        assert region["byteOffset"] % 4 == 0
        part = content[region["byteOffset"] : region["byteOffset"] + region["byteLength"]]
        return np.frombuffer(part, dtype).reshape(accessor["count"], width)

    assert np.array_equal(values("POSITION", "<f4", 3), POINTS)
    assert np.array_equal(values("NORMAL", "<f4", 3), NORMALS)
    assert np.array_equal(values("COLOR_0", "u1", 4)[:, :3], COLOURS)
    assert document["accessors"][0]["min"] == POINTS.min(0).tolist()
    assert document["accessors"][0]["max"] == POINTS.max(0).tolist()


@pytest.mark.parametrize("name", ["ply", "glb", "obj"])
def test_trimesh_reads_what_is_written(name: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(io.BytesIO(FORMATS[name](BARE)), file_type=name)
    found = loaded.vertices if hasattr(loaded, "vertices") else next(iter(loaded.geometry.values())).vertices
    assert np.allclose(found, POINTS, atol=1e-6)


def test_obj_npy_and_xyz() -> None:
    lines = obj(FULL).decode("ascii").splitlines()
    rows = {key: [line.split()[1:] for line in lines if line.split()[0] == key] for key in ("v", "vn", "p")}
    assert np.allclose(np.array(rows["v"], float), np.concatenate([POINTS, COLOURS / 255], 1), atol=1e-6)
    assert np.allclose(np.array(rows["vn"], float), NORMALS, atol=1e-6)
    assert [row[0] for row in rows["p"]] == [str(k + 1) for k in range(50)]
    assert np.array_equal(np.load(io.BytesIO(npy(BARE))), POINTS)
    assert np.array_equal(np.load(io.BytesIO(npy(FULL))), np.concatenate([POINTS, NORMALS, COLOURS], 1))
    assert np.allclose(np.loadtxt(io.BytesIO(xyz(BARE))), POINTS, atol=1e-6)
    assert np.allclose(np.loadtxt(io.BytesIO(xyz(FULL))), np.concatenate([POINTS, NORMALS, COLOURS], 1), atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cloud", [BARE, FULL, EMPTY], ids=["bare", "full", "empty"])
def test_every_format_takes_any_cloud(name: str, cloud: Cloud) -> None:
    assert FORMATS[name](cloud) or name == "xyz"


@pytest.mark.parametrize("name", FORMATS)
def test_every_cloud_has_a_file_and_what_is_none_is_counted(name: str, tmp_path: Path) -> None:
    counts = view.save([FULL, BROKEN, BARE, EMPTY, None], tmp_path, name)
    assert counts == {"drawn": 5, "written": 2, "format": name}
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [f"0000.{name}", f"0002.{name}", "preview.gif", "preview.png"]


def test_files_are_in_the_frame_of_what_a_cloud_was_made_from(tmp_path: Path) -> None:
    view.save([Cloud(POINTS, transform=((10.0, 0.0, -2.0), 4.0))], tmp_path, "npy")
    assert np.allclose(np.load(tmp_path / "0000.npy"), POINTS * 4 + np.array([10, 0, -2]), atol=1e-5)


def test_a_wrong_format_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got format 'plyy'; expected one of ply, glb, obj, npy, xyz.*ply"):
        view.save([BARE], tmp_path / "out", "plyy")
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    view.save([BARE], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        view.save([FULL], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        view.save([BARE], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        view.save([BARE], tmp_path / "out")


def test_the_same_clouds_make_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        view.save([FULL, BARE], tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(("count", "grid"), [(0, (1, 1)), (1, (1, 1)), (3, (2, 2)), (27, (5, 5))])
def test_the_contact_sheet_is_a_grid(count: int, grid: tuple[int, int]) -> None:
    sheet = picture.contact_sheet([BARE] * count, [f"{k:04d}" for k in range(count)])
    height = picture.PANEL + (picture.CAPTION if count else 0)
    assert sheet.size == (grid[0] * picture.PANEL, grid[1] * height)
    assert sheet.convert("L").getextrema()[0] < 150  # something is drawn, be it words


def drawn(cloud: Cloud, **options: Any) -> np.ndarray:
    return np.asarray(picture.draw(cloud, 120, **options)).astype(int)


def dark(pixels: np.ndarray) -> np.ndarray:
    """Where a ball is, and not background or shadow."""
    return np.ptp(pixels, axis=2) > 40


def test_what_is_above_is_drawn_above_and_what_is_in_front_hides() -> None:
    red, blue = np.array([[220, 0, 0]], np.uint8), np.array([[0, 0, 220]], np.uint8)
    up = drawn(Cloud(np.array([[0, 1, 0], [0, -1, 0]], np.float32), colours=np.concatenate([red, blue])))
    where_red, where_blue = np.argwhere(up[..., 0] > 120 + up[..., 2]), np.argwhere(up[..., 2] > 90 + up[..., 0])
    assert where_red[:, 0].mean() + 20 < where_blue[:, 0].mean()
    depth = np.array(
        [0, -np.sin(picture.PITCH), np.cos(picture.PITCH)]
    )  # towards the viewer, at yaw 0: down its own axis
    line = np.stack([-depth * 0.5, depth * 0.5])
    behind = drawn(Cloud((line * [1, -1, 1]).astype(np.float32), colours=np.concatenate([blue, red])), yaw=0.0)
    assert (behind[..., 0] > 120 + behind[..., 2]).any() and not (behind[..., 2] > 90 + behind[..., 0]).any()


def test_the_order_of_points_changes_the_picture_little() -> None:
    order = RNG.permutation(50)
    difference = np.abs(drawn(FULL) - drawn(Cloud(POINTS[order], colours=COLOURS[order])))
    assert difference.mean() < 0.1


@pytest.mark.parametrize(
    "points", [np.zeros((1, 3)), np.zeros((6, 3)), np.eye(3), np.array([[0, np.nan, 0], [1, 1, 1]])]
)
def test_odd_clouds_are_drawn(points: np.ndarray) -> None:
    assert dark(drawn(Cloud(points.astype(np.float32)))).any()


def test_the_turntable_turns_and_comes_round(tmp_path: Path) -> None:
    frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in picture.turntable([BARE] * 5)]
    assert len(frames) == picture.FRAMES and frames[0].shape == (400, 400, 3)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert min(steps) > 0 and steps[-1] < 1.5 * np.mean(steps[:-1])
    view.save([BARE], tmp_path)
    with Image.open(tmp_path / "preview.gif") as gif:
        assert getattr(gif, "n_frames", 1) == picture.FRAMES and gif.info["loop"] == 0


def test_neighbours_stand_beside_their_samples(tmp_path: Path) -> None:
    others = [Cloud((POINTS * scale).astype(np.float32), caption=f"times {scale}") for scale in (0.2, 0.5, 1.0)]
    view.save_neighbours([BARE, BROKEN, None, FULL], others, tmp_path / "neighbours.png")
    with Image.open(tmp_path / "neighbours.png") as image:
        assert image.size == (4 * picture.PANEL, picture.PANEL + picture.CAPTION)
    view.save_neighbours([BROKEN], others, tmp_path / "neighbours.png")
