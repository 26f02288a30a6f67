"""Write a result's structures in the formats that name them: .seg.nrrd, DICOM SEG, RTSTRUCT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oasis_monai.data.formats.dicom_source import DicomSource
from oasis_monai.data.formats.dispatch import seen_by_itk
from oasis_monai.data.formats.seg_nrrd import write_seg_nrrd
from oasis_monai.data.formats.structure import Algorithm, Structure
from oasis_monai.data.formats.write_dicom_seg import check_highdicom, write_dicom_seg
from oasis_monai.data.formats.write_rtstruct import write_rtstruct
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import atomic_path

SEG_NRRD, DICOM_SEG, RTSTRUCT = "seg.nrrd", "dicom-seg", "rtstruct"
FORMATS = {SEG_NRRD: ".seg.nrrd", DICOM_SEG: ".seg.dcm", RTSTRUCT: ".rtstruct.dcm"}
"""Name of each format, as of ``format``, and the ending of its files."""
ENDINGS = tuple(FORMATS.values())
OF_DICOM = (FORMATS[DICOM_SEG], FORMATS[RTSTRUCT])
"""Endings of the formats that refer to a DICOM series."""


def structure_ending(path: str | Path) -> str:
    """The one of :data:`ENDINGS` that a name has, ``""`` if none."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def check_can_write(ending: str) -> None:
    """Refuse an ending whose library is not installed.

    Raises:
        ConfigError: naming what to install.
    """
    if ending == FORMATS[DICOM_SEG]:
        check_highdicom()


def write_structures(
    path: str | Path,
    structures: Sequence[Structure],
    geometry: Geometry,
    algorithm: Algorithm,
    source: DicomSource | None = None,
) -> None:
    """Write structures, which may overlap, in the format of the ending, whole or not at all.

    Args:
        path: ends in one of :data:`ENDINGS`.
        structures: of :func:`.structure.structures_of` or :func:`.structure.structures_in`, with their masks on ``geometry``.
        geometry: the grid.
        algorithm: what made them.
        source: the DICOM series that DICOM SEG and RTSTRUCT refer to.

    Raises:
        ConfigError: another ending, no series where one is needed, or highdicom is not installed.
        OSError: it cannot be written.

    Examples:
        >>> import numpy as np
        >>> from oasis_monai.data.formats.structure import structures_of
        >>> grid = Geometry((16, 16, 8), np.diag([2.0, 2.0, 4.0, 1.0]))
        >>> gland = np.zeros(grid.shape, bool)
        >>> gland[2:14, 2:14, 1:7] = True
        >>> zone = gland.copy()
        >>> zone[8:] = False  # it lies in the gland
        >>> both = structures_of([("gland", 1, gland), ("zone", 2, zone)])
        >>> write_structures("both.seg.nrrd", both, grid, Algorithm("by hand", "1"))
    """
    kind = structure_ending(path)
    if not kind:
        raise ConfigError("path", "a name ending in " + ", ".join(ENDINGS), str(path))
    if kind in OF_DICOM and source is None:
        raise ConfigError("path", "a result of a DICOM series, to which DICOM SEG and RTSTRUCT refer", str(path))
    with atomic_path(path) as temporary:
        if kind == FORMATS[SEG_NRRD]:
            write_seg_nrrd(temporary, structures, seen_by_itk(geometry))
        else:
            assert source is not None
            (write_dicom_seg if kind == FORMATS[DICOM_SEG] else write_rtstruct)(temporary, structures, source, algorithm)
