"""Enhanced multi-frame DICOM: one file with a volume, the place and the rescaling of every frame in functional groups.

pydicom reads it. (GDCM takes the rescaling of the first frame for all, and the frames in the order of the file.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oasis_monai.data.formats.dicom_file import AGAIN, GEOMETRY, Image, parsing, read_dataset, read_image_header, text, unreadable
from oasis_monai.data.formats.dicom_slices import in_order
from oasis_monai.data.formats.header import shown
from oasis_monai.utils.errors import DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
"""Where the functional groups keep the geometry of a frame."""
FRAMES_TOLD_APART = (
    ("DiffusionBValue", "MRDiffusionSequence"),
    ("DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    ("EffectiveEchoTime", "MREchoSequence"),
    ("TemporalPositionIndex", "FrameContentSequence"),
    ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    ("NominalPercentageOfRespiratoryPhase", "RespiratorySynchronizationSequence"),
    ("FlipAngle", "MRTimingAndRelatedParametersSequence"),
    ("InversionTimes", "MRModifierSequence"),
    ("ComplexImageComponent", "MRImageFrameTypeSequence"),
    ("FrameType", "MRImageFrameTypeSequence"),
    ("FrameType", "CTImageFrameTypeSequence"),
    ("ConvolutionKernel", "CTReconstructionSequence"),
    ("StackID", "FrameContentSequence"),
    ("FrameAcquisitionNumber", "FrameContentSequence"),
)
"""What tells two frames at one place apart, the telling ones first, and the sequences that hold it."""


def frames_of(path: Path) -> list[Image]:
    """The frames of an enhanced multi-frame file, each as if it were a file, in the order of the file.

    Raises:
        DataError: the file is damaged, or it has not one functional group for each frame.
    """
    file = read_image_header(path)
    data = read_dataset(path)
    with parsing(path, "functional groups"):
        groups = list(data.PerFrameFunctionalGroupsSequence)
        if len(groups) != file.frames:
            raise unreadable(path, f"{file.frames} frames with {len(groups)} functional groups")
        if int(data.get("InConcatenationTotalNumber") or 1) > 1:
            expected, found = "all frames in one file", f"one of {data.InConcatenationTotalNumber} parts"
            raise DataError(Fault(shown(path.name, 120), "InConcatenationTotalNumber", expected, found, AGAIN))
        shared = list(data.get("SharedFunctionalGroupsSequence") or [])
        return [_frame(file, number, [group, *shared]) for number, group in enumerate(groups, 1)]


def _frame(file: Image, number: int, groups: Sequence[Dataset]) -> Image:
    values = {name: numbers(value_in(groups, name, macro)) for name, macro in MACROS.items()}
    sizes = dict(zip(GEOMETRY, (3, 6, 2), strict=True))
    missing = tuple(name for name in GEOMETRY if len(values[name]) != sizes[name])
    place, turn, pixels = (np.zeros(sizes[n]) if n in missing else values[n] for n in GEOMETRY)
    across, down = turn[:3], turn[3:]
    about: dict[str, str] = {}
    for name, *macros in FRAMES_TOLD_APART:
        if name not in about and (value := text(value_in(groups, name, *macros))):
            about[name] = shown(value, 40)
    return replace(
        file,
        path=file.path.with_name(f"frame {number} of {file.path.name}"),
        frames=1,
        spacing_mm=(float(pixels[1]), float(pixels[0])),  # DICOM has the distance of the rows first
        origin_mm=place,
        direction=np.stack([across, down, np.cross(across, down)], axis=1),
        missing=missing,
        about=about,
    )


def split_volumes(frames: Sequence[Image]) -> list[list[Image]]:
    """The volumes of a file, their frames in order: by the one property that is different in all frames of one place, and takes
    the same values at every place, such as the b-value. One volume where there is none, with all frames."""
    ordered = in_order(frames)
    for name in dict.fromkeys(name for frame in frames for name in frame.about):
        volumes: dict[str, list[Image]] = defaultdict(list)
        for frame in ordered:
            volumes[frame.about.get(name, "")].append(frame)
        places = [np.round([frame.origin_mm for frame in volume], 2) for volume in volumes.values()]
        alike = all(other.shape == places[0].shape and np.allclose(other, places[0], atol=0.02) for other in places)
        if len(volumes) > 1 and alike and len(np.unique(places[0], axis=0)) == len(places[0]):
            return [volumes[value] for value in sorted(volumes, key=_by_number)]
    return [ordered]


def _by_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def value_in(groups: Sequence[Dataset], name: str, *macros: str) -> Any:
    """A value of a frame: of the first of some functional groups (its own, the shared ones) that has it; None if none has."""
    for group in groups:
        item: Any = group
        for macro in macros:
            inner = item.get(macro)
            item = inner[0] if inner else None
            if item is None:
                break
        if item is not None and (value := item.get(name)) is not None:
            return value
    return None


def numbers(value: Any) -> np.ndarray:
    """A value of a header as (n,) float64; empty where there is none, or one that is no number."""
    try:
        found = np.atleast_1d(np.asarray(value if value is not None else [], float))
    except (TypeError, ValueError):
        return np.zeros(0)
    return found if np.isfinite(found).all() else np.zeros(0)


def read_frame_pixels(path: Path, order: Sequence[int], dtype: type) -> np.ndarray:
    """The voxels of an enhanced multi-frame file, every frame with its own rescaling.

    Args:
        path: the file.
        order: numbers of the frames, from 0, in the order of the slices.
        dtype: float32 or float64.

    Returns:
        (x, y, frames) array.

    Raises:
        DataError: the file is damaged.
        Exception: what pydicom or ITK say of pixels that they cannot decode.
    """
    data = read_dataset(path, pixels=True)
    stored = _stored(path, data)
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])
    volume: np.ndarray = np.empty((stored.shape[2], stored.shape[1], len(order)), dtype)
    for z, frame in enumerate(order):
        groups = [data.PerFrameFunctionalGroupsSequence[frame], *shared]
        slope, intercept = (
            numbers(value_in(groups, name, "PixelValueTransformationSequence")) for name in ("RescaleSlope", "RescaleIntercept")
        )
        scaled = stored[frame].astype(np.float64) * (slope[0] if slope.size else 1.0) + (intercept[0] if intercept.size else 0.0)
        volume[..., z] = scaled.T
    return volume


def _stored(path: Path, data: Dataset) -> np.ndarray:
    """(frames, rows, columns) stored values: by pydicom where it can decode them, else by GDCM, whose rescaling is undone."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    if not data.file_meta.TransferSyntaxUID.is_compressed or get_decoder(data.file_meta.TransferSyntaxUID).is_available:
        stored = np.asarray(pixel_array(data))
    else:
        import itk

        reader = itk.GDCMImageIO.New()
        stored = itk.array_from_image(itk.imread(str(path), itk.D, imageio=reader))
        stored = np.rint((stored - reader.GetRescaleIntercept()) / reader.GetRescaleSlope())
    return stored.reshape(-1, *stored.shape[-2:])
