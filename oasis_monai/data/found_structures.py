"""Complete what a run is told of a data set whose structures share voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.formats.header import plain
from oasis_monai.data.label_names import names_itself
from oasis_monai.data.layouts.record import Survey
from oasis_monai.data.overlap import classes_of, classes_of_sets, find_sets, sets_of_values, too_many
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, Fault


def with_structures(
    data: DataSettings, cases: list[Case], found: Survey, own: Mapping[str, int], cache: Path | None, faults: list[Fault]
) -> tuple[DataSettings, list[Case], list[str]]:
    """Labels and structures of a data set, and cases that know them.

    - Of nested structures (``dataset.json`` of nnU-Net, ``data.structures``), each set of structures with a value in the label
      files is a label.
    - Of structures that lie one by one (``data.overlap``, masks), each set of structures that occurs in the labels of these cases
      is one. ``data.labels`` chooses among them by name.

    Args:
        data: the settings; what they say of structures already stands.
        found: what there is in the folder.
        own: name -> value of structures that label files name themselves.
        cache: folder in which it is kept what occurs.
        faults: gains what is wrong.

    Returns:
        Settings, cases, and what there is to say.

    Raises:
        ConfigError: a structure is asked for that is not there.
    """
    if not data.overlap:
        nested = data.structures or found.regions
        labels = data.labels or classes_of(nested, found.order)
        _note_order(labels, found, faults)
        data = replace(data, structures=nested, labels=labels)
        return data, [replace(case, structures=tuple(data.structures.items())) for case in cases], _told(data, found)
    names = tuple(found.structures) or tuple(own)
    if not names:
        expected = "masks of a structure each, or files that name their structures (DICOM SEG, RTSTRUCT, .seg.nrrd)"
        remedy = "leave data.overlap out, or name the masks by data.label={NAME: TEMPLATE, ...}"
        faults.append(Fault("", "data.overlap", expected, "labels of one file each, without names", remedy))
        return data, cases, []
    cases = [_one_by_one(case) for case in cases]
    if not data.structures:
        chosen = _chosen(names, data.labels)
        sets = find_sets(cases, chosen, data.ignore, cache)
        if (fault := too_many(chosen, sets)) is not None:
            faults.append(fault)
            return replace(data, labels={}), cases, []
        structures = {name: values for name, values in classes_of_sets(chosen, sets).items() if values}
        data = replace(data, labels={}, structures=structures)  # not both at once: they have to fit
        data = replace(data, labels=classes_of(structures))
    return data, [replace(case, structures=tuple(data.structures.items())) for case in cases], _told(data, found)


def _one_by_one(case: Case) -> Case:
    """A case that knows how its structures lie; a label that does not tell them apart has the values of their sets."""
    return replace(case, overlapping=not case.masks and case.label is not None and names_itself(case.label))


def _chosen(names: Sequence[str], labels: Mapping[str, int]) -> list[str]:
    """Those of the names that ``data.labels`` asks for; all where it asks for none."""
    there = {plain(name): name for name in names}
    if absent := [name for name in labels if plain(name) not in there]:
        raise ConfigError(f"data.labels.{absent[0]}", f"a structure of the files: {', '.join(names)}", absent[0])
    return [there[plain(name)] for name in labels] or list(names)


def _told(data: DataSettings, found: Survey) -> list[str]:
    shown = ", ".join(f"{name}: {list(values)}" for name, values in data.structures.items())
    return [f"data: structures that share voxels {{{shown}}}, of {len(data.labels)} labels"] if data.structures else []


def _note_order(labels: Mapping[str, int], found: Survey, faults: list[Fault]) -> None:
    """Tell where ``regions_class_order`` would write another value than the label files have."""
    if not found.order or len(found.order) != len(found.regions):
        return
    values = sets_of_values(found.regions)
    for value in labels.values():
        # nnU-Net writes one region over the other, in this order
        written = found.order[values.get(value, 1).bit_length() - 1]
        if value in values and written != value:
            remedy = "none is needed here: results have the values of the label files"
            faults.append(Fault("", "dataset.json regions_class_order", str(value), str(written), remedy, "warning"))
