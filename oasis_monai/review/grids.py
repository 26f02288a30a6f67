"""Voxels between a scan's own grid and the page.

The page gets every scan with its axes in RAS order and without obliquity, so that the voxels it draws on are those it was sent,
index by index. Going back is the same permutation and the same flips in reverse: no voxel is ever interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.io import canonical_axes, read_image, read_volume, to_canonical, write_label
from oasis_monai.data.labels import class_indices, read_whole
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import DataError, Fault


def scan_geometry(case: Case) -> Geometry:
    """The grid of a scan's first image, from its header."""
    return read_header(case.source).geometry


def page_shape(geometry: Geometry) -> tuple[int, int, int]:
    """Voxels along x, y, z as the page has them: to the right, to the front, up."""
    x, y, z = (geometry.shape[axis] for axis in canonical_axes(geometry.affine)[0])
    return x, y, z


def to_page(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A view of a volume (x, y, z) of the scan's own grid with the axes of the page."""
    return to_canonical(array, geometry.affine)[0]


def from_page(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The reverse of :func:`to_page`: a view with the axes of the scan's own grid.

    Raises:
        ValueError: another shape than the page's.
    """
    if array.shape != page_shape(geometry):
        raise ValueError(f"expected shape {page_shape(geometry)}, found {array.shape}")
    order, flips = canonical_axes(geometry.affine)
    unflipped = array[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return unflipped.transpose(np.argsort(order))


def as_bytes(classes: np.ndarray) -> bytes:
    """Class indices of the page's grid as one byte a voxel, x fastest, as NiiVue and NIfTI hold them."""
    return classes.astype(np.uint8, copy=False).tobytes(order="F")


def from_bytes(data: bytes, geometry: Geometry, classes: int) -> np.ndarray:
    """What the page sends, :func:`as_bytes` in reverse.

    Args:
        data: one byte a voxel.
        geometry: the scan's own grid.
        classes: the number of classes with the background.

    Raises:
        DataError: too few or too many voxels, or a class that is not there.
    """
    shape = page_shape(geometry)
    if len(data) != int(np.prod(shape)):
        raise DataError(Fault("", "drawing", f"{int(np.prod(shape))} voxels", f"{len(data)}", "load the page again"))
    array = np.frombuffer(data, np.uint8).reshape(shape, order="F")
    if array.size and int(array.max()) >= classes:
        found = f"class {int(array.max())}"
        raise DataError(Fault("", "drawing", f"classes 0 to {classes - 1}", found, "load the page again"))
    return array


def nifti_bytes(array: np.ndarray, geometry: Geometry) -> bytes:
    """A volume (x, y, z) of the scan's own grid as an uncompressed NIfTI file for the page: whole numbers of 16 bits where they
    hold every value, else float32."""
    import nibabel

    shown, spacing_mm = to_canonical(np.asarray(array), geometry.affine)
    whole = np.clip(shown, -(2**15), 2**15 - 1).astype(np.int16)
    values = whole if np.array_equal(whole, shown) else shown.astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([*spacing_mm, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def image_for_page(case: Case, channel: int = 0) -> bytes:
    """One channel of a scan.

    Raises:
        DataError: a fault of the file, or no such channel.
    """
    volume = read_volume(case.without_label(), (0, 1))
    if not 0 <= channel < len(volume.image):
        found = f"channel {channel}"
        raise DataError(Fault(case.id, "channel", f"0 to {len(volume.image) - 1}", found, "choose one of these"))
    return nifti_bytes(volume.image[channel].numpy(), volume.geometry)


def map_for_page(path: Path, geometry: Geometry) -> bytes:
    """A map beside a result, such as its uncertainty.

    Raises:
        DataError: a fault of the file.
    """
    return nifti_bytes(read_image(path)[0][0].numpy(), geometry)


def read_classes(case: Case, label: Path, label_values: Sequence[int], geometry: Geometry) -> np.ndarray:
    """The class indices (x, y, z) of a result's label on the scan's own grid.

    Raises:
        DataError: a fault of the file, or another grid.
    """
    if is_dicom_label(label):  # has to be laid on the scan
        volume = read_volume(replace(case, label=label), label_values)
        assert volume.label is not None
        return volume.label[0].numpy()
    values, header = read_whole(label)
    if header.shape != geometry.shape:
        raise DataError(Fault(case.id, label.name, f"the scan's shape {geometry.shape}", f"{header.shape}", "segment it again"))
    return class_indices(label, values, label_values)


def write_classes(path: Path, drawn: np.ndarray, geometry: Geometry, label_values: Sequence[int]) -> None:
    """Write class indices of the page's grid as a label of the scan's own grid, whole or not at all."""
    write_label(path, np.ascontiguousarray(from_page(drawn, geometry)), geometry, label_values)
