"""Our own look at a scan's header, before ITK or nibabel opens the file: all faults at once, little memory, no hanging.

A DICOM series is named by one of its files, see :mod:`oasis_monai.dicom`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from oasis_monai.dicom import is_dicom, read_series
from oasis_monai.header_rules import Faults, Header
from oasis_monai.metaimage import read_metaimage
from oasis_monai.nifti import read_nifti

__all__ = ["ENDINGS", "Header", "data_files", "ending", "read_header"]

METAIMAGE = (".mhd", ".mha")
NIFTI = (".nii", ".nii.gz")
ENDINGS = METAIMAGE + NIFTI
"""File endings of scans, in lower case."""


def ending(path: str | Path) -> str:
    """The one of :data:`ENDINGS` that ``path`` has, ``""`` if none."""
    name = Path(path).name.lower()
    return next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)), "")


def read_header(path: str | Path) -> Header:
    """Read and check the header of a 3D scan with one channel.

    The length of the data is verified too (compressed data is decompressed in pieces, never as a whole), so that a file which
    passes can be read.

    Args:
        path: a .mhd, .mha, .nii or .nii.gz file, or one DICOM file of a series.

    Returns:
        Shape, RAS+ affine, element type and files (of a series: all of them, in the order of the slices).

    Raises:
        DataError: with every fault of the header: absent or unreadable file, unknown ending, data file outside the folder,
            data longer or shorter than the header says, bad sizes, spacing, direction, element type, several channels,
            repeated or unreadable lines.
    """
    path = Path(path)
    faults = Faults(path)
    kind = ending(path)
    header: Header | None = None
    try:
        mode = os.stat(path).st_mode
        if not kind and is_dicom(path):
            header = read_series(path, faults)
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
    return header


def data_files(path: str | Path) -> tuple[Path, ...]:
    """The files that make up a scan, for content hashes: the header's file, then the data file it names, if any; or all files of
    a DICOM series.

    Raises:
        DataError: as :func:`read_header`.
    """
    return read_header(path).files
