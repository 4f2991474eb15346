"""Point clouds as bytes of a file: the formats that they are written in.

| format | points | normals | colours | caption |
|---|---|---|---|---|
| ply | float32, binary, little endian | nx ny nz | red green blue, bytes | a comment |
| glb | float32, glTF 2.0 points | NORMAL | COLOR_0, bytes | the node's name |
| obj | `v`, six decimals, and `p` elements | `vn` | after the coordinates of `v`, 0 to 1 | a comment |
| npy | float32 (N, 3), and then | three columns | three columns, 0 to 255 | no |
| xyz | a line each, six decimals, and then | three numbers | three bytes | no |

PLY: G. Turk 1994. glTF: Khronos Group, glTF 2.0, sections 3.7.2 (meshes) and 4 (GLB); points are mode 0.
"""

import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit_pointcloud.cloud import Cloud

__all__ = ["FORMATS", "glb", "npy", "obj", "ply", "xyz"]

PLY_TYPES = {"f": "float", "u": "uchar"}
FLOAT, BYTE = 5126, 5121  # glTF's names of component types


def _columns(cloud: Cloud) -> list[tuple[str, str, NDArray[Any]]]:
    """Name, NumPy type and values of every number that a point has."""
    points = np.asarray(cloud.points, np.float32)
    columns: list[tuple[str, str, NDArray[Any]]] = [(name, "<f4", points[:, axis]) for axis, name in enumerate("xyz")]
    if cloud.normals is not None:
        columns += [(f"n{name}", "<f4", cloud.normals[:, axis]) for axis, name in enumerate("xyz")]
    if cloud.colours is not None:
        columns += [(name, "u1", cloud.colours[:, axis]) for axis, name in enumerate(("red", "green", "blue"))]
    return columns


def _line(text: str) -> str:
    """Words that fit on one line of an ASCII header."""
    return " ".join(text.encode("ascii", "replace").decode().split())


def ply(cloud: Cloud) -> bytes:
    """Binary little-endian PLY."""
    columns = _columns(cloud)
    table = np.empty(len(cloud.points), [(name, kind) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {_line(cloud.caption)}"] * bool(cloud.caption)
    header += [f"element vertex {len(table)}"]
    header += [f"property {PLY_TYPES[np.dtype(kind).kind]} {name}" for name, kind, _ in columns]
    return ("\n".join([*header, "end_header"]) + "\n").encode() + table.tobytes()


def glb(cloud: Cloud) -> bytes:
    """Binary glTF 2.0 of one mesh of points; readers may refuse a cloud without points."""
    points = np.ascontiguousarray(cloud.points, "<f4")
    bounds = {"min": points.min(0).tolist(), "max": points.max(0).tolist()} if len(points) else {}
    parts: list[tuple[str, NDArray[Any], dict[str, Any]]] = [
        ("POSITION", points, {"componentType": FLOAT, "type": "VEC3", **bounds})
    ]
    if cloud.normals is not None:
        parts.append(("NORMAL", np.ascontiguousarray(cloud.normals, "<f4"), {"componentType": FLOAT, "type": "VEC3"}))
    if cloud.colours is not None:
        opaque = np.full((len(points), 1), 255, np.uint8)  # four bytes a colour: what stands in a buffer is aligned
        colours = np.concatenate([cloud.colours.astype(np.uint8), opaque], 1)
        parts.append(("COLOR_0", colours, {"componentType": BYTE, "type": "VEC4", "normalized": True}))
    content = [values.tobytes() for _, values, _ in parts]
    starts = [sum(map(len, content[:k])) for k in range(len(content))]
    views = [{"buffer": 0, "byteOffset": s, "byteLength": len(c)} for s, c in zip(starts, content, strict=True)]
    document = {
        "asset": {"version": "2.0", "generator": "diffkit"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0} | ({"name": cloud.caption} if cloud.caption else {})],
        "meshes": [{"primitives": [{"mode": 0, "attributes": {name: k for k, (name, _, _) in enumerate(parts)}}]}],
        "accessors": [{"bufferView": k, "count": len(points), **facts} for k, (_, _, facts) in enumerate(parts)],
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, content))}],
    }
    return _glb(json.dumps(document).encode(), b"".join(content))


def _glb(document: bytes, content: bytes) -> bytes:
    """The container: a header and two chunks, each padded to four bytes."""
    document += b" " * (-len(document) % 4)
    content += b"\0" * (-len(content) % 4)
    chunks = struct.pack("<I4s", len(document), b"JSON") + document
    chunks += struct.pack("<I4s", len(content), b"BIN\0") + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def obj(cloud: Cloud) -> bytes:
    """Wavefront OBJ of points."""
    rows = [np.asarray(cloud.points, np.float64)]
    if cloud.colours is not None:
        rows.append(cloud.colours / 255.0)
    lines = [f"# {_line(cloud.caption)}"] * bool(cloud.caption)
    lines += [f"v {_numbers(row)}" for row in np.concatenate(rows, 1)]
    if cloud.normals is not None:
        lines += [f"vn {_numbers(row)}" for row in cloud.normals]
    lines += [f"p {number}" for number in range(1, len(cloud.points) + 1)]
    return ("\n".join(lines) + "\n").encode()


def npy(cloud: Cloud) -> bytes:
    """NumPy's own format: columns of points, normals and colours."""
    file = io.BytesIO()
    parts = [part for part in (cloud.points, cloud.normals, cloud.colours) if part is not None]
    np.save(file, np.concatenate([np.asarray(part, np.float32) for part in parts], 1), allow_pickle=False)
    return file.getvalue()


def xyz(cloud: Cloud) -> bytes:
    """A point per line: its place, its normal and its colour."""
    parts = [cloud.points] if cloud.normals is None else [cloud.points, cloud.normals]
    lines = [_numbers(row) for row in np.concatenate(parts, 1)]
    if cloud.colours is not None:
        lines = [f"{line} {r} {g} {b}" for line, (r, g, b) in zip(lines, cloud.colours.tolist(), strict=True)]
    return "".join(f"{line}\n" for line in lines).encode()


def _numbers(row: NDArray[Any]) -> str:
    return " ".join(f"{value:.6f}" for value in row)


FORMATS: Mapping[str, Callable[[Cloud], bytes]] = {"ply": ply, "glb": glb, "obj": obj, "npy": npy, "xyz": xyz}
"""Every format by the end of its files' names."""
