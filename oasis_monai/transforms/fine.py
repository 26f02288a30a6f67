"""The fine grid: the working grid with every voxel cut into whole parts, for what must not be lost.

Fields and context are smooth and stay on the working grid. Labels are thin and need the scan's own resolution. The two grids
share their outer edges. So what goes from one to the other is a mean over blocks, or linear interpolation, the same for every
scan and every atlas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oasis_monai.data.types import Geometry
from oasis_monai.transforms.spatial import centred


def centred_beneath(
    native: Geometry, spacing_mm: Sequence[float], size: Sequence[int], factor: Sequence[int], slice_axis: str = "axial"
) -> Geometry:
    """The grid of ``size`` voxels of ``spacing_mm`` whose fine grid is :func:`.centred`, so that one keeps the scan's voxels
    where it can, and both have the same edges."""
    fine_mm = [mm / f for mm, f in zip(spacing_mm, factor, strict=True)]
    fine_size = [n * f for n, f in zip(size, factor, strict=True)]
    return coarsened(centred(native, fine_mm, fine_size, slice_axis), factor)


def refined(working: Geometry, factor: Sequence[int]) -> Geometry:
    """The grid of ``factor`` voxels along x, y, z for each one of ``working``.

    Examples:
        >>> import numpy as np
        >>> fine = refined(Geometry((4, 4, 2), np.diag([2.0, 2.0, 3.0, 1.0])), (2, 2, 1))
        >>> fine.shape, fine.spacing_mm, fine.affine[:3, 3].tolist()
        ((8, 8, 2), (1.0, 1.0, 3.0), [-0.5, -0.5, 0.0])
        >>> coarsened(fine, (2, 2, 1)).affine.tolist() == np.diag([2.0, 2.0, 3.0, 1.0]).tolist()
        True
    """
    return _other(working, np.asarray(factor, float))


def coarsened(fine: Geometry, factor: Sequence[int]) -> Geometry:
    """The grid of which :func:`refined` makes ``fine``.

    Raises:
        ValueError: a side of ``fine`` is no multiple of its factor.
    """
    if any(n % f for n, f in zip(fine.shape, factor, strict=True)):
        raise ValueError(f"fine grid: expected sides that are multiples of {tuple(factor)}, found {fine.shape}")
    return _other(fine, 1 / np.asarray(factor, float))


def _other(grid: Geometry, factor: np.ndarray) -> Geometry:
    """The same outer edges with ``factor`` times as many voxels."""
    affine = np.array(grid.affine, float)
    linear = affine[:3, :3] / factor
    # the first voxel's centre lies half a voxel inside the common edge
    affine[:3, 3] += linear @ ((1 - factor) / 2)
    affine[:3, :3] = linear
    x, y, z = (round(n * f) for n, f in zip(grid.shape, factor, strict=True))
    return Geometry((x, y, z), affine)
