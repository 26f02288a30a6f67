"""Which structures a data set has: their names and the values that they have in the label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.formats.dispatch import ending
from oasis_monai.data.label_cache import find_once
from oasis_monai.data.label_tables import find_table
from oasis_monai.data.layouts.files import listed
from oasis_monai.data.settings import MOST_LABELS, MOST_VALUE
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import DataError, Fault

EMPTY = 255  # what many programs write where nobody labelled


@dataclass(frozen=True)
class Names:
    """Structures of a data set.

    Args:
        labels: structure -> value.
        source: where the names come from, for the reader.
    """

    labels: dict[str, int]
    source: str


def find_names(cases: Sequence[Case], root: Path, ignore: int | None, cache: Path | None, faults: list[Fault]) -> Names:
    """Names and values out of the label files themselves: those that a table beside them names, else ``label_1`` and so on.

    All label files are read, once as long as they stay the same.

    Args:
        cases: those with a label count.
        root: where a table of names may lie, beside the labels' own folders.
        ignore: a value that is no structure.
        cache: folder in which the values that were found are kept.
        faults: gains what is wrong.
    """
    values = [value for value in values_in(cases, cache) if value not in (0, ignore)]
    if not values:
        faults += _why_none([case for case in cases if case.label is not None])
        return Names({}, "")
    homes = [case.label.parent for case in cases if case.label is not None]
    near = [*dict.fromkeys(homes)][:3]
    path, table = find_table([root if root.is_dir() else root.parent, *near, *(home.parent for home in near)], faults)
    labels = {name: value for value, name in sorted(table.items()) if value in values}
    if path is not None and labels:
        if len(labels) < sum(value in values for value in table):
            faults.append(Fault("", path.name, "another name for each value", "names that repeat", "correct it", "warning"))
        return Names(labels, path.name)
    if len(values) > MOST_LABELS:
        found = f"{len(values)} values ({listed([str(value) for value in values], 6)})"
        faults.append(Fault("", "label", f"at most {MOST_LABELS} structures", found, "choose some by data.labels={NAME: VALUE}"))
        return Names({}, "")
    told = "the values in the label files"
    if ignore is None and EMPTY in values and len(values) > 1:
        told += f" (if {EMPTY} means that nobody labelled a voxel: data.ignore={EMPTY})"
    return Names({f"label_{value}": value for value in values}, told)


def _why_none(cases: Sequence[Case]) -> list[Fault]:
    """Why label files have no values of structures: they cannot be read as labels, or there is nothing in them."""
    from oasis_monai.data.labels import find_label_values

    faults: list[Fault] = []
    others: set[int] = set()
    for case in cases:
        assert case.label is not None
        try:
            others |= {value for value in find_label_values(case.label) if value}
        except DataError as error:
            faults += [replace(fault, case=case.id) for fault in error.faults]
    if faults or not cases:
        return faults
    found = f"only {listed([str(v) for v in (0, *sorted(others))], 6)} in all label files"
    return [Fault("", "label", f"values of structures, 1 to {MOST_VALUE}", found, "segment the structures, or correct data.root")]


def values_in(cases: Sequence[Case], cache: Path | None = None) -> list[int]:
    """The whole numbers that occur in the label files, in rising order. A file that cannot be read has none here: the check of
    the data set says why."""
    files = [case.label for case in cases if case.label is not None]
    return find_once(files, lambda: {value for path in files for value in _values(path)}, cache)


def _values(path: Path) -> set[int]:
    from oasis_monai.data.labels import find_label_values

    try:
        return {value for value in find_label_values(path) if 0 <= value <= MOST_VALUE}
    except DataError:
        return set()


def names_in(cases: Sequence[Case]) -> dict[str, int]:
    """Structure -> value where label files name their structures themselves (.seg.nrrd, DICOM SEG, RTSTRUCT)."""
    from oasis_monai.data.formats.dicom_labels import values_of_names

    return values_of_names([case.label for case in cases if case.label is not None and names_itself(case.label)], _own_names)


def names_itself(path: Path) -> bool:
    """Whether a label file may hold the names of its structures."""
    return ending(path) == ".seg.nrrd" or (not ending(path) and is_dicom_label(path))


def _own_names(path: Path) -> dict[str, int]:
    from oasis_monai.data.formats.dicom_labels import dicom_label_names
    from oasis_monai.data.labels import read_label_names

    return read_label_names(path) if ending(path) else dict(dicom_label_names(path))
