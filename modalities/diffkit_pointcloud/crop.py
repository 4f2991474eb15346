"""A part of a cloud, from which a model learns to draw the rest.

What a person has of a broken thing is its points, and not where the middle of the whole was or how large it was. So
the frame is that of the part: its bounding box's centre is at 0 and its largest half-extent 1, in training as in use,
and the rest reaches beyond.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffkit_pointcloud.cloud import Cloud, normalise

__all__ = ["cropped"]

SHARES = (0.3, 0.8)
"""Of the points that are given, drawn evenly."""
LEAST = 0.4
"""The part's largest half-extent in relation to that of the whole, at least: the rest stays near."""


def cropped(
    points: NDArray[np.float32], rng: np.random.Generator, share: tuple[float, float] = SHARES
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The points (N, 3) on one side of a random plane, as the given part.

    Returns:
        All points in the frame of the part, and which of them (N,) are given; the points as they are and none where
        the part would be too small.
    """
    direction = rng.normal(size=3)
    along = points @ direction
    given = along <= np.quantile(along, rng.uniform(*share))
    whole = np.ptp(points, axis=0).max()
    if given.all() or np.ptp(points[given], axis=0).max() < LEAST * whole:
        return points, np.zeros(len(points), dtype=bool)
    centre, scale = normalise(Cloud(points[given])).transform
    framed: NDArray[np.float32] = ((points - np.array(centre)) / scale).astype(np.float32)
    return framed, given
