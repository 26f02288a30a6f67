"""Read scans and labels from files as tensors, and write labels and probability maps.

:mod:`oasis_monai.data.formats.dispatch` says which library reads which format once its header is checked. The values of labels
are the matter of :mod:`oasis_monai.data.labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.formats.dicom_labels import label_on_grid
from oasis_monai.data.formats.dispatch import Source, paths_of, write_array
from oasis_monai.data.formats.header import Header, split_affine
from oasis_monai.data.formats.load import fail, load
from oasis_monai.data.image_grid import LABEL, named, on_image_grid, turn
from oasis_monai.data.labels import check_label_values, class_indices, read_whole, uncropped
from oasis_monai.data.overlap import read_sets, values_of_sets, with_one_value
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.utils.errors import DataError, Fault


def read_image(source: Source) -> tuple[torch.Tensor, Geometry]:
    """Read one scan.

    Args:
        source: its file; of a DICOM series any of its files, or one from each of its folders.

    Returns:
        (C, x, y, z) float32 as stored (intensity scaling of NIfTI applied), and the grid. Channels are the volumes of a file with
        four dimensions, the values of a voxel, or red, green and blue; an image of two dimensions is one slice (z = 1).

    Raises:
        DataError: any fault of the header, or voxels that are NaN or infinite.
    """
    values, header = _image(source)
    return values, header.geometry


def _image(source: Source) -> tuple[torch.Tensor, Header]:
    array, header = load(source, np.float32)
    bad = [int(channel.size - np.isfinite(channel).sum()) for channel in array]
    if any(bad):
        where = f" in channel {next(i for i, n in enumerate(bad) if n)}" if len(bad) > 1 else ""
        found = f"{sum(bad)} NaN or infinite{where}"
        fail(paths_of(source)[0], "voxels", "finite numbers", found, "repair or leave out the scan")
    return torch.from_numpy(array), header


def read_volume(case: Case, label_values: Sequence[int], ignore: int | None = None) -> Volume:
    """Read a scan with its label, if it has one.

    Args:
        case: the paths. The channels of all :attr:`.Case.sources` follow each other, and ``case.take`` chooses among them. The
            values ``case.background`` of its label become background.
        label_values: ``label_values[k]`` is the value in the file of class k; ``label_values[0]`` is the background.
        ignore: value in the file of voxels that nobody labelled; None: there is none. They become :data:`.IGNORE`.

    Returns:
        The volume on the native grid of its first image, the label renumbered to 0..C-1.

    Raises:
        DataError: with every fault of its files at once: headers, NaN or infinite voxels, values of the label that are not whole
            or not in ``label_values``, a label with several channels, images or label on different grids, a channel to take that
            is not there. A label or further image that is stored in another order of the axes is put in the first image's; where
            it lies less than a voxel aside the first image's grid counts, and a note says so.
        ConfigError: ``label_values`` are not 2 to 255 distinct whole numbers, or ``ignore`` is one of them.

    Examples:
        >>> from pathlib import Path
        >>> from oasis_monai import Case, read_volume
        >>> case = Case("Case00", Path("data/prostate/Case00.mhd"), Path("data/prostate/Case00_segmentation.mhd"))
        >>> volume = read_volume(case, label_values=[0, 1])
        >>> volume.image.shape == volume.label.shape, volume.label.unique().tolist()
        (True, [0, 1])
    """
    check_label_values(label_values, ignore)
    told: list[Fault] = []  # errors and notes
    images: list[torch.Tensor] = []
    geometry: Geometry | None = None
    for number, source in enumerate(case.sources):
        try:
            image, header = _image(source)
        except DataError as error:
            told += named(case, error.faults, number)
            continue
        told += named(case, header.notes, number)
        if number == 0:
            geometry = header.geometry
        elif geometry is not None:
            place = case.place(f"image {number + 1} ({paths_of(source)[0].name}) geometry", number)
            turned, own = on_image_grid(case.id, place, "image", image.numpy(), header.geometry, geometry)
            told += own
            image = image if turned is None else torch.from_numpy(turned)
        images.append(image)
    label = _label(case, label_values, ignore, geometry, told)
    errors = [fault for fault in told if fault.severity == "error"]
    stacked = None if errors or not images else _taken(case, images, errors)
    if errors or stacked is None:
        raise DataError(errors)
    assert geometry is not None
    notes = tuple(dict.fromkeys(fault for fault in told if fault.severity != "error"))
    return Volume(case.id, stacked, None if label is None else torch.from_numpy(label), geometry, notes)


def _label(
    case: Case, label_values: Sequence[int], ignore: int | None, geometry: Geometry | None, told: list[Fault]
) -> np.ndarray | None:
    """(1, x, y, z) class indices on the image's grid, None where there are none; adds to ``told`` what there is to tell."""
    if case.label is None:
        return None
    if case.masks or case.overlapping:
        return _overlapping(case, case.label, label_values, ignore, geometry, told)
    if is_dicom_label(case.label):
        return _drawn(case, case.label, label_values, ignore, geometry, told)
    try:
        values, header = read_whole(case.label, case.names)
        if case.background:
            values = values.astype(np.int64)
            values[np.isin(values, case.background)] = label_values[0]
        if case.structures:
            values = with_one_value(values, dict(case.structures), label_values)
        label = class_indices(case.label, values, label_values, ignore)
    except DataError as error:
        told += named(case, error.faults, LABEL)
        return None
    said = {(fault.expected, fault.found) for fault in told}  # as of an image's unknown place: its label has the same
    told += [note for note in named(case, header.notes, LABEL) if (note.expected, note.found) not in said]
    if geometry is None:
        return None
    if header.segments and header.shape != geometry.shape and (whole := uncropped(label, header.geometry, geometry)) is not None:
        return whole[None]
    place = case.place("label geometry", LABEL)
    turned, own = on_image_grid(case.id, place, "label", label[None], header.geometry, geometry)
    told += own
    return turned


def _drawn(
    case: Case, path: Path, label_values: Sequence[int], ignore: int | None, geometry: Geometry | None, told: list[Fault]
) -> np.ndarray | None:
    """As :func:`_label`, of a DICOM SEG or an RTSTRUCT, which is drawn on the image's grid."""
    if geometry is None:
        return None
    try:
        values, notes = label_on_grid(case, geometry, label_values)
        label = class_indices(path, values, label_values, ignore)
    except DataError as error:
        told += named(case, error.faults, LABEL)
        return None
    told += named(case, notes, LABEL)
    return label[None]


def _overlapping(
    case: Case, path: Path, label_values: Sequence[int], ignore: int | None, geometry: Geometry | None, told: list[Fault]
) -> np.ndarray | None:
    """As :func:`_label`, of structures that lie one by one and may share voxels."""
    if geometry is None:
        return None
    try:
        sets, notes = read_sets(case, geometry, [name for name, _ in case.structures], ignore)
        told += notes
        label = class_indices(path, values_of_sets(path, sets, case, ignore), label_values, ignore)
    except DataError as error:
        own = [fault for fault in error.faults if fault.case != case.id]
        told += [fault for fault in error.faults if fault.case == case.id] + named(case, own, LABEL)
        return None
    return label[None]


def _taken(case: Case, images: Sequence[torch.Tensor], errors: list[Fault]) -> torch.Tensor | None:
    """The channels of all images that the case takes; None with a fault where one is not there."""
    stacked = torch.cat(list(images)) if len(images) > 1 else images[0]
    if not case.take:
        return stacked
    if absent := [number for number in case.take if not 0 <= number < len(stacked)]:
        found = f"{len(stacked)} (0 to {len(stacked) - 1}), not {absent[0]}"
        errors.append(Fault(case.id, "channels", "those to take", found, "correct data.channels, or add the image"))
        return None
    return stacked if list(case.take) == list(range(len(stacked))) else stacked[list(case.take)]


def write_label(path: str | Path, label: torch.Tensor | np.ndarray, geometry: Geometry, label_values: Sequence[int]) -> None:
    """Write class indices as the values a data set uses, compressed (but .nii) and atomically.

    Args:
        path: ends in .mhd (voxels go to a .zraw beside it), .mha, .nii, .nii.gz or .nrrd; of one slice also .png, .tif or .tiff.
        label: (x, y, z) class indices 0..C-1.
        geometry: the grid.
        label_values: value in the file of each class. Stored as uint8 where they fit, else int16 or int32 (an image: uint16).

    Raises:
        ConfigError: the ending is another one, ``label_values`` are not distinct whole numbers, or an image cannot hold them.
        ValueError: the shape is not the grid's, or an index has no value.

    Examples:
        >>> import numpy as np
        >>> from oasis_monai import Geometry, write_label
        >>> label = np.zeros((64, 64, 20), dtype=np.uint8)
        >>> label[20:40, 20:40, 5:15] = 1
        >>> grid = Geometry(label.shape, np.diag([2.0, 2.0, 4.0, 1.0]))
        >>> write_label("box.nii.gz", label, grid, label_values=[0, 4])  # class 1 is 4 in the file
    """
    check_label_values(label_values)
    indices = np.asarray(label)
    if indices.shape != tuple(geometry.shape):
        raise ValueError(f"label: expected shape {tuple(geometry.shape)}, found {indices.shape}")
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(label_values):
        raise ValueError(f"label: expected indices 0..{len(label_values) - 1}, found {indices.min()}..{indices.max()}")
    low, high = min(label_values), max(label_values)
    dtype = next(t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    values, stored = np.asarray(label_values, dtype), np.empty(indices.shape, dtype)
    for one, part in zip(stored, indices, strict=True):  # numpy takes indices of 8 bytes: eight times the label at once
        one[...] = values[part.astype(np.int64)]
    write_array(Path(path), stored, geometry)


def write_probability(path: str | Path, probability: torch.Tensor | np.ndarray, geometry: Geometry) -> None:
    """Write a probability map as float32, compressed (but .nii) and atomically.

    Args:
        path: as for :func:`write_label`, but no image.
        probability: (x, y, z), or (C, x, y, z): C channels per voxel in a MetaImage or NRRD file, a fourth dimension in NIfTI.
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
    return turn(array, permutation, flips), (x, y, z)
