"""DICOM SEG: segments of an image, one frame for each slice and segment, put on the image's grid by their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oasis_monai.data.formats.dicom_file import SEGMENTATIONS, STORAGE, parsing, read_dataset, unreadable, word
from oasis_monai.data.formats.dicom_frames import MACROS, numbers, value_in
from oasis_monai.data.formats.dicom_structures import Painted, unique_names, wanted_numbers
from oasis_monai.data.formats.header import OTHER_VOXELS, SAME_VOXELS, Faults, check_shape, flip_lps_ras, shown
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

HALF = 0.5
"""Fraction from which a voxel belongs to a segment."""
AFRESH = "export the segmentation again, on the image's grid"


def seg_names(path: Path) -> dict[str, int]:
    """SegmentLabel -> SegmentNumber, in the order of the numbers.

    Raises:
        DataError: the file is damaged.
    """
    return _names(path, read_dataset(path))


def _names(path: Path, data: Dataset) -> dict[str, int]:
    with parsing(path, "segments"):
        found = sorted((int(s.SegmentNumber), str(s.get("SegmentLabel") or "")) for s in data.SegmentSequence)
    found = [(number, name) for number, name in found if number > 0]  # number 0 of a label map is its background
    if len(dict(found)) < len(found):
        raise unreadable(path, "segments with one SegmentNumber")
    return unique_names(found)


def read_seg(
    path: Path, geometry: Geometry, wanted: Mapping[str, int] | None = None, overlapping: bool = False
) -> tuple[np.ndarray, tuple[Fault, ...]]:
    """Put the segments of a DICOM SEG on an image's grid.

    A frame lies where its position says; where there is no frame there is background. Fractions count from :data:`HALF`.

    Args:
        path: the file.
        geometry: of the image.
        wanted: SegmentLabel -> value in the label; None for all, with their SegmentNumbers.
        overlapping: structures may share voxels, see :class:`.Painted`.

    Returns:
        (x, y, z) int64, and what there is to tell.

    Raises:
        DataError: damaged, on another grid than the image, or with segments that overlap.
    """
    data = read_dataset(path, pixels=True)
    chosen = wanted_numbers(path, _names(path, data), wanted)
    painted = Painted(path, geometry.shape, overlapping)
    faults = Faults(path)
    if not check_shape(faults, "Columns, Rows", (int(data.get("Columns") or 0), int(data.get("Rows") or 0), 1)):
        faults.raise_if_any()
    kind = word(data, "SegmentationType").upper() or "BINARY"
    if word(data, "SOPClassUID").removeprefix(STORAGE) == SEGMENTATIONS[1]:
        kind = "LABELMAP"
    full = _fraction(data) if kind == "FRACTIONAL" else 1.0
    laid = _Laid(path, geometry)
    with parsing(path, "frames"):
        shared = list(data.get("SharedFunctionalGroupsSequence") or [])
        groups = [[group, *shared] for group in data.PerFrameFunctionalGroupsSequence]
        for own, frame in zip(groups, _frames(data, len(groups)), strict=True):
            if kind == "LABELMAP":
                parts = [(number, frame == number) for number in chosen]
            else:
                number = int(value_in(own, "ReferencedSegmentNumber", "SegmentIdentificationSequence"))
                parts = [(number, frame >= HALF * full if kind == "FRACTIONAL" else frame > 0)] if number in chosen else []
            for number, inside in parts:
                if inside.any():
                    painted.paint(*chosen[number], laid.voxels(own, inside, number))
    if kind == "FRACTIONAL":
        painted.note("SegmentationType", "BINARY", "FRACTIONAL", f"voxels from {HALF:g} of the largest value on are taken")
    if laid.aside > SAME_VOXELS:
        remedy = "every voxel goes to the nearest one of the image; correct the label"
        painted.note("label geometry", "the image's grid", f"frames up to {laid.aside:.2g} voxels aside", remedy)
    return painted.done()


def _fraction(data: Dataset) -> float:
    return float(data.get("MaximumFractionalValue") or 255)


def _frames(data: Dataset, count: int) -> Any:
    """(rows, columns) arrays, one at a time."""
    from pydicom.pixels.utils import iter_pixels, pixel_array

    if int(data.get("NumberOfFrames") or 1) != count:
        raise ValueError(f"{data.get('NumberOfFrames')} frames with {count} functional groups")
    if int(data.BitsAllocated) == 1 and int(data.Rows) * int(data.Columns) % 8:
        return iter(pixel_array(data).reshape(count, data.Rows, data.Columns))  # pydicom iterates over whole bytes alone
    return iter_pixels(data)


class _Laid:
    """Frames of one file on an image's grid; ``aside``: how far they lie from its voxels, at most, in voxels."""

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self.path, self.shape = path, geometry.shape
        self.to_voxels = np.linalg.inv(np.asarray(geometry.affine, float))
        self.aside = 0.0
        self.taken: dict[tuple[int, ...], np.ndarray] = {}

    def voxels(self, groups: Sequence[Dataset], inside: np.ndarray, segment: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxels of the image (three index arrays) that are set in a frame, (rows, columns) of bool."""
        step = self._step(groups)
        whole = np.rint(step)
        ends = np.array([(i, j, 1) for i in (0, inside.shape[1] - 1) for j in (0, inside.shape[0] - 1)], float).T
        aside = float(np.abs((step - whole) @ ends).max())
        axes = np.abs(whole[:, :2])
        if aside >= OTHER_VOXELS or not (axes.sum(0) == 1).all() or axes.sum(1).max() > 1:
            self._fail(f"frames {aside:.3g} voxels aside, or with other pixels")
        self.aside = max(self.aside, aside)
        key = (segment, *(int(v) for v in whole[:, 2]))
        if np.abs(self.taken.setdefault(key, step[:, 2]) - step[:, 2]).max() > SAME_VOXELS:
            self._fail("several frames for one slice of the image")
        rows, columns = np.nonzero(inside)
        found = (whole @ np.stack([columns, rows, np.ones_like(rows)])).astype(np.int64)
        if (found < 0).any() or (found >= np.array(self.shape)[:, None]).any():
            self._fail("voxels outside it")
        return found[0], found[1], found[2]

    def _step(self, groups: Sequence[Dataset]) -> np.ndarray:
        """(3, 3): column, row, 1 -> voxel index of the image."""
        place, turn, pixels = (numbers(value_in(groups, name, macro)) for name, macro in MACROS.items())
        if (place.size, turn.size, pixels.size) != (3, 6, 2):
            raise ValueError("without position, orientation or pixel spacing")
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 3] = turn[:3] * pixels[1], turn[3:] * pixels[0], place
        return np.asarray((self.to_voxels @ flip_lps_ras(affine))[:3, [0, 1, 3]])

    def _fail(self, found: str) -> None:
        raise DataError(Fault(shown(self.path.name, 120), "label geometry", "the image's grid", found, AFRESH))
