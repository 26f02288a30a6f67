"""Read and write scans of any supported format: choose it by the file's ending, and check headers before reading.

A check lists all faults of a header at once, in little memory. It never waits on a pipe. A DICOM series is named by one of its
files, see :mod:`oasis_monai.data.formats.dicom`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom import is_dicom, is_dicom_label, read_series
from oasis_monai.data.formats.header import Faults, Header
from oasis_monai.data.formats.metaimage import read_metaimage
from oasis_monai.data.formats.metaimage_data import data_file, write_metaimage
from oasis_monai.data.formats.nifti import read_nifti
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import atomic_path, with_path_in_errors

__all__ = ["ENDINGS", "Header", "Source", "data_files", "ending", "paths_of", "read_header"]
Source = str | Path | Sequence[str | Path]
"""A scan's file; of a DICOM series any of its files, or one from each of its folders."""
METAIMAGE = (".mhd", ".mha")
NIFTI = (".nii", ".nii.gz")
ENDINGS = METAIMAGE + NIFTI
"""File endings of scans, in lower case."""


def ending(path: str | Path) -> str:
    """The one of :data:`ENDINGS` that ``path`` has, ``""`` if none."""
    name = Path(path).name.lower()
    return next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)), "")


def read_header(source: Source) -> Header:
    """Read and check the header of a 3D scan with one channel.

    The length of the data is verified too (compressed data is decompressed in pieces, never as a whole), so that a file which
    passes can be read.

    Args:
        source: a .mhd, .mha, .nii or .nii.gz file, or one DICOM file of a series; where the series lies in several folders, one
            from each.

    Returns:
        Shape, RAS+ affine, element type and files (of a series: all of them, in the order of the slices).

    Raises:
        DataError: with every fault of the header: absent or unreadable file, unknown ending, data file outside the folder,
            data longer or shorter than the header says, bad sizes, spacing, direction, element type, several channels,
            repeated or unreadable lines.
    """
    path, *more = paths_of(source)
    faults = Faults(path)
    kind = ending(path)
    header: Header | None = None
    try:
        mode = os.stat(path).st_mode
        if more and (kind or not is_dicom(path)):
            faults.add("file", "one file, or files of a DICOM series", f"{1 + len(more)} files", "give each scan by itself")
        elif not kind and is_dicom(path):
            header = read_series(path, faults, more)
        elif not kind:
            faults.add("file", "a name ending in " + ", ".join(ENDINGS) + ", or DICOM", path.name, "convert the scan")
        elif not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            faults.add("file", "a regular file", "a folder, pipe or device", "give the header's file")
        else:
            header = (read_metaimage if kind in METAIMAGE else read_nifti)(path, faults)
    except OSError as error:
        faults.add("file", "a readable file", error.strerror or type(error).__name__, f"check the path {path}")
    except ValueError as error:  # a NUL in the path
        faults.add("file", "a path", error, "correct the path")
    faults.raise_if_any()
    assert header is not None  # every way to None notes a fault
    return replace(header, notes=tuple(faults.notes))


def paths_of(source: Source) -> tuple[Path, ...]:
    """A scan's files as they were given."""
    return (Path(source),) if isinstance(source, str | Path) else tuple(Path(path) for path in source)


def data_files(source: Source) -> tuple[Path, ...]:
    """The files that make up a scan, for content hashes: the header's file, then the data file it names, if any; or all files of
    a DICOM series; of a label in DICOM (SEG, RTSTRUCT) the file itself.

    Raises:
        DataError: as :func:`read_header`.
    """
    paths = paths_of(source)
    return paths if len(paths) == 1 and is_dicom_label(paths[0]) else read_header(source).files


def write_array(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write one scan, compressed (but .nii), in the format that the ending names.

    Args:
        path: ends in .mhd (voxels go to a .zraw beside it), .mha, .nii or .nii.gz.
        array: (x, y, z) or (x, y, z, C).
        geometry: the grid; kept exactly in a MetaImage, to float32 in NIfTI. Where it is that of a NIfTI scan, a NIfTI file gets
            the scan's sform, qform, codes and unit. A MetaImage has place for one: it gets the one that ITK shows the scan by.

    Raises:
        ConfigError: another ending.
        OSError: it cannot be written, as to a full disk; the file before stays.
    """
    kind = ending(path)
    if geometry.forms is not None and not np.array_equal(geometry.forms.used, geometry.affine):
        geometry = Geometry(geometry.shape, geometry.affine)  # it was moved since
    if not kind:
        raise ConfigError("path", "a name ending in " + ", ".join(ENDINGS), str(path))
    if kind == ".mhd":
        _write_pair(path, array, geometry)
        return
    with atomic_path(path) as temporary:
        if kind == ".mha":
            write_metaimage(temporary, array, _seen_by_itk(geometry))
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
    with with_path_in_errors(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        write_metaimage(Path(folder) / path.name, array, _seen_by_itk(geometry))  # under its final name, which the header repeats
        data = next(f for f in Path(folder).iterdir() if f.name != path.name)
        for file in (data, Path(folder) / path.name):
            with open(file, "rb") as done:
                os.fsync(done.fileno())
        path.unlink(missing_ok=True)
        os.replace(data, path.parent / data.name)
        os.replace(Path(folder) / path.name, path)


def _seen_by_itk(geometry: Geometry) -> Geometry:
    return geometry if geometry.forms is None else Geometry(geometry.shape, geometry.forms.itk)


def _nibabel_write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    import nibabel

    if geometry.forms is None:
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
