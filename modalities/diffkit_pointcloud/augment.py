r"""Training shapes that are not in the data: stretched, mirrored, warped, and mixed of two.

**Stretch.** Every axis by a factor of its own, and x to -x half of the time: a mirror image of furniture is furniture.

**Warp.** What furniture differs in, smoothly and without breaking the symmetry of left and right: where along its
height and depth the parts are, how it narrows upwards, and how it leans,

    y' = y + a (1 - y^2)        z' = z + b (1 - z^2)
    x'' = x (1 + c y')          z'' = z' (1 + c y') + d y'

with a to d even within \pm size. Below a size of 1/2 no two points meet. Normals follow the inverse transpose of the
Jacobian (with s = 1 + c y')

    J = [[s, x c (1 - 2 a y), 0], [0, 1 - 2 a y, 0], [0, (z' c + d)(1 - 2 a y), s (1 - 2 b z)]].

**Mix.** The part of one shape below a level, and that of another of its category above it, after the other has been
stretched to the box of the first: of n shapes some n^2. Halves of unlike shapes do not always meet.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffkit_pointcloud.cloud import Cloud, appended, rows

__all__ = ["mixed", "stretched", "warped"]

LEVELS = (0.25, 0.75)
"""Of the height, between which a mix changes over."""

Array = NDArray[np.float64]


def stretched(cloud: Cloud, size: float, rng: np.random.Generator) -> Cloud:
    """Each axis by a factor within 1 ± ``size``, and mirrored half of the time; points are float64."""
    scale = rng.uniform(1 - size, 1 + size, 3) * (rng.choice([-1, 1]), 1, 1)
    normals = None if cloud.normals is None else _unit(cloud.normals / scale)
    return replace(cloud, points=cloud.points * scale, normals=normals)


def warped(cloud: Cloud, size: float, rng: np.random.Generator) -> Cloud:
    """See the module's text; of a cloud within [-1, 1], and ``size`` below 1/2."""
    a, b, c, d = rng.uniform(-size, size, 4)
    x, y, z = cloud.points.astype(np.float64).T
    up, along = y + a * (1 - y**2), z + b * (1 - z**2)
    wide, rising = 1 + c * up, 1 - 2 * a * y
    points = np.stack([x * wide, up, along * wide + d * up], 1)
    if cloud.normals is None:
        return replace(cloud, points=points)
    zero = np.zeros_like(x)
    transposed = np.stack(
        [wide, zero, zero, x * c * rising, rising, (along * c + d) * rising, zero, zero, wide * (1 - 2 * b * z)], 1
    ).reshape(-1, 3, 3)
    turned = np.linalg.solve(transposed, cloud.normals[:, :, None].astype(np.float64))[:, :, 0]
    return replace(cloud, points=points, normals=_unit(turned))


def mixed(lower: Cloud, upper: Cloud, rng: np.random.Generator) -> Cloud:
    """``lower`` below a level drawn at random, ``upper`` above it, in random order.

    Normals and colours are there where both have some.
    """
    (low, high), (bottom, top) = ((c.points.min(0), c.points.max(0)) for c in (lower, upper))
    scale = (high - low) / np.maximum(top - bottom, 1e-6)
    fitted = (upper.points - bottom) * scale + low
    level = low[1] + rng.uniform(*LEVELS) * (high[1] - low[1])
    normals = None if upper.normals is None else _unit(upper.normals / np.maximum(scale, 1e-6))
    under = rows(lower, lower.points[:, 1] <= level)
    over = rows(replace(upper, points=fitted, normals=normals), fitted[:, 1] > level)
    whole = appended(over, under)
    return rows(whole, rng.permutation(len(whole.points)))


def _unit(vectors: Array) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / length.clip(min=1e-9)).astype(np.float32)
    return unit
