"""Which field of view and voxels suit a labelled data set: what ``check`` says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oasis_monai.data.io import to_canonical
from oasis_monai.data.types import Volume
from oasis_monai.transforms.preprocessing import Preprocessing

MARGIN = 0.1  # surroundings the networks should see, as a part of the labels' reach
MARGIN_MM = 5.0  # and at least
VOXELS = {2: 96 * 96, 3: 96 * 96 * 32}  # of the working grid: what the default minutes were chosen for
STEP = 1.05  # by which voxels are made coarser until the grid has no more than that
WIDE = 2.0  # times the field of view or voxel size that suits: another is suggested
HOUNSFIELD = -200.0  # MR has no values below that, CT has air


@dataclass(frozen=True)
class Extent:
    """One labelled scan along its axes closest to right, anterior, superior.

    Args:
        spacing_mm: its voxels.
        size_mm: its field of view.
        reach_mm: the farthest outer edge of a foreground voxel from the image's centre.
        lowest: its lowest intensity.
    """

    spacing_mm: tuple[float, ...]
    size_mm: tuple[float, ...]
    reach_mm: tuple[float, ...]
    lowest: float


def extent(volume: Volume) -> Extent | None:
    """How far the labels of a scan reach; None without a label or without foreground."""
    if volume.label is None or not volume.label.any():
        return None
    label, spacing_mm = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
    reach = []
    for axis, length in enumerate(label.shape):
        along = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        reach.append(max(length / 2 - along[0], along[-1] + 1 - length / 2))
    size_mm, reach_mm = np.multiply(label.shape, spacing_mm), np.multiply(reach, spacing_mm)
    return Extent(tuple(map(float, spacing_mm)), tuple(size_mm), tuple(reach_mm), float(volume.image.min()))


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
    reach = np.max([e.reach_mm for e in extents], 0)[:dims]
    field = np.minimum(2 * (reach + np.maximum(MARGIN * reach, MARGIN_MM)), np.max([e.size_mm for e in extents], 0)[:dims])
    own = np.median([e.spacing_mm for e in extents], 0)[:dims]
    ct = float(np.median([e.lowest for e in extents])) < HOUNSFIELD
    intensity = "zscore" if ct else preprocessing.intensity

    def made(size: Sequence[int]) -> Preprocessing:
        return Preprocessing("physical", dims, tuple(size), tuple(spacing), intensity, preprocessing.local_mm)

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


def told(
    extents: Sequence[Extent], preprocessing: Preprocessing, divisor: Sequence[int], takes: Callable[[Preprocessing], bool]
) -> list[str]:
    """A line on how far the labels reach and how far the working grid does; a second one with settings that suit better where
    labels are cut, the grid is far larger or coarser than they need, or the intensities are for MR and the scans are CT.

    Nothing without labels, or of ``paper``, whose grid is the scan.
    """
    if not extents or preprocessing.spacing_mm is None:
        return []
    better = suited(extents, preprocessing, divisor, takes)
    assert better.spacing_mm is not None
    reach = np.max([e.reach_mm for e in extents], 0)[: preprocessing.spatial_dims]
    half = np.multiply(preprocessing.size, preprocessing.spacing_mm) / 2
    lines = [f"field of view: labels reach {_mm(reach)} from the images' centres, the working grid reaches {_mm(half)}"]
    cut = (reach > half + 1e-3).any()
    wide = (half > WIDE * np.multiply(better.size, better.spacing_mm) / 2).any()
    coarse = (np.array(preprocessing.spacing_mm) > WIDE * np.array(better.spacing_mm)).any()
    if cut or wide or coarse or better.intensity != preprocessing.intensity:
        words = [f"preprocessing.{key}=[{','.join(f'{v:g}' for v in getattr(better, key))}]" for key in ("size", "spacing_mm")]
        if better.intensity != preprocessing.intensity:
            words.append(f"preprocessing.intensity={better.intensity}")
        lines.append(f"these would suit: {' '.join(words)}")
    return lines


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{v:.0f}" for v in values) + " mm"
