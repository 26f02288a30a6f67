"""Outlines of masks enclose the centres of their pixels and of no others, as two other ways of filling find."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy.ndimage import gaussian_filter

from oasis_monai.data.formats.contours import fill_even_odd
from oasis_monai.data.formats.outlines import outlines_of


def blobs(seed, width, shape=(31, 24)):
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), width) > 0


@pytest.mark.parametrize("width", [0, 0.7, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_filled_outlines_of_any_mask_are_the_mask(seed, width):
    mask = blobs(seed, width)
    rings = outlines_of(mask)
    np.testing.assert_array_equal(fill_even_odd(rings, mask.shape), mask)
    filled = np.zeros(mask.shape, int)
    centres = np.indices(mask.shape).reshape(2, -1).T
    for ring in rings:  # one piece each: neither a contour within another nor two of one pixel
        filled += Outline(ring).contains_points(centres).reshape(mask.shape)
    np.testing.assert_array_equal(filled, mask)


def test_holes_are_joined_by_a_slit_without_width():
    mask = np.zeros((12, 12), bool)
    mask[1:11, 1:11] = True
    mask[3:5, 3:5] = mask[7:9, 6:9] = False
    (ring,) = outlines_of(mask)
    edges = {(tuple(a), tuple(b)) for a, b in zip(ring, np.roll(ring, -1, 0), strict=True)}
    assert sum((b, a) in edges for a, b in edges) == 4  # two slits, each there and back
    x, y = ring.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area == pytest.approx(100 - 0.5 - (4 - 0.5) - (6 - 0.5))  # the outline has four corners of 1/8 cut, and so a hole


def test_an_empty_mask_and_one_up_to_the_border():
    assert outlines_of(np.zeros((4, 5), bool)) == []
    (ring,) = outlines_of(np.ones((4, 5), bool))
    assert (ring.min(0).tolist(), ring.max(0).tolist()) == ([-0.5, -0.5], [3.5, 4.5])
