"""Every metric of a case, in 3D, on its own grid, from one surface computation per class.

The definitions, pinned here because tools that share these names differ by over 100 mm on the same masks:

* **Surface**: the voxels of a mask with at least one of their 6 face neighbours outside it; what lies outside the image is
  outside the mask. An image of one slice has no neighbours above and below: its surface is the contour in the slice, as
  MONAI's of an image of two dimensions. Distances run between voxel centres, in mm. This is MONAI's definition;
  surface-distance puts its points on voxel corners and weighs them by area, so its figures differ by a fraction of a voxel's
  diagonal.
* **HD**: max of the two directed maxima. **95HD**: max of the two directed 95th percentiles, linearly interpolated, as in
  MONAI; pooling both directions first would hide errors of the smaller surface. **ABD**: the mean over the surface points of both
  masks pooled, (sum_P d(p, R) + sum_R d(r, P)) / (N_P + N_R): the average symmetric surface distance of MICCAI 2007 and
  MONAI (``symmetric=True``), not the mean of the two directed means.
* **DSC** = 2|P n R| / (|P| + |R|); **RVD** = 100 (|P| / |R| - 1) percent, signed; **aRVD** its magnitude.
* **Regions**: thirds of the *reference's* slice range along axis 2 (paper, section 3.2: first third apex, last third base).
  Apex and base always get equally many slices, (n + 1) // 3 of n, and mid the rest, so sizes differ by at most one:
  7 = 2 + 3 + 2, 8 = 3 + 2 + 3, 2 = 1 + 0 + 1, 1 = 0 + 1 + 0. Apex also takes every slice below that range and base every slice
  above: a result that overshoots is charged to the end where it does, and the volumes of the three regions add up to the whole.
  An empty reference has no range; the result's is divided then.
* **Distances of a region** start at its surface voxels, of either mask, and go to the *whole* surface of the other mask.
  Masks are never cut, so no flat cut face passes for a surface.
* **NSD** (normalised surface Dice, Nikolov et al., arXiv 1809.04430): the part of both surfaces' points that lie within a
  tolerance of the other surface. Points are voxels, as in MONAI's ``compute_surface_dice``.
* **Pieces** of the whole structure: see :mod:`oasis_monai.evaluation.instances`.
* **Ignored voxels** of the reference (:data:`oasis_monai.data.types.IGNORE`: nobody labelled them) are taken out of both masks
  before anything is measured.
* **Empty masks** are decided per row, so that no mean rewards a miss: see :class:`Score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from oasis_monai.data.settings import TOLERANCE_MM
from oasis_monai.data.types import IGNORE, REGIONS, Region
from oasis_monai.evaluation.instances import count_pieces
from oasis_monai.transforms.components import box_around
from oasis_monai.utils.errors import ConfigError, DataError, Fault

Status = Literal["ok", "miss", "false_positive", "absent"]
# A distance transform costs about 0.15 us per voxel of the box that holds both masks, a k-d tree about 5 us per surface voxel.
# Both are exact; one stray voxel in a far corner makes the box the whole image and the tree over ten times faster.
_VOXELS_PER_POINT = 50
_ROUNDING_MM = 1e-6  # a distance of five voxels of 0.4 mm is within 2 mm


@dataclass(frozen=True)
class Score:
    """One row of scores: one class in one region of one case.

    What a row holds where a mask is empty in the region; ``diagonal`` is :func:`image_diagonal_mm` of the whole grid:

    ==================  =========  ======  =====  ======  ======  ==============
    status              reference  result  dsc    rvd     arvd    hd, hd95, abd
    ==================  =========  ======  =====  ======  ======  ==============
    ``ok``              there      there   value  value   value   value
    ``miss``            there      empty   0      -100    100     diagonal
    ``false_positive``  empty      there   0      nan     nan     diagonal
    ``absent``          empty      empty   nan    nan     nan     nan
    ==================  =========  ======  =====  ======  ======  ==============

    The volume differences of a false positive are nan because |P| / 0 has no value and any stand-in (100, say) would be less than
    that of a result of three times the reference. So aRVD averages over the rows *with a reference*, the same rows
    for every method; the false positive is paid for in DSC and distances. Nothing else is nan but in ``absent`` rows,
    which no mean includes. A table drops the nans knowingly and counts each status beside the mean. NSD is 0 where one of the two
    is empty.

    Args:
        label: the class's name.
        region: ``whole``, ``apex``, ``mid`` or ``base``.
        status: see above.
        dsc: Dice coefficient, 0..1.
        rvd_percent: signed relative volume difference, positive where the result is too large.
        arvd_percent: its magnitude.
        hd_mm: Hausdorff distance.
        hd95_mm: larger one of the two directed 95th percentiles.
        abd_mm: average boundary distance.
        reference_ml: volume of the reference in the region.
        volume_ml: volume of the result in the region.
        nsd: normalised surface Dice, 0..1; nan where both are empty.
        tolerance_mm: of the NSD.
        reference_pieces, found_pieces, missed_pieces, false_pieces: of the whole structure, see
            :class:`oasis_monai.evaluation.instances.PieceCounts`; None in a region.
    """

    label: str
    region: Region
    status: Status
    dsc: float
    rvd_percent: float
    arvd_percent: float
    hd_mm: float
    hd95_mm: float
    abd_mm: float
    reference_ml: float
    volume_ml: float
    nsd: float
    tolerance_mm: float
    reference_pieces: int | None = None
    found_pieces: int | None = None
    missed_pieces: int | None = None
    false_pieces: int | None = None


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, one entry per surface voxel.

    Args:
        result_mm: (N_P,) float64, from each surface voxel of the result to the nearest one of the reference.
        reference_mm: (N_R,) float64, from each surface voxel of the reference to the nearest one of the result.
        result_slice: (N_P,) int64, index along the last axis of the voxel that each ``result_mm`` starts at.
        reference_slice: (N_R,) int64, likewise for ``reference_mm``.
    """

    result_mm: np.ndarray
    reference_mm: np.ndarray
    result_slice: np.ndarray
    reference_slice: np.ndarray

    def within(self, slices: slice) -> SurfaceDistances:
        """Those that start in ``slices``; they may end in any slice."""
        p = (self.result_slice >= slices.start) & (self.result_slice < slices.stop)
        r = (self.reference_slice >= slices.start) & (self.reference_slice < slices.stop)
        return SurfaceDistances(self.result_mm[p], self.reference_mm[r], self.result_slice[p], self.reference_slice[r])

    @property
    def hd_mm(self) -> float:
        """Hausdorff distance; neither side may be empty."""
        return float(max(self.result_mm.max(), self.reference_mm.max()))

    @property
    def hd95_mm(self) -> float:
        """Larger one of the two directed 95th percentiles; neither side may be empty."""
        return float(max(np.percentile(self.result_mm, 95), np.percentile(self.reference_mm, 95)))

    @property
    def abd_mm(self) -> float:
        """Mean over all points of both surfaces; neither side may be empty."""
        return float((self.result_mm.sum() + self.reference_mm.sum()) / (self.result_mm.size + self.reference_mm.size))

    def nsd(self, tolerance_mm: float) -> float:
        """Part of all points of both surfaces that lie within a tolerance; neither side may be empty."""
        within = [int((side <= tolerance_mm + _ROUNDING_MM).sum()) for side in (self.result_mm, self.reference_mm)]
        return sum(within) / (self.result_mm.size + self.reference_mm.size)


def score_case(
    result: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    class_names: Sequence[str],
    regions: Sequence[Region] = REGIONS,
    *,
    case: str = "",
    tolerance_mm: Mapping[str, float] | None = None,
    structures: Sequence[Sequence[int]] = (),
) -> list[Score]:
    """Score one segmentation against its reference, each class (or structure of several classes) in each region.

    Args:
        result: (x, y, z) integer class indices 0..C-1 (uint8 as a rule) in closest-RAS axis order: axis 2 runs from inferior
            (index 0, the prostate's apex) to superior (its base). The caller flips; nothing here can tell.
        reference: the same for the reference, on the same grid; 255 where nobody labelled it.
        spacing_mm: voxel size along the three axes in mm.
        class_names: names of the classes 1..C-1; background (0) is not scored.
        regions: which of ``whole``, ``apex``, ``mid``, ``base``, in the order of the rows. A subset gives the same numbers.
        case: the case's id, for error messages only.
        tolerance_mm: of the NSD, by name; of others :data:`.TOLERANCE_MM`.
        structures: where structures share voxels, the classes that each of ``class_names`` consists of; both arrays may then hold
            any class of these, and others count as background. Empty: ``class_names[i]`` is class i + 1.

    Returns:
        ``len(class_names) * len(regions)`` rows, classes outside, regions inside.

    Raises:
        DataError: an array is not 3D, not of integers or empty, the two differ in shape, a label has no name, or the spacing
            is not three positive numbers. All such faults are reported together.
        ConfigError: ``class_names`` is empty or has doubles; ``regions`` is empty, has doubles or unknown names.

    Examples:
        >>> import numpy as np
        >>> from oasis_monai import score_case
        >>> reference = np.zeros((64, 64, 20), dtype=np.uint8)
        >>> reference[20:40, 20:40, 5:15] = 1
        >>> result = np.roll(reference, 1, axis=0)  # one voxel off
        >>> (score,) = score_case(result, reference, (2.0, 2.0, 4.0), ["prostate"], regions=["whole"])
        >>> score.dsc, score.hd_mm, score.reference_ml
        (0.95, 2.0, 64.0)
    """
    _check_names(class_names, regions)
    result, reference, spacing = np.asarray(result), np.asarray(reference), np.asarray(spacing_mm, dtype=float)
    members = [tuple(own) for own in structures] or [(index,) for index in range(1, len(class_names) + 1)]
    classes = max(index for own in members for index in own) if structures else len(class_names)
    _check_case(result, reference, spacing, IGNORE - 1 if structures else classes, case)
    unknown = reference == IGNORE
    if unknown.any():
        result, reference = np.where(unknown, 0, result), np.where(unknown, 0, reference)

    diagonal = image_diagonal_mm(reference.shape, spacing_mm)
    ml_per_voxel = float(np.prod(spacing)) / 1000.0
    boxes = _class_boxes(result, reference, classes)
    rows = []
    for label, own in zip(class_names, members, strict=True):
        box = box_around(boxes[index - 1] for index in own) or boxes[own[0] - 1]
        p, r = (_within(labels[box], own) for labels in (result, reference))
        # Regions are sets of slices, so voxel counts per slice are all that overlap and volume need.
        in_p, in_r, in_both = (_per_slice(mask, box[2].start, reference.shape[2]) for mask in (p, r, p & r))
        both = in_p.any() and in_r.any()
        surfaces = surface_distances(p, r, spacing_mm, box[2].start, thick_axes(reference.shape)) if both else None
        bounds = region_slices(in_r if in_r.any() else in_p)
        tolerance = float((tolerance_mm or {}).get(label, TOLERANCE_MM))
        counted = count_pieces(p, r)
        for region in regions:
            part = bounds[region]
            n_p, n_r, n_both = (int(count[part].sum()) for count in (in_p, in_r, in_both))
            if surfaces is not None and n_p and n_r:
                status: Status = "ok"
                dsc, rvd = 2.0 * n_both / (n_p + n_r), 100.0 * (n_p / n_r - 1.0)
                near = surfaces.within(part)  # a slice with voxels has surface voxels, so neither side is empty
                distances, nsd = (near.hd_mm, near.hd95_mm, near.abd_mm), near.nsd(tolerance)
            elif n_r:
                status, dsc, rvd, distances = "miss", 0.0, -100.0, (diagonal, diagonal, diagonal)
                nsd = 0.0
            elif n_p:
                status, dsc, rvd, distances = "false_positive", 0.0, math.nan, (diagonal, diagonal, diagonal)
                nsd = 0.0
            else:
                status, dsc, rvd, distances = "absent", math.nan, math.nan, (math.nan, math.nan, math.nan)
                nsd = math.nan
            volumes = (n_r * ml_per_voxel, n_p * ml_per_voxel)
            pieces = (counted.reference, counted.found, counted.missed, counted.false) if region == "whole" else ()
            rows.append(Score(label, region, status, dsc, rvd, abs(rvd), *distances, *volumes, nsd, tolerance, *pieces))
    return rows


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the grid's diagonal in mm, outer edge to outer edge: more than any distance between two voxel centres of it, so
    a missed structure is always worse than a misplaced one."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing_mm, strict=True)))


def region_slices(voxels_per_slice: np.ndarray) -> dict[Region, slice]:
    """Divide the slices of a grid into apex, mid and base by the thirds of a structure's range.

    Args:
        voxels_per_slice: (z,) voxel counts of the structure, from inferior to superior; empty slices inside its range count as
            part of the range.

    Returns:
        For each region the slices it takes. ``apex``, ``mid`` and ``base`` are disjoint and together ``whole``, the grid.
        Apex and base may hold slices but no part of the structure when its range is a single slice.
    """
    slices = len(voxels_per_slice)
    filled = np.flatnonzero(voxels_per_slice)
    first, stop = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, slices)
    outer = (stop - first + 1) // 3
    low, high = first + outer, stop - outer
    return {"whole": slice(0, slices), "apex": slice(0, low), "mid": slice(low, high), "base": slice(high, slices)}


def thick_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an image has more than one voxel: along others it has no surface. All of a single voxel."""
    return tuple(axis for axis, n in enumerate(shape) if n > 1) or tuple(range(len(shape)))


def surface_distances(
    result: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    first_slice: int = 0,
    axes: Sequence[int] = (0, 1, 2),
) -> SurfaceDistances:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other, both ways.

    Args:
        result: (x, y, z) bool, not empty; what lies outside the array counts as background.
        reference: (x, y, z) bool, not empty.
        spacing_mm: voxel size along the three axes in mm.
        first_slice: index of the arrays' first slice in the whole grid, when they are a box cut out of it.
        axes: along which a voxel has neighbours, :func:`thick_axes` of the whole grid.
    """
    p, r = _surface(result, axes), _surface(reference, axes)
    at_p, at_r = np.argwhere(p), np.argwhere(r)
    if (len(at_p) + len(at_r)) * _VOXELS_PER_POINT < p.size:
        from scipy.spatial import KDTree

        spacing = np.asarray(spacing_mm, dtype=float)
        # Unbalanced trees of larger leaves: built for one batch of queries each, so building must be cheap.
        trees = [KDTree(at * spacing, leafsize=32, balanced_tree=False) for at in (at_p, at_r)]
        p_mm, r_mm = trees[1].query(at_p * spacing)[0], trees[0].query(at_r * spacing)[0]
    else:
        from scipy.ndimage import distance_transform_edt

        p_mm = distance_transform_edt(~r, sampling=tuple(spacing_mm))[p]
        r_mm = distance_transform_edt(~p, sampling=tuple(spacing_mm))[r]
    return SurfaceDistances(p_mm, r_mm, at_p[:, 2] + first_slice, at_r[:, 2] + first_slice)


def _surface(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The mask less its erosion by the neighbours along ``axes``, with background beyond the array."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in axes:
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)  # rolls round into the padding only
    return (padded & ~inner)[1:-1, 1:-1, 1:-1]


def _class_boxes(result: np.ndarray, reference: np.ndarray, classes: int) -> list[tuple[slice, slice, slice]]:
    """For each class the box round its voxels in either array, one pass per array; an empty box where there are none."""
    from scipy.ndimage import find_objects

    found = [find_objects(labels.astype(np.uint8, copy=False), max_label=classes) for labels in (result, reference)]
    boxes = []
    for pair in zip(*found, strict=True):
        there = [box for box in pair if box is not None]
        sides = [
            slice(min(box[axis].start for box in there), max(box[axis].stop for box in there)) if there else slice(0, 0)
            for axis in range(3)
        ]
        boxes.append((sides[0], sides[1], sides[2]))
    return boxes


def _within(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The voxels of any of these classes."""
    return np.asarray(labels == classes[0] if len(classes) == 1 else np.isin(labels, classes))


def _per_slice(mask: np.ndarray, first: int, slices: int) -> np.ndarray:
    """Voxels of a box's mask in each slice of the whole grid."""
    counts = np.zeros(slices, dtype=np.int64)
    counts[first : first + mask.shape[2]] = np.count_nonzero(mask, axis=(0, 1))
    return counts


def _highest(labels: np.ndarray, ignoring: bool) -> int:
    """The highest class index, of a reference beside the ignored voxels."""
    return int(labels.max(initial=0, where=labels != IGNORE) if ignoring else labels.max())


def _check_names(class_names: Sequence[str], regions: Sequence[str]) -> None:
    if isinstance(class_names, str) or not 0 < len(class_names) < IGNORE or len(set(class_names)) < len(class_names):
        raise ConfigError("class_names", "1 to 254 different names, of classes 1..C-1", class_names)
    if isinstance(regions, str) or not regions or len(set(regions)) < len(regions) or not set(regions) <= set(REGIONS):
        raise ConfigError("regions", f"one or several of {', '.join(REGIONS)}, each once", regions)


def _check_case(result: np.ndarray, reference: np.ndarray, spacing: np.ndarray, classes: int, case: str) -> None:
    faults = []
    for field, labels in (("result", result), ("reference", reference)):
        if labels.ndim != 3 or labels.size == 0 or labels.dtype.kind not in "uib":
            found = f"shape {labels.shape} of {labels.dtype}"
            remedy = "drop the channel axis and pass class indices, not probabilities or one-hot"
            faults.append(Fault(case, field, "an (x, y, z) array of integer class indices", found, remedy))
        elif labels.min() < 0 or (highest := _highest(labels, field == "reference")) > classes:
            found = f"values {labels.min()}..{highest if labels.min() >= 0 else labels.max()}"
            remedy = "name every class or renumber the labels"
            faults.append(Fault(case, field, f"class indices 0..{classes}", found, remedy))
    if result.shape != reference.shape:
        remedy = "bring the result back to the case's own grid before scoring"
        faults.append(Fault(case, "result", f"the reference's shape {reference.shape}", f"{result.shape}", remedy))
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        remedy = "take the spacing of the case's own grid"
        faults.append(Fault(case, "spacing_mm", "three positive numbers in mm", f"{spacing.tolist()}", remedy))
    if faults:
        raise DataError(faults)
