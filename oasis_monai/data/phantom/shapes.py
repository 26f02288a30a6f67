"""Shapes with soft edges and smooth random fields on a voxel grid, of which the phantom is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Triple = tuple[float, float, float]
Box = tuple[slice, slice, slice]
_HALF_MM = (104.0, 104.0, 52.0)  # random lattices always span this half-extent, so their draws do not depend on the grid


@dataclass(frozen=True)
class Frame:
    """A voxel grid seen from the patient.

    Args:
        points: three (x, y, z) float32 arrays: millimetres to the patient's right, front and head from the centre of
            the gland.
        axes: the three 1-D grid coordinates in millimetres from the image centre (for separable random fields).
        pixel_mm: in-plane voxel size, the width over which a boundary blends.
        voxel_ml: volume of a voxel.
    """

    points: Points
    axes: Points
    pixel_mm: float
    voxel_ml: float

    def field(self, rng: np.random.Generator, pitch_mm: float) -> np.ndarray:
        """:meth:`Lattice.at` of this grid, of a lattice over the field of view of a prostate."""
        return Lattice.drawn(rng, pitch_mm).at(self.axes)


@dataclass(frozen=True)
class Lattice:
    """Random smooth field of about unit standard deviation and correlation length ``pitch_mm``: a cubic B-spline with
    independent normal coefficients. The draws depend on ``pitch_mm`` and ``half_mm`` only, so one patient keeps its shape on
    every grid, and a slab is what it is in the whole.

    Args:
        knots: coefficients along x, y, z.
        pitch_mm: between two knots.
        half_mm: half of the extent that the knots span; beyond it the outermost values continue.
    """

    knots: np.ndarray
    pitch_mm: float
    half_mm: Triple

    @classmethod
    def drawn(cls, rng: np.random.Generator, pitch_mm: float, half_mm: Triple = _HALF_MM) -> Lattice:
        """A field of which every coefficient is drawn."""
        size = tuple(int(2 * half / pitch_mm) + 4 for half in half_mm)
        return cls(rng.standard_normal(size, dtype=np.float32), pitch_mm, half_mm)

    def at(self, axes: Points) -> np.ndarray:
        """(x, y, z) float32 at a grid's 1-D coordinates in millimetres from the image centre."""
        out = self.knots
        # four gathers per axis instead of a matrix product: the same bits whatever BLAS and its number of threads
        for axis in (2, 1, 0):
            first, weights = _spline_weights((axes[axis] + self.half_mm[axis]) / self.pitch_mm, self.knots.shape[axis])
            shape = [1, 1, 1]
            shape[axis] = -1
            total = np.take(out, first, axis) * weights[0].reshape(shape)
            for k in (1, 2, 3):
                total += np.take(out, first + k, axis) * weights[k].reshape(shape)
            out = total
        return out * np.float32(0.4794**-1.5)  # 0.4794: mean over u of the sum of the four squared weights


def _spline_weights(t: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First knot (n,) and weights (4, n) of the uniform cubic B-spline at knot coordinates t, clamped to the lattice."""
    t = np.clip(t, 0, count - 4 + 0.999)
    first = np.floor(t).astype(int)
    u = t - first
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]) / 6
    return first, weights.astype(np.float32)


def inside(distance_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a voxel inside a shape (0..1) from a signed distance (negative inside): partial volume as a ramp."""
    return np.clip(0.5 - distance_mm / np.float32(width_mm), 0, 1)


def shell(distance_mm: np.ndarray, thickness_mm: float, width_mm: float) -> np.ndarray:
    """Share of a voxel inside a wall of the given thickness centred on a shape's surface. A wall thinner than the
    blending width fades instead of vanishing, as partial volume does."""
    half = np.float32(thickness_mm / 2)
    return np.clip((half - np.abs(distance_mm)) / np.float32(width_mm) + 0.5, 0, min(1.0, thickness_mm / width_mm))


def ellipsoid(p: Points, centre: Triple, radii: Triple, turn_deg: float = 0.0) -> np.ndarray:
    """Signed distance (mm, first-order accurate at the surface) to an ellipsoid turned about the z axis."""
    x, y, z = (np.subtract(a, np.float32(c)) for a, c in zip(p, centre, strict=True))
    if turn_deg:
        c, s = np.float32(np.cos(np.deg2rad(turn_deg))), np.float32(np.sin(np.deg2rad(turn_deg)))
        x, y = c * x + s * y, c * y - s * x
    rx, ry, rz = (np.float32(r) for r in radii)
    x, y, z = x / rx, y / ry, z / rz
    k = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / rx, y / ry, z / rz
    slope = np.sqrt(x * x + y * y + z * z)
    return k * (k - 1) / np.maximum(slope, np.float32(1e-4))


def rod(p: Points, start: Triple, end: Triple) -> np.ndarray:
    """Distance (mm) to a line segment."""
    axis = np.subtract(end, start)
    length2 = float(axis @ axis)
    q = [np.subtract(a, np.float32(c)) for a, c in zip(p, start, strict=True)]
    along = np.clip(sum(a * np.float32(d / length2) for a, d in zip(q, axis, strict=True)), 0, 1)
    return np.sqrt(sum((a - along * np.float32(d)) ** 2 for a, d in zip(q, axis, strict=True)))


def paint(canvas: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> None:
    """Lay ``value`` over ``canvas`` in place with opacity ``share``: structures are painted from back to front."""
    canvas += share * (value - canvas)


class Culler:
    """Which part of the grid a small shape can touch; the rest is not computed."""

    def __init__(self, p: Points) -> None:
        # per coordinate and array axis: its lowest and highest value in every slab across that axis
        self._range = [
            [(a.min(axis=o), a.max(axis=o)) for o in ((1, 2), (0, 2), (0, 1))]
            for a in p
        ]  # fmt: skip

    def box(self, low: Triple, high: Triple, margin: float = 6.0) -> Box:
        """Slices of the grid that hold all points with low - margin <= p <= high + margin (and some more)."""
        slices = []
        for axis in range(3):
            keep = np.all(
                [(r[axis][1] >= lo - margin) & (r[axis][0] <= hi + margin)
                 for r, lo, hi in zip(self._range, low, high, strict=True)], axis=0,
            )  # fmt: skip
            hits = np.flatnonzero(keep)
            slices.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
        return slices[0], slices[1], slices[2]
