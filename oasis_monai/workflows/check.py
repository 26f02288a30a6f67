"""Check every case of a data set before training: list all faults at once, with one case in memory at a time."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.transforms.components import box_around
from oasis_monai.transforms.preprocessing import Preprocessing, outside_view, view_faults
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.words import listed
from oasis_monai.workflows.twins import Portrait, portrait, twin_faults

SPACING_MM = (0.1, 20.0)  # plausible voxel sizes of a clinical scan
IN_PLANE_RATIO = 1.5  # largest ratio of the two finer spacings; a scanner's pixels are square
FEW_VOXELS = 10
FEW_ABSENT = 2  # more structures that a case lacks are told in one line
OUTLIER = 5.0  # robust z of log volume: one volume in 1.7 million if log-normal
FEWEST_CASES = 8  # with fewer cases a median absolute deviation says little


def check_cases(
    cases: Sequence[Case],
    label_values: Sequence[int],
    preprocessing: Preprocessing | None = None,
    look: Callable[[Volume], None] | None = None,
    ignore: int | None = None,
    structures: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[Fault]:
    """Read every case and list everything wrong with the data set; a bad case never hides another.

    Errors (the case cannot be used, or would falsify the result): whatever :func:`~oasis_monai.data.io.read_volume` refuses,
    a constant image, a label without foreground, the same voxels under two ids when they are labelled (such a scan could be
    an atlas for itself), an id given twice.

    Warnings (look at it): a class missing or of a few voxels, a class in several pieces (26-connected), the same voxels under
    two ids without labels, spacing outside 0.1 to 20 mm, pixels far from square, a class volume far from the others', a label
    that the field of view of ``preprocessing`` cuts, cases of different patients that look like one person (:mod:`.twins`).

    Args:
        cases: with or without labels.
        label_values: value in the file of each class, the background first.
        preprocessing: the setting whose field of view the labels should fit into; None: it is not looked at.
        look: called with every case that can be read, to collect other facts about the data set.
        ignore: value in the files of voxels that nobody labelled; None: there are none.
        structures: where structures share voxels, the classes of each, which are looked at in the place of single classes.

    Returns:
        Faults in the order of ``cases``, those of the whole data set last; empty if all is well.

    Raises:
        ConfigError: ``label_values`` cannot be (see ``read_volume``).
    """
    faults: list[Fault] = []
    same: dict[str, list[Case]] = defaultdict(list)
    volumes_mm3: dict[str, dict[str, float]] = defaultdict(dict)
    values = enumerate(label_values[1:], 1)
    parts = {name: tuple(own) for name, own in structures.items()} or {f"label {value}": (index,) for index, value in values}
    portraits: list[Portrait] = []
    channels: dict[int, str] = {}  # number of channels -> the first case that has so many
    for case in cases:
        try:
            volume = read_volume(case, label_values, ignore)
        except DataError as error:
            faults += error.faults
            continue
        faults += volume.notes
        if look is not None:
            look(volume)
        channels.setdefault(len(volume.image), case.id)
        flat = [(number, one) for number, one in enumerate(volume.image, 1) if float(one.min()) == float(one.max())]
        if flat:
            number, one = flat[0]
            found = f"{float(one.min()):g} everywhere" + (f" in channel {number}" if len(volume.image) > 1 else "")
            place = case.place("image", number - 1 if len(volume.image) == len(case.sources) else 0)
            faults.append(Fault(case.id, place, "different intensities", found, "export the scan again or leave it out"))
        else:
            key = hashlib.sha256(volume.image.numpy().data).hexdigest() + str(volume.geometry.shape)
            same[key].append(case)
            portraits.append(portrait(volume))
        faults += _spacing_faults(case.id, volume.geometry)
        if volume.label is not None:
            faults += _label_faults(volume, parts, label_values[0], volumes_mm3)
            if preprocessing is not None:
                faults += view_faults({case.id: outside_view(volume, preprocessing.working_geometry(volume.geometry))})
    labelled = [case.id for case in cases if case.label is not None]
    if labelled and not volumes_mm3 and not any(fault.severity == "error" for fault in faults):
        remedy = "segment the structures, or correct data.labels"
        faults.append(Fault("", "label", "some foreground in one case or more", f"none in {len(labelled)} cases", remedy))
    if len(channels) > 1:
        found = ", ".join(f"{count} in {case}" for count, case in channels.items())
        faults.append(
            Fault("", "channels", "as many in every case", found, "give every case the same images, or set data.channels")
        )
    faults += _repeated(cases, same)
    for name in parts:
        faults += _outliers(name, volumes_mm3[name]) if name in volumes_mm3 else []
    repeated = {case.id for group in same.values() if len(group) > 1 for case in group}  # told already
    faults += twin_faults([one for one in portraits if one.case not in repeated], {case.id: case.patient for case in cases})
    return faults


def _spacing_faults(case: str, geometry: Geometry) -> list[Fault]:
    faults = []
    spacing = geometry.spacing_mm
    text = " x ".join(f"{s:g}" for s in spacing) + " mm"
    low, high = SPACING_MM
    if min(spacing) < low or max(spacing) > high:
        remedy = "check the unit: the header must be in mm"
        faults.append(Fault(case, "spacing", f"{low:g} to {high:g} mm", text, remedy, "warning"))
    pixels = sorted(
        mm for mm, voxels in zip(spacing, geometry.shape, strict=True) if voxels > 1
    )  # one slice is as thick as it is
    if len(pixels) > 1 and pixels[1] > IN_PLANE_RATIO * pixels[0]:
        faults.append(Fault(case, "spacing", "square pixels in the slice", text, "check the header's spacing", "warning"))
    return faults


def _label_faults(
    volume: Volume, parts: Mapping[str, tuple[int, ...]], background: int, volumes_mm3: dict[str, dict[str, float]]
) -> list[Fault]:
    """Faults of one label; adds the volume of everything that is there to ``volumes_mm3[name][case]``.

    Args:
        parts: what is looked at by name, each with its classes.
        background: its value.
    """
    from scipy import ndimage

    assert volume.label is not None
    label = volume.label[0].numpy()
    found_at = ndimage.find_objects(label, max_label=max(max(own) for own in parts.values()))  # class 1 first; None: missing
    boxes = {name: box_around(found_at[index - 1] for index in own) for name, own in parts.items()}
    if not any(boxes.values()):
        remedy = "check that the structure is absent: the case is scored and teaches the networks, but is no atlas"
        return [Fault(volume.case, "label", "some foreground", f"only {background}", remedy, "warning")]
    faults = []
    absent = [name.removeprefix("label ") for name, box in boxes.items() if box is None]
    if len(absent) > FEW_ABSENT:
        found = f"none of {listed(absent)}"
        faults.append(Fault(volume.case, "label", "some voxels of each", found, "check that they are absent", "warning"))
    for name, box in boxes.items():
        if box is None and len(absent) > FEW_ABSENT:
            continue
        if box is None:
            faults.append(Fault(volume.case, name, "some voxels", "none", "check that the structure is absent", "warning"))
            continue
        own = parts[name]
        mask = label[box] == own[0] if len(own) == 1 else np.isin(label[box], own)
        pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        total = int(sizes.sum())
        volumes_mm3[name][volume.case] = total * math.prod(volume.geometry.spacing_mm)
        if total < FEW_VOXELS:
            faults.append(Fault(volume.case, name, f"at least {FEW_VOXELS} voxels", str(total), "look at the label", "warning"))
        if count > 1:
            found = f"{count}, the largest of {int(sizes.max())} and the others of {total - int(sizes.max())} voxels together"
            faults.append(Fault(volume.case, name, "one connected piece", found, "look for stray voxels", "warning"))
    return faults


def _repeated(cases: Sequence[Case], same: dict[str, list[Case]]) -> list[Fault]:
    faults = []
    ids = [case.id for case in cases]
    for name in sorted({i for i in ids if ids.count(i) > 1}):
        faults.append(Fault(name, "id", "a unique id", f"{ids.count(name)} cases of this id", "rename the files"))
    for group in same.values():
        if len(group) > 1:
            severity = "error" if any(case.label for case in group) else "warning"
            found = "the same voxels in " + ", ".join(case.id for case in group)
            remedy = "keep one: it could be test case and atlas at once"
            faults.append(Fault(group[0].id, "image", "each scan only once", found, remedy, severity))
    return faults


def _outliers(name: str, volumes_mm3: dict[str, float]) -> list[Fault]:
    """Cases whose volume is out of line: robust z (median and 1.4826 median absolute deviations) of its logarithm."""
    if len(volumes_mm3) < FEWEST_CASES:
        return []
    logs = np.log(list(volumes_mm3.values()))
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if spread < 1e-6:  # the same volume nearly everywhere: no scale to measure against
        return []
    faults = []
    for (case, volume), z in zip(volumes_mm3.items(), (logs - middle) / spread, strict=True):
        if abs(z) > OUTLIER:
            found = f"{volume / 1000:.3g} ml (median {math.exp(middle) / 1000:.3g} ml, robust z {z:+.1f})"
            expected = "a volume like the other cases'"
            faults.append(Fault(case, name, expected, found, "look at the label and the spacing", "warning"))
    return faults


def as_table(faults: Sequence[Fault]) -> str:
    """The faults as CSV, one row each: case, field, expected, found, remedy, severity."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Fault)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(fault) for fault in faults)
    return text.getvalue()
