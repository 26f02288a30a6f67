"""DICOM series below a folder: cases with names that tell them to a person, and their labels.

A case is called by its PatientID or, without one, by its folder. Where several have that name, what tells them apart follows:
SeriesDescription, folder, SeriesNumber, and only then the end of the SeriesInstanceUID.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom, is_dicom_label, read_image_header, series_among, series_parts
from oasis_monai.data.formats.dicom_labels import labels_of, reference_of, values_of_names
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import DataError, Fault

MOST_LETTERS = 60
"""Of one part of a name."""
NOBODY = ("anon", "anonym", "anonymous", "anonymized", "anonymised", "unknown", "none", "na", "removed", "deidentified", "xxx")
"""PatientIDs that name nobody, in lower case without other characters; numbers of zeros too."""
SHOWN = 6


@dataclass(frozen=True)
class Series:
    """One scan: ``files``: one of each of its folders; ``home``: the folder round them; ``told``: what its header says of it."""

    uid: str
    home: Path
    files: tuple[Path, ...]
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def patient(self) -> str:
        """PatientID; empty where it names nobody."""
        number = self.told.get("PatientID", "")
        letters = re.sub(r"[\W_]", "", number).casefold()
        return "" if letters in NOBODY or not letters.strip("0") else number


def series_cases(root: Path, files: Iterable[Path], anonymous: bool = False) -> list[Case]:
    """A case without label for every DICOM series.

    Args:
        root: the folder of the data set.
        files: those below it that may be DICOM.
        anonymous: ids and patients hold nothing of what the files say of a person, of dates or of folders: they are made of a
            digest of the SeriesInstanceUID, and stay the same when cases are added.
    """
    return _cases(root, _series(files), anonymous)


def labelled_cases(
    root: Path, files: Iterable[Path], faults: list[Fault], anonymous: bool = False
) -> tuple[list[Case], dict[str, int]]:
    """The DICOM series that a DICOM SEG or an RTSTRUCT refers to, with it as their label.

    Args:
        root, anonymous: as for :func:`series_cases`.
        files: those below the folder that may be DICOM images or labels.
        faults: takes what is wrong; series without label are left out with a warning.

    Returns:
        The cases, and the structures found in their labels with a value for each.
    """
    paths = list(files)
    masks = [path for path in paths if is_dicom_label(path)]
    found = _series(path for path in paths if path not in set(masks))
    pairs: list[tuple[Case, Path]] = []
    alone: list[str] = []
    used: set[Path] = set()
    for case, series in zip(_cases(root, found, anonymous), found, strict=True):
        own = labels_of(series.uid, masks, series.told.get("FrameOfReferenceUID", "")) if series.uid else []
        used |= set(own)
        if len(own) > 1:
            several = f"{len(own)} files" if anonymous else ", ".join(path.name for path in own[:SHOWN])
            faults.append(Fault(case.id, "label", "one DICOM SEG or RTSTRUCT", several, "keep one"))
        elif own:
            pairs.append((case, own[0]))
        else:
            alone.append(case.id)
    _note_twice(pairs, faults)
    _note_left(alone, bool(pairs), faults)
    _note_lost([path for path in masks if path not in used], anonymous, faults)
    values = values_of_names(path for _, path in pairs)
    return [replace(case, label=path, names=tuple(values.items())) for case, path in pairs], values


def _note_twice(pairs: Sequence[tuple[Case, Path]], faults: list[Fault]) -> None:
    """A label that several scans claim, such as the echoes of one series: nobody says of which it is."""
    by_label: dict[Path, list[str]] = defaultdict(list)
    for case, path in pairs:
        by_label[path].append(case.id)
    for ids in by_label.values():
        if len(ids) > 1:
            remedy = "keep the scan that it was drawn on"
            faults.append(Fault(ids[0], "label", "a label of one scan", f"one of {', '.join(ids[:SHOWN])}", remedy))


def _note_left(alone: Sequence[str], others: bool, faults: list[Fault]) -> None:
    if not alone:
        return
    found = f"{len(alone)} without, left out: {', '.join(alone[:SHOWN])}" + (", ..." if len(alone) > SHOWN else "")
    remedy = "none is needed if these are other scans" if others else "add the DICOM SEG or RTSTRUCT of each, as it was exported"
    expected = "a DICOM SEG or RTSTRUCT that refers to the series"
    faults.append(Fault("", "label", expected, found, remedy, "warning" if others else "error"))


def _note_lost(masks: Sequence[Path], anonymous: bool, faults: list[Fault]) -> None:
    """Labels of series that are not there; damaged ones are errors."""
    lost = []
    for path in masks:
        try:
            reference_of(path)
            lost.append(path.name)
        except DataError as error:
            faults += error.faults
    if lost:
        found = f"{len(lost)} of other series" + ("" if anonymous else f", such as {lost[0]}")
        faults.append(Fault("", "label", "labels of the series here", found, "add the series that they are of", "warning"))


def _series(files: Iterable[Path]) -> list[Series]:
    """The scans among files; what cannot be read stands for a scan by itself, which reading refuses."""
    by_uid = series_among(path for path in files if is_dicom(path))
    unreadable = by_uid.pop("", [])
    found = [_one(uid, part) for uid, own in by_uid.items() for part in series_parts(own)]
    readable = {file.parent for own in by_uid.values() for file in own}
    # beside a series they may be slices of it, and reading it tells
    alone = {file.parent: file for file in reversed(unreadable) if file.parent not in readable}
    return found + [Series("", file.parent, (file,)) for file in alone.values()]


def _one(uid: str, part: tuple[Path, ...]) -> Series:
    home = Path(os.path.commonpath([file.parent for file in part]))
    return Series(uid, home, part, read_image_header(part[0]).told)


def _cases(root: Path, found: Sequence[Series], anonymous: bool) -> list[Case]:
    """The cases of all scans, in their order."""
    if anonymous:
        return _anonymous(root, found)
    names = _names(root, found)
    return [
        Case(name, series.files[0], more=series.files[1:], patient=series.patient)
        for name, series in zip(names, found, strict=True)
    ]


def _anonymous(root: Path, found: Sequence[Series]) -> list[Case]:
    """Names from digests of UIDs. (One of a PatientID could be undone by trying all of them.)"""
    uids = [series.uid for series in found]
    keys = [
        series.uid if series.uid and uids.count(series.uid) == 1 else f"{series.uid} {series.files[0].relative_to(root)}"
        for series in found
    ]
    digests = [sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:10] for key in keys]
    first: dict[str, str] = {}
    for series, digest in zip(found, digests, strict=True):
        if series.patient:
            first[series.patient] = min(digest, first.get(series.patient, digest))
    return [
        Case(
            f"case_{digest}",
            series.files[0],
            more=series.files[1:],
            patient=f"patient_{first[series.patient]}" if series.patient else "",
        )
        for series, digest in zip(found, digests, strict=True)
    ]


def _names(root: Path, found: Sequence[Series]) -> list[str]:
    """A name for each scan, no two alike in any case of letters, as short as keeps them apart."""
    homes = {series.home for series in found}
    short = [home.resolve().name for home in homes]

    def folder(series: Series) -> str:
        name = series.home.resolve().name
        return "_".join(series.home.relative_to(root).parts) or name if short.count(name) > 1 else name

    names = [_for_file(series.patient) or folder(series) for series in found]
    for step in STEPS:
        for group in _alike(names):
            more = [step(found[i], [found[k] for k in group]) for i in group]
            if len({addition.casefold() for addition in more}) > 1:
                for i, addition in zip(group, more, strict=True):
                    names[i] = f"{names[i]}_{addition}" if addition else names[i]
    for group in _alike(names):
        for number, i in enumerate(group, 1):
            names[i] = f"{names[i]}_{number}"
    return names


def _alike(names: Sequence[str]) -> list[list[int]]:
    """Positions of names that are there several times."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        by_name[name.casefold()].append(i)
    return [group for group in by_name.values() if len(group) > 1]


def _for_file(text: str) -> str:
    """Text as a part of a file name: letters, digits, dots and dashes, whatever a header holds."""
    words = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", text))
    return re.sub(r"([._-])[._-]*", r"\1", words)[:MOST_LETTERS].strip("._-")


def _description(series: Series, group: Sequence[Series]) -> str:
    return _for_file(series.told.get("SeriesDescription", ""))


def _folder(series: Series, group: Sequence[Series]) -> str:
    """Below the folder round all of the group."""
    common = Path(os.path.commonpath([other.files[0].parent for other in group]))
    return "_".join(series.files[0].parent.relative_to(common).parts)


def _number(series: Series, group: Sequence[Series]) -> str:
    return _for_file(series.told.get("SeriesNumber", ""))


def _tail(series: Series, group: Sequence[Series]) -> str:
    """The last parts of a SeriesInstanceUID, as many as tell it from the others."""
    parts, others = series.uid.split("."), {other.uid for other in group}
    tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return _for_file(next((t for t in tails if sum(f".{o}".endswith(f".{t}") for o in others) == 1), series.uid))


def _file(series: Series, group: Sequence[Series]) -> str:
    return _for_file(series.files[0].stem)


STEPS = (_description, _folder, _number, _tail, _file)
"""What is added to the names of a group of scans that have the same, in turn, where it differs."""
