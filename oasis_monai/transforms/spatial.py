"""Voxel grids: resample, crop, pad and restore images and labels between grids.

Pure functions behind :mod:`.preprocessing` and :mod:`.array`. Voxel centres are at whole numbers, so there is no half-voxel shift
between grids. Where the axes of two grids are parallel, as those of a scan and its working grid always are, linear interpolation
is done axis by axis; else by MONAI's ``SpatialResample``.

Working axes are the scan's own axes, permuted and flipped to the closest of right, anterior, superior. They are **not** the
world's axes: a slice of an oblique scan stays a slice. For coronal and sagittal slices they are in another order
(:data:`SLICE_AXES`), so that slices always follow each other along the last one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from oasis_monai.data.types import Geometry
from oasis_monai.transforms.labels import MANY, decide_streamed, decide_within, least_to_win
from oasis_monai.utils.interpolation import along_axis

SLICE_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""The working axes x, y, z as axes of (right, anterior, superior), by how the slices lie; z is across the slices."""
SAME_SPACING = 1e-3  # spacings this close (relative) count as equal: headers carry rounded numbers
TRUNCATED = 4.0  # standard deviations at which the anti-alias Gaussian ends
UNSMOOTHED = 0.05  # a Gaussian narrower than this, in voxels, is the identity
EDGE = 1e-6  # voxels; a position this close to a voxel's centre or edge counts as on it
ASIDE = 1e-3  # voxels; axes that deviate by no more than this over the whole grid count as parallel
SLAB_VALUES = 2**24  # values of one native slab that `restore` may hold: 64 MiB of float32


def closest_ras(native: Geometry) -> Geometry:
    """The same voxels with the axes permuted and flipped to the closest of right, anterior, superior."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    orientation = io_orientation(native.affine)
    axes = np.argsort(orientation[:, 0])  # native axis that becomes x, y, z
    x, y, z = (native.shape[a] for a in axes)
    return Geometry((x, y, z), np.asarray(native.affine, float) @ inv_ornt_aff(orientation, native.shape))


def working_axes(native: Geometry, slice_axis: str = "axial") -> Geometry:
    """The same voxels on the working axes: :func:`closest_ras`, in the order of :data:`SLICE_AXES`."""
    own, axes = closest_ras(native), SLICE_AXES[slice_axis]
    x, y, z = (own.shape[a] for a in axes)
    return Geometry((x, y, z), own.affine[:, [*axes, 3]])


def centred(
    native: Geometry, spacing_mm: Sequence[float | None], size: Sequence[int | None], slice_axis: str = "axial"
) -> Geometry:
    """The grid of ``size`` voxels of ``spacing_mm`` on the working axes of ``native``, both sharing one centre.

    Args:
        native: grid of the scan.
        spacing_mm: voxel size along the working axes x, y, z in mm; None keeps the scan's own along that axis.
        size: voxels along x, y, z; None keeps the scan's own number.
        slice_axis: of :data:`SLICE_AXES`.
    """
    own = working_axes(native, slice_axis)
    shape = np.array([n if n is not None else s for n, s in zip(size, own.shape, strict=True)])
    step = np.array([mm if mm is not None else s for mm, s in zip(spacing_mm, own.spacing_mm, strict=True)])
    linear = own.affine[:3, :3] / own.spacing_mm * step
    middle = (np.array(own.shape) - 1) / 2
    # Same spacing, odd against even number of voxels: the exact centre would put every voxel midway between two of the scan's,
    # blur the image and turn the label's ends into ties. Half a voxel aside it is a plain crop or pad (MONAI's
    # ResizeWithPadOrCrop).
    same = np.abs(step / own.spacing_mm - 1) < SAME_SPACING
    middle += np.where(same & ((shape - own.shape) % 2 == 1), np.sign(shape - own.shape) * 0.5, 0)
    centre = own.affine[:3, :3] @ middle + own.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, centre - linear @ ((shape - 1) / 2)
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resized(native: Geometry, size: Sequence[int | None], slice_axis: str = "axial") -> Geometry:
    """The grid of ``size`` voxels over exactly the field of view of ``native`` (its outer edges, not its outer voxel
    centres: half-pixel convention), on its working axes; None keeps the number of voxels along that axis."""
    own = working_axes(native, slice_axis)
    spacing = [s if n is None else s * m / n for s, m, n in zip(own.spacing_mm, own.shape, size, strict=True)]
    return centred(native, spacing, size, slice_axis)


def resample(values: torch.Tensor, source: Geometry, target: Geometry, anti_alias: bool = True) -> torch.Tensor:
    """Linear resampling; beyond the outermost voxel centres the nearest value continues (see :func:`inside`).

    Args:
        values: (C, \\*source.shape), any real dtype.
        source: grid of ``values``.
        target: grid wanted, anywhere in the same space.
        anti_alias: smooth along the axes that get coarser by a factor f > 1 with a Gaussian of (f - 1) / 2 source voxels
            (the width scikit-image and MONAI's ``Resize`` take), normalised so that edges keep their brightness.

    Returns:
        (C, \\*target.shape) float32, on the device of ``values``.
    """
    values = as_plain_tensor(values).float()
    _check_shape("values", values, source)
    sigma = _sigma(source, target) if anti_alias else [0.0, 0.0, 0.0]
    values, source = _seen(values, source, target, [math.ceil(TRUNCATED * width) for width in sigma])
    places = _along_axes(source, target)
    if places is None:
        return _by_monai(_smoothed(values, sigma), source, target, "bilinear", "border")
    values = values.permute(0, *(1 + axis for axis, _ in places))
    growth = [len(place) / n for (_, place), n in zip(places, values.shape[1:], strict=True)]
    for axis in sorted(range(3), key=growth.__getitem__):  # what gets smaller first
        along, place = places[axis]
        values = _interpolated(values, axis + 1, place, sigma[along])
    return values.contiguous()


def inside(source: Geometry, target: Geometry, device: torch.device | str = "cpu") -> torch.Tensor:
    """(\\*target.shape) bool: voxels of ``target`` whose centre lies in the field of view of ``source`` (edges of its outer
    voxels included)."""
    along = _inside_along(source, target, device)
    if along is None:
        return _by_monai(torch.ones(1, *source.shape, device=device), source, target, "nearest", "zeros")[0] > 0.5
    x, y, z = along
    return x[:, None, None] & y[:, None] & z


def resample_label(label: torch.Tensor, source: Geometry, target: Geometry) -> torch.Tensor:
    """Class indices on another grid: each class's map is resampled linearly, then the classes are compared.

    No class is held that is not in the label, one class is worked on at a time (only its bounding box), and voxels outside
    the source's field of view are background.

    Args:
        label: (1, \\*source.shape) class indices 0..255, 0 = background.

    Returns:
        (1, \\*target.shape) uint8.
    """
    label = as_plain_tensor(label)
    _check_shape("label", label, source)

    def maps() -> Iterator[tuple[int, torch.Tensor]]:
        for index in _present(label):
            if index:
                corner, box = _bounding_box(label[0] == index)
                yield int(index), resample(box[None], shifted_grid(source, corner, box.shape), target, anti_alias=False)[0]

    start = torch.zeros(target.shape, device=label.device)
    return (decide_streamed(maps(), start) * inside(source, target, label.device))[None]


def _present(label: torch.Tensor) -> list[int]:
    """Its class indices; counting bytes takes a tenth of the time and memory that sorting them does."""
    return (
        torch.bincount(label.flatten()).nonzero()[:, 0].tolist() if label.dtype == torch.uint8 else torch.unique(label).tolist()
    )


def restore(
    probability: torch.Tensor, working: Geometry, native: Geometry, keep_probability: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A probability map back on the grid of the scan: foreground maps resampled linearly, background = 1 - their sum
    (1 outside the working field of view), then :func:`.decide`. Thresholding after resampling keeps the volume; resampling
    the thresholded label with nearest neighbours changes it by several percent.

    Works slab by slab along the last native axis, so that no C maps of the native size are ever held, unless asked for.

    Args:
        probability: (C, \\*working.shape) float, C >= 2; channel 0 is not read.
        keep_probability: give the map on the native grid too.

    Returns:
        label (\\*native.shape) uint8 and probability (C, \\*native.shape) float32, or None.

    Raises:
        ValueError: fewer than two classes, or another shape than ``working``'s.
    """
    return restore_all([probability], working, native, keep_probability)[0]


def restore_all(
    probabilities: Sequence[torch.Tensor], working: Geometry, native: Geometry, keep_probability: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """:func:`restore` of several maps of one scan, all of one number of classes: what depends on the grids is worked out once."""
    for probability in probabilities:
        _check_shape("probability", probability, working)
        if len(probability) < 2:
            raise ValueError(f"probability: expected 2 or more classes, background first, found {len(probability)}")
    foreground = [as_plain_tensor(probability)[1:].float() for probability in probabilities]
    classes, device = len(foreground[0]), foreground[0].device
    labels = [torch.zeros(native.shape, dtype=torch.uint8, device=device) for _ in probabilities]
    kept = [torch.zeros(classes + 1, *native.shape, device=device) for _ in probabilities] if keep_probability else None
    for background in kept or ():
        background[0] = 1
    results = [(label, None if kept is None else kept[number]) for number, label in enumerate(labels)]
    some = torch.zeros(working.shape, dtype=torch.bool, device=device)
    for one in itertools.chain(*foreground):  # class by class: all at once would be as many bytes as values
        some |= one > 0
    if not bool(some.any()):
        return results
    corner, some = _bounding_box(some)  # nothing lies beyond it; the box of a vote of atlases is a tenth of the working grid
    x, y, z = (slice(c, c + n) for c, n in zip(corner, some.shape, strict=True))
    foreground, working = [maps[:, x, y, z] for maps in foreground], shifted_grid(working, corner, some.shape)
    few = kept is not None or classes + 1 <= MANY
    boxes = [] if few else [_boxes(maps, least_to_win(classes + 1)) for maps in foreground]
    totals = [] if few else [maps.sum(0) for maps in foreground]
    together = torch.cat(foreground) if few else torch.empty(0)
    at_once = len(together) if few else 1
    thick = max(1, SLAB_VALUES // max(1, (at_once + 3) * native.shape[0] * native.shape[1]))
    for first in range(0, native.shape[2], thick):
        last = min(first + thick, native.shape[2])
        slab = shifted_grid(native, (0, 0, first), (native.shape[0], native.shape[1], last - first))
        box = _box_inside(working, slab, device)
        if box is None:
            continue
        corner, seen = box  # for many scans the working field of view is a quarter of the slab
        part = shifted_grid(slab, corner, seen.shape)
        x, y, z = (slice(c + add, c + add + n) for c, add, n in zip(corner, (0, 0, first), seen.shape, strict=True))
        if boxes:
            for number, maps in enumerate(foreground):
                labels[number][x, y, z] = _decided_in_boxes(maps, totals[number], boxes[number], working, part) * seen
            continue
        every = resample(together, working, part, anti_alias=False) * seen
        for number, maps in enumerate(every.split(classes)):
            labels[number][x, y, z] = decide_streamed(enumerate(maps, 1), torch.zeros_like(maps[0]))
            if kept is not None:
                kept[number][1:, x, y, z] = maps
                kept[number][0, x, y, z] = (1 - maps.sum(0)).clamp(min=0)
    return results


def _boxes(maps: torch.Tensor, least: float) -> list[tuple[slice, ...] | None]:
    """For each of (C, \\*S) maps the box of what has ``least`` or more, a voxel wider: beyond it no interpolated value has it."""
    found: list[tuple[slice, ...] | None] = []
    for values in maps:
        there = values >= least
        if not bool(there.any()):
            found.append(None)
            continue
        corner, box = _bounding_box(there)
        found.append(tuple(slice(c, c + n) for c, n in zip(corner, box.shape, strict=True)))
    return found


def _decided_in_boxes(
    maps: torch.Tensor,
    total: torch.Tensor,
    boxes: Sequence[tuple[slice, ...] | None],
    working: Geometry,
    target: Geometry,
) -> torch.Tensor:
    """:func:`.decide` of foreground maps (C, \\*working.shape) and their ``total`` resampled to ``target``, each map only in its
    box."""

    def seen() -> Iterator[tuple[int, torch.Tensor, tuple[slice, ...]]]:
        for index, (values, box) in enumerate(zip(maps, boxes, strict=True), 1):
            if box is None:
                continue
            source = shifted_grid(working, [side.start for side in box], values[box].shape)
            place = _box_inside(source, target, maps.device)
            if place is not None:
                corner, within = place
                part = resample(values[box][None], source, shifted_grid(target, corner, within.shape), anti_alias=False)[0]
                yield index, part, tuple(slice(c, c + n) for c, n in zip(corner, within.shape, strict=True))

    return decide_within(seen(), resample(total[None], working, target, anti_alias=False)[0])


def as_plain_tensor(values: torch.Tensor) -> torch.Tensor:
    """Strip MONAI's metadata from a tensor."""
    strip: Callable[[], torch.Tensor] | None = getattr(values, "as_tensor", None)
    return values if strip is None else strip()


def _check_shape(name: str, values: torch.Tensor, grid: Geometry) -> None:
    if tuple(values.shape[1:]) != tuple(grid.shape):
        raise ValueError(f"{name}: expected shape (C, {', '.join(map(str, grid.shape))}), found {tuple(values.shape)}")


def _along_axes(source: Geometry, target: Geometry) -> list[tuple[int, np.ndarray]] | None:
    """For each axis of ``target`` the axis of ``source`` it runs along, and where its voxel centres lie there, in voxels; None
    where some axis runs along none."""
    step = np.linalg.solve(source.affine, target.affine)
    linear = step[:3, :3]
    axes = np.abs(linear).argmax(0)
    aside = linear.copy()
    aside[axes, range(3)] = 0
    if len(set(axes)) < 3 or (np.abs(aside) @ target.shape).max() > ASIDE:
        return None
    places = (linear[axis, t] * np.arange(n) + step[axis, 3] for t, (axis, n) in enumerate(zip(axes, target.shape, strict=True)))
    return [(int(axis), place) for axis, place in zip(axes, places, strict=True)]


def _interpolated(values: torch.Tensor, axis: int, place: np.ndarray, sigma: float) -> torch.Tensor:
    """``values`` at the voxels ``place`` of one axis; the outermost ones continue. Where nothing is smoothed a voxel's value
    depends on its two neighbours alone, to the last bit: a slab of a scan is what it is in the whole."""
    whole = np.round(place)
    place = np.where(np.abs(place - whole) < EDGE, whole, place).clip(0, values.shape[axis] - 1)
    low = np.floor(place).astype(np.int64)
    below, above = (torch.from_numpy(np.minimum(i, values.shape[axis] - 1)).to(values.device) for i in (low, low + 1))
    weight = torch.from_numpy((place - low).astype(np.float32)).to(values.device)
    if sigma >= UNSMOOTHED:  # one product smooths and interpolates: no value is made that nobody asked for
        band = _smoothing(values.shape[axis], sigma).to(values.device)
        return along_axis(torch.lerp(band[below], band[above], weight[:, None]), values, axis)
    near = values.index_select(axis, below)
    if not bool(weight.any()):
        return near
    return torch.lerp(near, values.index_select(axis, above), weight.view(-1, *[1] * (values.ndim - 1 - axis)))


def _by_monai(values: torch.Tensor, source: Geometry, target: Geometry, mode: str, padding: str) -> torch.Tensor:
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample

    # In source voxels, not mm: MONAI leaves an image as it is where two affines agree to 1e-3 in whatever unit they come.
    step = torch.as_tensor(np.linalg.solve(source.affine, target.affine), dtype=torch.float64)
    resampler = SpatialResample(mode=mode, padding_mode=padding, align_corners=False, dtype=np.float32)
    moved = resampler(MetaTensor(values, affine=torch.eye(4)), dst_affine=step, spatial_size=target.shape)
    return as_plain_tensor(moved)


def _sigma(source: Geometry, target: Geometry) -> list[float]:
    """Gaussian width in source voxels along each source axis."""
    step = np.linalg.solve(source.affine, target.affine)[:3, :3]
    factors = np.linalg.norm(step, axis=1)
    return [max(0.0, float(f) - 1) / 2 for f in factors]


def _seen(values: torch.Tensor, source: Geometry, target: Geometry, margin: Sequence[int]) -> tuple[torch.Tensor, Geometry]:
    """The part of (C, \\*source.shape) that resampling to ``target`` looks at, with ``margin`` voxels round it, and its grid.
    Where the scan is cut, what continues beyond its edge is never looked at."""
    ends = np.array(
        [[0 if low else n - 1 for low, n in zip(corner, target.shape, strict=True)] for corner in np.ndindex(2, 2, 2)]
    )
    ends = np.linalg.solve(source.affine, target.affine @ np.c_[ends, np.ones(8)].T)[:3]
    slices = []
    for low, high, more, n in zip(ends.min(1), ends.max(1), margin, source.shape, strict=True):
        start = min(max(math.floor(low) - more - 1, 0), n - 1)
        slices.append(slice(start, max(min(math.ceil(high) + more + 2, n), start + 1)))
    part = values[(slice(None), *slices)]
    return part, shifted_grid(source, [s.start for s in slices], part.shape[1:])


def _smoothed(values: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """MONAI's ``GaussianSmooth`` as one small matrix product per axis, in a quarter of the time, with weights that sum to 1 at
    the edges too (there zeros are taken in, and edges get darker)."""
    for axis, width in enumerate(sigma, 1):
        if width >= UNSMOOTHED:
            values = along_axis(_smoothing(values.shape[axis], width).to(values.device), values, axis)
    return values


def _smoothing(n: int, sigma: float) -> torch.Tensor:
    """(n, n) what smooths an axis of n voxels: in each row a Gaussian of ``sigma`` voxels round the diagonal, of sum 1."""
    from monai.networks.layers.convutils import gaussian_1d

    kernel = gaussian_1d(torch.tensor(sigma), TRUNCATED)
    radius = len(kernel) // 2
    away = torch.arange(n)[:, None] - torch.arange(n)
    band = torch.where(away.abs() <= radius, kernel[(away + radius).clamp(0, 2 * radius)], 0.0)
    return band / band.sum(1, keepdim=True)


def shifted_grid(grid: Geometry, corner: Sequence[int], shape: Sequence[int]) -> Geometry:
    """The part of ``grid`` that starts at voxel ``corner``."""
    affine = np.array(grid.affine, float)
    affine[:3, 3] += affine[:3, :3] @ np.asarray(corner, float)
    x, y, z = (int(s) for s in shape)
    return Geometry((x, y, z), affine)


def _inside_along(source: Geometry, target: Geometry, device: torch.device | str) -> list[torch.Tensor] | None:
    """:func:`inside` along each axis of ``target`` (n,) bool, where their product is all there is to it; None where axes turn."""
    places = _along_axes(source, target)
    if places is None:
        return None
    ends = (source.shape[axis] - 0.5 + EDGE for axis, _ in places)
    return [torch.from_numpy((p >= -0.5 - EDGE) & (p <= end)).to(device) for (_, p), end in zip(places, ends, strict=True)]


def _box_inside(source: Geometry, target: Geometry, device: torch.device | str) -> tuple[tuple[int, ...], torch.Tensor] | None:
    """:func:`_bounding_box` of :func:`inside`; None where nothing is. Where axes do not turn, without a look at every voxel."""
    along = _inside_along(source, target, device)
    if along is None:
        seen = inside(source, target, device)
        return _bounding_box(seen) if bool(seen.any()) else None
    if not all(bool(axis.any()) for axis in along):
        return None
    corners, (x, y, z) = zip(*map(_bounding_box, along), strict=True)
    return tuple(c[0] for c in corners), x[:, None, None] & y[:, None] & z


def _bounding_box(mask: torch.Tensor) -> tuple[tuple[int, ...], torch.Tensor]:
    """Corner and content of the box round a non-empty mask, one voxel wider where the grid goes on: the border is 0 there."""
    bounds = []
    for axis in range(mask.ndim):
        shadow = mask.view(torch.uint8)
        for other in reversed(range(mask.ndim)):  # one by one, as bytes: torch looks for any of several axes voxel by voxel
            shadow = shadow if other == axis else shadow.amax(other, keepdim=True)
        hit = shadow.flatten().nonzero()
        bounds.append(slice(max(0, int(hit[0]) - 1), min(mask.shape[axis], int(hit[-1]) + 2)))
    return tuple(b.start for b in bounds), mask[tuple(bounds)]
