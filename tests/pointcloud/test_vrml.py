"""Meshes of VRML files, and the set of KiCad's parts that are kept so."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from diffkit_pointcloud import sources
from diffkit_pointcloud.sources import Package, convert
from diffkit_pointcloud.vrml import read_vrml

TRIANGLE = "geometry IndexedFaceSet { coordIndex [0,1,2,-1] coord Coordinate { point [0 0 0, 1 0 0, 0 1 0] } }"


def vrml(*nodes):
    return "\n".join(["#VRML V2.0 utf8", *nodes])


def shape(geometry=TRIANGLE, colour="1 0 0.2"):
    return f"Shape {{ appearance Appearance {{ material Material {{ diffuseColor {colour} }} }} {geometry} }}"


def test_a_shape_is_its_triangles_and_their_colour():
    mesh = read_vrml(vrml(shape(), "# remark [ {", shape(colour="0 1 0")))
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]] * 2
    assert mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mesh.colours.tolist() == [[[255, 0, 51]], [[0, 255, 0]]]


def test_a_face_of_many_corners_is_a_fan_and_the_last_one_may_stay_open():
    square = (
        "geometry IndexedFaceSet { coord Coordinate { point [0 0 0 1 0 0 1 1 0 0 1 0] } coordIndex [0 1 2 3 -1 0 2 3]}"
    )
    assert read_vrml(vrml(f"Shape {{ {square} }}")).faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 2, 3]]


def test_materials_and_shapes_are_used_again_by_their_names():
    first = f"Shape {{ appearance DEF A Appearance {{ material DEF M Material {{ diffuseColor 0 0 1 }} }} {TRIANGLE} }}"
    second = f"DEF S Shape {{ appearance Appearance {{ material USE M }} {TRIANGLE} }}"
    mesh = read_vrml(vrml(first, second, "USE S", f"Shape {{ {TRIANGLE} appearance USE A }}"))
    assert mesh.colours.tolist() == [[[0, 0, 255]]] * 4


def test_transforms_move_what_is_below_them():
    """A quarter turn about z at x = 1 takes (0, 0, 0), grown by nothing, to (1, -1, 0); then it is moved up by 5."""
    inner = f"Transform {{ rotation 0 0 2 1.5707963 center 1 0 0 children [ {shape()} ] }}"
    outer = f'Group {{ children [ Transform {{ translation 0 0 5 scale 2 2 2 children {inner} }} ] title "a [b] {{" }}'
    found = read_vrml(vrml(outer)).vertices
    assert np.allclose(found, [[2, -2, 5], [2, 0, 5], [0, -2, 5]], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#VRML V1.0 ascii", "no VRML 2.0"),
        (vrml(), "empty mesh"),
        (vrml("Shape { geometry Box { size 1 1 1 } }"), "empty mesh"),
        (vrml(shape()[:-30]), "cannot be read"),
        (vrml("Shape ]"), "cannot be read"),
        (vrml(shape(TRIANGLE.replace("0,1,2", "0,1,7"))), "corners do not exist"),
    ],
)
def test_what_is_no_mesh_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        read_vrml(text)


def part(height):
    points = f"0 0 0, 4 0 0, 0 2 0, 0 0 {height}"
    faces = f"coord Coordinate {{ point [{points}] }} coordIndex [0,1,2,-1,0,1,3,-1]"
    return vrml(f"Shape {{ geometry IndexedFaceSet {{ {faces} }} }}")


def test_kicads_parts_are_read_out_of_the_package_one_by_one(tmp_path, monkeypatch):
    folder = "./usr/share/kicad/3dmodels"
    members = {
        f"{folder}/Package_SO.3dshapes/SOIC-8_Wide.wrl": part(1).encode(),
        f"{folder}/Package_SO.3dshapes/SOIC-8_Wide.step": b"not this",
        f"{folder}/Crystal.3dshapes/broken.wrl": b"#VRML V2.0 utf8",
        f"{folder}/Crystal.3dshapes/HC49.wrl": part(3).encode(),
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in members.items():
            found = tarfile.TarInfo(name)
            found.size = len(content)
            archive.addfile(found, io.BytesIO(content))
    deb = b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        for name, body in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}.items()
    )
    package = Package("apt", "parts", "1", hashlib.sha256(deb).hexdigest(), "CC0", 1)
    (tmp_path / package.file).write_bytes(deb)
    monkeypatch.setenv("DIFFKIT_DOWNLOADS", str(tmp_path))
    monkeypatch.setattr(sources, "trimesh", lambda: None)
    packed = convert(sources.Source(package, sources._kicad, whole=True))
    assert packed.names.tolist() == ["Package_SO/SOIC-8_Wide", "Crystal/HC49"]
    assert packed.categories.tolist() == ["Package_SO", "Crystal"]
    assert packed.captions.tolist() == ["SOIC-8 Wide", "HC49"]
    extent = np.ptp(packed.cloud(1).points, axis=0) * packed.cloud(1).transform[1]
    assert np.allclose(extent, [4, 3, 2], atol=0.2)  # upright: their z is our y
