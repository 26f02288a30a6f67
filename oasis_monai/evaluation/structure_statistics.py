"""What is measured of each structure of a result: volume, surface, place and intensity, in the scan's own world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oasis_monai.data.formats.structure import Structure, box_of
from oasis_monai.data.types import Geometry

DIGITS = 6
"""Significant digits of a measure in a file."""


@dataclass(frozen=True)
class StructureStatistics:
    """Measures of one structure. World coordinates are RAS+ mm: x to the patient's right, y to the front, z to the head, as in a
    NIfTI file; the first two of DICOM have the other sign.

    Args:
        voxels: how many there are; without any all else but the volume is None.
        volume_mm3: their number times the volume of one.
        surface_mm2: area of the triangles of a marching cube between voxel centres; None where the image is one slice.
        center_mm: mean of the voxels' centres.
        box_mm: least and largest x, y, z of the voxels' corners.
        box_voxels: first and last index along the file's three axes, both within.
        intensity_mean, intensity_sd: of each channel, as stored in the scan (HU in a CT); the sd is that of its voxels (with N).
    """

    voxels: int
    volume_mm3: float
    surface_mm2: float | None = None
    center_mm: tuple[float, ...] | None = None
    box_mm: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    box_voxels: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    intensity_mean: tuple[float, ...] | None = None
    intensity_sd: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values of :data:`DIGITS` digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return [_rounded(part) for part in value] if isinstance(value, tuple) else value


def measure_structures(structures: Sequence[Structure], image: np.ndarray, geometry: Geometry) -> dict[str, StructureStatistics]:
    """Measure every structure of a result.

    Args:
        structures: with their masks on ``geometry``; they may overlap.
        image: (c, x, y, z) intensities.
        geometry: the scan's own grid.

    Returns:
        By name, in order.

    Examples:
        >>> from oasis_monai.data.formats.structure import structures_of
        >>> mask = np.zeros((8, 8, 8), bool)
        >>> mask[2:6, 2:6, 2:4] = True
        >>> grid = Geometry(mask.shape, np.diag([2.0, 2.0, 3.0, 1.0]))
        >>> found = measure_structures([*structures_of([("box", 1, mask)])], np.ones((1, 8, 8, 8)), grid)["box"]
        >>> found.volume_mm3, found.center_mm, found.box_mm
        (384.0, (7.0, 7.0, 7.5), ((3.0, 3.0, 4.5), (11.0, 11.0, 10.5)))
    """
    return {structure.name: _measure(structure.inside(), image, geometry) for structure in structures}


def _measure(mask: np.ndarray, image: np.ndarray, geometry: Geometry) -> StructureStatistics:
    box = box_of(mask)
    if box is None:
        return StructureStatistics(0, 0.0)
    own = mask[box]
    indices = np.argwhere(own) + [side.start for side in box]
    affine = np.asarray(geometry.affine, float)
    centres = indices @ affine[:3, :3].T + affine[:3, 3]
    half = np.abs(affine[:3, :3]).sum(axis=1) / 2  # from a voxel's centre to its farthest corner along each axis
    values = [channel[box][own].astype(np.float64) for channel in image]
    return StructureStatistics(
        len(indices),
        len(indices) * geometry.voxel_ml * 1000,
        surface_area(own, geometry.spacing_mm) if min(geometry.shape) > 1 else None,
        tuple(map(float, centres.mean(axis=0))),
        (tuple(map(float, centres.min(axis=0) - half)), tuple(map(float, centres.max(axis=0) + half))),
        (tuple(side.start for side in box), tuple(side.stop - 1 for side in box)),
        tuple(float(of.mean()) for of in values),
        tuple(float(of.std()) for of in values),
    )


def surface_area(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Area of a mask's surface in mm², of the triangles that marching cubes lays halfway between voxels inside and outside.

    The table of MONAI (and of DeepMind's surface-distance) has the area of each of the 256 cubes. As of every such mesh of a mask
    of voxels, the area of a smooth round body comes out some percent too large (8 % of a ball).

    Args:
        mask: (x, y, z) bool; what lies outside the array is outside the mask.
        spacing_mm: voxel size along the three axes.
    """
    from monai.metrics.utils import get_code_to_measure_table

    areas = np.asarray(get_code_to_measure_table(tuple(spacing_mm))[0], float)
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for corner in range(8):  # the first of the table's bits is the first corner
        x, y, z = corner >> 2 & 1, corner >> 1 & 1, corner & 1
        part = padded[x : x + code.shape[0], y : y + code.shape[1], z : z + code.shape[2]]
        code |= part << (7 - corner)
    counts = sum(np.bincount(part.ravel(), minlength=256) for part in code)  # slab by slab: numpy counts integers of 8 bytes
    return float(counts @ areas)
