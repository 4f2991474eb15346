"""Sizes of pictures of any shape."""

import numpy as np
import pytest
from PIL import Image

from diffkit_image.buckets import RATIO, fitted, nearest, sizes


@pytest.mark.parametrize("multiple", [1, 8, 16, 64])
@pytest.mark.parametrize("side", [64, 128, 512])
def test_sizes_have_one_area_and_sides_that_are_multiples(side, multiple):
    known = sizes(side, multiple)
    assert (side, side) in known
    assert {(w, h) for h, w in known} == set(known)
    for height, width in known:
        assert height % multiple == width % multiple == 0
        assert max(height, width) <= RATIO * min(height, width)
        # the nearest multiple along one side is at most half of one away
        assert abs(height * width - side**2) <= multiple * max(height, width) / 2


def test_known_sizes():
    assert sizes(64, 16) == ((48, 80), (64, 64), (80, 48))
    assert sizes(64, 32) == ((64, 64),)
    with pytest.raises(ValueError, match="expected at least 32"):
        sizes(16, 32)


def test_the_nearest_ratio():
    known = sizes(64, 8)
    for height, width in known:
        assert nearest(height * 3, width * 3, known) == (height, width)
    assert nearest(1000, 10, known)[0] == max(height for height, _ in known)


def test_an_opaque_picture_is_cropped_in_the_middle():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200  # what is left
    found = np.asarray(fitted(Image.fromarray(pixels), (40, 40)))
    assert found.shape == (40, 40, 4)
    assert (found[..., 3] == 255).all()
    assert (found[:, 1:-1, 0] == 200).all()


def test_a_transparent_picture_is_kept_whole():
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :] = (255, 0, 0, 255)
    pixels[0, 0, 3] = 0
    found = np.asarray(fitted(Image.fromarray(pixels), (40, 40)))
    assert found.shape == (40, 40, 4)
    assert (found[:10, :, 3] == 0).all() and (found[30:, :, 3] == 0).all()
    assert (found[12:29, 3:] == (255, 0, 0, 255)).all()


def test_a_picture_of_the_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    assert np.array_equal(np.asarray(fitted(Image.fromarray(pixels), (16, 24))), pixels)
