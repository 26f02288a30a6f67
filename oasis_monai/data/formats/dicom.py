"""Read and check DICOM series: find their files, order them by position, and refuse what is not one even volume.

A series is named by one of its files, or by one from each folder that it lies in. Its other files are those beside these, and in
folders near by, with the same SeriesInstanceUID. GDCM (in ITK) reads the headers. It silently accepts several
faults, which are errors here: a missing slice (the spacing becomes the mean), uneven spacing, two images at one position (a time
or diffusion series), a sheared stack, a screen capture (voxels of 1 mm).
"""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.header import (
    TOLERANCE,
    Faults,
    Header,
    affine_from,
    check_direction,
    check_shape,
    check_spacing,
    flip_lps_ras,
    shown,
)
from oasis_monai.utils.errors import DataError, Fault

PREAMBLE, MAGIC = 128, b"DICM"
META_BYTES = 4096  # the file meta information is a few hundred bytes
STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_IMAGES = ("4.2", "9.", "11.", "66", "67", "68.", "88.", "104.", "481.2", "481.3", "481.5", "481.8")
"""Storage classes below :data:`STORAGE` that hold no image: spectra, waveforms, presentation states, raw data and registrations,
reports, documents, radiotherapy plans. They travel in the folders of a scan and are passed over."""
SECONDARY_CAPTURE = "7"
NEAR, LOOKS = 200, 50
"""Folders near a series' own in which more of it is looked for, and files of each in which one of it is."""
UNEVEN = 0.05
"""Largest deviation of a slice from even spacing, in slice distances: allows for rounding in headers, and no more."""
POSITION, ORIENTATION, PIXELS, SERIES, CLASS, FRAMES = (
    *("0020|0032", "0020|0037", "0028|0030", "0020|000e", "0008|0016", "0028|0008"),
)
AGAIN = "export the series again"
TOLD_APART = {
    "EchoTime": "0018|0081",
    "EchoNumbers": "0018|0086",
    "DiffusionBValue": "0018|9087",
    "TemporalPositionIdentifier": "0020|0100",
    "TriggerTime": "0018|1060",
    "InversionTime": "0018|0082",
    "FlipAngle": "0018|1314",
    "ImageType": "0008|0008",
    "ConvolutionKernel": "0018|1210",
    "AcquisitionNumber": "0020|0012",
    "AcquisitionTime": "0008|0032",
}
"""What tells two images at one place apart, the telling ones first."""
SCAN = ("0010|0020", "0020|000d", "0020|0052")
"""PatientID, StudyInstanceUID and FrameOfReferenceUID: of one scan they are the same in all images."""


@dataclass(frozen=True, eq=False)
class Image:
    """One DICOM file's header. ``size`` columns, rows; ``direction`` (3, 3), columns are the axes; LPS, mm; ``missing`` tags;
    ``scan``: the values of :data:`SCAN`; ``about``: those of :data:`TOLD_APART` that are there."""

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


def is_dicom(path: Path) -> bool:
    """Whether a regular file is a DICOM file with an image in it, or claims to be one: by its first bytes, or a name in .dcm."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as stream:
            block = stream.read(PREAMBLE + META_BYTES)
    except OSError:
        return False
    if block[PREAMBLE : PREAMBLE + 4] != MAGIC:
        return path.suffix.lower() == ".dcm"
    storage = _storage_class(block)
    return storage is None or (storage.startswith(STORAGE) and not storage[len(STORAGE) :].startswith(NO_IMAGES))


def _storage_class(block: bytes) -> str | None:
    """MediaStorageSOPClassUID (0002,0002) of the file meta information, which is always explicit and little endian."""
    at = block.find(b"\x02\x00\x02\x00UI", PREAMBLE + 4)
    if at < 0:
        return None
    length = int.from_bytes(block[at + 6 : at + 8], "little")
    return block[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")


def series_among(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """DICOM files by SeriesInstanceUID, both in order. Files without a readable header, or without a series, are under ``""``."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        try:
            found[_header(path).series].append(path)
        except DataError:
            found[""].append(path)
    return dict(sorted(found.items()))


def series_parts(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The scans among the files of one series: it may lie in several folders, and each folder may hold another scan.

    Folders are parts of one scan unless they hold different images of one place, or images of another patient, study, frame of
    reference or grid (some programs give one UID to all that they write).

    Returns:
        Of each scan the first file of every folder.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file)
    parts: list[dict[Path, list[Path]]] = []
    for folder, own in folders.items():
        joined = next((part for part in parts if len(folders) > 1 and _fit([f for p in part.values() for f in p], own)), None)
        if joined is None:
            parts.append({folder: own})
        else:
            joined[folder] = own
    return [tuple(own[0] for own in part.values()) for part in parts]


def _fit(one: Sequence[Path], other: Sequence[Path]) -> bool:
    """Whether the images of two folders can be of one scan."""
    try:
        first, second = [_header(p) for p in one], [_header(p) for p in other]
    except DataError:
        return False
    kept = first[0]
    for image in second:
        same_grid = image.size == kept.size and np.allclose(image.spacing_mm, kept.spacing_mm, rtol=1e-4, atol=TOLERANCE)
        if image.scan != kept.scan or not same_grid or not np.allclose(image.direction, kept.direction, atol=1e-3):
            return False
    if any(image.missing or image.frames > 1 for image in (*first, *second)):
        return False
    places = {_place(image): image for image in first}
    return all(_same_image(places[_place(image)], image) for image in second if _place(image) in places)


def _images_in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if not p.name.startswith(".") and is_dicom(p)]


def _folders(path: Path, series: str) -> list[Path]:
    """The folder of a file, and those of the nearest :data:`NEAR` that hold more of its scan: the first image tells."""
    home = path.parent.absolute()
    near, queue = [], deque([home.parent] if home.parent != home.parent.parent else [])
    for _ in range(NEAR):
        if not queue:
            break
        folder = queue.popleft()
        try:
            entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            queue += [p for p in entries if p.is_dir() and not p.is_symlink()]
            first = None if folder == home else next((p for p in islice(entries, LOOKS) if is_dicom(p)), None)
            if first is not None and _header(first).series == series:
                near.append(folder)
        except (OSError, DataError):
            continue
    if not near:
        return [path.parent]
    files = [p for folder in (path.parent, *near) for p in series_among(_images_in(folder)).get(series, [])]
    part = next(part for part in series_parts(files) if any(p.parent == path.parent for p in part))
    folders = [p.parent for p in part]
    unsaid = Faults(path)
    images = _in_order(_without_copies([_header(p) for p in files if p.parent in folders], unsaid))
    whole = len(images) > 1 and _step(images, unsaid) is not None
    return folders if whole else [path.parent]  # what does not complete it is none of it


def _in_order(images: Sequence[Image]) -> list[Image]:
    """Along the normal of the first one's plane."""
    normal = np.cross(images[0].direction[:, 0], images[0].direction[:, 1])
    return sorted(images, key=lambda image: float(normal @ image.origin_mm))


def _place(image: Image) -> tuple[float, ...]:
    return tuple(float(v) for v in np.round(image.origin_mm, 3) + 0.0)


def _same_image(one: Image, other: Image) -> bool:
    """Whether two files hold one image, whatever they say of themselves."""
    if one.path.read_bytes() == other.path.read_bytes():
        return True
    try:
        first, second = (read_pixels([image.path], np.float64)[0] for image in (one, other))
    except RuntimeError:
        return False
    return np.array_equal(first, second)


def _without_copies(images: Sequence[Image], faults: Faults) -> list[Image]:
    """The images, each once."""
    kept: dict[tuple[float, ...], list[Image]] = defaultdict(list)
    copies = []
    for image in images:
        there = () if image.missing or image.frames > 1 else kept[_place(image)]
        twin = next((k for k in there if np.allclose(k.direction, image.direction, atol=1e-3) and _same_image(k, image)), None)
        if twin is None:
            kept[_place(image)].append(image)
        else:
            copies.append(f"{image.path.name} again as {twin.path.name}")
    if copies:
        found = f"{copies[0]} ({len(copies)} of {len(images)} files)"
        faults.warn("files", "every image once", found, "each is taken once; remove the copies")
    return [image for image in images if any(image is k for k in kept[_place(image)])]


def read_series(path: Path, faults: Faults, more: Sequence[Path] = ()) -> Header | None:
    """Check the series that one file belongs to.

    Args:
        path: a DICOM file.
        faults: takes every fault found.
        more: files of the series in other folders.

    Returns:
        The header with all files of the series in the order of the slices (along the normal of their planes), or None when a
        fault leaves nothing to return.
    """
    try:
        series = _header(path).series
        folders = dict.fromkeys(p.parent for p in (path, *more)) if more else _folders(path, series)
        beside = series_among(p for folder in folders for p in _images_in(folder))
        images = [_header(p) for p in beside[series]]
        for lost in beside.get("", [])[:1]:  # a slice of this series, perhaps its last: nobody would miss it
            found = f"{len(beside[''])} that GDCM cannot read, such as {lost.name}"
            faults.add("files", "whole DICOM images only", found, "copy or export the series again, or move these files away")
            return None
    except DataError as error:
        faults.all += error.faults
        return None
    images = _without_copies(images, faults)
    if not _check_images(images, faults):
        return None
    first = images[0]
    images = _in_order(images)
    step = _step(images, faults)
    if step is None:
        return None
    affine = np.eye(4)
    affine[:3, :2] = first.direction[:, :2] * first.spacing_mm
    affine[:3, 2], affine[:3, 3] = step, images[0].origin_mm
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = (*first.size, len(images))
    good = check_shape(faults, "Columns, Rows, images", shape)
    good &= check_direction(faults, "ImageOrientationPatient, ImagePositionPatient", affine[:3, :3] / spacing)
    paths = tuple(image.path for image in images)
    return Header(shape, flip_lps_ras(affine), first.dtype, 1, paths) if good else None


def _check_images(images: Sequence[Image], faults: Faults) -> bool:
    """Note what keeps the images from being the slices of one volume; each kind of fault once, with how many have it."""
    before = len(faults.all)

    def note(field: str, expected: str, found: Sequence[object], remedy: str) -> None:
        if found:
            faults.add(field, expected, f"{found[0]} ({len(found)} of {len(images)} images)", remedy)

    captured = [i.path.name for i in images if _is_capture(i.kind)]
    note("SOPClassUID", "images of a scanner", [f"a secondary capture: {c}" for c in captured], "give the scan it was made from")
    frames = [f"{i.frames} in {i.path.name}" for i in images if i.frames > 1]
    note("NumberOfFrames", "one frame in each file", frames, "export the series as classic single-frame DICOM, or as NIfTI")
    colours = [f"{i.components} values in {i.path.name}" for i in images if i.components != 1]
    note("SamplesPerPixel", "one grey value for each pixel", colours, "give the grey images")
    if not captured:
        missing = [f"none of {', '.join(i.missing)} in {i.path.name}" for i in images if i.missing]
        note("geometry", "ImagePositionPatient, ImageOrientationPatient and PixelSpacing", missing, AGAIN)
    if len(faults.all) > before:
        return False
    if len(images) < 2:
        faults.add("series", "two slices or more", f"{len(images)}", "give the folder with all slices of the series")
        return False
    first = images[0]
    sizes = [" x ".join(map(str, i.size)) + f" in {i.path.name}" for i in images if i.size != first.size]
    note("Columns, Rows", " x ".join(map(str, first.size)) + f" as in {first.path.name}", sizes, "keep the slices of one volume")
    spacings = [i.path.name for i in images if not np.allclose(i.spacing_mm, first.spacing_mm, rtol=1e-4, atol=TOLERANCE)]
    note("PixelSpacing", f"that of {first.path.name}", [f"another in {s}" for s in spacings], "keep the slices of one volume")
    turned = [i.path.name for i in images if not np.allclose(i.direction, first.direction, atol=1e-3)]
    note(
        "ImageOrientationPatient",
        f"that of {first.path.name} in all images (is this a localiser?)",
        [f"another in {t}" for t in turned],
        "keep the parallel slices of one volume",
    )
    check_spacing(faults, "PixelSpacing", first.spacing_mm)
    return len(faults.all) == before


def _step(images: Sequence[Image], faults: Faults) -> np.ndarray | None:
    """(3,) mm from one slice to the next; None with a fault where they do not lie evenly."""
    places = np.stack([image.origin_mm for image in images])
    gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    apart = gaps > UNEVEN * float(gaps.max())  # the others lie between images of one place
    usual = float(np.median(gaps[apart])) if apart.any() else 0.0
    where = "ImagePositionPatient"
    if not apart.all():
        i = int(gaps.argmin())
        one, other = images[i], images[i + 1]
        found = (
            f"{one.path.name} and {other.path.name} {gaps[i]:.3g} mm apart, {len(images)} images at {int(apart.sum()) + 1} places"
        )
        names = [name for name in TOLD_APART if one.about.get(name) != other.about.get(name)]
        values = [f"{name} ({one.about.get(name, 'none')}, {other.about.get(name, 'none')})" for name in names[:2]]
        if one.scan != other.scan:
            values, names = ["patient, study or frame of reference"], ["scan"]
        found += f"; they differ in {' and '.join(values) or 'their pixels alone'}"
        remedy = (
            f"keep the images of one {names[0]}, or export each as a series of its own" if names else "keep one image for each"
        )
        faults.add(where, "one image at each position", found, remedy, limit=240)
        return None
    step = (places[-1] - places[0]) / (len(images) - 1)
    away = np.linalg.norm(places - places[0] - np.arange(len(images))[:, None] * step, axis=1)
    if float(away.max()) > UNEVEN * float(np.linalg.norm(step)):
        i = int(np.abs(gaps - usual).argmax())
        lost = round(float(gaps[i]) / usual) - 1
        why = f" ({lost} missing?)" if lost > 0 and abs(gaps[i] / usual - lost - 1) < 0.1 else ""
        found = f"{gaps[i]:.4g} mm between {images[i].path.name} and {images[i + 1].path.name}{why}, others {usual:.4g} mm"
        faults.add(where, "evenly spaced slices", found, "export all slices of the series, or resample it to even spacing")
        return None
    return np.asarray(step)


def read_pixels(files: Sequence[Path], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a series whose header is sound, with the rescaling of every file applied.

    Args:
        files: in the order of the slices, as :func:`read_series` gives them.
        dtype: float32 or float64.

    Returns:
        (x, y, z) array, and the RAS+ affine as ITK's series reader understands it.

    Raises:
        RuntimeError: GDCM cannot read the pixels.
    """
    import itk

    kind = itk.F if dtype is np.float32 else itk.D
    image = itk.imread([str(file) for file in files], kind, imageio=itk.GDCMImageIO.New())
    direction = np.asarray(itk.array_from_matrix(image.GetDirection()), float)
    affine = affine_from(direction, list(image.GetSpacing()), list(image.GetOrigin()))
    return np.ascontiguousarray(itk.array_from_image(image).transpose(2, 1, 0)), flip_lps_ras(affine)


def _is_capture(kind: str) -> bool:
    own = kind.removeprefix(STORAGE)
    return own == SECONDARY_CAPTURE or own.startswith(f"{SECONDARY_CAPTURE}.")


def _header(path: Path) -> Image:
    """The header of one file.

    Raises:
        DataError: it is absent or no DICOM image that GDCM can read.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from error
    return _read(path, found.st_size, found.st_mtime_ns)


def _unreadable(path: Path, found: object) -> DataError:
    return DataError(Fault(shown(path.name, 120), "file", "a whole DICOM image", shown(found, 160), "copy or export it again"))


@lru_cache(maxsize=8192)  # a series is looked at when it is found, hashed and read; the stamp is of the file's content
def _read(path: Path, size: int, changed_ns: int) -> Image:
    import itk

    reader = itk.GDCMImageIO.New()
    try:
        if not reader.CanReadFile(str(path)):
            raise _unreadable(path, f"{size} bytes that GDCM cannot read")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        tags = reader.GetMetaDataDictionary()
    except RuntimeError as error:
        raise _unreadable(path, str(error).splitlines()[-1]) from error

    def tag(name: str) -> str:
        return str(tags[name]).strip("\0 ") if tags.HasKey(name) else ""

    if not tag(SERIES):
        raise DataError(Fault(shown(path.name, 120), "SeriesInstanceUID", "the series of the image", "none", AGAIN))
    sizes = [int(reader.GetDimensions(i)) for i in range(reader.GetNumberOfDimensions())]
    spacing = [float(reader.GetSpacing(i)) for i in range(2)]
    origin = np.array([float(reader.GetOrigin(i)) for i in range(3)])
    direction = np.array([[float(v) for v in reader.GetDirection(i)] for i in range(3)]).T
    try:
        bits, frames = int(tag("0028|0100") or 16), int(tag(FRAMES) or 1)
    except ValueError as error:
        raise _unreadable(path, f"no whole number in BitsAllocated or NumberOfFrames ({error})") from error
    # the enhanced classes keep their geometry out of these tags, and GDCM finds it there
    enhanced = tag(CLASS).removeprefix(STORAGE) in ("2.1", "4.1", "128.1", "130")
    missing = () if enhanced else tuple(n for n, t in _NAMES.items() if not tag(t))
    return Image(
        path,
        tag(SERIES),
        tag(CLASS),
        (sizes[0], sizes[1]),
        max(frames, math.prod(sizes[2:])),
        int(reader.GetNumberOfComponents()),
        f"{'' if tag('0028|0103') == '1' else 'u'}int{bits}",
        (spacing[0], spacing[1]),
        origin,
        direction,
        missing,
        tuple(tag(name) for name in SCAN),
        {name: shown(tag(key), 40) for name, key in TOLD_APART.items() if tag(key)},
    )


_NAMES = {"ImagePositionPatient": POSITION, "ImageOrientationPatient": ORIENTATION, "PixelSpacing": PIXELS}
