"""DICOM series with DICOM SEG or RTSTRUCT as their labels, in any folders."""

from __future__ import annotations

from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom, is_dicom_label
from oasis_monai.data.formats.dispatch import ending
from oasis_monai.data.layouts.dicom import labelled_cases, series_cases
from oasis_monai.data.layouts.files import may_be_scan, note_others, walk
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.utils.errors import Fault


def find(request: Request) -> Survey:
    """A case for every series that a label refers to; without labels, for every series."""
    faults: list[Fault] = []
    paths = list(walk(request.root))
    files = [path for path in paths if not ending(path)]
    if request.labelled:
        cases, names = labelled_cases(request.root, files, faults, request.data.anonymous)
    else:
        cases, names = series_cases(request.root, files, request.data.anonymous), {}
    others = [path for path in paths if may_be_scan(path) and (ending(path) or not (is_dicom(path) or is_dicom_label(path)))]
    note_others(others, "DICOM series, and DICOM SEG or RTSTRUCT", faults)
    return Survey(cases, faults, labels=names)


def _recognise(root: Path) -> bool:
    return root.is_dir() and any(not ending(path) and is_dicom_label(path) for path in walk(root))


LAYOUT = Layout(
    "dicom",
    "DICOM series with DICOM SEG or RTSTRUCT, in any folders",
    "DICOM series, and a DICOM SEG or RTSTRUCT of each",
    _recognise,
    find,
)
