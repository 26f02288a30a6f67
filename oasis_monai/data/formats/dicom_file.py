"""One DICOM file: what it claims to be, whether it is whole, and the header of an image.

pydicom parses a file before GDCM (in ITK) opens it: on damaged lengths GDCM takes seconds and gigabytes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oasis_monai.data.formats.header import shown
from oasis_monai.utils.errors import DataError, Fault

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

PREAMBLE, MAGIC = 128, b"DICM"
META_BYTES = 4096  # the file meta information is a few hundred bytes
STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_IMAGES = ("4.2", "9.", "11.", "66", "67", "68.", "88.", "104.", "481.2", "481.3", "481.5", "481.8")
"""Storage classes below :data:`STORAGE` that hold no image: spectra, waveforms, presentation states, raw data, segmentations and
registrations, reports, documents, radiotherapy doses, contours and plans. They travel in the folders of a scan."""
SEGMENTATIONS, CONTOURS = ("66.4", "66.7"), ("481.3",)
"""Storage classes below :data:`STORAGE` of DICOM SEG (segments as bits or fractions, and as label maps) and of RTSTRUCT."""
SECONDARY_CAPTURE = "7"
LEGACY_ENHANCED = ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130")
"""Storage classes of images that keep their geometry in functional groups, where GDCM finds it."""
AGAIN = "export the series again"
TOLD_APART = (
    *("EchoTime", "EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier", "TriggerTime", "InversionTime", "FlipAngle"),
    *("ImageType", "ConvolutionKernel", "AcquisitionNumber", "AcquisitionTime"),
)
"""What tells two images at one place apart, the telling ones first."""
SCAN = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
"""Of one scan they are the same in all images."""
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TOLD = ("PatientID", "PatientName", "SeriesDescription", "SeriesNumber", "StudyInstanceUID", "FrameOfReferenceUID")
"""What tells a series to a person, and what its labels refer to."""


@dataclass(frozen=True, eq=False)
class Image:
    """One DICOM file's header. ``size`` columns, rows; ``direction`` (3, 3), columns are the axes; LPS, mm; ``missing`` tags;
    ``scan``: the values of :data:`SCAN`; ``about``: those of :data:`TOLD_APART` that are there; ``told``: those of
    :data:`TOLD`; ``grouped``: several frames with a functional group each, which hold their geometry."""

    path: Path
    series: str
    kind: str
    size: tuple[int, int]
    frames: int
    components: int
    dtype: str
    spacing_mm: tuple[float, float]
    origin_mm: np.ndarray
    direction: np.ndarray
    missing: tuple[str, ...]
    scan: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    grouped: bool = False

    @property
    def is_capture(self) -> bool:
        """Whether it is a picture of a screen."""
        own = self.kind.removeprefix(STORAGE)
        return own == SECONDARY_CAPTURE or own.startswith(f"{SECONDARY_CAPTURE}.")


def is_dicom(path: Path) -> bool:
    """Whether a regular file is a DICOM file with an image in it, or claims to be one: by its first bytes, or a name in .dcm."""
    block = _first_bytes(path)
    if block is None:
        return False
    if block[PREAMBLE : PREAMBLE + 4] != MAGIC:
        return path.suffix.lower() == ".dcm"
    storage = _storage_class(block)
    return storage is None or (storage.startswith(STORAGE) and not storage[len(STORAGE) :].startswith(NO_IMAGES))


def is_dicom_label(path: Path) -> bool:
    """Whether a regular file is a DICOM SEG or an RTSTRUCT, by its first bytes."""
    return is_of_class(path, *SEGMENTATIONS, *CONTOURS)


def is_of_class(path: Path, *classes: str) -> bool:
    """Whether the first bytes of a regular file say that it is of one of the storage classes below :data:`STORAGE`."""
    block = _first_bytes(path)
    if block is None or block[PREAMBLE : PREAMBLE + 4] != MAGIC:
        return False
    return _storage_class(block) in [STORAGE + kind for kind in classes]


def _first_bytes(path: Path) -> bytes | None:
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as stream:
            return stream.read(PREAMBLE + META_BYTES)
    except OSError:
        return None


def _storage_class(block: bytes) -> str | None:
    """MediaStorageSOPClassUID (0002,0002) of the file meta information, which is always explicit and little endian."""
    at = block.find(b"\x02\x00\x02\x00UI", PREAMBLE + 4)
    if at < 0:
        return None
    length = int.from_bytes(block[at + 6 : at + 8], "little")
    return block[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")


def read_dataset(path: Path, pixels: bool = False) -> FileDataset:
    """Parse a DICOM file and check that it is whole.

    Args:
        path: the file.
        pixels: keep large values in memory; otherwise they are read when asked for.

    Raises:
        DataError: it is absent or damaged.
    """
    import pydicom

    with parsing(path, "bytes"):
        size = os.stat(path).st_size
        block = _first_bytes(path)
        if block is None:
            raise unreadable(path, "a folder, pipe or device, or a file that may not be read")
        headed = block[PREAMBLE : PREAMBLE + 4] == MAGIC
        if headed and not _sound_meta(block):
            raise unreadable(path, f"{size} bytes with a damaged file meta information")
        data = pydicom.dcmread(path, force=not headed, defer_size=None if pixels else META_BYTES)
        if not len(data) or not _whole(data, size):
            raise unreadable(path, f"{size} bytes that are damaged or cut short")
    return data


@contextlib.contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """What pydicom and its decoders raise on a part of a damaged file, of whatever type, is that file's fault.

    Raises:
        DataError: in its place.
    """
    try:
        with lenient():
            yield
    except DataError:
        raise
    except Exception as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise unreadable(path, f"{what} that cannot be read ({' '.join(found.split())})") from error


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """pydicom takes values that break a rule of the standard (a UID with a letter, a long name), and keeps quiet on them."""
    from pydicom import config

    mode, log = config.settings.reading_validation_mode, logging.getLogger("pydicom")
    level = log.level
    config.settings.reading_validation_mode = config.IGNORE
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        log.setLevel(level)


def _sound_meta(block: bytes) -> bool:
    """Whether the elements of group 2 follow each other, with value representations that exist: GDCM guesses otherwise."""
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

    at = PREAMBLE + 4
    while block[at : at + 2] == b"\x02\x00" and at < META_BYTES:
        kind = block[at + 4 : at + 6].decode("ascii", "replace")
        if kind not in set(VR):
            return False
        long = kind in EXPLICIT_VR_LENGTH_32
        at += (12 if long else 8) + int.from_bytes(block[at + 8 : at + 12] if long else block[at + 6 : at + 8], "little")
    return PREAMBLE + 4 < at < PREAMBLE + META_BYTES


def _whole(data: FileDataset, size: int) -> bool:
    """Whether no value reaches beyond the end of the file, as those of a damaged length do."""
    from pydicom.dataelem import RawDataElement

    for element in data._dict.values():  # as they stand in the file, nothing converted
        if isinstance(element, RawDataElement) and element.length != 0xFFFFFFFF:
            if element.value_tell + element.length > size and element.length:
                return False
            if element.value is not None and len(element.value) < element.length:
                return False
    return True


def read_image_header(path: Path) -> Image:
    """The header of one file with an image.

    Raises:
        DataError: it is absent or no DICOM image that GDCM can read.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error.strerror or type(error).__name__) from error
    return _read(path, found.st_size, found.st_mtime_ns)


def unreadable(path: Path, found: object) -> DataError:
    """What to raise on a file that is absent or damaged."""
    return DataError(Fault(shown(path.name, 120), "file", "a whole DICOM image", shown(found, 160), "copy or export it again"))


def word(data: FileDataset, name: str) -> str:
    """A value as text, ``""`` where there is none; several are joined as they stand in the file."""
    try:
        with lenient():
            value = data.get(name)
    except Exception:  # a value that cannot be converted tells nothing
        return ""
    return text(value)


def text(value: object) -> str:
    """A value of a header as text, ``""`` for none; several are joined as they stand in the file."""
    if value is None:
        return ""
    values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return "\\".join(f"{v:g}" if type(v) is float else str(v) for v in values).strip("\0 ")


@lru_cache(maxsize=8192)  # a series is looked at when it is found, hashed and read; the stamp is of the file's content
def _read(path: Path, size: int, changed_ns: int) -> Image:
    data = read_dataset(path)
    series, kind = word(data, "SeriesInstanceUID"), word(data, "SOPClassUID")
    if not series:
        raise DataError(Fault(shown(path.name, 120), "SeriesInstanceUID", "the series of the image", "none", AGAIN))
    counts = {}
    for name in ("Columns", "Rows", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames"):
        try:
            counts[name] = int(word(data, name) or {"BitsAllocated": 16}.get(name, 1))
        except ValueError as error:
            raise unreadable(path, f"no whole number in {name} ({error})") from error
    size_xy, frames, components = (counts["Columns"], counts["Rows"]), counts["NumberOfFrames"], counts["SamplesPerPixel"]
    spacing, origin, direction = (1.0, 1.0), np.zeros(3), np.eye(3)
    grouped = "PerFrameFunctionalGroupsSequence" in data and frames > 1
    if not grouped:
        size_xy, deep, components, spacing, origin, direction = _by_gdcm(path, size)
        frames = max(frames, deep)
    enhanced = kind.removeprefix(STORAGE) in LEGACY_ENHANCED
    missing = () if enhanced else tuple(name for name in GEOMETRY if not word(data, name))
    return Image(
        path,
        series,
        kind,
        size_xy,
        frames,
        components,
        f"{'' if word(data, 'PixelRepresentation') == '1' else 'u'}int{counts['BitsAllocated']}",
        spacing,
        origin,
        direction,
        missing,
        tuple(word(data, name) for name in SCAN),
        {name: shown(value, 40) for name in TOLD_APART if (value := word(data, name))},
        {name: value for name in TOLD if (value := word(data, name))},
        grouped,
    )


def _by_gdcm(path: Path, size: int) -> tuple[tuple[int, int], int, int, tuple[float, float], np.ndarray, np.ndarray]:
    """Columns and rows, frames, values per pixel, spacing, origin and direction."""
    import itk

    reader = itk.GDCMImageIO.New()
    try:
        if not reader.CanReadFile(str(path)):
            raise unreadable(path, f"{size} bytes that GDCM cannot read")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, str(error).splitlines()[-1]) from error
    sizes = [int(reader.GetDimensions(i)) for i in range(reader.GetNumberOfDimensions())]
    spacing = (float(reader.GetSpacing(0)), float(reader.GetSpacing(1)))
    origin = np.array([float(reader.GetOrigin(i)) for i in range(3)])
    direction = np.array([[float(v) for v in reader.GetDirection(i)] for i in range(3)]).T
    return (sizes[0], sizes[1]), math.prod(sizes[2:]), int(reader.GetNumberOfComponents()), spacing, origin, direction
