"""Boxes of a grid that is finer than the working one: laid where structures are small in a large field of view.

A box is a part of the working grid, given by whole working voxels. In it every working voxel is cut into ``box_factor`` parts.
So all boxes of a scan are parts of one common grid, and voxels of overlapping boxes coincide.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.transforms.fine import refined
from oasis_monai.transforms.intensity import windows_of
from oasis_monai.transforms.labels import structures
from oasis_monai.transforms.preprocessing import PreprocessCache, Preprocessing
from oasis_monai.transforms.spatial import resample_label, shifted_grid
from oasis_monai.transforms.views import UNCHANGED, View
from oasis_monai.utils.files import digest
from oasis_monai.utils.tensor_files import map_tensors, save_tensors

Box = tuple[slice, slice, slice]
"""Working voxels along x, y, z."""


class ScanPart(NamedTuple):
    """What a training scan shows round its structures, at the resolution of boxes.

    Args:
        image: (c, \\*B) float16.
        label: (1, \\*B) uint8 class indices.
        grid: where they lie.
        working: the working grid of the scan.
    """

    image: torch.Tensor
    label: torch.Tensor
    grid: Geometry
    working: Geometry


BOXES_VERSION = 2
"""Raise it with every change that alters a voxel of :func:`labelled_part`, or where it lies."""
PLACE_MM = 25.0
"""The unit of places: a kidney lies two or three of them from the middle."""
AROUND_MM = 40.0
"""So much of a training scan is kept round its structures. A box in use shows less."""


def box_grid(working: Geometry, box: Box, factor: Sequence[int]) -> Geometry:
    """The grid of a box: ``factor`` voxels along x, y, z for each working voxel in it.

    Examples:
        >>> import numpy as np
        >>> working = Geometry((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> grid = box_grid(working, (slice(1, 3), slice(0, 4), slice(2, 4)), (2, 2, 1))
        >>> grid.shape, grid.spacing_mm, grid.affine[:3, 3].tolist()
        ((4, 8, 2), (1.0, 1.0, 2.0), [1.5, -0.5, 4.0])
    """
    return refined(shifted_grid(working, [s.start for s in box], [s.stop - s.start for s in box]), factor)


def places_in_box(working: Geometry, grid: Geometry) -> torch.Tensor:
    """Where the voxels of a box lie along x, y, z: (3, \\*B) float32, in :data:`PLACE_MM` from the working grid's centre.

    A window shows too little to tell a left kidney from a right one.
    """
    return torch.stack(torch.meshgrid(*place_axes(working, grid), indexing="ij"))


def place_axes(working: Geometry, grid: Geometry) -> list[torch.Tensor]:
    """:func:`places_in_box` along each of the axes, which both grids share."""
    middle = np.linalg.solve(grid.affine, working.affine @ [*((np.array(working.shape) - 1) / 2), 1.0])[:3]
    sides = zip(grid.shape, middle, grid.spacing_mm, strict=True)
    return [torch.from_numpy(((np.arange(n) - centre) * mm / PLACE_MM).astype(np.float32)) for n, centre, mm in sides]


def covering_box(source: Geometry, corner: Sequence[int], shape: Sequence[int], target: Geometry, margin_mm: float = 0.0) -> Box:
    """The voxels of ``target`` that show the voxels ``corner`` to ``corner + shape`` of ``source``, with a margin.

    Cut where ``target`` ends; empty (``start == stop``) along an axis where it shows none of them.
    """
    low, high = np.array(corner, float) - 0.5, np.array(corner, float) + np.array(shape) - 0.5
    ends = np.array([[*where, 1.0] for where in itertools.product(*zip(low, high, strict=True))])
    places = np.linalg.solve(target.affine, source.affine @ ends.T)[:3]
    more = margin_mm / np.array(target.spacing_mm)
    # an edge on an edge stays there, whatever the last bits say
    first = np.floor(places.min(1) - more + 0.5 + 1e-6).astype(int)
    last = np.ceil(places.max(1) + more + 0.5 - 1e-6).astype(int)
    x, y, z = (
        slice(min(max(a, 0), n), min(max(b, 0, a), n))
        for a, b, n in zip(first.tolist(), last.tolist(), target.shape, strict=True)
    )
    return x, y, z


def images_in_boxes(
    preprocessing: Preprocessing, volume: Volume, boxes: Sequence[Box], moved: Sequence[int] = (0, 0, 0), view: View = UNCHANGED
) -> list[torch.Tensor]:
    """A scan in boxes of its working grid, normalised as on it: (c, \\*B) float16 each.

    Where windows alone normalise (CT), only the boxes are resampled. Other intensities, and those of views, depend on the whole
    field of view, which is then made once at the boxes' resolution.

    Args:
        moved, view: see :meth:`.Preprocessing.working_geometry`.
    """
    factor = preprocessing.box_factor
    if factor is None:
        raise ValueError("boxes need preprocessing.box_factor")
    working = preprocessing.working_geometry(volume.geometry, moved, view)
    usual = preprocessing.working_geometry(volume.geometry).spacing_mm if view else working.spacing_mm
    spacing_mm = [mm / f for mm, f in zip(usual, factor, strict=True)]
    bare = replace(volume, label=None)
    by_windows = preprocessing.intensity == "window" and None not in windows_of(preprocessing.window, len(volume.image))
    if (by_windows and not view.intensities) or not boxes:
        return [preprocessing.on_grid(box_grid(working, box, factor), bare, view, spacing_mm).image.half() for box in boxes]
    whole = preprocessing.on_grid(refined(working, factor), bare, view, spacing_mm).image.half()
    parts = [tuple(slice(s.start * f, s.stop * f) for s, f in zip(box, factor, strict=True)) for box in boxes]
    return [whole[(slice(None), *part)].clone() for part in parts]


def labelled_box(volume: Volume, working: Geometry, margin_mm: float) -> Box | None:
    """The box of all structures of a label, with a margin; None where the working grid shows none."""
    if volume.label is None or not (there := structures(volume.label[0])).any():
        return None
    bounds = [there.flatten(1).any(1), there.transpose(0, 1).flatten(1).any(1), there.flatten(0, 1).any(0)]
    hits = [along.nonzero()[:, 0] for along in bounds]
    corner, shape = [int(hit[0]) for hit in hits], [int(hit[-1] - hit[0]) + 1 for hit in hits]
    box = covering_box(volume.geometry, corner, shape, working, margin_mm)
    return None if any(s.start == s.stop for s in box) else box


def labelled_part(store: PreprocessCache, case: Case) -> ScanPart | None:
    """The part of a training scan that box networks learn from, mapped from the cache where there is one; None where there is no
    structure.

    Raises:
        DataError: the files cannot be used.
    """
    _, key = store.keys(case) if store.folder is not None else (None, None)
    path = None
    if key is not None and store.folder is not None:
        known = {**key, "box_factor": store.preprocessing.box_factor, "boxes": BOXES_VERSION, "around_mm": AROUND_MM}
        path = store.folder / f"{digest(known, 40)}.box"
        with contextlib.suppress(OSError, ValueError):
            return _held(path)
    made = _made(store, case)
    if path is None or made is None:
        return made
    grids = {f"{name}_affine": torch.as_tensor(grid.affine) for name, grid in (("box", made.grid), ("working", made.working))}
    shape = torch.tensor(made.working.shape)
    save_tensors(path, {"image": made.image, "label": made.label, "working_shape": shape, **grids})
    return _held(path)


def _made(store: PreprocessCache, case: Case) -> ScanPart | None:
    volume, preprocessing = read_volume(case, store.label_values, store.ignore), store.preprocessing
    assert preprocessing.box_factor is not None
    working = preprocessing.working_geometry(volume.geometry)
    box = labelled_box(volume, working, AROUND_MM)
    if box is None or volume.label is None:
        return None
    (image,) = images_in_boxes(preprocessing, volume, [box])
    grid = box_grid(working, box, preprocessing.box_factor)
    return ScanPart(image, resample_label(volume.label, volume.geometry, grid), grid, working)


def _held(path: Path) -> ScanPart:
    tensors, _ = map_tensors(path)
    (x, y, z), (i, j, k) = tensors["image"].shape[1:], (int(n) for n in tensors["working_shape"].tolist())
    grid, working = Geometry((x, y, z), tensors["box_affine"].numpy()), Geometry((i, j, k), tensors["working_affine"].numpy())
    return ScanPart(tensors["image"], tensors["label"], grid, working)
