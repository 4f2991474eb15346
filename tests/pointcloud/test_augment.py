"""Training shapes that are not in the data."""

import numpy as np
import pytest
import torch

from diffkit_pointcloud.augment import mixed, stretched, warped
from diffkit_pointcloud.cloud import Cloud
from diffkit_pointcloud.data import load


def ball(count=400, colour=0):
    normals = np.random.default_rng(colour).normal(size=(count, 3))
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    return Cloud(normals, normals, np.full((count, 3), colour, np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_normals_stay_at_right_angles_to_what_is_warped(seed):
    """Against two tangents of the ball, carried along by small differences."""
    rng = np.random.default_rng
    before = ball()
    side = np.cross(before.normals, [0.3, 0.5, 0.8]).astype(np.float64)
    after = warped(before, 0.4, rng(seed))
    for tangent in (side, np.cross(before.normals, side)):
        step = Cloud(before.points + 1e-6 * tangent, None)
        carried = (
            warped(step, 0.4, rng(seed)).points - warped(Cloud(before.points.astype(np.float64)), 0.4, rng(seed)).points
        )
        carried /= np.linalg.norm(carried, axis=1, keepdims=True)
        assert np.abs((carried * after.normals).sum(1)).max() < 1e-3
    assert ((after.normals * before.normals).sum(1) > 0).all()


def test_a_warp_of_nothing_changes_nothing_and_one_keeps_left_and_right_alike():
    cloud = ball()
    still = warped(cloud, 0.0, np.random.default_rng(0))
    assert np.allclose(still.points, cloud.points) and np.allclose(still.normals, cloud.normals, atol=1e-6)
    mirror = Cloud(cloud.points * np.float32([-1, 1, 1]))
    one, other = (warped(c, 0.4, np.random.default_rng(1)).points for c in (Cloud(cloud.points), mirror))
    assert np.allclose(one * [-1, 1, 1], other)


def test_stretched_normals_are_those_of_the_ellipsoid():
    found = stretched(ball(), 0.3, np.random.default_rng(2))
    axes = np.sqrt(1 / np.linalg.lstsq(found.points**2, np.ones(400), rcond=None)[0])
    expected = found.points / axes**2
    assert np.allclose(found.normals, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_mix_is_one_shape_below_and_the_other_above_within_the_first_ones_box():
    tall = ball(colour=9)
    tall = Cloud(tall.points * np.float32([2, 8, 3]) + 5, tall.normals, tall.colours)
    for seed in range(5):
        found = mixed(ball(colour=1), tall, np.random.default_rng(seed))
        upper = found.colours[:, 0] == 9
        assert found.points[~upper, 1].max() < found.points[upper, 1].min()
        assert 0.2 < upper.mean() < 0.8 and upper[:50].any() and not upper[:50].all()
        assert np.abs(np.linalg.norm(found.points, axis=1) - 1).max() < 0.05  # the other fits: a ball again


def test_training_examples_are_warped_and_mixed_and_in_their_frame():
    torch.manual_seed(0)
    plain, bent = (load("train", "sample", points=1024, warp=w, mix=w) for w in (0.0, 0.3))
    assert float(bent[3].x["points"].abs().max()) == pytest.approx(1, abs=1e-5)
    assert not torch.equal(bent[3].x["points"], bent[3].x["points"])
    assert plain[3].x["points"].shape == bent[3].x["points"].shape == (1024, 3)
    valid = load("valid", "sample", points=100, warp=0.3, mix=1.0)
    assert np.array_equal(valid[3].x["points"].numpy(), valid.packed.cloud(3, 100).points)


@pytest.mark.parametrize(("name", "value"), [("warp", 0.5), ("mix", 1.5), ("crop", -0.1), ("stretch", 1.0)])
def test_amounts_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"got data.{name}={value}; expected a number from 0"):
        load("train", "sample", **{name: value})
