"""Meshes: read with trimesh (the ``pointcloud`` extra), and points drawn evenly from their surfaces.

Colours are those of vertices (interpolated), of faces, of a material, or of a texture at the point's place in it; what
has none beside coloured parts is light grey.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit_pointcloud.cloud import Cloud

__all__ = ["MESHES", "Mesh", "load_mesh", "sample_surface"]

MESHES = (".obj", ".ply", ".stl", ".off", ".glb", ".gltf")
"""Formats of meshes; a PLY, OBJ, or GLB without faces is a cloud."""
GREY = 204


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Args:
        vertices: (V, 3).
        faces: (F, 3), the three corners of each.
        colours: (F, 3, 3), of the corners of each, or (F, 1, 3), of each; where known.
        textures: of faces ``first`` to ``last`` the image (H, W, 3) and where in it their corners are (f, 3, 2).
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    colours: NDArray[np.uint8] | None = None
    textures: Sequence[tuple[int, int, NDArray[np.uint8], NDArray[np.float64]]] = ()


def trimesh() -> Any:
    """The module, silenced, or a line on how to get it."""
    try:
        import trimesh as module
    except ImportError:
        raise ValueError(
            "got a mesh and no trimesh to read it with; install it with `pip install 'diffkit[pointcloud]'`"
        ) from None
    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    return module


def load_mesh(path: Path, colours: bool = False) -> Any:
    """All parts of the mesh or scene in ``path`` as one mesh, with its ``colours`` or without, or a cloud if it has no
    faces.

    Raises:
        ValueError: for a file that cannot be read as what its suffix says, or holds nothing.
    """  # fmt: skip
    module = trimesh()
    plain = path.suffix.lower() == ".obj" and not colours
    options = {"process": False, **({"skip_materials": True} if plain else {})}
    try:
        scene = module.load_scene(path, file_type=path.suffix.lower().lstrip("."), **options)
        parts = [g for g in scene.dump() if len(getattr(g, "vertices", ()))]
    except Exception as error:  # trimesh raises whatever its parsers do
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot be read as {path.suffix.lower() or 'a mesh'} ({said})") from None
    if not parts:
        raise ValueError("is an empty mesh")
    solid = [g for g in parts if len(getattr(g, "faces", ()))]
    if solid and colours:
        return _painted(solid)
    return module.util.concatenate(solid) if solid else _cloud(parts, path)


def _cloud(parts: Sequence[Any], path: Path) -> Cloud:
    """The vertices of parts without faces, with their colours and normals where all have some."""
    points = np.concatenate([g.vertices for g in parts]).astype(np.float32)
    colours = [np.asarray(getattr(g, "colors", None)).reshape(-1, 4)[:, :3] for g in parts if _coloured(g)]
    normals = _obj_normals(path) if path.suffix.lower() == ".obj" else _ply_normals(parts)
    return Cloud(
        points,
        normals if normals is not None and len(normals) == len(points) else None,
        np.concatenate(colours) if len(colours) == len(parts) else None,
    )


def _coloured(part: Any) -> bool:
    colours = getattr(part, "colors", None)
    return colours is not None and np.shape(colours) == (len(part.vertices), 4)


def _ply_normals(parts: Sequence[Any]) -> NDArray[np.float32] | None:
    """Those of a PLY's vertices, which trimesh keeps with the raw data."""
    raw = parts[0].metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = (raw.dtype.names or ()) if isinstance(raw, np.ndarray) else raw or ()
    if not {"nx", "ny", "nz"} <= set(names):
        return None
    return np.stack([np.asarray(raw[name], np.float32).reshape(-1) for name in ("nx", "ny", "nz")], 1)


def _obj_normals(path: Path) -> NDArray[np.float32]:
    """The lines ``vn`` of an OBJ, which trimesh passes over where there are no faces."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = [line.split()[1:4] for line in lines if line.startswith("vn ")]
    return np.array(rows, dtype=np.float32).reshape(-1, 3)


def _painted(parts: Sequence[Any]) -> Mesh:
    """Parts as one mesh, with their colours where any has some."""
    vertices = np.cumsum([0, *(len(g.vertices) for g in parts)])
    faces = np.cumsum([0, *(len(g.faces) for g in parts)])
    corners = [_corners(g) for g in parts]
    textures = []
    for first, last, part in zip(faces, faces[1:], parts, strict=False):
        image, uv = _texture(part)
        if image is not None:
            textures.append((int(first), int(last), image, uv))
    coloured = bool(textures) or any(c is not None for c in corners)
    grey = [
        np.full((len(g.faces), 3, 3), GREY, np.uint8) if c is None else c for c, g in zip(corners, parts, strict=True)
    ]
    return Mesh(
        np.concatenate([g.vertices for g in parts]),
        np.concatenate([g.faces + start for g, start in zip(parts, vertices, strict=False)]),
        np.concatenate(grey) if coloured else None,
        textures,
    )


def _corners(part: Any) -> NDArray[np.uint8] | None:
    """Colours (F, 3, 3) of the corners of a part's faces."""
    kind, visual = part.visual.kind, part.visual
    found: NDArray[np.uint8] | None = None
    if kind == "vertex":
        found = np.asarray(visual.vertex_colors, np.uint8)[np.asarray(part.faces)][..., :3]
    elif kind == "face":
        found = np.repeat(np.asarray(visual.face_colors, np.uint8)[:, None, :3], 3, 1)
    elif kind == "texture":
        colour = np.asarray(visual.material.main_color, np.uint8)[:3]
        found = np.broadcast_to(colour, (len(part.faces), 3, 3)).copy()
    return found


def _texture(part: Any) -> tuple[Any, Any]:
    """A part's image, and the corners of its faces in it; None where it has none."""
    uv = getattr(part.visual, "uv", None)
    material = getattr(part.visual, "material", None)
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if uv is None or image is None or len(uv) != len(part.vertices):
        return None, None
    return np.asarray(image.convert("RGB")), np.asarray(uv, np.float64)[np.asarray(part.faces)]


def sample_surface(mesh: Any, count: int, seed: int) -> Cloud:
    """``count`` points drawn evenly by area, with their faces' normals.

    Raises:
        ValueError: for vertices that are not finite, and a surface without area.
    """
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]
    if not np.isfinite(corners).all():
        raise ValueError("has vertices that are NaN or infinite")
    edges = corners[:, 1:] - corners[:, :1]
    crosses = np.cross(edges[:, 0], edges[:, 1])
    areas = np.linalg.norm(crosses, axis=1) / 2
    if not areas.sum() > 0:
        raise ValueError("has no area: every face is a line or a point")
    rng = np.random.default_rng(seed)
    face = _even(areas, count, rng)
    u = rng.random((count, 2))
    u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)  # the other half of the parallelogram, folded back
    points = corners[face, 0] + (u[:, :, None] * edges[face]).sum(1)
    normals = crosses[face] / (2 * areas[face])[:, None]
    return Cloud(points.astype(np.float32), normals.astype(np.float32), _colours(mesh, face, u))


def _colours(mesh: Any, face: NDArray[np.int64], u: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    """The colour of each point, which lies in ``face`` at ``u`` along its two edges."""
    if not isinstance(mesh, Mesh) or mesh.colours is None:
        return None
    weights = np.concatenate([1 - u.sum(1, keepdims=True), u], 1)[:, :, None]
    corners = np.broadcast_to(mesh.colours[face], (len(face), 3, 3)).astype(np.float64)
    found: NDArray[np.uint8] = np.rint((weights * corners).sum(1)).astype(np.uint8)
    for first, last, image, uv in mesh.textures:
        rows = np.flatnonzero((face >= first) & (face < last))
        place = (weights[rows] * uv[face[rows] - first]).sum(1)
        height, width = image.shape[:2]
        across = np.floor(np.nan_to_num(place[:, 0]) % 1 * width).astype(np.int64).clip(0, width - 1)
        down = np.floor((1 - np.nan_to_num(place[:, 1]) % 1) * height).astype(np.int64).clip(0, height - 1)
        found[rows] = image[down, across]
    return found


def _even(areas: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Faces drawn in proportion to their areas, never one without area."""
    total = areas.cumsum()
    face = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    return np.asarray(face, dtype=np.int64)
