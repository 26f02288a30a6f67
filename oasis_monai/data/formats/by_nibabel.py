"""Read and write by nibabel what the checks of :mod:`.nifti`, :mod:`.analyze` and :mod:`.mgh` let pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.formats.header import Header
from oasis_monai.data.types import Geometry


def read_by_nibabel(header: Header, dtype: type) -> tuple[np.ndarray, np.ndarray | None]:
    """(C, x, y, z) array, scaled as the header says, and nibabel's RAS+ affine, None of an image with two dimensions. Where
    ``dtype`` is one of whole numbers, but the header scales them, the array is float64. (MONAI's reader replaces an affine whose
    voxel size is not that of ``pixdim`` in silence.)"""
    import nibabel

    # for Analyze, nibabel.load would also open SPM's .mat beside it
    analyze = header.forms is not None and not header.forms.fields
    nib: Any = nibabel
    image = (nib.AnalyzeImage.load if analyze else nib.load)(
        header.files[0], mmap=False
    )  # the file may be replaced while the voxels are in use
    found: Any = np.asanyarray(image.dataobj)
    scaled = np.issubdtype(dtype, np.integer) and found.dtype.kind == "f"
    values: Any = np.ascontiguousarray(found, np.float64 if scaled else dtype)
    del found  # of a large scan the two are most of the memory
    flat = values.ndim == 2
    values = values.reshape(*values.shape, 1, 1) if flat else values.reshape(*values.shape[:3], -1)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0)), None if flat else np.asarray(image.affine, float)


def write_by_nibabel(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (x, y, z) or (x, y, z, C) as NIfTI-1, packed where the name ends in .gz."""
    import nibabel

    if geometry.forms is None or not geometry.forms.fields:
        image = nibabel.Nifti1Image(array, np.asarray(geometry.affine, float))
        image.set_sform(geometry.affine, code=1)
        image.set_qform(geometry.affine, code=1)
        image.header.set_xyzt_units("mm")
    else:
        header = nibabel.Nifti1Header()
        header.set_data_dtype(array.dtype)
        header.set_data_shape(array.shape)
        for name, value in geometry.forms.fields.items():
            header[name] = value
        image = nibabel.Nifti1Image(array, None, header)  # an affine would be written over the header's
    nibabel.save(image, str(path))
