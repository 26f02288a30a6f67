"""Read scans and labels from files as tensors, and write labels and probability maps.

After the check of the header, a MetaImage is read by numpy (:mod:`oasis_monai.data.formats.metaimage_data`), NIfTI by nibabel,
a DICOM series by ITK. The grid that these readers report must match the header.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from oasis_monai.data.formats.dicom import read_pixels
from oasis_monai.data.formats.dispatch import Source, ending, paths_of, read_header, write_array
from oasis_monai.data.formats.header import OTHER_VOXELS, SAME_VOXELS, Header, geometry_difference, match_grids, split_affine
from oasis_monai.data.formats.metaimage_data import read_voxels
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.utils.errors import ConfigError, DataError, Fault

WHOLE = 1e-4  # a label value this close to a whole number is one: scaled NIfTI masks hold 0.9999999


def read_image(source: Source) -> tuple[torch.Tensor, Geometry]:
    """Read one scan.

    Args:
        source: its file; of a DICOM series any of its files, or one from each of its folders.

    Returns:
        (1, x, y, z) float32 as stored (intensity scaling of NIfTI applied), and the grid.

    Raises:
        DataError: any fault of the header, or voxels that are NaN or infinite.
    """
    values, header = _image(source)
    return values, header.geometry


def _image(source: Source) -> tuple[torch.Tensor, Header]:
    array, header = _load(source, np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        _fail(
            paths_of(source)[0],
            "voxels",
            "finite numbers",
            f"{array.size - int(finite.sum())} NaN or infinite",
            "repair or leave out the scan",
        )
    return torch.from_numpy(array)[None], header


def read_volume(case: Case, label_values: Sequence[int]) -> Volume:
    """Read a scan with its label, if it has one.

    Args:
        case: the paths. The values ``case.background`` of its label become background.
        label_values: ``label_values[k]`` is the value in the file of class k; ``label_values[0]`` is the background.

    Returns:
        The volume on its native grid, the label renumbered to 0..C-1.

    Raises:
        DataError: with every fault of the two files at once: headers, NaN or infinite voxels, values of the label that are
            not whole or not in ``label_values``, image and label on different grids. A label that is stored in another order of
            the axes is put in the image's; where it lies less than a voxel aside the image's grid counts, and a note says so.
        ConfigError: ``label_values`` are not 2 to 256 distinct whole numbers.

    Examples:
        >>> from pathlib import Path
        >>> from oasis_monai import Case, read_volume
        >>> case = Case("Case00", Path("data/prostate/Case00.mhd"), Path("data/prostate/Case00_segmentation.mhd"))
        >>> volume = read_volume(case, label_values=[0, 1])
        >>> volume.image.shape == volume.label.shape, volume.label.unique().tolist()
        (True, [0, 1])
    """
    _check_label_values(label_values)
    faults: list[Fault] = []
    image: torch.Tensor | None = None
    label: np.ndarray | None = None
    notes: list[Fault] = []
    geometry: Geometry | None = None
    label_header: Header | None = None
    try:
        image, header = _image(case.source)
        geometry = header.geometry
        notes += named(case.id, header.notes)
    except DataError as error:
        faults += named(case.id, error.faults)
    if case.label is not None:
        try:
            values, label_header = _whole(case.label)
            values[np.isin(values, case.background)] = label_values[0]
            label = _class_indices(case.label, values, label_values)
            notes += named(case.id, label_header.notes)
        except DataError as error:
            faults += named(case.id, error.faults)
    if geometry is not None and label is not None and label_header is not None:
        label, told = _on_image_grid(case.id, label, label_header.geometry, geometry)
        (faults if label is None else notes).extend(told)
    if faults:
        raise DataError(faults)
    assert image is not None
    assert geometry is not None
    return Volume(case.id, image, None if label is None else torch.from_numpy(label)[None], geometry, tuple(notes))


def _on_image_grid(case: str, label: np.ndarray, grid: Geometry, image: Geometry) -> tuple[np.ndarray | None, list[Fault]]:
    """A label's voxels in the order of the image's, and what there is to tell; None where it lies elsewhere."""
    match = match_grids(image, grid)
    if match is None or match.distance.voxels >= OTHER_VOXELS:
        found = geometry_difference(image, grid) or ""
        if match is not None:
            found += f": up to {match.distance.voxels:.3g} voxels"
        remedy = "resample the label to the image's grid, or copy the image's geometry if it is the true one"
        return None, [Fault(case, "label geometry", "the image's grid", found, remedy)]
    label = np.ascontiguousarray(_turned(label, match.axes, match.flips))
    if match.distance.voxels <= SAME_VOXELS:
        return label, []
    found = f"{match.distance}, {match.distance.voxels:.2g} voxels"
    remedy = "the image's grid is used; copy its geometry into the label, or correct the label"
    return label, [Fault(case, "label geometry", "the image's grid", found, remedy, "warning")]


def named(case: str, faults: Iterable[Fault]) -> list[Fault]:
    """Turn the faults of a file into faults of a case; the file's name moves into the field."""
    return [dataclasses.replace(f, case=case, field=f"{f.case} {f.field}") for f in faults]


def write_label(path: str | Path, label: torch.Tensor | np.ndarray, geometry: Geometry, label_values: Sequence[int]) -> None:
    """Write class indices as the values a data set uses, compressed (but .nii) and atomically.

    Args:
        path: ends in .mhd (voxels go to a .zraw beside it), .mha, .nii or .nii.gz.
        label: (x, y, z) class indices 0..C-1.
        geometry: the grid.
        label_values: value in the file of each class. Stored as uint8 where they fit, else int16 or int32.

    Raises:
        ConfigError: the ending is another one, or ``label_values`` are not distinct whole numbers.
        ValueError: the shape is not the grid's, or an index has no value.

    Examples:
        >>> import numpy as np
        >>> from oasis_monai import Geometry, write_label
        >>> label = np.zeros((64, 64, 20), dtype=np.uint8)
        >>> label[20:40, 20:40, 5:15] = 1
        >>> grid = Geometry(label.shape, np.diag([2.0, 2.0, 4.0, 1.0]))
        >>> write_label("box.nii.gz", label, grid, label_values=[0, 4])  # class 1 is 4 in the file
    """
    _check_label_values(label_values)
    indices = np.asarray(label)
    if indices.shape != tuple(geometry.shape):
        raise ValueError(f"label: expected shape {tuple(geometry.shape)}, found {indices.shape}")
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(label_values):
        raise ValueError(f"label: expected indices 0..{len(label_values) - 1}, found {indices.min()}..{indices.max()}")
    low, high = min(label_values), max(label_values)
    dtype = next(t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    write_array(Path(path), np.asarray(label_values, dtype)[indices.astype(np.int64)], geometry)


def write_probability(path: str | Path, probability: torch.Tensor | np.ndarray, geometry: Geometry) -> None:
    """Write a probability map as float32, compressed (but .nii) and atomically.

    Args:
        path: as for :func:`write_label`.
        probability: (x, y, z), or (C, x, y, z): C channels per voxel in a MetaImage, a fourth dimension in NIfTI.
        geometry: the grid.

    Raises:
        ConfigError: the ending is another one.
        ValueError: the spatial shape is not the grid's.
    """
    array = np.asarray(probability, np.float32)
    if array.shape[-3:] != tuple(geometry.shape) or array.ndim not in (3, 4):
        raise ValueError(f"probability: expected shape (C, *{tuple(geometry.shape)}) or without C, found {array.shape}")
    write_array(Path(path), np.moveaxis(array, 0, -1) if array.ndim == 4 else array, geometry)


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis is closest to right, anterior, superior, and whether it runs against it.

    Returns:
        ``permutation[w]``: the native axis that becomes canonical axis w; ``flips[w]``: reverse it after the transposition.
    """
    from nibabel.orientations import io_orientation

    orientation = io_orientation(np.asarray(affine, float))  # row: native axis; columns: canonical axis, sign
    order = [int(a) for a in np.argsort(orientation[:, 0])]
    flips = [bool(orientation[a, 1] < 0) for a in order]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Transpose and flip (x, y, z) to the axes closest to right, anterior, superior; no value changes.

    Returns:
        A view of ``array``, and the voxel size along its axes in mm.
    """
    permutation, flips = canonical_axes(affine)
    spacing = split_affine(affine)[1]
    x, y, z = (float(spacing[a]) for a in permutation)
    return _turned(array, permutation, flips), (x, y, z)


def _turned(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """A view with its axes in another order, then some of them reversed."""
    return array.transpose(axes)[tuple(slice(None, None, -1 if f else None) for f in flips)]


def _fail(path: Path, field: str, expected: str, found: str, remedy: str) -> NoReturn:
    raise DataError(Fault(path.name, field, expected, found, remedy))


def _load(source: Source, dtype: type) -> tuple[np.ndarray, Header]:
    """(x, y, z) array of ``dtype`` and the header; the grid that the reader reports must match the header."""
    header, path = read_header(source), paths_of(source)[0]
    if header.stored is not None:
        try:
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which read_image refuses
                return read_voxels(header.stored, header.shape, dtype), header
        except (OSError, ValueError, OverflowError, zlib.error) as error:
            found = f"{type(error).__name__}: {error}"
            _fail(path, "file", "the voxels that its check found", found, "copy the scan again and leave it alone meanwhile")
    series = not ending(path)
    name = "ITK's GDCM" if series else "nibabel"
    try:
        with np.errstate(over="ignore"):
            array, affine = read_pixels(header.files, dtype) if series else _by_nibabel(path, dtype)
    except Exception as error:  # whatever ITK or nibabel dislikes is the file's fault: its header passed our check
        text = " ".join(str(error).split())[:200]
        raise DataError(
            Fault(path.name, "file", f"one that {name} reads", f"{type(error).__name__}: {text}", "export the scan again")
        ) from error
    if array.shape[3:] == (1,) * (array.ndim - 3) and array.ndim > 3:
        array = array.reshape(array.shape[:3])
    seen = Geometry(tuple(array.shape), affine)
    expected = Geometry(header.shape, header.affine if header.forms is None else header.forms.nibabel)
    difference = geometry_difference(expected, seen) if array.ndim == 3 else f"{array.ndim} dimensions"
    if difference:
        _fail(
            path,
            "geometry",
            f"what the header says from {name}",
            difference,
            "export the scan again: two readers disagree",
        )
    return array, header


def _by_nibabel(path: Path, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, z) array, scaled as the header says, and nibabel's RAS+ affine. (MONAI's reader replaces an affine whose voxel size
    is not that of ``pixdim`` in silence.)"""
    import nibabel

    image: Any = nibabel.load(path, mmap=False)  # the file may be replaced while the voxels are in use
    return np.ascontiguousarray(np.asanyarray(image.dataobj), dtype), np.asarray(image.affine, float)


def _whole(path: Path) -> tuple[np.ndarray, Header]:
    """(x, y, z) int64 label values as stored, and the header. float64 on the way: float32 would round large values."""
    array, header = _load(path, np.float64)
    rounded = np.rint(array)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(array - rounded) <= WHOLE)  # NaN and infinity too
    bad |= np.abs(rounded) > 2**53
    if bad.any():
        some = ", ".join(f"{v:g}" for v in np.unique(array[bad])[:5])
        _fail(
            path, "label", "whole numbers", f"{int(bad.sum())} others, such as {some}", "export the label without interpolation"
        )
    return rounded.astype(np.int64), header


def _values(values: np.ndarray) -> np.ndarray:
    """Distinct values, ascending; counting is a tenth of the time that sorting takes."""
    low, high = int(values.min()), int(values.max())
    if high - low < 2**16:
        return np.asarray(np.flatnonzero(np.bincount((values - low).ravel())) + low)
    return np.asarray(np.unique(values))


def _class_indices(path: Path, values: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
    """(x, y, z) uint8: the position of each value in ``label_values``."""
    found = _values(values)
    unknown = [int(v) for v in found if int(v) not in set(label_values)]
    if unknown:
        text = ", ".join(f"{v} ({int((values == v).sum())} voxels)" for v in unknown[:5]) + (", ..." if unknown[5:] else "")
        expected = "only " + ", ".join(map(str, label_values))
        _fail(path, "label values", expected, text, "correct the label, or name them in data.labels")
    order = np.argsort(label_values)
    return np.asarray(order.astype(np.uint8)[np.searchsorted(np.asarray(label_values)[order], values)])


def _check_label_values(label_values: Sequence[int]) -> None:
    whole = all(isinstance(v, int | np.integer) and not isinstance(v, bool) and abs(int(v)) < 2**31 for v in label_values)
    if not whole or len(set(label_values)) != len(label_values) or not 2 <= len(label_values) <= 256:
        raise ConfigError("label_values", "2 to 256 distinct whole numbers, the background first", list(label_values))
