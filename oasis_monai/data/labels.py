"""Labels as files hold them: whole numbers, names of structures where a file has them, and class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.formats.dicom_labels import dicom_label_names
from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.formats.header import SAME_VOXELS, Header
from oasis_monai.data.formats.load import fail, load
from oasis_monai.data.formats.segments import label_names, merge_layers
from oasis_monai.data.types import IGNORE, Geometry
from oasis_monai.utils.errors import ConfigError

WHOLE = 1e-4  # a label value this close to a whole number is one: scaled NIfTI masks hold 0.9999999


def read_label_names(path: str | Path) -> dict[str, int]:
    """The structures that a label file names itself, with their values.

    Returns:
        Name -> value in the label that :func:`.read_volume` reads: those of a seg.nrrd, a DICOM SEG or an RTSTRUCT
        (:func:`.dicom_label_names`); empty for files that hold no names.

    Raises:
        DataError: a fault of the header.

    Examples:
        >>> from oasis_monai.data.labels import read_label_names
        >>> read_label_names("Segmentation.seg.nrrd")
        {'prostate': 1, 'tumour': 2}
    """
    if is_dicom_label(Path(path)):
        return dicom_label_names(Path(path))
    return label_names(read_header(path).segments)


def find_label_values(path: str | Path) -> tuple[int, ...]:
    """The distinct values of a label file, ascending; 0, the background, is one of them where it is there. Of a DICOM SEG or an
    RTSTRUCT those of all its structures.

    Raises:
        DataError: a fault of the file, or values that are not whole.
    """
    if is_dicom_label(Path(path)):
        return tuple(sorted({0, *dicom_label_names(Path(path)).values()}))
    return tuple(int(v) for v in distinct(read_whole(Path(path))[0]))


def read_whole(path: Path, names: Sequence[tuple[str, int]] = ()) -> tuple[np.ndarray, Header]:
    """(x, y, z) label values as stored, and the header: in the file's own type where that is of whole numbers of at most 32 bits,
    else int64. Not to be written to.

    Args:
        path: the label's file.
        names: (structure, value) pairs: where the file names its segments, each has the value that stands here, and the others
            are left out (``Case.names``). Files of one data set may number the same structures differently.

    Raises:
        DataError: a fault of the header, several channels (but for layers of segments that share no voxel, and grey written as
            red, green and blue), values that are not whole.
    """
    array, header = load(path, None)  # float64 where it is not whole: float32 would round large values
    values = array if array.dtype.kind in "iu" else _rounded(path, array)
    if header.segments and (names or len(values) > 1):
        return merge_layers(path.name, values.astype(np.int64), header.segments, dict(names) or None), header
    if not (values == values[:1]).all():
        remedy = "save one number for each voxel: the value of its structure"
        fail(path, "label", "one channel", f"{len(values)} that differ", remedy)
    return values[0], header


def _rounded(path: Path, array: np.ndarray) -> np.ndarray:
    """int64, slab by slab: of a large scan every further array counts."""
    values = np.empty(array.shape, np.int64)
    bad, some = 0, np.empty(0)
    for place in np.ndindex(array.shape[:2]):
        part = array[place]
        rounded = np.rint(part)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(part - rounded) <= WHOLE)  # NaN and infinity too
        wrong |= np.abs(rounded) > 2**53
        if wrong.any():
            bad += int(wrong.sum())
            some = np.unique(np.concatenate([some, part[wrong]]))[:5]
            continue
        values[place] = rounded
    if bad:
        found = f"{bad} others, such as " + ", ".join(f"{v:g}" for v in some)
        fail(path, "label", "whole numbers", found, "export the label without interpolation")
    return values


def distinct(values: np.ndarray) -> np.ndarray:
    """Distinct values of whole numbers, ascending; counting is a tenth of the time that sorting takes."""
    low, high = int(values.min()), int(values.max())
    if high - low < 2**16:
        counts = np.zeros(high - low + 1, np.int64)
        for part in values:  # numpy counts in int64
            counts += np.bincount(part.ravel().astype(np.int64) - low, minlength=len(counts))
        return np.asarray(np.flatnonzero(counts) + low)
    return np.asarray(np.unique(values))


def uncropped(label: np.ndarray, grid: Geometry, image: Geometry) -> np.ndarray | None:
    """A label that its program cut to the box around its segments (3D Slicer), on the image's grid; None where it is no whole
    box of it.

    Args:
        label: (x, y, z) class indices.
        grid: its own grid.
        image: the image's grid.
    """
    step = np.linalg.solve(np.asarray(image.affine, float), np.asarray(grid.affine, float))
    start = np.rint(step[:3, 3])
    if np.abs(step - np.eye(4))[:3, :3].max() > 1e-3 or np.abs(step[:3, 3] - start).max() > SAME_VOXELS:
        return None
    ends = start + label.shape
    if (start < 0).any() or (ends > image.shape).any():
        return None
    out = np.zeros(image.shape, label.dtype)
    out[tuple(slice(int(a), int(b)) for a, b in zip(start, ends, strict=True))] = label
    return out


def class_indices(path: Path, values: np.ndarray, label_values: Sequence[int], ignore: int | None = None) -> np.ndarray:
    """(x, y, z) uint8: the position of each value in ``label_values``, :data:`.IGNORE` for the value ``ignore``.

    Raises:
        DataError: another value.
    """
    known = [*label_values, *([] if ignore is None else [ignore])]
    classes = np.array([*range(len(label_values)), *([] if ignore is None else [IGNORE])], np.uint8)
    unknown = [int(v) for v in distinct(values) if int(v) not in set(known)]
    if unknown:
        text = ", ".join(f"{v} ({int((values == v).sum())} voxels)" for v in unknown[:5]) + (", ..." if unknown[5:] else "")
        expected = "only " + ", ".join(map(str, known))
        fail(path, "label values", expected, text, "correct the label, or name them in data.labels")
    order = np.argsort(known)
    ascending, made = np.asarray(known)[order], np.empty(values.shape, np.uint8)
    for one, part in zip(made, values, strict=True):
        one[...] = classes[order][np.searchsorted(ascending, part)]
    return made


def check_label_values(label_values: Sequence[int], ignore: int | None = None) -> None:
    """Refuse values that cannot be those of classes.

    Raises:
        ConfigError: they are not 2 to 255 distinct whole numbers, or ``ignore`` is one of them.
    """
    whole = all(isinstance(v, int | np.integer) and not isinstance(v, bool) and abs(int(v)) < 2**31 for v in label_values)
    if not whole or len(set(label_values)) != len(label_values) or not 2 <= len(label_values) <= IGNORE:
        raise ConfigError("label_values", f"2 to {IGNORE} distinct whole numbers, the background first", list(label_values))
    if ignore is not None and ignore in label_values:
        raise ConfigError("ignore", "a value that is no label's", ignore)
