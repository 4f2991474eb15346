"""A person's own shapes, good ones and bad ones."""

import json
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffkit_pointcloud import meshes, readers
from diffkit_pointcloud import packed as packing
from diffkit_pointcloud.cloud import Cloud, normalise, restore
from diffkit_pointcloud.data import load
from diffkit_pointcloud.formats import FORMATS
from diffkit_pointcloud.meshes import sample_surface
from diffkit_pointcloud.readers import read, read_cloud

trimesh = pytest.importorskip("trimesh")

POINTS = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)


def box(extents=(2, 4, 6)):
    return trimesh.creation.box(extents=extents)


# Surfaces


def test_points_of_a_surface_are_even_by_area():
    cloud = sample_surface(box(), 40_000, seed=0)
    on = np.isclose(np.abs(cloud.points), [1, 2, 3])
    assert on.any(1).all()
    share = on.sum(0) / 40_000
    expected = np.array([24, 12, 8]) / 44  # of the pairs of faces across x, y and z
    assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / 40_000)
    assert np.allclose(np.abs(cloud.points.mean(0)), 0, atol=0.05)
    assert np.allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5)
    assert (np.sign((cloud.normals * cloud.points).sum(1)) > 0).all()


def test_points_are_even_within_a_triangle():
    triangle = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    points = sample_surface(triangle, 40_000, seed=1).points.astype(np.float64)
    assert np.allclose(points.mean(0), [1 / 3, 1 / 3, 0], atol=0.006)
    assert np.allclose((points[:, 0] < 0.5).mean(), 0.75, atol=0.011)
    assert (points.sum(1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl", ".off", ".glb"])
def test_meshes_of_every_format_are_sampled(tmp_path, suffix):
    path = tmp_path / f"box{suffix}"
    box().export(path)
    points = read_cloud(path).points
    assert points.shape == (readers.KEPT, 3)
    assert np.isclose(np.abs(points), [1, 2, 3], atol=1e-5).any(1).all()


def test_a_scene_is_all_of_its_parts_in_their_places(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box((1, 1, 1)), transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.add_geometry(box((1, 1, 1)))
    scene.export(tmp_path / "two.glb")
    x = read_cloud(tmp_path / "two.glb").points[:, 0]
    assert np.isclose((x > 5).mean(), 0.5, atol=0.03) and np.isclose(x.max(), 10.5) and np.isclose(x.min(), -0.5)


# Clouds


def write_pcd(path, points, kind):
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z i\nSIZE 4 4 4 2\nTYPE F F F U\nCOUNT 1 1 1 1\nPOINTS {len(points)}\n"
    )
    rows = [(*p, k) for k, p in enumerate(points.tolist())]
    text = "\n".join(" ".join(str(v) for v in row) for row in rows).encode()
    body = b"".join(struct.pack("<fffH", *row) for row in rows) if kind == "binary" else text
    path.write_bytes(f"{header}DATA {kind}\n".encode() + body)


def write(path, points, kind=""):
    if path.suffix == ".npy":
        np.save(path, np.hstack([points, points]))
    elif path.suffix == ".pcd":
        write_pcd(path, points, kind)
    elif path.suffix == ".xyz":
        path.write_text("x y z\n# remark\n" + "\n".join(f"{x}, {y}, {z} 7" for x, y, z in points.tolist()))
    else:
        trimesh.PointCloud(points).export(path)
    return path


def in_order(points):
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".npy", ""), (".xyz", ""), (".pcd", "ascii"), (".pcd", "binary"), (".ply", "")]
)
def test_clouds_of_every_format_are_read_point_by_point(tmp_path, suffix, kind):
    found = read_cloud(write(tmp_path / f"cloud{suffix}", POINTS, kind)).points
    assert np.allclose(in_order(found), in_order(POINTS), atol=1e-6)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".npy", ".xyz"])
def test_what_is_written_of_normals_and_colours_is_read_again(tmp_path, suffix):
    normals = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
    colours = np.random.default_rng(1).integers(0, 256, (200, 3)).astype(np.uint8)
    path = tmp_path / f"full{suffix}"
    path.write_bytes(FORMATS[suffix[1:]](Cloud(POINTS, normals, colours)))
    found = read_cloud(path)
    order, expected = (np.lexsort(np.rint(points * 1e4).T) for points in (found.points, POINTS))
    assert np.allclose(found.normals[order], normals[expected], atol=1e-5)
    assert np.array_equal(found.colours[order], colours[expected])
    path.write_bytes(FORMATS[suffix[1:]](Cloud(POINTS, None, colours)))
    assert read_cloud(path).normals is None and read_cloud(path).colours is not None


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_normals_and_colours_of_a_pcd(tmp_path, kind):
    fields = "x y z normal_x normal_y normal_z rgb"
    head = f"VERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4 4 4 4 4\nTYPE F F F F F F U\nCOUNT 1 1 1 1 1 1 1\nPOINTS 2\n"
    table = [(0, 0, 0, 1, 0, 0, 0xFF8001), (1, 2, 3, 0, 0, -1, 0x000102)]
    text = "\n".join(" ".join(map(str, row)) for row in table).encode()
    body = b"".join(struct.pack("<ffffffI", *row) for row in table) if kind == "binary" else text
    (tmp_path / "a.pcd").write_bytes(f"{head}DATA {kind}\n".encode() + body)
    found = read_cloud(tmp_path / "a.pcd")
    order = found.points[:, 0].argsort()
    assert found.normals[order].tolist() == [[1, 0, 0], [0, 0, -1]]
    assert found.colours[order].tolist() == [[255, 128, 1], [0, 1, 2]]


@pytest.mark.parametrize("values", [[2, 3, 4], [-0.5, 0.1, 0.2], [0.1, 300, 2]])
def test_columns_that_are_neither_are_passed_over(tmp_path, values):
    np.save(tmp_path / "a.npy", np.hstack([POINTS, np.tile(np.array(values) * 1.01, (200, 1))]))
    found = read_cloud(tmp_path / "a.npy")
    assert found.normals is None and found.colours is None


def test_colours_of_vertices_are_interpolated_and_those_of_faces_are_not(tmp_path):
    triangle = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    triangle.visual.vertex_colors = [[0, 0, 0], [200, 0, 0], [0, 100, 0]]
    triangle.export(tmp_path / "a.ply")
    found = read_cloud(tmp_path / "a.ply", colours=True)
    assert np.abs(found.colours - found.points * [200, 100, 0]).max() <= 0.51
    assert read_cloud(tmp_path / "a.ply").colours is None
    solid = box()
    solid.visual.face_colors = np.where(solid.face_normals[:, :1] > 0.5, [[250, 0, 0]], [[0, 0, 250]])
    found = sample_surface(meshes._painted([solid]), 500, 0)
    assert np.array_equal(found.colours[:, 0] == 250, found.normals[:, 0] > 0.5)


def test_colours_of_materials_and_textures(tmp_path):
    """Left half of the picture red, right half blue; a second part is of its material's colour."""
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (4, 0, 8, 4))
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text("newmtl paper\nKd 1 1 1\nmap_Kd a.png\n\nnewmtl paint\nKd 0 1 0\n")
    square = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    other = "v 0 0 5\nv 1 0 5\nv 0 1 5\n"
    faces = "usemtl paper\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\nusemtl paint\nf 5/1 6/2 7/3\n"
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{square}{other}{faces}")
    found = read_cloud(tmp_path / "a.obj", colours=True)
    low, right = found.points[:, 2] < 1, found.points[:, 0] > 0.5
    assert (found.colours[low & ~right] == [255, 0, 0]).all() and (found.colours[low & right] == [0, 0, 255]).all()
    assert (found.colours[~low] == [0, 255, 0]).all() and (~low).mean() == pytest.approx(1 / 3, abs=0.02)


def test_shapes_without_what_was_asked_for_are_left_out(tmp_path):
    write(tmp_path / "bare.npy", POINTS * 100)
    colours = np.random.default_rng(1).integers(0, 256, (200, 3))
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", np.hstack([POINTS, colours]))
    packed, report = read(tmp_path, colours=True)
    assert report.rejected == [("bare.npy", "has no colours")]
    packing.save(packed, tmp_path / "x.npz")
    again = packing.load(tmp_path / "x.npz").select([2, 0], 50)
    assert again.take_normals(0) is None
    cloud = again.cloud(1)
    near = np.abs(cloud.points[:, None] - normalise(Cloud(POINTS)).points).sum(2).argmin(1)
    assert cloud.colours.shape == (50, 3) and np.array_equal(cloud.colours, colours[near])


def test_points_that_a_pcd_marks_as_missing_are_left_out(tmp_path):
    points = np.concatenate([POINTS, np.full((5, 3), np.nan, np.float32)])
    assert len(read_cloud(write(tmp_path / "a.pcd", points, "binary")).points) == 200


def test_of_a_large_cloud_a_random_part_is_kept(tmp_path):
    points = np.random.default_rng(1).uniform(size=(50_000, 3)).astype(np.float32)
    kept = read_cloud(write(tmp_path / "a.npy", points)).points
    assert len(kept) == readers.KEPT and np.allclose(kept[:4000].mean(0), 0.5, atol=0.03)


# Folders


def test_a_folder_gives_categories_captions_and_splits(tmp_path):
    for number in range(30):
        name = "ab"[number % 2] + "cdefghijklmnopqrst"[number // 2]
        folder = tmp_path / ("cup" if number % 3 else "mug")
        folder.mkdir(exist_ok=True)
        write(folder / f"{name}.npy", POINTS + number)
    (tmp_path / "cup" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "bc.npy", "caption": "a blue cup"}) + "\n"
    )
    packed, report = read(tmp_path)
    assert len(packed) == report.total == 30 and not report.rejected
    assert set(packed.categories.tolist()) == {"cup", "mug"}
    assert packed.captions[packed.names.tolist().index("cup/bc.npy")] == "a blue cup"
    assert set(packed.splits.tolist()) >= {0, 1}
    restored = restore(packed.cloud(packed.names.tolist().index("cup/bc.npy"))).points
    assert np.allclose(np.sort(restored, axis=0), np.sort(POINTS + 1, axis=0), atol=1e-3)
    train = load("train", path=tmp_path, points=64)
    assert train.statistics["categories"] == ["cup", "mug"] and train[0].x["points"].shape == (64, 3)


def test_a_clouds_own_number_of_points_is_used_where_more_are_asked_for(tmp_path):
    for name in "abcdefgh":
        write(tmp_path / f"{name}.npy", POINTS)
    assert load("train", path=tmp_path, points=2048)[0].x["points"].shape == (200, 3)


def test_of_a_few_files_some_are_for_validation(tmp_path):
    for name in ("one", "two", "three"):
        write(tmp_path / f"{name}.npy", POINTS)
    splits = read(tmp_path)[0].splits.tolist()
    assert 0 in splits and 1 in splits


def test_metadata_of_a_table_gives_categories(tmp_path):
    write(tmp_path / "a.npy", POINTS)
    (tmp_path / "metadata.csv").write_text("file_name,text,category\na.npy,first,chair\n")
    packed, _ = read(tmp_path)
    assert packed.captions.tolist() == ["first"] and packed.categories.tolist() == ["chair"]


# Bad input

BAD = {
    "empty.obj": (b"", "empty"),
    "lines.obj": (b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no area"),
    "nan.off": (b"OFF\n3 1 0\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "NaN"),
    "picture.stl": (b"\x89PNG\r\n\x1a\n" + bytes(40), "empty"),
    "text.glb": (b"hello", "glb"),
    "text.npy": (b"hello", "npy"),
    "words.xyz": (b"a b c\nd e f\ng h i\n", "xyz"),
    "cut.pcd": (b"VERSION 0.7\nFIELDS x y z\n", "pcd"),
    "packed.pcd": (b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA binary_compressed\nxx", "compression"),
    "notazip.zip": (b"PK hello", "zip"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_reason_and_the_good_ones_are_used(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "good.npy", POINTS)
    packed, report = read(tmp_path)
    assert packed.names.tolist() == ["good.npy"] and report.total == 2
    assert report.rejected[0][0] == name and reason in report.rejected[0][1]
    assert "1 of 2 files used" in str(report) and "\n" not in str(report)


@pytest.mark.parametrize("array", [np.zeros((4, 2)), np.zeros(5), np.array(["a", "b"]), np.zeros((0, 3))])
def test_an_array_that_is_no_cloud_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"none of 1 files usable: a\.npy has"):
        read(tmp_path)


def test_a_cloud_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        read(write(tmp_path / "a.npy", np.concatenate([POINTS, [[np.nan, 0, 0]]])))


def test_a_file_above_the_limit_is_refused_unread(tmp_path, monkeypatch):
    write(tmp_path / "good.npy", POINTS)
    with (tmp_path / "scene.obj").open("wb") as file:
        file.truncate(2 << 30)  # sparse: takes no room
    packed, report = read(tmp_path)
    assert len(packed) == 1
    assert report.rejected == [("scene.obj", "has 2.0 GiB; expected at most 1: split it, or simplify the mesh")]


def test_a_zip_cannot_write_outside_of_its_folder(tmp_path):
    write(tmp_path / "good.npy", POINTS)
    content = (tmp_path / "good.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "shapes.zip", "w") as archive:
        archive.writestr("../outside.npy", content)
        archive.writestr("/absolute.npy", content)
        archive.writestr("c:\\drive.npy", content)
        archive.writestr("cups/inside.npy", content)
    packed, report = read(tmp_path / "shapes.zip")
    assert packed.names.tolist() == ["cups/inside.npy"] and packed.categories.tolist() == ["cups"]
    assert sum("outside of the zip" in reason for _, reason in report.rejected) == 3
    assert not (tmp_path.parent / "outside.npy").exists()


def test_what_is_left_out_is_a_warning(tmp_path):
    for name in "abcdefgh":
        write(tmp_path / f"{name}.npy", POINTS)
    (tmp_path / "bad.obj").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"8 of 9 files used; left out: bad\.obj"):
        load("train", path=tmp_path)


@pytest.mark.parametrize(("name", "said"), [("nothing", "does not exist"), ("a.txt", "expected a folder, or a file")])
def test_what_is_no_set_of_shapes_is_refused(tmp_path, name, said):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no shapes in it"):
        read(tmp_path)
