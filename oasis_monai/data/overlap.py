"""Structures that share voxels: every set of structures that occurs is one class of the label.

Networks, atlases and fusion work with classes of which each voxel has one. So a voxel of gland and lesion is of the class
*gland+lesion*, and the structure *lesion* is all classes it is part of (nnU-Net calls such structures regions). The structures
of a data set are pairs of a name and the label values that it consists of, as ``dataset.json`` of nnU-Net has them: gland: 1, 3;
lesion: 2, 3. A set of structures is held as bits here, in the order of the structures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dicom import is_dicom_label
from oasis_monai.data.formats.dicom_labels import dicom_label_names, read_dicom_label
from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.formats.header import plain, shown
from oasis_monai.data.formats.load import fail, load
from oasis_monai.data.formats.segments import sets_in_layers
from oasis_monai.data.image_grid import LABEL, named, on_image_grid
from oasis_monai.data.label_cache import find_once
from oasis_monai.data.labels import distinct, read_whole, uncropped
from oasis_monai.data.settings import MOST_LABELS
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import DataError, Fault

MOST_STRUCTURES = 62  # bits of a whole number
UNLABELLED = -1  # in the place of a set: a voxel that nobody labelled
JOIN = "+"  # between the names of the structures of a class


def sets_of_values(structures: Mapping[str, Sequence[int]]) -> dict[int, int]:
    """Label value -> the structures that it belongs to, as bits, ascending.

    Examples:
        >>> sets_of_values({"whole": (1, 2), "core": (2,)})
        {1: 1, 2: 3}
    """
    found: dict[int, int] = {}
    for number, values in enumerate(structures.values()):
        for value in values:
            found[value] = found.get(value, 0) | 1 << number
    return dict(sorted(found.items()))


def name_of_set(bits: int, names: Sequence[str]) -> str:
    """What the class of a set of structures is called: ``gland+lesion``."""
    return JOIN.join(name for number, name in enumerate(names) if bits >> number & 1)


def classes_of(structures: Mapping[str, Sequence[int]], preferred: Sequence[int] = ()) -> dict[str, int]:
    """The classes of structures: name -> the label value that stands for it, in rising order of the values.

    Values of the same structures are one class: nothing tells them apart. Of several the one among ``preferred`` (the
    ``regions_class_order`` of nnU-Net) stands for it, else the lowest.

    Examples:
        >>> classes_of({"whole": (1, 2, 3), "core": (3,)}), classes_of({"whole": (1, 2, 3), "core": (3,)}, [2, 3])
        ({'whole': 1, 'whole+core': 3}, {'whole': 2, 'whole+core': 3})
    """
    names, found = list(structures), dict[int, int]()
    values = sets_of_values(structures)
    for value in [*(v for v in preferred if v in values), *values]:
        found.setdefault(values[value], value)
    return {name_of_set(bits, names): value for bits, value in sorted(found.items(), key=lambda pair: pair[1])}


def classes_of_sets(names: Sequence[str], sets: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Structure -> label values, for the sets that occur: a structure alone has its number, from 1; what several share comes
    after them, the smaller sets first.

    Examples:
        >>> classes_of_sets(["gland", "lesion"], [1, 3])
        {'gland': (1, 3), 'lesion': (3,)}
    """
    shared = sorted((bits for bits in set(sets) if bits > 0 and bits & (bits - 1)), key=lambda bits: (bits.bit_count(), bits))
    values = {bits: len(names) + number for number, bits in enumerate(shared, 1)}
    values |= {1 << number: number + 1 for number in range(len(names)) if 1 << number in set(sets)}
    return {
        name: tuple(sorted(value for bits, value in values.items() if bits >> number & 1)) for number, name in enumerate(names)
    }


def with_one_value(values: np.ndarray, structures: Mapping[str, Sequence[int]], label_values: Sequence[int]) -> np.ndarray:
    """A label in which values of the same structures have become the one of ``label_values`` that stands for them."""
    sets = sets_of_values(structures)
    stands = {sets[value]: value for value in label_values if value in sets}
    made = values
    for value, bits in sets.items():
        if value not in label_values and bits in stands:
            made = np.where(values == value, stands[bits], made)
    return made


def values_of_sets(path: Path, sets: np.ndarray, case: Case, ignore: int | None) -> np.ndarray:
    """(x, y, z) sets of structures -> the label values that stand for them.

    Raises:
        DataError: a set of structures that no value stands for.
    """
    known = {0: 0} | {bits: value for value, bits in reversed(sets_of_values(dict(case.structures)).items())}
    known |= {} if ignore is None else {UNLABELLED: ignore}
    found = np.unique(sets)
    if unknown := [int(bits) for bits in found if int(bits) not in known]:
        names = [name for name, _ in case.structures]
        text = ", ".join(f"{name_of_set(bits, names)} ({int((sets == bits).sum())} voxels)" for bits in unknown[:3])
        expected = "structures that share voxels as in the training data"
        fail(path, "label", expected, text, "correct the label, leave the case out, or train a model with it")
    made = np.array([known[int(bits)] for bits in found], np.int64)
    return made[np.searchsorted(found, sets)]


def read_sets(case: Case, geometry: Geometry, names: Sequence[str], ignore: int | None = None) -> tuple[np.ndarray, list[Fault]]:
    """The set of structures of every voxel.

    Args:
        case: with masks, or a label whose file has its structures one by one.
        geometry: of its image.
        names: of the structures, in the order of the bits; others are left out.
        ignore: value in a mask file of voxels that nobody labelled.

    Returns:
        (x, y, z) int64, :data:`UNLABELLED` where nobody labelled; and notes.

    Raises:
        DataError: as :func:`oasis_monai.data.io.read_volume` of a label.
    """
    assert case.label is not None
    wanted = {name: 1 << number for number, name in enumerate(names)}
    if case.masks:
        return _sets_of_masks(case, geometry, wanted, ignore)
    if is_dicom_label(case.label):
        sets, notes = read_dicom_label(case.label, geometry, wanted, overlapping=True)
        if not {plain(name) for name in wanted} & {plain(name) for name in dicom_label_names(case.label)}:
            found = f"none of {len(wanted)}"
            remedy = "the case counts as one without them; correct data.labels if it has them"
            expected = "one of the structures"
            notes = (*notes, Fault(shown(case.label.name, 120), "label", expected, found, remedy, "warning"))
        return sets, named(case, notes, LABEL)
    layers, header = load(case.label, None)
    sets = sets_in_layers(case.label.name, layers, header.segments, wanted)
    if header.shape != geometry.shape and (whole := uncropped(sets, header.geometry, geometry)) is not None:
        return whole, []
    turned, told = on_image_grid(case.id, case.place("label geometry", LABEL), "label", sets[None], header.geometry, geometry)
    if turned is None:
        raise DataError(told)
    return turned[0], told


def _sets_of_masks(
    case: Case, geometry: Geometry, wanted: Mapping[str, int], ignore: int | None
) -> tuple[np.ndarray, list[Fault]]:
    """:func:`read_sets` of a mask file for each structure."""
    sets = np.zeros(geometry.shape, np.int64)
    told: list[Fault] = []
    bits = {plain(name): bit for name, bit in wanted.items()}
    for name, path in case.masks:
        if plain(name) not in bits:
            continue
        try:
            values, header = read_whole(path)
            inside = [int(v) for v in distinct(values) if v not in (0, ignore)]
            if len(inside) > 1:
                found = ", ".join(map(str, inside[:5]))
                fail(path, "mask", f"one value, that of {name}", found, "write a file for each structure")
        except DataError as error:
            told += named(case, error.faults, LABEL)
            continue
        place = case.place(f"{path.name} geometry", LABEL)
        turned, own = on_image_grid(case.id, place, "label", values[None], header.geometry, geometry)
        told += [note for note in named(case, header.notes, LABEL) if note not in told] + own
        if turned is not None:
            unknown = turned[0] == ignore if ignore is not None else np.zeros(geometry.shape, bool)
            sets[(turned[0] != 0) & ~unknown] |= bits[plain(name)]  # UNLABELLED has all bits: it stays
            sets[unknown] = UNLABELLED
    if errors := [fault for fault in told if fault.severity == "error"]:
        raise DataError(errors)
    return sets, told


def find_sets(cases: Sequence[Case], names: Sequence[str], ignore: int | None, cache: Path | None) -> list[int]:
    """The sets of structures that occur in the labels of cases, as bits, ascending. Labels that cannot be read have none here:
    the check of the data set says why.

    Args:
        cache: folder in which they are kept: all labels are read, once as long as they stay the same.
    """
    labelled = [case for case in cases if case.label is not None]

    def find() -> set[int]:
        found: set[int] = set()
        for case in labelled:
            with contextlib.suppress(DataError):
                sets, _ = read_sets(case, read_header(case.source).geometry, names, ignore)
                found |= {int(bits) for bits in np.unique(sets) if bits > 0}
        return found

    files = [path for case in labelled for path in (case.image, *case.label_files)]
    return find_once(files, find, cache, ["sets", list(names), ignore])


def too_many(names: Sequence[str], sets: Sequence[int]) -> Fault | None:
    """The fault of a data set whose structures share voxels in too many ways: classes are bytes; None where all is well."""
    remedy = "choose fewer structures by data.labels, or correct voxels that two share by mistake"
    if len(names) > MOST_STRUCTURES:
        return Fault("", "label", f"at most {MOST_STRUCTURES} structures that share voxels", str(len(names)), remedy)
    if len(sets) > MOST_LABELS:
        expected = f"at most {MOST_LABELS} combinations of structures"
        return Fault("", "label", expected, f"{len(sets)} combinations of {len(names)} structures", remedy)
    return None
