"""DICOM segmentations by highdicom, of enhanced images and of series."""

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentationTypeValues
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

KINDS = {
    "bits": SegmentationTypeValues.BINARY,
    "fractions": SegmentationTypeValues.FRACTIONAL,
    "label map": SegmentationTypeValues.LABELMAP,
}


def described(number, label):
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Prostate,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def write_seg(path, image, mask, kind="bits", names=("Prostate", "Tumour", "Cyst"), syntax=ExplicitVRLittleEndian, **more):
    """A segmentation of an enhanced image by highdicom; ``mask``: (x, y, z) numbers, or (x, y, z, segments) of 0 to 1."""
    source = pydicom.dcmread(image)
    order = [int(f.FrameContentSequence[0].InStackPositionNumber) - 1 for f in source.PerFrameFunctionalGroupsSequence]
    return _write(path, [source], np.moveaxis(mask, 2, 0).swapaxes(1, 2)[order], kind, names, syntax, **more)


def write_seg_of_series(path, files, mask, names=("Prostate",)):
    """A segmentation of a classic series; ``files``: of its slices, in the order of ``mask`` (x, y, z)."""
    slices = [pydicom.dcmread(file) for file in files]
    for one in slices:  # which the standard wants and some scanners leave out
        for name in ("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
            setattr(one, name, one.get(name, ""))
        one.ReferringPhysicianName = one.get("ReferringPhysicianName", "")
    return _write(path, slices, np.moveaxis(mask, 2, 0).swapaxes(1, 2), "bits", names, ExplicitVRLittleEndian)


def _write(path, images, frames, kind, names, syntax, **more):
    seg = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type=KINDS[kind],
        segment_descriptions=[described(number, name) for number, name in enumerate(names, 1)],
        series_instance_uid="1.2.3.4.5",
        series_number=9,
        sop_instance_uid="1.2.3.4.6",
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
        **more,
    )
    seg.save_as(path)
    return seg
