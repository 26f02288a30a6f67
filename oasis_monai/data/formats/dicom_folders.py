"""Where the files of a DICOM series lie: several folders, copies."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom_file import Image, is_dicom, read_image_header
from oasis_monai.data.formats.dicom_pixels import read_pixels
from oasis_monai.data.formats.dicom_slices import in_order, lie_evenly
from oasis_monai.data.formats.header import TOLERANCE, Faults
from oasis_monai.utils.errors import DataError

NEAR, LOOKS = 200, 50
"""Folders near a series' own in which more of it is looked for, and files of each in which one of it is."""


def series_among(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """DICOM files by SeriesInstanceUID, both in order. Files without a readable header, or without a series, are under ``""``."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        try:
            found[read_image_header(path).series].append(path)
        except DataError:
            found[""].append(path)
    return dict(sorted(found.items()))


def series_parts(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The scans among the files of one series: it may lie in several folders, and each folder may hold another scan.

    Folders are parts of one scan unless they hold different images of one place, or images of another patient, study, frame of
    reference or grid (some programs give one UID to all that they write).

    A file with frames of its own is a scan by itself.

    Returns:
        Of each scan the first file of every folder.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    alone = [file for file in files if _is_grouped(file)]
    for file in files:
        if file not in alone:
            folders[file.parent].append(file)
    parts: list[dict[Path, list[Path]]] = []
    for folder, own in folders.items():
        joined = next((part for part in parts if len(folders) > 1 and _fit([f for p in part.values() for f in p], own)), None)
        if joined is None:
            parts.append({folder: own})
        else:
            joined[folder] = own
    return [tuple(own[0] for own in part.values()) for part in parts] + [(file,) for file in alone]


def _is_grouped(path: Path) -> bool:
    try:
        return read_image_header(path).grouped
    except DataError:
        return False


def _fit(one: Sequence[Path], other: Sequence[Path]) -> bool:
    """Whether the images of two folders can be of one scan."""
    try:
        first, second = [read_image_header(p) for p in one], [read_image_header(p) for p in other]
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


def images_in(folder: Path) -> list[Path]:
    """The files of a folder that are, or claim to be, DICOM images."""
    return [p for p in folder.iterdir() if not p.name.startswith(".") and is_dicom(p)]


def folders_of(path: Path, series: str) -> list[Path]:
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
            if first is not None and read_image_header(first).series == series:
                near.append(folder)
        except (OSError, DataError):
            continue
    if not near:
        return [path.parent]
    files = [p for folder in (path.parent, *near) for p in series_among(images_in(folder)).get(series, [])]
    part = next(part for part in series_parts(files) if any(p.parent == path.parent for p in part))
    folders = [p.parent for p in part]
    unsaid = Faults(path)
    images = in_order(without_copies([read_image_header(p) for p in files if p.parent in folders], unsaid))
    whole = len(images) > 1 and lie_evenly(images, unsaid)
    return folders if whole else [path.parent]  # what does not complete it is none of it


def _place(image: Image) -> tuple[float, ...]:
    return tuple(float(v) for v in np.round(image.origin_mm, 3) + 0.0)


def _same_image(one: Image, other: Image) -> bool:
    """Whether two files hold one image, whatever they say of themselves."""
    if one.path.read_bytes() == other.path.read_bytes():
        return True
    try:
        first, second = (read_pixels([image.path], np.float64)[0] for image in (one, other))
    except Exception:  # what cannot be read is no copy
        return False
    return np.array_equal(first, second)


def without_copies(images: Sequence[Image], faults: Faults) -> list[Image]:
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
