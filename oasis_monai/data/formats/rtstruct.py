"""RTSTRUCT: contours of structures in planes, drawn as voxels on an image's grid."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oasis_monai.data.formats.contours import fill_even_odd
from oasis_monai.data.formats.dicom_file import CONTOURS, is_of_class, parsing, read_dataset
from oasis_monai.data.formats.dicom_structures import Painted, unique_names, wanted_numbers
from oasis_monai.data.formats.header import shown
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
LEVEL = 0.25
"""How far the points of a contour may leave its plane, in slices."""
ASIDE = 0.1
"""How far a contour may lie from the middle of its slice without a word, in slices."""


@dataclass(frozen=True)
class Roi:
    """One structure: ``rings``: (n, 3) LPS mm of each closed contour; ``others``: what else is drawn of it, by kind."""

    number: int
    name: str
    rings: Sequence[np.ndarray]
    others: Counter[str]


def is_rtstruct(path: Path) -> bool:
    """Whether a file is an RTSTRUCT."""
    return is_of_class(path, *CONTOURS)


def rtstruct_names(path: Path) -> dict[str, int]:
    """ROIName -> 1, 2, ..., in the order of the ROINumbers (which may be 0, or large). What has no closed contour does not count.

    Raises:
        DataError: the file is damaged.
    """
    return _names(_read(path))


def _names(rois: Sequence[Roi]) -> dict[str, int]:
    drawn = [roi for roi in rois if roi.rings]
    return unique_names([(number, roi.name) for number, roi in enumerate(drawn, 1)])


def _read(path: Path) -> list[Roi]:
    """All structures in the order of their numbers."""
    data = read_dataset(path, pixels=True)
    with parsing(path, "structures"):
        drawn: dict[int, list[Dataset]] = defaultdict(list)
        for item in data.get("ROIContourSequence") or []:
            drawn[int(item.ReferencedROINumber)] += list(item.get("ContourSequence") or [])
        found = []
        for roi in data.StructureSetROISequence:
            number, contours = int(roi.ROINumber), drawn[int(roi.ROINumber)]
            rings, others = [], Counter[str]()
            for contour in contours:
                kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR").upper()
                points = _points(contour)
                if kind in CLOSED and len(points) > 2:
                    rings.append(points)
                else:
                    others[kind if kind not in CLOSED else "of less than three points"] += 1
            found.append(Roi(number, str(roi.get("ROIName") or ""), rings, others))
    return sorted(found, key=lambda roi: roi.number)


def _points(contour: Dataset) -> np.ndarray:
    """(n, 3) LPS mm. The text is taken as it stands in the file: pydicom makes an object of every number."""
    element = contour.get_item("ContourData")
    value = None if element is None else element.value
    if value is None:
        return np.zeros((0, 3))
    parts = value.strip(b"\0 ").split(b"\\") if isinstance(value, bytes) else value
    numbers = np.array([float(part) for part in parts if part not in (b"", "")])
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
        raise ValueError("a point that lies nowhere")
    return numbers.reshape(-1, 3)


def read_rtstruct(
    path: Path, geometry: Geometry, wanted: Mapping[str, int] | None = None, overlapping: bool = False
) -> tuple[np.ndarray, tuple[Fault, ...]]:
    """Draw the structures of an RTSTRUCT on an image's grid.

    A voxel belongs to a structure when its centre lies inside its contours (:func:`.contours.fill_even_odd`). A contour belongs
    to the slice nearest to it; of several planes that are nearest to one slice, the closest one counts.

    Args:
        path: the file.
        geometry: of the image; one of its axes runs along the normal of the contours' planes.
        wanted: ROIName -> value in the label; None for all, numbered as :func:`rtstruct_names` does.
        overlapping: structures may share voxels, see :class:`.Painted`.

    Returns:
        (x, y, z) int64, and what there is to tell.

    Raises:
        DataError: damaged, contours that are not parallel to the slices or lie outside the image, structures that overlap.
    """
    rois = _read(path)
    drawn = [roi for roi in rois if roi.rings]
    painted = Painted(path, geometry.shape, overlapping)
    said: Counter[str] = Counter()
    for number, (name, value) in wanted_numbers(path, _names(rois), wanted).items():
        _draw(painted, drawn[number - 1], name, value, geometry, said)
    others = sum((roi.others for roi in rois), Counter[str]())
    if others:
        found = ", ".join(f"{count} {shown(kind, 24)}" for kind, count in sorted(others.items()))
        painted.note("contours", "closed ones", f"{found}, left out", "none is needed if these are marks")
    for what, count in said.items():
        painted.note("contours", "one in the middle of every slice", f"{what} ({count})", "look at the label there")
    return painted.done()


def _draw(painted: Painted, roi: Roi, name: str, value: int, geometry: Geometry, said: Counter[str]) -> None:
    """Paint one structure plane by plane; counts in ``said`` what there is to tell."""
    to_voxels = np.linalg.inv(np.asarray(geometry.affine, float)) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    rings = [ring @ to_voxels[:3, :3].T + to_voxels[:3, 3] for ring in roi.rings]
    spread = np.stack([np.ptp(ring, axis=0) for ring in rings])
    axis = int(spread.max(0).argmin())
    if float(spread[:, axis].max()) > LEVEL:
        found = f"{shown(name, 40)}: points up to {spread[:, axis].max():.3g} slices aside their plane"
        _fail(painted, "contours parallel to the image's slices", found, "draw them on this image, or give the one they are of")
    planes: dict[int, dict[float, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    flat = [k for k in range(3) if k != axis]
    outside = 0
    for ring in rings:
        level = round(float(ring[:, axis].mean()), 3)
        place = int(np.floor(level + 0.5))
        if 0 <= place < geometry.shape[axis]:
            _join(planes[place], level, ring[:, flat])
        else:
            outside += 1
    if not planes:
        _fail(painted, "contours inside the image", f"{shown(name, 40)}: none of {outside}", "give the image they were drawn on")
    said["contours beyond the image, left out"] += outside
    for place, levels in planes.items():
        level = min(levels, key=lambda at: (abs(at - place), at))
        said["contours of a second plane in a slice, left out"] += sum(len(r) for at, r in levels.items() if at != level)
        said[f"planes more than {ASIDE:g} slices aside the middle of their slice"] += abs(level - place) > ASIDE
        inside = fill_even_odd(levels[level], (geometry.shape[flat[0]], geometry.shape[flat[1]]))
        one, other = np.nonzero(inside)
        index = [one, other]
        index.insert(axis, np.full_like(one, place))
        painted.paint(name, value, (index[0], index[1], index[2]))
    said["slices without a contour between others of their structure"] += max(planes) - min(planes) + 1 - len(planes)
    for what in [what for what, count in said.items() if not count]:
        del said[what]


def _join(levels: dict[float, list[np.ndarray]], level: float, ring: np.ndarray) -> None:
    """Add a contour to those of its plane, whose points may be rounded; the same one twice would be a hole in itself."""
    near = next((at for at in levels if abs(at - level) < ASIDE), level)
    if not any(r.shape == ring.shape and np.allclose(r, ring, atol=1e-4) for r in levels[near]):
        levels[near].append(ring)


def _fail(painted: Painted, expected: str, found: str, remedy: str) -> None:
    raise DataError(Fault(shown(painted.path.name, 120), "contours", expected, found, remedy))
