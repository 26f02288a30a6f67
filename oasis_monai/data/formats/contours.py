"""Which pixels lie inside closed contours: those whose centre does, by the even-odd rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUND = 5
"""Decimals of a pixel to which corners are rounded, so that one that is meant to lie on a centre does."""


def fill_even_odd(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill closed contours of one plane.

    A pixel is inside where a line from its centre to the edge of the image crosses the contours an odd number of times: a contour
    within another one is a hole, one within the hole is filled again, and the two lines of a keyhole's slit cancel. A centre that
    lies on a contour belongs to it where its left or lower edge (at small indices) passes, so that neighbours never share one.

    Args:
        rings: (corners, 2) of each contour, in pixels (centres at whole numbers); the last corner is joined to the first.
        shape: pixels along both axes.

    Returns:
        ``shape`` bool.

    Examples:
        >>> import numpy as np
        >>> square = np.array([(0.5, 0.5), (3.5, 0.5), (3.5, 3.5), (0.5, 3.5)])
        >>> int(fill_even_odd([square], (5, 5)).sum()), int(fill_even_odd([square, square / 2 + 1], (5, 5)).sum())
        (9, 8)
    """
    crossings = np.zeros((shape[0] + 1) * shape[1], np.int64)
    for ring in rings:
        start = np.round(np.asarray(ring, float), ROUND)
        stop = np.roll(start, -1, axis=0)
        (x, y), (dx, dy) = start.T, (stop - start).T
        first = np.clip(np.ceil(np.minimum(y, y + dy)), 0, shape[1]).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y, y + dy)), 0, shape[1]).astype(np.int64)  # this row is not crossed
        count = last - first
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        at = x[edge] + (row - y[edge]) * dx[edge] / dy[edge]
        column = np.clip(np.ceil(np.round(at, ROUND)), 0, shape[0]).astype(np.int64)
        crossings += np.bincount(column * shape[1] + row, minlength=crossings.size)
    return np.asarray(crossings.reshape(shape[0] + 1, shape[1])[:-1].cumsum(0) % 2 == 1)
