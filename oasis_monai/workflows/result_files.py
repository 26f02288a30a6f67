"""The files of a segmented scan: which formats there are, what each needs of the scan, and the table of statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oasis_monai.data import structure_files
from oasis_monai.data.formats.dicom_source import DicomSource, is_dicom_scan, read_dicom_source
from oasis_monai.data.formats.dispatch import RESULTS, WRITTEN, result_ending
from oasis_monai.data.formats.header import geometry_difference
from oasis_monai.data.formats.structure import Algorithm, Structure
from oasis_monai.data.scans import one_scan
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.segment_table import read_record

FORMATS = (*(ending.removeprefix(".") for ending in RESULTS), *structure_files.FORMATS)
"""The choice of ``format``."""
ENDINGS = (*WRITTEN, *structure_files.ENDINGS)
"""Of the files that a result may have."""
STATISTICS = "statistics.csv"
AXES = ("x", "y", "z")


def check_format(file_format: str | None, cases: Sequence[Case] = ()) -> None:
    """Refuse a format that there is not, that misses a library, or that none of the scans can have.

    Raises:
        ConfigError: in one line.
    """
    if file_format is None:
        return
    if file_format not in FORMATS:
        raise ConfigError("format", f"null (as the scan) or one of {', '.join(FORMATS)}", file_format)
    kind = label_ending(file_format, "")
    structure_files.check_can_write(kind)
    if kind in structure_files.OF_DICOM and cases and not any(is_dicom_scan(case.source) for case in cases):
        told = f"{file_format} of {cases[0].image.name}" + (f" and {len(cases) - 1} others" if len(cases) > 1 else "")
        remedy = "choose seg.nrrd, nii.gz or another, or give the DICOM series"
        raise ConfigError("format", "scans that are DICOM series, to which DICOM SEG and RTSTRUCT refer", told, remedy)


def label_ending(file_format: str | None, image: str | Path) -> str:
    """The ending of a scan's label."""
    if file_format is None:
        return result_ending(image)
    return structure_files.FORMATS.get(file_format, f".{file_format}")


def source_for(kind: str, case: Case) -> DicomSource | None:
    """The series that a label refers to; None where its format refers to none.

    Raises:
        DataError: the scan is no DICOM series, or lacks what a segmentation refers to.
    """
    return read_dicom_source(case.source) if kind in structure_files.OF_DICOM else None


def write_named(
    path: str | Path,
    structures: Sequence[Structure],
    geometry: Geometry,
    case: str,
    algorithm: Algorithm,
    scan: str | Path | DicomSource | None = None,
) -> None:
    """Write a result in a format that names its structures; see :meth:`.ScanResult.save`."""
    source = scan if isinstance(scan, DicomSource | None) else read_dicom_source(one_scan([Path(scan)]).source)
    if source is not None and (difference := geometry_difference(geometry, source.geometry)):
        raise DataError(Fault(case, "scan", "the series that was segmented", difference, "give that one"))
    structure_files.write_structures(path, structures, geometry, algorithm, source)


def write_statistics(output: Path) -> Path:
    """Write ``statistics.csv``, whole or not at all: one row for each structure of each scan that is finished in a folder, from
    the JSON files. Units are in the head; world coordinates are RAS+."""
    records = [record for path in sorted(output.glob("*.json")) if (record := read_record(path)) is not None]
    records = [record for record in records if isinstance(record.get("statistics"), dict)]
    channels = list(dict.fromkeys(name for record in records for name in record.get("channels") or [""]))
    head = ["case", "structure", "voxels", "volume_mm3", "volume_ml", "surface_mm2"]
    head += [f"center_{axis}_mm" for axis in AXES]
    head += [f"box_{end}_{axis}_mm" for end in ("min", "max") for axis in AXES]
    head += [f"box_{end}_{axis}_voxel" for end in ("first", "last") for axis in "ijk"]
    head += [f"intensity_{what}{f'_{name}' if name else ''}" for name in channels for what in ("mean", "sd")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for record in sorted(records, key=lambda one: str(one["case"])):
        own = record.get("channels") or [""]
        for name, measured in record["statistics"].items():
            writer.writerow([record["case"], name, *_cells(measured, own, channels)])
    write_text(output / STATISTICS, out.getvalue())
    return output / STATISTICS


def _cells(measured: Mapping[str, Any], own: Sequence[str], channels: Iterable[str]) -> list[Any]:
    """One structure's row behind its name; what is not known is empty."""
    volume = measured["volume_mm3"]
    cells = [
        measured["voxels"],
        volume,
        float(f"{volume / 1000:.6g}"),
        measured["surface_mm2"],
        *(measured["center_mm"] or [None] * 3),
    ]
    for key in ("box_mm", "box_voxels"):
        first, last = measured[key] or ([None] * 3, [None] * 3)
        cells += [*first, *last]
    for name in channels:
        for key in ("intensity_mean", "intensity_sd"):
            values = dict(zip(own, measured[key] or [], strict=False))
            cells.append(values.get(name))
    return ["" if cell is None else cell for cell in cells]
