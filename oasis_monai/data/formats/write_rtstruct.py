"""Write RTSTRUCT: the contours of structures, slice by slice, that refer to the images they were drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oasis_monai.data.formats.dicom_file import CONTOURS, STORAGE, lenient
from oasis_monai.data.formats.dicom_source import (
    MANUFACTURER,
    SERIES_DESCRIPTION,
    DicomSource,
    names_in_dicom,
)
from oasis_monai.data.formats.outlines import outlines_of
from oasis_monai.data.formats.structure import Algorithm, Code, Structure, box_of
from oasis_monai.data.formats.write_dicom_seg import series_number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DECIMALS = 4
"""Of a coordinate in mm: a number of DICOM has up to 16 characters."""
STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management SOP Class: retired, and still what an RTSTRUCT calls a study."""


def write_rtstruct(path: Path, structures: Sequence[Structure], source: DicomSource, algorithm: Algorithm) -> None:
    """Write structures as an RTSTRUCT (PS3.3 A.19) that refers to its series, slice by slice.

    Contours are those of :func:`.outlines.outlines_of`: voxels whose centres lie inside are the structure's. Structures may
    overlap; one without a voxel has no contour.

    Args:
        path: a temporary name: the caller moves it into place.
        structures: with their masks on the grid of ``source``.
        source: the series.
        algorithm: what made them.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    data, now = Dataset(), datetime.now()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(STORAGE + CONTOURS[0])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    with lenient():
        for name, value in source.repeated().items():
            setattr(data, name, value)
        data.StudyInstanceUID, data.SeriesInstanceUID = source.first.StudyInstanceUID, generate_uid()
        data.FrameOfReferenceUID = source.first.FrameOfReferenceUID
        data.PositionReferenceIndicator = source.first.get("PositionReferenceIndicator", "")
        data.Modality, data.SeriesNumber, data.SeriesDescription = "RTSTRUCT", series_number(source), SERIES_DESCRIPTION
        data.Manufacturer, data.ManufacturerModelName = MANUFACTURER, algorithm.name[:64]
        data.SoftwareVersions, data.OperatorsName, data.InstanceNumber = algorithm.version, "", 1
        data.StructureSetLabel, data.StructureSetName = "SEGMENTATION", SERIES_DESCRIPTION
        for date, time in (("InstanceCreationDate", "InstanceCreationTime"), ("StructureSetDate", "StructureSetTime")):
            setattr(data, date, now.strftime("%Y%m%d"))
            setattr(data, time, now.strftime("%H%M%S"))
        data.ApprovalStatus = "UNAPPROVED"
        data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
        names = names_in_dicom([structure.name for structure in structures])
        numbered = list(enumerate(zip(names, structures, strict=True), 1))
        data.StructureSetROISequence = [_roi(number, name, source, algorithm) for number, (name, _) in numbered]
        data.ROIContourSequence = [_contours(number, structure, source) for number, (_, structure) in numbered]
        data.RTROIObservationsSequence = [_observation(number, structure) for number, (_, structure) in numbered]
        data.save_as(path, enforce_file_format=True)


def _frame_of_reference(source: DicomSource) -> Dataset:
    from pydicom.dataset import Dataset

    series = Dataset()
    series.SeriesInstanceUID = source.first.SeriesInstanceUID
    series.ContourImageSequence = (
        [_image(source, z) for z in range(len(source.datasets))] if source.frames is None else [_whole(source)]
    )
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_MANAGEMENT, source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _whole(source: DicomSource) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.first.SOPClassUID, source.first.SOPInstanceUID
    return item


def _image(source: DicomSource, z: int) -> Dataset:
    """A reference to the image of one slice."""
    from pydicom.dataset import Dataset

    image, frame = source.image_of(z)
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _roi(number: int, name: str, source: DicomSource, algorithm: Algorithm) -> Dataset:
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, name
    roi.ReferencedFrameOfReferenceUID = source.first.FrameOfReferenceUID
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    about = f"{algorithm.name} {algorithm.version}" + (f", model {algorithm.model}" if algorithm.model else "")
    roi.ROIGenerationDescription = about[:64]
    return roi


def _contours(number: int, structure: Structure, source: DicomSource) -> Dataset:
    """All contours of one structure."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(structure.color)
    mask = structure.inside()
    x, y, slices = box_of(mask) or (slice(0), slice(0), slice(0, 0))
    contours: list[Dataset] = []
    for z in range(slices.start, slices.stop):
        for ring in outlines_of(mask[x, y, z]):
            corners = source.in_world(ring + np.array([x.start, y.start]), z)
            contour = Dataset()
            contour.ContourImageSequence = [_image(source, z)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
            contour.ContourData = [f"{v + 0.0:.{DECIMALS}f}" for v in corners.ravel()]
            contour.ContourNumber = len(contours) + 1
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _observation(number: int, structure: Structure) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = number, number
    item.RTROIInterpretedType, item.ROIInterpreter = "ORGAN", ""
    item.RTROIIdentificationCodeSequence = [_coded(structure.look.code)]
    return item


def _coded(code: Code) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
