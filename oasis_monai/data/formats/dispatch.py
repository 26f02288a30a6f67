"""Read and write scans of any supported format: choose it by the file's ending, and check headers before reading.

All that depends on the format follows from one table, :data:`TABLE`. A check lists all faults of a header at once, in little
memory. It never waits on a pipe. A DICOM series is named by one of its files, see :mod:`oasis_monai.data.formats.dicom`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.by_nibabel import read_by_nibabel, write_by_nibabel
from oasis_monai.data.formats.dicom import is_dicom, is_dicom_label, read_pixels, read_series
from oasis_monai.data.formats.header import Faults, Header
from oasis_monai.data.formats.metaimage import read_metaimage
from oasis_monai.data.formats.metaimage_data import data_file, write_metaimage
from oasis_monai.data.formats.mgh import read_mgh
from oasis_monai.data.formats.nifti import paired_file, read_nifti
from oasis_monai.data.formats.nrrd import read_nrrd, write_nrrd
from oasis_monai.data.formats.picture import read_picture, read_picture_pixels, write_picture
from oasis_monai.data.formats.voxel_file import read_stored
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import atomic_path, with_path_in_errors

__all__ = ["ENDINGS", "Header", "Source", "data_files", "ending", "paths_of", "read_header"]
Source = str | Path | Sequence[str | Path]
"""A scan's file; of a DICOM series any of its files, or one from each of its folders."""


@dataclass(frozen=True)
class Format:
    """One file format of scans.

    Args:
        name: for messages.
        endings: of its files, in lower case; none for DICOM, which is told by what is in a file.
        reader: what reads its voxels, for messages; empty for our own code.
        check: reads the header of a regular file and notes its faults; None for DICOM (:func:`.dicom.read_series`).
        read: (C, x, y, z) voxels of a checked header, and the affine that the reader reports, None where it reports none.
        written: the endings that :func:`write_array` can write.
        result: ending of a result for a scan of this format, where the scan's own cannot be written.
        volumes: whether its files hold volumes; else an image of one slice.
    """

    name: str
    endings: tuple[str, ...]
    reader: str
    check: Callable[[Path, Faults], Header | None] | None
    read: Callable[[Header, type], tuple[np.ndarray, np.ndarray | None]]
    written: tuple[str, ...] = ()
    result: str = ".nii.gz"
    volumes: bool = True


def _read_stored(header: Header, dtype: type) -> tuple[np.ndarray, None]:
    assert header.stored is not None
    return read_stored(header.stored, header.shape, header.channels, dtype), None


def _read_series(header: Header, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    return read_pixels(header.files, dtype)


METAIMAGE = (".mhd", ".mha")
NIFTI = (".nii", ".nii.gz")
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
PICTURES = (".png", ".tif", ".tiff")
DICOM = Format("DICOM", (), "ITK's GDCM", None, _read_series)
TABLE = (
    Format("MetaImage", METAIMAGE, "", read_metaimage, _read_stored, METAIMAGE),
    Format("NIfTI", NIFTI, "nibabel", read_nifti, read_by_nibabel, NIFTI),
    Format("NIfTI or Analyze 7.5 in two files", PAIRS, "nibabel", read_nifti, read_by_nibabel),
    Format("NRRD", (".nrrd", ".nhdr", ".seg.nrrd"), "", read_nrrd, _read_stored, (".nrrd",), ".nrrd"),
    Format("FreeSurfer", (".mgz", ".mgh"), "nibabel", read_mgh, read_by_nibabel),
    Format("image", PICTURES, "Pillow", read_picture, read_picture_pixels, PICTURES, volumes=False),
)
"""Every format that is told by its ending."""
ENDINGS = tuple(e for form in TABLE for e in form.endings)
"""File endings of scans, in lower case."""
VOLUMES = tuple(e for form in TABLE for e in form.endings if form.volumes)
"""Those of :data:`ENDINGS` whose files hold volumes."""
WRITTEN = tuple(e for form in TABLE for e in form.written)
"""Those of :data:`ENDINGS` that :func:`write_array` writes."""
RESULTS = tuple(e for e in WRITTEN if e in VOLUMES)
"""Those of :data:`WRITTEN` that hold any result: the choice of ``format``."""


def ending(path: str | Path) -> str:
    """The one of :data:`ENDINGS` that ``path`` has, ``""`` if none."""
    name = Path(path).name.lower()
    return next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)), "")


def format_of(path: str | Path) -> Format:
    """The format of a file by its ending; :data:`DICOM` without one."""
    kind = ending(path)
    return next((form for form in TABLE if kind in form.endings), DICOM)


def result_ending(scan: str | Path) -> str:
    """Ending of the label of a scan, unless another one is asked for: the scan's own, or the one that its users expect."""
    form = format_of(scan)
    return ending(scan) if ending(scan) in form.written else form.result


def map_ending(result: str) -> str:
    """Ending of a probability map beside a label that ends in ``result``: an image holds whole numbers alone, a segmentation
    structures."""
    return result if result in RESULTS else ".nii.gz"


def is_second_file(path: Path) -> bool:
    """Whether a file is the .img of a pair whose .hdr lies beside it, and stands for the scan."""
    return ending(path) in (".img", ".img.gz") and paired_file(path).exists()


def scans_among(paths: Iterable[Path]) -> list[Path]:
    """The files of a folder that are scans by their ending, in order, each scan once: no .img of a pair, and images of two
    dimensions only where there is no volume, because beside one they are drawings of it."""
    found = [path for path in paths if ending(path) and not is_second_file(path)]
    volumes = [path for path in found if ending(path) in VOLUMES]
    return volumes or found


def read_header(source: Source) -> Header:
    """Read and check the header of a scan of three dimensions, or of one slice, with one channel or several.

    The length of the data is verified too (compressed data is decompressed in pieces, never as a whole), so that a file which
    passes can be read.

    Args:
        source: a file that ends in one of :data:`ENDINGS` (of a pair either one), or one DICOM file of a series; where the series
            lies in several folders, one from each.

    Returns:
        Shape, RAS+ affine, element type and files (of a series: all of them, in the order of the slices).

    Raises:
        DataError: with every fault of the header: absent or unreadable file, unknown ending, data file outside the folder,
            data longer or shorter than the header says, bad sizes, spacing, direction, element type, too many channels,
            repeated or unreadable lines.
    """
    path, *more = paths_of(source)
    faults = Faults(path)
    kind = ending(path)
    header: Header | None = None
    try:
        if kind in (".img", ".img.gz"):
            path = paired_file(path)
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
            check = format_of(path).check
            assert check is not None
            header = check(path, faults)
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
        path: ends in one of :data:`WRITTEN`; of .mhd the voxels go to a .zraw beside it.
        array: (x, y, z) or (x, y, z, C); (x, y, 1) whole numbers for an image.
        geometry: the grid; kept exactly in a MetaImage or NRRD file, to float32 in NIfTI; of an image the pixels' size alone.
            Where it is that of a NIfTI scan, a NIfTI file gets the scan's sform, qform, codes and unit. A MetaImage or NRRD file
            has place for one: it gets the one that ITK shows the scan by.

    Raises:
        ConfigError: another ending, or an array that an image cannot hold.
        OSError: it cannot be written, as to a full disk; the file before stays.
    """
    kind = ending(path)
    if geometry.forms is not None and not np.array_equal(geometry.forms.used, geometry.affine):
        geometry = Geometry(geometry.shape, geometry.affine)  # it was moved since
    if kind not in WRITTEN:
        raise ConfigError("path", "a name ending in " + ", ".join(WRITTEN), str(path))
    if kind == ".mhd":
        _write_pair(path, array, geometry)
        return
    with atomic_path(path) as temporary:
        if kind == ".mha":
            write_metaimage(temporary, array, seen_by_itk(geometry))
        elif kind == ".nrrd":
            write_nrrd(temporary, array, seen_by_itk(geometry))
        elif kind in PICTURES:
            write_picture(temporary, array, geometry, kind)
        else:
            write_by_nibabel(temporary, array, geometry)


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
        write_metaimage(Path(folder) / path.name, array, seen_by_itk(geometry))  # under its final name, which the header repeats
        data = next(f for f in Path(folder).iterdir() if f.name != path.name)
        for file in (data, Path(folder) / path.name):
            with open(file, "rb") as done:
                os.fsync(done.fileno())
        path.unlink(missing_ok=True)
        os.replace(data, path.parent / data.name)
        os.replace(Path(folder) / path.name, path)


def seen_by_itk(geometry: Geometry) -> Geometry:
    """The grid for a file with place for one affine: of a NIfTI scan the one that ITK shows it by."""
    return geometry if geometry.forms is None else Geometry(geometry.shape, geometry.forms.itk)
