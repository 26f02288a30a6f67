"""Arrays into MetaImage and NIfTI files, atomically: a kill at any moment leaves the old result, the new one or none, never a
header beside voxels that are not its own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from oasis_monai.errors import ConfigError
from oasis_monai.files import atomic_path, blaming
from oasis_monai.headers import ENDINGS, ending
from oasis_monai.metaimage_data import data_file, write_metaimage
from oasis_monai.types import Geometry


def write_array(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write one scan, compressed (but .nii), in the format that the ending names.

    Args:
        path: ends in .mhd (voxels go to a .zraw beside it), .mha, .nii or .nii.gz.
        array: (x, y, z) or (x, y, z, C).
        geometry: the grid; kept exactly in a MetaImage, to float32 in NIfTI.

    Raises:
        ConfigError: another ending.
        OSError: it cannot be written, as to a full disk; the file before stays.
    """
    kind = ending(path)
    if not kind:
        raise ConfigError("path", "a name ending in " + ", ".join(ENDINGS), str(path))
    if kind == ".mhd":
        _write_pair(path, array, geometry)
        return
    with atomic_path(path) as temporary:
        if kind == ".mha":
            write_metaimage(temporary, array, geometry)
        else:
            _nibabel_write(temporary, array, geometry)


def remove_array(path: Path) -> None:
    """Remove what :func:`write_array` wrote to ``path``, the voxels beside a header too."""
    path.unlink(missing_ok=True)
    if ending(path) == ".mhd":
        path.with_name(data_file(path.stem)).unlink(missing_ok=True)


def _write_pair(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Header and voxels are two files, and no rename moves both. So both are finished elsewhere, the old header goes, the
    voxels take their place, the new header follows: whenever a header is there, the voxels it names are its own, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with blaming(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        write_metaimage(Path(folder) / path.name, array, geometry)  # under its final name, which the header repeats
        data = next(f for f in Path(folder).iterdir() if f.name != path.name)
        for file in (data, Path(folder) / path.name):
            with open(file, "rb") as done:
                os.fsync(done.fileno())
        path.unlink(missing_ok=True)
        os.replace(data, path.parent / data.name)
        os.replace(Path(folder) / path.name, path)


def _nibabel_write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array, np.asarray(geometry.affine, float))
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, str(path))
