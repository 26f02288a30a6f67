"""Put the voxels of a label or a further channel on the grid of a case's image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from oasis_monai.data.formats.header import OTHER_VOXELS, SAME_VOXELS, geometry_difference, match_grids
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import Fault

LABEL = -1
"""The label among the files of a case, see :meth:`.Case.place`."""


def on_image_grid(
    case: str, what: str, kind: str, values: np.ndarray, grid: Geometry, image: Geometry
) -> tuple[np.ndarray | None, list[Fault]]:
    """The voxels (C, x, y, z) of a label or further channel in the order of the image's, and what there is to tell; None where
    they lie elsewhere."""
    match = match_grids(image, grid)
    if match is None or match.distance.voxels >= OTHER_VOXELS:
        found = geometry_difference(image, grid) or ""
        if match is not None:
            found += f": up to {match.distance.voxels:.3g} voxels"
        whose = "the image's grid" if kind == "label" else "the first image's grid"
        copied = "the image's geometry" if kind == "label" else "the first one's geometry"
        remedy = f"resample the {kind} to {whose}, or copy {copied} if it is the true one"
        return None, [Fault(case, what, whose, found, remedy)]
    turned = np.stack([turn(channel, match.axes, match.flips) for channel in values])
    if match.distance.voxels <= SAME_VOXELS:
        return turned, []
    found = f"{match.distance}, {match.distance.voxels:.2g} voxels"
    remedy = f"the image's grid is used; copy its geometry into the {kind}, or correct the {kind}"
    return turned, [Fault(case, what, "the image's grid", found, remedy, "warning")]


def named(case: Case, faults: Iterable[Fault], source: int = 0) -> list[Fault]:
    """Turn the faults of a file into faults of a case; the file's name moves into the field.

    Args:
        case: whose file it is.
        faults: those of the file.
        source: which of its files, see :meth:`.Case.place`.
    """
    return [dataclasses.replace(f, case=case.id, field=case.place(f"{f.case} {f.field}", source)) for f in faults]


def turn(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """A view with its axes in another order, then some of them reversed."""
    return array.transpose(axes)[tuple(slice(None, None, -1 if f else None) for f in flips)]
