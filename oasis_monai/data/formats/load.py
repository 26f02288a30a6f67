"""Read the voxels of a scan or label of any format, and hold the grid that the reader reports against the header."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np

from oasis_monai.data.formats.dispatch import Format, Source, format_of, paths_of, read_header
from oasis_monai.data.formats.header import Header, geometry_difference
from oasis_monai.data.formats.voxel_file import DAMAGED
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import DataError, Fault

WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Stored types of which every value is kept by the type itself."""


def load(source: Source, dtype: type | None) -> tuple[np.ndarray, Header]:
    """(C, x, y, z) array of ``dtype`` and the header.

    Args:
        source: the file, or files of a DICOM series.
        dtype: None: as stored where the file holds whole numbers of at most 32 bits that nothing scales, else float64.

    Raises:
        DataError: a fault of the header, voxels that cannot be read, or two readers that disagree about the grid.
    """
    header, path = read_header(source), paths_of(source)[0]
    form = format_of(path)
    try:
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which an image is refused for
            array, affine = form.read(header, _stored_type(header, form) if dtype is None else dtype)
    except Exception as error:  # whatever a library dislikes is the file's fault: its header passed our check
        if not form.reader:
            if not isinstance(error, DAMAGED):
                raise
            found = f"{type(error).__name__}: {error}"
            fail(path, "file", "the voxels that its check found", found, "copy the scan again and leave it alone meanwhile")
        text = " ".join(str(error).split())[:200]
        found = f"{type(error).__name__}: {text}"
        raise DataError(Fault(path.name, "file", f"one that {form.reader} reads", found, "export the scan again")) from error
    difference = None
    if array.shape != (header.channels, *header.shape):
        difference = " x ".join(map(str, array.shape))
    elif affine is not None:
        expected = Geometry(header.shape, header.affine if header.forms is None else header.forms.nibabel)
        difference = geometry_difference(expected, Geometry(header.shape, affine))
    if difference:
        remedy = "export the scan again: two readers disagree"
        fail(path, "geometry", f"what the header says from {form.reader}", difference, remedy)
    return array, header


def _stored_type(header: Header, form: Format) -> type:
    own = header.stored is not None or form.reader == "nibabel"
    return np.dtype(header.dtype).type if own and header.dtype in WHOLE else np.float64


def fail(path: Path, field: str, expected: str, found: str, remedy: str) -> NoReturn:
    """Raise one fault of a file."""
    raise DataError(Fault(path.name, field, expected, found, remedy))
