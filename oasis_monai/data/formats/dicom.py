"""Read and check DICOM series: find their files, order them by position, and refuse what is not one even volume.

A series is named by one of its files, or by one from each folder that it lies in. Its other files are those beside these, and in
folders near by, with the same SeriesInstanceUID. GDCM (in ITK) reads the headers. It silently accepts several
faults, which are errors here: a missing slice (the spacing becomes the mean), uneven spacing, two images at one position (a time
or diffusion series), a sheared stack, a screen capture (voxels of 1 mm).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom_file import Image, is_dicom, is_dicom_label, read_image_header
from oasis_monai.data.formats.dicom_folders import folders_of, images_in, series_among, series_parts, without_copies
from oasis_monai.data.formats.dicom_frames import frames_of, split_volumes
from oasis_monai.data.formats.dicom_pixels import read_pixels
from oasis_monai.data.formats.dicom_slices import affine_of, check_images, in_order, lie_evenly
from oasis_monai.data.formats.header import Faults, Header, check_channels, check_direction, check_shape, flip_lps_ras
from oasis_monai.utils.errors import DataError

__all__ = ["is_dicom", "is_dicom_label", "read_image_header", "read_pixels", "read_series", "series_among", "series_parts"]


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
        first = read_image_header(path)
        if first.grouped and more:
            faults.add("file", "one enhanced multi-frame file", f"{1 + len(more)} files", "give each scan by itself")
            return None
        images = frames_of(path) if first.grouped else _files_of(path, first.series, faults, more)
    except DataError as error:
        faults.all += error.faults
        return None
    if not images or not check_images(images, faults):
        return None
    volumes = split_volumes(images) if first.grouped else [in_order(images)]
    images = volumes[0]
    if not lie_evenly(images, faults):
        return None
    affine = affine_of(images)
    shape = (*first.size, len(images))
    good = check_shape(faults, "Columns, Rows, images", shape)
    good = good and check_channels(faults, "NumberOfFrames", shape, len(volumes))
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    good &= check_direction(faults, "ImageOrientationPatient, ImagePositionPatient", direction)
    files = (path,) if first.grouped else tuple(image.path for image in images)
    return Header(shape, flip_lps_ras(affine), images[0].dtype, len(volumes), files) if good else None


def _files_of(path: Path, series: str, faults: Faults, more: Sequence[Path]) -> list[Image]:
    """The headers of a series' files, each image once; none where one of them cannot be read."""
    folders = dict.fromkeys(p.parent for p in (path, *more)) if more else folders_of(path, series)
    beside = series_among(p for folder in folders for p in images_in(folder))
    for lost in beside.get("", [])[:1]:  # a slice of this series, perhaps its last: nobody would miss it
        found = f"{len(beside[''])} that GDCM cannot read, such as {lost.name}"
        faults.add("files", "whole DICOM images only", found, "copy or export the series again, or move these files away")
        return []
    images = [read_image_header(p) for p in beside[series]]
    return without_copies([image for image in images if not image.grouped], faults)
