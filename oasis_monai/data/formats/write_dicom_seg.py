"""Write DICOM SEG by highdicom (extra ``dicom``): one binary segment for each structure, on the frames of its series."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oasis_monai.data.formats.dicom_file import lenient
from oasis_monai.data.formats.dicom_source import MANUFACTURER, SERIES_DESCRIPTION, DicomSource, names_in_dicom
from oasis_monai.data.formats.header import flip_lps_ras, split_affine
from oasis_monai.data.formats.structure import Algorithm, Code, Structure, layers_of
from oasis_monai.utils.errors import ConfigError

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

NEEDS = ("format", "highdicom, which is not installed", "pip install oasis-monai[dicom]")
SERIES_NUMBER = 300
"""Of the first segmentation of a series number 0; others follow the number of their series."""


def check_highdicom() -> None:
    """Refuse DICOM SEG where highdicom is not installed.

    Raises:
        ConfigError: naming the extra.
    """
    import importlib.util

    if importlib.util.find_spec("highdicom") is None:
        key, found, remedy = NEEDS
        raise ConfigError(key, "dicom-seg with highdicom", found, remedy)


def write_dicom_seg(path: Path, structures: Sequence[Structure], source: DicomSource, algorithm: Algorithm) -> None:
    """Write structures as a DICOM SEG (PS3.3 A.51) that refers to its series, image by image.

    Segments are numbered 1, 2, ... in order, as the standard wants. Structures may overlap. A structure without a voxel has a
    segment without frames.

    Args:
        path: a temporary name: the caller moves it into place.
        structures: with their masks on the grid of ``source``.
        source: the series.
        algorithm: what made them.

    Raises:
        ConfigError: highdicom is not installed.
    """
    check_highdicom()
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    layers = layers_of(structures, source.geometry.shape, range(1, len(structures) + 1))
    frames = [np.ascontiguousarray(label.transpose(2, 1, 0)) for label in layers.labels]  # (frames, rows, columns)
    if len(frames) > 1:  # one channel for each structure
        pixels = np.stack([frames[layer] == value for layer, value in layers.places], axis=-1).astype(np.uint8)
    else:
        pixels = frames[0]
    made_by = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        family=_coded(Code("123109", "DCM", "Artificial Intelligence")),
        version=algorithm.version[:64],
        source=MANUFACTURER,
        parameters={"model": algorithm.model.replace(",", " ")} if algorithm.model else None,
    )
    names = names_in_dicom([structure.name for structure in structures])
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_coded(structure.look.category),
            segmented_property_type=_coded(structure.look.code),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
            display_color=highdicom.color.CIELabColor.from_rgb(*structure.color),
        )
        for number, (name, structure) in enumerate(zip(names, structures, strict=True), 1)
    ]
    with lenient():
        segmentation = highdicom.seg.Segmentation(
            source_images=_images(source),
            pixel_array=pixels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=generate_uid(),
            series_number=series_number(source),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=algorithm.version,
            device_serial_number="0",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_label="SEGMENTATION",
            content_description=SERIES_DESCRIPTION,
            series_description=SERIES_DESCRIPTION,
        )
        _refer_to_frames(segmentation, source)
        segmentation.save_as(path, enforce_file_format=True)


def series_number(source: DicomSource) -> int:
    """The number of a series made of another one."""
    try:
        return SERIES_NUMBER + max(0, int(source.first.get("SeriesNumber") or 0)) % 1_000_000
    except (TypeError, ValueError):
        return SERIES_NUMBER


def _images(source: DicomSource) -> list[Dataset]:
    """The headers that highdicom is shown, in the order of the slices; of an enhanced file one with the frames of the volume
    alone, whose orientation and pixel size all share."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    if source.frames is None:
        return list(source.datasets)
    direction, spacing, _ = split_affine(flip_lps_ras(source.geometry.affine))
    turn, measures, view, shared = Dataset(), Dataset(), copy.copy(source.first), Dataset()
    turn.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in direction[:, :2].T.ravel()]
    measures.PixelSpacing = [format_number_as_ds(float(v)) for v in spacing[1::-1]]  # DICOM has the distance of the rows first
    measures.SliceThickness = measures.SpacingBetweenSlices = format_number_as_ds(float(spacing[2]))
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [turn], [measures]
    view.SharedFunctionalGroupsSequence, view.NumberOfFrames = [shared], len(source.frames)
    view.PerFrameFunctionalGroupsSequence = [source.first.PerFrameFunctionalGroupsSequence[frame] for frame in source.frames]
    return [view]


def _refer_to_frames(segmentation: Dataset, source: DicomSource) -> None:
    """Give references to frames of :func:`_images` the numbers that these have in the file."""
    groups = segmentation.PerFrameFunctionalGroupsSequence if source.frames is not None else ()
    derivations = [derivation for group in groups for derivation in group.get("DerivationImageSequence", [])]
    images = {id(image): image for derivation in derivations for image in derivation.SourceImageSequence}  # segments share them
    for image in images.values():
        image.ReferencedFrameNumber = source.image_of(int(image.ReferencedFrameNumber) - 1)[1]


def _coded(code: Code) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)
