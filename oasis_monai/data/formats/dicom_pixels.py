"""The voxels of a DICOM series, by ITK's GDCM or, of an enhanced multi-frame file, by pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom_file import read_image_header
from oasis_monai.data.formats.dicom_frames import frames_of, read_frame_pixels, split_volumes
from oasis_monai.data.formats.dicom_slices import affine_of
from oasis_monai.data.formats.header import affine_from, flip_lps_ras


def read_pixels(files: Sequence[Path], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a series whose header is sound, with the rescaling of every file applied.

    Args:
        files: in the order of the slices, as :func:`.dicom.read_series` gives them.
        dtype: float32 or float64.

    Returns:
        (C, x, y, z) array, and the RAS+ affine as ITK's series reader understands it (of an enhanced file, as its frames say).

    Raises:
        Exception: what GDCM or pydicom say of pixels that they cannot read.
    """
    if read_image_header(Path(files[0])).grouped:
        frames = frames_of(Path(files[0]))
        volumes = split_volumes(frames)
        array = np.stack(
            [read_frame_pixels(Path(files[0]), [frames.index(frame) for frame in volume], dtype) for volume in volumes]
        )
        return array, flip_lps_ras(affine_of(volumes[0]))
    import itk

    kind = itk.F if dtype is np.float32 else itk.D
    image = itk.imread([str(file) for file in files], kind, imageio=itk.GDCMImageIO.New())
    direction = np.asarray(itk.array_from_matrix(image.GetDirection()), float)
    affine = affine_from(direction, list(image.GetSpacing()), list(image.GetOrigin()))
    return np.ascontiguousarray(itk.array_from_image(image).transpose(2, 1, 0))[None], flip_lps_ras(affine)
