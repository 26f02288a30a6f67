"""Labels that travel with a DICOM series: DICOM SEG and RTSTRUCT. Which series they are of, the names in them, their voxels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oasis_monai.data.formats.dicom_file import parsing, read_dataset, unreadable, word
from oasis_monai.data.formats.dicom_seg import read_seg, seg_names
from oasis_monai.data.formats.dicom_structures import listed
from oasis_monai.data.formats.header import plain, shown
from oasis_monai.data.formats.rtstruct import is_rtstruct, read_rtstruct, rtstruct_names
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import ConfigError, DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def dicom_label_names(path: Path) -> dict[str, int]:
    """The structures of a DICOM SEG (SegmentLabel -> SegmentNumber) or an RTSTRUCT (ROIName -> 1, 2, ... in the order of the
    ROINumbers, those with closed contours).

    Raises:
        DataError: the file is damaged.
    """
    return rtstruct_names(path) if is_rtstruct(path) else seg_names(path)


def read_dicom_label(
    path: Path, geometry: Geometry, wanted: Mapping[str, int] | None = None, overlapping: bool = False
) -> tuple[np.ndarray, tuple[Fault, ...]]:
    """Put the structures of a DICOM SEG or an RTSTRUCT on an image's grid.

    Args:
        path: the file.
        geometry: of the image.
        wanted: name -> value in the label, whatever the number in the file; None for all, as :func:`dicom_label_names` has them.
        overlapping: structures may share voxels; the values are then bits, see :class:`.dicom_structures.Painted`.

    Returns:
        (x, y, z) int64, and warnings.

    Raises:
        DataError: damaged, elsewhere than the image, or structures that overlap.
    """
    return (read_rtstruct if is_rtstruct(path) else read_seg)(path, geometry, wanted, overlapping)


def label_on_grid(case: Case, geometry: Geometry, label_values: Sequence[int]) -> tuple[np.ndarray, tuple[Fault, ...]]:
    """As :func:`read_dicom_label`, the label of a case with the structures whose values are asked for.

    Args:
        case: with ``case.names``, or else the file's own names and numbers.
        geometry: of the image.
        label_values: of the classes; other structures are left out.

    Raises:
        DataError: as :func:`read_dicom_label`.
    """
    assert case.label is not None
    own = dicom_label_names(case.label)
    wanted = {name: value for name, value in case.names or own.items() if value in label_values and value != 0}
    label, notes = read_dicom_label(case.label, geometry, wanted)
    if not {plain(name) for name in wanted} & {plain(name) for name in own}:
        expected, found = f"one of {listed(list(wanted))}", listed(list(own)) or "no structure"
        remedy = "the case counts as one without them; correct data.labels if it has them"
        notes += (Fault(shown(case.label.name, 120), "label", expected, found, remedy, "warning"),)
    return label, notes


def values_of_names(paths: Iterable[Path], read: Callable[[Path], Mapping[str, int]] = dicom_label_names) -> dict[str, int]:
    """The structures of many labels (whose names ``read`` gives) with a value for each: that of the files where all agree, else
    1, 2, ... by name.

    Files that cannot be read are passed over: reading them tells.
    """
    spelt: dict[str, str] = {}
    values: dict[str, set[int]] = {}
    for path in paths:
        try:
            own = read(path)
        except DataError:
            continue
        for name, value in own.items():
            spelt.setdefault(plain(name), name)
            values.setdefault(plain(name), set()).add(value)
    first = {name: min(found) for name, found in values.items()}
    if any(len(found) > 1 for found in values.values()) or len(set(first.values())) < len(first):
        first = {name: number for number, name in enumerate(sorted(first), 1)}
    return {spelt[name]: value for name, value in sorted(first.items(), key=lambda item: item[1])}


def names_for(found: Mapping[str, int], labels: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """``Case.names`` for chosen labels: by their names where the files have them, else by the values found.

    Args:
        found: name -> value, as :func:`values_of_names` gives them.
        labels: structure -> value, as ``data.labels`` gives them; a value of 0 is the background.

    Raises:
        ConfigError: a name that no file has, with a value that none has.

    Examples:
        >>> found = {"Prostate": 1, "Bladder": 2}
        >>> names_for(found, {"prostate": 7}), names_for(found, {"organ": 2})
        ((('Prostate', 7),), (('Bladder', 2),))
    """
    by_plain = {plain(name): name for name in found}
    by_value = {value: name for name, value in found.items()}
    chosen = []
    for name, value in labels.items():
        if value == 0:
            continue
        own = by_plain.get(plain(name)) or by_value.get(value)
        if own is None:
            raise ConfigError(f"data.labels.{name}", f"a structure of the files: {listed(list(found))}", f"{name}: {value}")
        chosen.append((own, value))
    return tuple(chosen)


@dataclass(frozen=True)
class Reference:
    """What a label is of: ``series``: SeriesInstanceUIDs; ``frames``: FrameOfReferenceUIDs."""

    series: frozenset[str]
    frames: frozenset[str]


def labels_of(series: str, files: Iterable[Path], frame: str = "") -> list[Path]:
    """The DICOM SEG and RTSTRUCT files that are of a series.

    Args:
        series: its SeriesInstanceUID.
        files: to choose from; what is no such label, or cannot be read, is passed over.
        frame: its FrameOfReferenceUID: a label that names no series is of all those in its frame. Empty to leave these out.
    """
    found = []
    for path in files:
        try:
            reference = reference_of(path)
        except DataError:
            continue
        if series in reference.series or (not reference.series and frame and frame in reference.frames):
            found.append(path)
    return found


def reference_of(path: Path) -> Reference:
    """Which series and frames of reference a label file refers to.

    Raises:
        DataError: it is damaged.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error.strerror or type(error).__name__) from error
    return _reference(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8192)
def _reference(path: Path, size: int, changed_ns: int) -> Reference:
    data = read_dataset(path)
    series, frames = set(), {word(data, "FrameOfReferenceUID")}
    with parsing(path, "references"):
        for item in _items(data, "ReferencedSeriesSequence"):
            series.add(word(item, "SeriesInstanceUID"))
        for frame in _items(data, "ReferencedFrameOfReferenceSequence"):
            frames.add(word(frame, "FrameOfReferenceUID"))
            for study in _items(frame, "RTReferencedStudySequence"):
                series |= {word(item, "SeriesInstanceUID") for item in _items(study, "RTReferencedSeriesSequence")}
        for roi in _items(data, "StructureSetROISequence"):
            frames.add(word(roi, "ReferencedFrameOfReferenceUID"))
    return Reference(frozenset(series - {""}), frozenset(frames - {""}))


def _items(data: Dataset, name: str) -> list[Any]:
    return list(data.get(name) or [])
