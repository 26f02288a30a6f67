"""Suggest the field of view and voxel size of the working grid for a labelled data set (task ``check``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oasis_monai.data.io import to_canonical
from oasis_monai.data.types import Volume
from oasis_monai.transforms.labels import structures
from oasis_monai.transforms.preprocessing import Preprocessing

MARGIN = 0.1  # surroundings the networks should see beyond the labels, as a fraction of the labels' extent
MARGIN_MM = 5.0  # the smallest such margin
VOXELS = {2: 96 * 96, 3: 96 * 96 * 32}  # most voxels of a suggested grid: the default training minutes were chosen for these
STEP = 1.05  # factor by which voxels grow until the grid has no more than VOXELS
WIDE = 2.0  # a field of view or voxel size this many times the suited one gets a suggestion
HOUNSFIELD = -200.0  # MR has no values below that, CT has air


@dataclass(frozen=True)
class Extent:
    """One labelled scan along its axes closest to right, anterior, superior.

    Args:
        spacing_mm: its voxels.
        size_mm: its field of view.
        label_extent_mm: the farthest outer edge of a foreground voxel from the image's centre.
        lowest: its lowest intensity.
    """

    spacing_mm: tuple[float, ...]
    size_mm: tuple[float, ...]
    label_extent_mm: tuple[float, ...]
    lowest: float


def extent(volume: Volume) -> Extent | None:
    """Measure how far the labels of a scan extend from its centre; None without a label or without foreground."""
    if volume.label is None or not structures(volume.label).any():
        return None
    label, spacing_mm = to_canonical(structures(volume.label[0]).numpy(), volume.geometry.affine)
    extent_voxels = []
    for axis, length in enumerate(label.shape):
        along = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        extent_voxels.append(max(length / 2 - along[0], along[-1] + 1 - length / 2))
    size_mm, label_extent_mm = np.multiply(label.shape, spacing_mm), np.multiply(extent_voxels, spacing_mm)
    return Extent(tuple(map(float, spacing_mm)), tuple(size_mm), tuple(label_extent_mm), float(volume.image.min()))


def suited(
    extents: Sequence[Extent], preprocessing: Preprocessing, divisor: Sequence[int], takes: Callable[[Preprocessing], bool]
) -> Preprocessing:
    """The setting with a grid that suits a data set: it holds every label with a margin, but nothing that no scan shows; its
    voxels are the scans' own (median), made coarser from the finest axis on until there are no more than :data:`VOXELS`.

    Args:
        extents: one or more scans.
        preprocessing: ``physical``; what it says of other than the grid is kept, but the ``local`` intensity, which is for MR,
            where most scans have values of CT.
        divisor: what the size must be a multiple of, along x, y (, z).
        takes: whether the networks can work on a grid: a small one is made larger until they do.
    """
    dims = preprocessing.spatial_dims
    label_extent_mm = np.max([e.label_extent_mm for e in extents], 0)[:dims]
    field = np.minimum(
        2 * (label_extent_mm + np.maximum(MARGIN * label_extent_mm, MARGIN_MM)), np.max([e.size_mm for e in extents], 0)[:dims]
    )
    own = np.median([e.spacing_mm for e in extents], 0)[:dims]
    ct = float(np.median([e.lowest for e in extents])) < HOUNSFIELD
    intensity = "zscore" if ct and preprocessing.intensity == "local" else preprocessing.intensity

    def made(size: Sequence[int]) -> Preprocessing:
        more = (intensity, preprocessing.local_mm, preprocessing.window)
        return Preprocessing("physical", dims, tuple(size), tuple(spacing), *more)

    finest = float(own.min())
    while True:
        spacing = [_rounded_up(mm) for mm in np.maximum(own, finest)]
        size = [math.ceil(round(f / (mm * d), 6)) * d for f, mm, d in zip(field, spacing, divisor, strict=True)]
        if math.prod(size) <= VOXELS[dims] or size == list(divisor):
            break
        finest *= STEP
    while not takes(made(size)) and math.prod(size) <= VOXELS[dims]:
        shortest = int(np.argmin(np.divide(size, divisor)))
        size[shortest] += divisor[shortest]
    return made(size)


def _rounded_up(mm: float) -> float:
    """To two digits after the point, so that a grid never gets smaller by it."""
    return math.ceil(round(100 * mm, 6)) / 100


def advice(
    extents: Sequence[Extent], preprocessing: Preprocessing, divisor: Sequence[int], takes: Callable[[Preprocessing], bool]
) -> list[str]:
    """Compare the extent of the labels with that of the working grid, as one or two lines of text.

    The second line suggests settings. It appears where the grid cuts labels or is far larger or coarser than they need, or where
    the intensity setting is for MR and the scans are CT. There are no lines without labels, or for ``preprocessing=paper``, whose
    grid is the scan's own field of view.
    """
    if not extents or preprocessing.spacing_mm is None:
        return []
    better = suited(extents, preprocessing, divisor, takes)
    assert better.spacing_mm is not None
    label_extent_mm = np.max([e.label_extent_mm for e in extents], 0)[: preprocessing.spatial_dims]
    grid_extent_mm = np.multiply(preprocessing.size, preprocessing.spacing_mm) / 2
    lines = [
        f"field of view: labels reach {_mm(label_extent_mm)} from the images' centres, the working grid reaches "
        f"{_mm(grid_extent_mm)}"
    ]
    cut = (label_extent_mm > grid_extent_mm + 1e-3).any()
    wide = (grid_extent_mm > WIDE * np.multiply(better.size, better.spacing_mm) / 2).any()
    coarse = (np.array(preprocessing.spacing_mm) > WIDE * np.array(better.spacing_mm)).any()
    if cut or wide or coarse or better.intensity != preprocessing.intensity:
        words = [f"preprocessing.{key}=[{','.join(f'{v:g}' for v in getattr(better, key))}]" for key in ("size", "spacing_mm")]
        if better.intensity != preprocessing.intensity:
            words.append(f"preprocessing.intensity={better.intensity}")
        lines.append(f"better suited: {' '.join(words)}")
    return lines


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.0f}" for v in values) + " mm"
