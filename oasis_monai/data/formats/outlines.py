"""Outlines of masks as closed contours, the other way round of :mod:`.contours`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

ALONG = 0.37
"""Where between two corners a slit starts: at no simple fraction, so that it meets no centre of a pixel."""
CLEAR, TRIED = 0.05, 40
"""How far a slit stays from centres, in pixels, and how many are tried for it."""


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The contours of one plane's mask, one for each of its pieces.

    A contour runs halfway between the centres of pixels inside and outside (marching squares at 0.5), so filling it by the
    centres of pixels gives the mask back, voxel by voxel. A hole is joined to its piece by a slit without width (the *keyhole*
    of DICOM PS3.3 C.8.8.6.3), which every program fills alike. Points on a straight line between others are left out.

    Args:
        mask: (n, m) bool.

    Returns:
        (corners, 2) of each, in pixels (centres at whole numbers); the last corner is joined to the first.

    Examples:
        >>> mask = np.zeros((4, 4), bool)
        >>> mask[1:3, 1:3] = True
        >>> (ring,) = outlines_of(mask)
        >>> len(ring), ring.min(), ring.max()
        (8, 0.5, 2.5)
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(np.asarray(mask, float), 1)  # so that each contour is closed
    generator = contour_generator(z=padded.T, fill_type=FillType.OuterOffset)
    rings = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        outer, *holes = (_corners(points[start:stop] - 1.0) for start, stop in pairwise(offsets))
        for hole in holes:
            outer = _joined(outer, hole)
        rings.append(outer)
    return rings


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring whose last point is its first, without that and without points on straight lines."""
    ring = np.asarray(ring[:-1], float)
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return np.asarray(ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9])


def _joined(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One contour of a ring and a hole in it, joined where they are near.

    Programs differ on a pixel whose centre lies on a line. So the slit starts and ends between corners, away from the grid of
    centres, and of the shortest ones the first that passes none closely is taken.
    """
    from scipy.spatial import KDTree

    starts, ends = ((1 - ALONG) * ring + ALONG * np.roll(ring, -1, 0) for ring in (outer, hole))
    distances, nearest = KDTree(starts).query(ends)
    tried = np.argsort(distances, kind="stable")[:TRIED]
    there = next((int(k) for k in tried if _clearance(starts[nearest[k]], ends[k]) > CLEAR), int(tried[0]))
    here = int(nearest[there])
    start, end = starts[here][None], ends[there][None]
    return np.concatenate([outer[: here + 1], start, end, hole[there + 1 :], hole[: there + 1], end, start, outer[here + 1 :]])


def _clearance(start: np.ndarray, end: np.ndarray) -> float:
    """Least distance of a pixel's centre from the line between two points, in pixels."""
    low, high = np.floor(np.minimum(start, end)), np.ceil(np.maximum(start, end))
    centres = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    step = end - start
    along = np.clip((centres - start) @ step / max(float(step @ step), 1e-12), 0, 1)
    return float(np.linalg.norm(centres - start - along[..., None] * step, axis=-1).min())
