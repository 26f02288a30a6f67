"""Find the cases of a data set, in whichever of the layouts of :mod:`oasis_monai.data.layouts` it lies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.known import known_values, with_known
from oasis_monai.data.layouts import case_folders, datalist, decathlon, dicom_sets, folder, paired, promise12, table, templates
from oasis_monai.data.layouts.dataset_json import NAME
from oasis_monai.data.layouts.files import note_ids
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.people import with_parts, with_people
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault

__all__ = ["LAYOUTS", "Survey", "find_cases", "recognise", "survey"]
FILES = (table.LAYOUT, datalist.LAYOUT)
SPECIFIC = (promise12.LAYOUT, decathlon.MSD, decathlon.NNUNET, dicom_sets.LAYOUT)
GENERAL = (paired.FOLDERS, case_folders.LAYOUT, paired.FILES)
"""Layouts that a folder may look like by chance: looked at where none of the others fits."""
APART = (decathlon.MSD, decathlon.NNUNET, paired.FOLDERS)
"""Layouts that have images and labels in folders of their own."""
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*FILES, *SPECIFIC, *GENERAL, templates.LAYOUT, folder.LAYOUT)}


def find_cases(
    root: str | Path,
    layout: str = "auto",
    warn: Callable[[Fault], None] | None = None,
    data: DataSettings | None = None,
    labelled: bool = True,
) -> list[Case]:
    """The cases of a data set, sorted by id.

    Args:
        root: its folder, or the CSV, TSV or JSON file that lists it.
        layout:
            ``auto``: recognise it.
            ``promise12``: ``CaseNN.mhd`` with ``CaseNN_segmentation.mhd`` (or .mha), searched in all folders below ``root``.
            ``msd``: ``imagesTr`` and ``labelsTr`` (Medical Segmentation Decathlon), in ``root`` or in its only subfolder that has
            them. Cases of ``imagesTs`` and ``labelsTs`` have the split ``test``.
            ``nnunet``: the same with a file for each channel, ``x_0000`` and ``x_0001``.
            ``case_folders``: a folder for each case, with its images and its label.
            ``paired_folders``: two folders, such as ``images`` and ``labels``, with names that match.
            ``paired_files``: the same in one folder, ``p00.nii.gz`` and ``p00_seg.nii.gz``.
            ``dicom``: DICOM series, with a DICOM SEG or RTSTRUCT each as label.
            ``templates``: by ``data.image`` and ``data.label``.
            ``table``: a CSV or TSV file; ``datalist``: a data list of MONAI, JSON.
            ``folder``: every scan directly in ``root`` (or the one file ``root``), without labels, for segmentation;
            ``X_segmentation`` beside ``X`` is left out. Also every DICOM series in ``root`` or in any folder below it. Where all
            files are called ``x_0000`` and ``x_0001``, these are channels.
        warn: is told of what is left out; default: Python's own warnings.
        data: settings of the data set, such as templates, channels and the rule for patients.
        labelled: whether a case must have a label; without, ``auto`` finds scans to segment.

    Hidden files (``._x`` of macOS too) and ``__MACOSX`` are ignored in all layouts. Any other file that may be a scan, and has no
    place in the layout, is a warning.

    Raises:
        DataError: with every fault at once: absent or empty root, an image without label, a label without image, two files
            for one id, a line of a table that cannot be read.
        ConfigError: an unknown layout, one that cannot be recognised, or settings that do not fit the data set.
    """
    found = survey(root, layout, data, labelled)
    if errors := [fault for fault in found.faults if fault.severity == "error"]:
        raise DataError(errors)
    for fault in found.faults:
        if warn is None:
            warnings.warn(str(fault), stacklevel=2)
        else:
            warn(fault)
    return found.cases


def survey(root: str | Path, layout: str = "auto", data: DataSettings | None = None, labelled: bool = True) -> Survey:
    """As :func:`find_cases`, but with the faults beside the cases, so that what is in the files can be looked at all the same.

    Where there are faults, the cases are for that only: an image whose label is missing or ambiguous stands there without.

    Raises:
        DataError: the root is absent or unreadable, or no table or list.
        ConfigError: an unknown layout, one that cannot be recognised, or settings that do not fit the data set.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError("layout", "one of auto, " + ", ".join(sorted(LAYOUTS)), layout)
    data = data or DataSettings()
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(
            Fault("", "root", "an existing folder", f"none at {root}", "correct the path, or download the data first")
        )
    try:
        root, chosen = _choose(root, layout, data, labelled)
        found = chosen.find(Request(root, data, labelled and chosen is not folder.LAYOUT))
    except OSError as error:
        told = f"{error.strerror} ({error.filename})"
        raise DataError(Fault("", "root", "a readable folder", told, "correct the permissions")) from error
    found = replace(found, layout=chosen.name, cases=sorted(found.cases, key=lambda case: case.id), faults=list(found.faults))
    if not found.cases and not any(fault.severity == "error" for fault in found.faults):
        found.faults.append(_nothing(chosen, root, found.faults))
    note_ids(found.cases, found.faults)
    found = with_parts(found) if chosen is templates.LAYOUT else found
    rules = with_known(data, known_values(found, data)) if labelled else data
    return with_people(found, root, rules.patient, rules.centre, strict=labelled)


def _choose(root: Path, layout: str, data: DataSettings, labelled: bool) -> tuple[Path, Layout]:
    """The layout of a root, and the root where it is another (the folder of a ``dataset.json``).

    Raises:
        ConfigError: none can be recognised, or several can.
        DataError: it is a file where a folder is needed.
    """
    if root.name == NAME and root.is_file() and layout in ("auto", "msd", "nnunet") and not datalist.has_lists(root):
        root = root.parent  # nnU-Net's: it describes what lies beside it
    if layout != "auto":
        chosen = LAYOUTS[layout]
        if chosen in FILES and root.is_dir():
            kind = "CSV or TSV" if chosen is table.LAYOUT else "JSON"
            raise DataError(Fault("", "root", f"a {kind} file (layout {layout})", f"the folder {root}", "name the file"))
        if root.is_file() and chosen not in (*FILES, folder.LAYOUT):
            remedy = "correct the path, or download the data first"
            raise DataError(Fault("", "root", "an existing folder", f"none at {root}", remedy))
        return root, chosen
    if root.is_dir() and data.image:
        return root, templates.LAYOUT
    if labelled:
        return root, recognise(root)
    return _choose_unlabelled(root)


def _choose_unlabelled(root: Path) -> tuple[Path, Layout]:
    """Where scans to segment lie: in the test part of a data set, else in the folder itself, else where a labelled data set has
    its images, else in a folder for each case."""
    for chosen in FILES:
        if chosen.recognise(root):
            return root, chosen
    if root.is_dir():
        if (root / "imagesTs").is_dir():
            return root / "imagesTs", folder.LAYOUT
        if not folder.find(Request(root, DataSettings(), labelled=False)).cases:
            if (apart := next((layout for layout in APART if layout.recognise(root)), None)) is not None:
                return root, apart
            if case_folders.has_cases(root):
                return root, case_folders.LAYOUT
    return root, folder.LAYOUT


def recognise(root: Path) -> Layout:
    """The layout of a labelled data set.

    Args:
        root: an existing folder or file.

    Raises:
        ConfigError: none can be recognised, or several can.
    """
    remedy = 'give data.layout=..., or data.image="{case}/t2.nii.gz" data.label="{case}/seg.nii.gz" as the names are'
    for layouts in (FILES, SPECIFIC, GENERAL):
        found = [layout for layout in layouts if layout.recognise(root)]
        if len(found) > 1:
            both = " and ".join(f"{layout.name} ({layout.description})" for layout in found)
            raise ConfigError("data.layout", "files that lie in one way", f"signs of {both}", "choose by data.layout=NAME")
        if found:
            return found[0]
    if root.is_file():
        raise ConfigError("data.root", "a folder, or a .csv, .tsv or .json file that lists the cases", str(root), "correct it")
    known = ", ".join(layout.name for layout in (*SPECIFIC, *GENERAL))
    raise ConfigError("data.root", f"labelled scans in one of the layouts {known}, or a table of them", str(root), remedy)


def _nothing(chosen: Layout, root: Path, faults: list[Fault]) -> Fault:
    """The fault of a data set without a case."""
    nothing = f"none in {root}" + "".join(f", but {fault.found}" for fault in faults)
    if chosen is folder.LAYOUT:
        remedy = "convert what is left out to one of these" if faults else "give another folder"
        return Fault("", "input", chosen.expected, nothing, remedy)
    return Fault("", "root", f"{chosen.expected} (layout {chosen.name})", nothing, "correct root or data.layout")
