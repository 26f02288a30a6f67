"""The DICOM series that a result refers to: its headers, slice by slice, and what all objects made of it repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oasis_monai.data.formats.dicom_file import is_dicom, read_dataset, read_image_header, word
from oasis_monai.data.formats.dicom_frames import frames_of, numbers, split_volumes
from oasis_monai.data.formats.dispatch import Source, paths_of, read_header
from oasis_monai.data.formats.header import flip_lps_ras, shown
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
"""What a segmentation refers to."""
REPEATED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    "ReferringPhysicianName",
)
"""Attributes of patient and study that every object of the study has; empty where the scan has none (type 2)."""
OPTIONAL = (
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "SpecificCharacterSet",
    "PositionReferenceIndicator",
)
"""Those that it has where the scan has them."""
MANUFACTURER, SERIES_DESCRIPTION = "oasis-monai", "Segmentation by oasis-monai"


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A DICOM series as the source of a segmentation.

    Args:
        datasets: headers without pixels: of every slice in order, or the one of an enhanced multi-frame file.
        frames: of an enhanced file, the number of each slice's frame, from 0; None for one file for each slice.
        geometry: the grid.
    """

    datasets: tuple[Dataset, ...]
    frames: tuple[int, ...] | None
    geometry: Geometry

    @property
    def first(self) -> Dataset:
        """Any header: of patient, study and series they say the same."""
        return self.datasets[0]

    def image_of(self, z: int) -> tuple[Dataset, int | None]:
        """The header of slice ``z``, and the number of its frame in an enhanced file, from 1."""
        return (self.datasets[z], None) if self.frames is None else (self.first, self.frames[z] + 1)

    def in_world(self, points: np.ndarray, z: int) -> np.ndarray:
        """(n, 2) voxel indices in slice ``z`` as (n, 3) LPS mm, in the very plane of its image where that is a file."""
        affine = flip_lps_ras(np.asarray(self.geometry.affine, float))
        origin = affine[:3, 2] * z + affine[:3, 3]
        if self.frames is None and len(own := numbers(self.datasets[z].get("ImagePositionPatient"))) == 3:
            origin = own
        return np.asarray(points @ affine[:3, :2].T + origin)

    def repeated(self) -> Mapping[str, object]:
        """The attributes of patient and study that an object of the study repeats."""
        own = {name: self.first.get(name, "") for name in REPEATED}
        return own | {name: self.first.get(name) for name in OPTIONAL if self.first.get(name) not in (None, "")}


def is_dicom_scan(source: Source) -> bool:
    """Whether a scan is a DICOM series, by its first bytes."""
    path = paths_of(source)[0]
    return is_dicom(path) and path.suffix.lower() not in (".nii", ".gz", ".mha", ".mhd", ".nrrd")


def read_dicom_source(source: Source) -> DicomSource:
    """Read the headers of a series that a result is to refer to.

    Args:
        source: as of :func:`oasis_monai.data.io.read_image`.

    Raises:
        DataError: it is no DICOM series, or lacks what a segmentation refers to.
    """
    name = shown(paths_of(source)[0].name, 120)
    if not is_dicom_scan(source):
        remedy = "choose format=nii.gz or seg.nrrd for this scan"
        raise DataError(Fault(name, "format", "a DICOM series, to which DICOM SEG and RTSTRUCT refer", "another format", remedy))
    header = read_header(source)
    datasets = []
    for path in header.files:
        data = read_dataset(path)
        data.pop("PixelData", None)
        datasets.append(data)
    lacking = [name for name in REQUIRED if any(not word(data, name) for data in datasets)]
    if lacking:
        remedy = "export the series again with them, or choose format=nii.gz or seg.nrrd"
        raise DataError(Fault(name, "format", f"a series with {', '.join(REQUIRED)}", f"none of {', '.join(lacking)}", remedy))
    for data in datasets:
        for key in REPEATED:
            if key not in data:
                setattr(data, key, "")
        if "ImageOrientationPatient" in data:  # parallel as they are, they differ in the last digits of some scanners
            data.ImageOrientationPatient = datasets[0].ImageOrientationPatient
        if not word(data, "SliceThickness"):  # an image may lack it, a segmentation may not
            data.SliceThickness = f"{header.geometry.spacing_mm[2]:.6g}"
    frames = None
    if read_image_header(header.files[0]).grouped:
        all_frames = frames_of(header.files[0])
        frames = tuple(all_frames.index(frame) for frame in split_volumes(all_frames)[0])
    return DicomSource(tuple(datasets), frames, header.geometry)


def names_in_dicom(names: Sequence[str]) -> list[str]:
    """Names as a label of DICOM holds them: one line of up to 64 characters, no backslash; cut ones stay different."""
    made: list[str] = []
    for name in names:
        text = " ".join(name.replace("\\", "/").split())
        short, number = text[:64], 2
        while short in made:
            short, number = f"{text[: 64 - len(str(number)) - 1]} {number}", number + 1
        made.append(short)
    return made
