"""A point cloud as a record, and the frame in which models see it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDENTITY", "Cloud", "appended", "joined", "normalise", "restore", "rows"]

Points = NDArray[np.float32]

IDENTITY: tuple[tuple[float, float, float], float] = ((0.0, 0.0, 0.0), 1.0)
"""The transform of a cloud that is as it was read."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """N points in space.

    Args:
        points: (N, 3) float32.
        normals: (N, 3) float32 of length 1, where known.
        colours: (N, 3) uint8, where known.
        caption: what it is, in words.
        category: the name of its class; empty where unknown.
        transform: (centre, scale) of what it was made from: that is ``points * scale + centre``.
    """

    points: Points
    normals: Points | None = None
    colours: NDArray[np.uint8] | None = None
    caption: str = ""
    category: str = ""
    transform: tuple[tuple[float, float, float], float] = IDENTITY


def normalise(cloud: Cloud) -> Cloud:
    """The cloud with its bounding box's centre at 0 and the largest half-extent 1; `restore` undoes it.

    Raises:
        ValueError: for a cloud without points, without extent, or with a coordinate that is not finite.
    """
    points = np.asarray(cloud.points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"got points of shape {points.shape}; expected (N, 3) with at least one point")
    if not np.isfinite(points).all():
        raise ValueError("got coordinates that are NaN or infinite; expected numbers")
    low, high = points.min(0), points.max(0)
    centre, scale = (low + high) / 2, float((high - low).max()) / 2
    if scale <= 0:
        raise ValueError("got a cloud without extent: all of its points coincide; expected at least two places")
    old_centre, old_scale = cloud.transform
    moved = tuple(float(v) for v in centre * old_scale + np.asarray(old_centre))
    framed = ((points - centre) / scale).astype(np.float32)
    return replace(cloud, points=framed, transform=((moved[0], moved[1], moved[2]), scale * old_scale))


def rows(cloud: Cloud, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Cloud:
    """The cloud of some of its points, in their order."""
    normals = None if cloud.normals is None else cloud.normals[chosen]
    colours = None if cloud.colours is None else cloud.colours[chosen]
    return replace(cloud, points=cloud.points[chosen], normals=normals, colours=colours)


def joined(part: Cloud, rest: Cloud) -> Cloud:
    """``part`` as it is, and after it ``rest``, which is in the frame of the part (`normalise`)."""
    return appended(part, restore(replace(rest, transform=normalise(part).transform)))


def appended(first: Cloud, second: Cloud) -> Cloud:
    """The points of both as one cloud, with what is known of the second; normals and colours where both have some."""
    bent = first.normals is not None and second.normals is not None
    painted = first.colours is not None and second.colours is not None
    return replace(
        second,
        points=np.concatenate([first.points, second.points]),
        normals=np.concatenate([first.normals, second.normals]) if bent else None,
        colours=np.concatenate([first.colours, second.colours]) if painted else None,
    )


def restore(cloud: Cloud) -> Cloud:
    """The cloud in the frame of what it was made from."""
    centre, scale = cloud.transform
    points = cloud.points.astype(np.float64) * scale + np.asarray(centre)
    return replace(cloud, points=points.astype(np.float32), transform=IDENTITY)
