r"""Meshes of VRML 2.0 files (ISO/IEC 14772-1:1997), as electronics libraries keep them.

Read are ``IndexedFaceSet`` nodes (6.23) with the colour of their material, below any number of ``Transform``,
``Group`` and other grouping nodes; ``DEF`` and ``USE`` name what stands in several places. A face of more than three
corners becomes a fan of triangles. A ``Transform`` (6.52) takes a point to

    T C R S C^-1 p    (translation, centre, rotation, scale)

and the rest of the format (lights, scripts, prototypes, colours of single faces, ``scaleOrientation``) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffkit_pointcloud.meshes import Mesh

__all__ = ["read_vrml"]

Array: TypeAlias = NDArray[np.float64]
Part: TypeAlias = tuple[Array, NDArray[np.int64], NDArray[np.uint8]]
"""Vertices (V, 3), triangles (F, 3), colour (3,)."""

_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|\[[-+0-9.eE,\s]*\]|[{}\[\]]|[^\s,{}\[\]"#]+|#[^\n]*',
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
_GREY = (204, 204, 204)  # the format's default, 0.8
_DEEPEST = 100


def read_vrml(text: str) -> Mesh:
    """All parts of a file as one mesh, with the colour of each triangle.

    Raises:
        ValueError: for a text that is not VRML 2.0, ends in the middle of a node, or holds no faces.
    """
    if not text.startswith("#VRML V2.0"):
        raise ValueError("cannot be read as .wrl (no VRML 2.0)")
    try:
        parts = [part for node in _Parser(text).nodes() for part in _parts(node, np.eye(4))]
    except (StopIteration, IndexError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"cannot be read as .wrl ({type(error).__name__})") from None
    if not parts:
        raise ValueError("is an empty mesh")
    starts = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts)])
    faces = [triangles + start for (_, triangles, _), start in zip(parts, starts, strict=False)]
    colours = [np.broadcast_to(colour, (len(triangles), 1, 3)) for _, triangles, colour in parts]
    return Mesh(np.concatenate([vertices for vertices, _, _ in parts]), np.concatenate(faces), np.concatenate(colours))


class _Node(dict[str, Any]):
    """A node's fields by their names."""

    kind = ""


class _Parser:
    """Tokens to nodes. A field's value is numbers, words, a node, or a list of nodes."""

    def __init__(self, text: str) -> None:
        found = (match.group() for match in _TOKEN.finditer(text))
        self.tokens = [token for token in found if token[0] != "#"]
        self.place = 0
        self.named: dict[str, _Node] = {}

    def nodes(self) -> Iterator[_Node]:
        """Those of the file, or of a list up to its bracket."""
        while self.place < len(self.tokens) and self.tokens[self.place] != "]":
            yield self._node()

    def _next(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _node(self) -> _Node:
        word = self._next()
        if word == "USE":
            return self.named.get(self._next(), _Node())
        name = self._next() if word == "DEF" else None
        node = _Node()
        node.kind = self._next() if name is not None else word
        if self._next() != "{":
            raise KeyError(node.kind)
        while (key := self._next()) != "}":
            node[key] = self._value()
        if name is not None:
            self.named[name] = node
        return node

    def _value(self) -> Any:
        token = self.tokens[self.place]
        if token[0] == "[" and token != "[":
            self.place += 1
            return _numbers(token[1:-1])
        if token == "[":
            self.place += 1
            return self._listed()
        if token[0] == '"' or token in ("TRUE", "FALSE"):
            return self._next()
        if _NUMBER.match(token):
            start = self.place
            while _NUMBER.match(self.tokens[self.place]):
                self.place += 1
            return np.array([float(v) for v in self.tokens[start : self.place]])
        return self._node()

    def _listed(self) -> list[Any]:
        """Nodes, or words that stand in brackets."""
        found: list[Any] = []
        while self.tokens[self.place] != "]":
            found.append(self._next() if self.tokens[self.place][0] == '"' else self._node())
        self.place += 1
        return found


def _numbers(text: str) -> Array:
    return np.fromstring(text.replace(",", " "), dtype=np.float64, sep=" ")


def _parts(node: _Node, frame: Array, depth: int = 0) -> Iterator[Part]:
    """The meshes below a node, in the frame of the file."""
    if depth > _DEEPEST:
        raise RecursionError
    if node.kind == "Shape":
        part = _shape(node, frame)
        if part is not None:
            yield part
        return
    inner = frame @ _transform(node) if node.kind == "Transform" else frame
    children = node.get("children", [])
    for child in [children] if isinstance(children, _Node) else children:
        if isinstance(child, _Node):
            yield from _parts(child, inner, depth + 1)


def _shape(node: _Node, frame: Array) -> Part | None:
    geometry = node.get("geometry")
    if not isinstance(geometry, _Node) or geometry.kind != "IndexedFaceSet" or "coord" not in geometry:
        return None
    points = np.asarray(geometry["coord"].get("point", []), dtype=np.float64).reshape(-1, 3)
    faces = _triangles(np.asarray(geometry.get("coordIndex", []), dtype=np.int64))
    if not len(faces):
        return None
    if faces.min() < 0 or faces.max() >= len(points):
        raise ValueError("has a face whose corners do not exist")
    return points @ frame[:3, :3].T + frame[:3, 3], faces, _colour(node.get("appearance"))


def _triangles(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(F, 3) of corners in a row, each face closed by -1."""
    if len(index) and index[-1] != -1:
        index = np.append(index, -1)
    if len(index) % 4 == 0 and (index[3::4] == -1).all() and (index.reshape(-1, 4)[:, :3] >= 0).all():
        return index.reshape(-1, 4)[:, :3]
    faces = [part for part in np.split(index, np.flatnonzero(index == -1) + 1) if len(part) > 3]
    fans = [np.stack([np.full(len(f) - 3, f[0]), f[1:-2], f[2:-1]], 1) for f in faces]
    return np.concatenate(fans) if fans else np.zeros((0, 3), np.int64)


def _colour(appearance: Any) -> NDArray[np.uint8]:
    material = appearance.get("material") if isinstance(appearance, _Node) else None
    said = material.get("diffuseColor") if isinstance(material, _Node) else None
    if said is None or len(said) != 3:
        return np.array(_GREY, np.uint8)
    colour: NDArray[np.uint8] = np.rint(np.clip(said, 0, 1) * 255).astype(np.uint8)
    return colour


def _transform(node: _Node) -> Array:
    move, centre = np.eye(4), np.eye(4)
    centre[:3, 3] = node.get("center", np.zeros(3))
    move[:3, 3] = node.get("translation", np.zeros(3))
    turn, scale = np.eye(4), np.diag([*node.get("scale", np.ones(3)), 1.0])
    x, y, z, angle = node.get("rotation", np.array([0.0, 0.0, 1.0, 0.0]))
    axis = np.array([x, y, z]) / max(float(np.linalg.norm([x, y, z])), 1e-12)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    placed: Array = move @ centre @ turn @ scale @ np.linalg.inv(centre)
    return placed
