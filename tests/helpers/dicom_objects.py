"""DICOM objects made with pydicom and highdicom: enhanced multi-frame images, segmentations, contours."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from oasis_monai.data.formats.header import flip_lps_ras, split_affine

STORAGE = "1.2.840.10008.5.1.4.1.1."
ENHANCED_MR, ENHANCED_CT, LEGACY_CT, RTSTRUCT = (STORAGE + kind for kind in ("4.1", "2.1", "2.2", "481.3"))


def empty(kind, series, frame_of_reference="1.2.3.9", patient="", syntax=ExplicitVRLittleEndian, **more):
    """A dataset of a storage class with the attributes that all have."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[kind, series, str(more)])
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = patient, "", "", ""
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", series, frame_of_reference
    data.StudyID = data.StudyDate = data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.SeriesNumber = data.InstanceNumber = 1
    data.Modality, data.Manufacturer = "CT" if kind in (ENHANCED_CT, LEGACY_CT) else "MR", "none"
    for name, value in more.items():
        setattr(data, name, value)
    return data


def inner(**values):
    """A sequence with one item."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return pydicom.Sequence([item])


def write_enhanced(path, volume, affine, kind=ENHANCED_MR, order=None, rescale=None, groups=None, dtype=np.int16, **more):
    """An (x, y, z) volume of stored values as one enhanced file.

    Args:
        order: the slice of each frame; default 0, 1, ...; a slice may come again.
        rescale: function of the frame's number -> (slope, intercept).
        groups: function of the frame's number -> {sequence of functional groups: its only item's values}.
    """
    order = list(range(volume.shape[2])) if order is None else list(order)
    lps = flip_lps_ras(affine)
    direction, spacing, _ = split_affine(lps)
    data = empty(kind, more.pop("series", "1.2.3.4"), **more)
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.NumberOfFrames, data.Rows, data.Columns = len(order), volume.shape[1], volume.shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * np.dtype(dtype).itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(np.issubdtype(dtype, np.signedinteger))
    shared = Dataset()
    shared.PlaneOrientationSequence = inner(ImageOrientationPatient=[round(float(v), 12) for v in direction[:, :2].T.ravel()])
    shared.PixelMeasuresSequence = inner(
        PixelSpacing=[float(spacing[1]), float(spacing[0])],
        SliceThickness=float(spacing[2]),
        SpacingBetweenSlices=float(spacing[2]),
    )
    frames = []
    for number, z in enumerate(order):
        frame = Dataset()
        frame.FrameContentSequence = inner(StackID="1", InStackPositionNumber=z + 1)
        frame.PlanePositionSequence = inner(ImagePositionPatient=[float(f"{v:.12g}") for v in (lps @ [0, 0, z, 1])[:3]])
        if rescale is not None:
            slope, intercept = rescale(number)
            frame.PixelValueTransformationSequence = inner(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
        for name, values in (groups(number) if groups else {}).items():
            if name in frame:
                for key, value in values.items():
                    setattr(frame[name].value[0], key, value)
            else:
                setattr(frame, name, inner(**values))
        frames.append(frame)
    data.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    data.PixelData = np.ascontiguousarray(volume[..., order].transpose(2, 1, 0).astype(dtype)).tobytes()
    data["PixelData"].VR = "OW"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def write_rtstruct(path, rois, series="1.2.3.4", patient="", numbers=None, frame_of_reference="1.2.3.9", references=True):
    """ROIs: name -> list of (n, 3) contours in RAS mm, or (kind, contour) pairs."""
    data = empty(RTSTRUCT, f"{series}.7", frame_of_reference, patient)
    data.Modality, data.StructureSetLabel = "RTSTRUCT", "contours"
    if references:
        item = inner(SeriesInstanceUID=series)
        study = inner(ReferencedSOPInstanceUID="1.2.3", RTReferencedSeriesSequence=item)
        data.ReferencedFrameOfReferenceSequence = inner(FrameOfReferenceUID=frame_of_reference, RTReferencedStudySequence=study)
    else:
        del data.FrameOfReferenceUID
    sets, contours = [], []
    for at, (name, rings) in enumerate(rois.items()):
        roi = Dataset()
        roi.ROINumber, roi.ROIName = (numbers or range(1, len(rois) + 1))[at], name
        roi.ReferencedFrameOfReferenceUID = frame_of_reference
        sets.append(roi)
        items = []
        for ring in rings:
            kind, points = ring if isinstance(ring, tuple) else ("CLOSED_PLANAR", ring)
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{v:.8g}" for v in (np.asarray(points) * [-1, -1, 1]).ravel()]
            items.append(item)
        drawn = Dataset()
        drawn.ReferencedROINumber, drawn.ContourSequence = roi.ROINumber, pydicom.Sequence(items)
        contours.append(drawn)
    data.StructureSetROISequence = pydicom.Sequence(sets)
    data.ROIContourSequence = pydicom.Sequence(contours)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data
