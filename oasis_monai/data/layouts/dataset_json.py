"""``dataset.json`` of the Medical Segmentation Decathlon and of nnU-Net, and nnU-Net's ``splits_final.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.utils.errors import Fault

NAME = "dataset.json"
SPLITS = "splits_final.json"
MOST_BYTES = 64 * 2**20  # of a JSON file


@dataclass
class Description:
    """What a ``dataset.json`` says.

    Args:
        name: of the data set.
        channels: names of the images of a case, in order.
        labels: structure -> value, without the background.
        ignore: value of voxels that nobody labelled.
        regions: every structure with its values, where some have several (nnU-Net's regions); else empty.
        order: nnU-Net's ``regions_class_order``, the value that stands for each region in a label.
        ending: that of all its files; empty where it does not say.
        nnunet: whether it has keys that only nnU-Net's has.
    """

    name: str = ""
    channels: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    ignore: int | None = None
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    ending: str = ""
    nnunet: bool = False


def read_json(path: Path, faults: list[Fault], severity: str = "error") -> Any:
    """The content of a JSON file; None, and a fault, where there is none in it."""
    try:
        if path.stat().st_size > MOST_BYTES:
            found = f"{path.stat().st_size / 2**20:.0f} MiB"
        else:
            return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        found = f"{error.msg} in line {error.lineno}, column {error.colno}"
    except (UnicodeDecodeError, RecursionError) as error:
        found = type(error).__name__
    faults.append(Fault("", path.name, "JSON in UTF-8", found, "correct it" + _unused(severity), severity))
    return None


def _unused(severity: str) -> str:
    return "" if severity == "error" else "; it is not used"


def read_description(folder: Path, faults: list[Fault]) -> Description:
    """What the ``dataset.json`` in a folder says; empty where there is none. What cannot be understood is a warning."""
    path = folder / NAME
    if not path.is_file():
        return Description()
    content = read_json(path, faults, "warning")
    return describe(content, path.name, faults) if content is not None else Description()


def describe(content: Any, file: str, faults: list[Fault]) -> Description:
    """:class:`Description` of a file's content. What cannot be understood is a warning."""
    found = Description()
    if not isinstance(content, Mapping):
        faults.append(Fault("", file, "a JSON object", type(content).__name__, "correct it; it is not used", "warning"))
        return found
    if isinstance(name := content.get("name"), str):
        found.name = " ".join(name.split())
    found.nnunet = "channel_names" in content or "file_ending" in content
    if isinstance(kind := content.get("file_ending"), str):
        found.ending = kind.lower()
    try:
        found.channels = _channels(content.get("channel_names", content.get("modality")))
    except ValueError as error:
        faults.append(_wrong(file, "channel_names", '{"0": "T2", "1": "ADC"}', error))
    try:
        _read_labels(found, content.get("labels"))
    except ValueError as error:
        found.labels, found.ignore, found.regions = {}, None, {}
        faults.append(_wrong(file, "labels", '{"background": 0, "liver": 1}', error))
    order = content.get("regions_class_order")
    if found.regions and isinstance(order, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in order):
        found.order = tuple(order)
    return found


def _wrong(file: str, key: str, expected: str, error: ValueError) -> Fault:
    return Fault("", f"{file} {key}", f"such as {expected}", str(error), "correct it; it is not used", "warning")


def _channels(values: Any) -> tuple[str, ...]:
    """The names of channels in the order of their numbers; a name that comes twice is told by its number."""
    if values is None:
        return ()
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping) or not all(str(key).isdecimal() for key in values):
        raise ValueError(f"{values!r}"[:80])
    names = [" ".join(str(values[key]).split()) for key in sorted(values, key=int)]
    return tuple(name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names))


def _read_labels(found: Description, labels: Any) -> None:
    """Names and values, whichever is the key; the background and ``ignore`` stand apart, regions too.

    Raises:
        ValueError: it is neither.
    """
    if labels is None:
        return
    if not isinstance(labels, Mapping):
        raise ValueError(f"{labels!r}"[:80])
    by_value = all(str(key).isdecimal() for key in labels) and all(isinstance(value, str) for value in labels.values())
    every: dict[str, tuple[int, ...]] = {}
    for name, value in ((v, int(k)) for k, v in labels.items()) if by_value else labels.items():
        name = " ".join(str(name).split())
        if isinstance(value, list) and len(value) > 1:
            every[name] = found.regions[name] = tuple(_value(v, name) for v in value)
            continue
        number = _value(value[0] if isinstance(value, list) and value else value, name)
        if name.lower() == "ignore":
            found.ignore = number
        elif number:
            if not name or name in found.labels or number in found.labels.values():
                raise ValueError(f"{name!r} or its value {number} twice")
            found.labels[name] = number
            every[name] = (number,)
    found.regions = every if found.regions else {}


def _value(value: Any, name: str) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise ValueError(f"{name!r}: {value!r}"[:80])
    return value


def read_folds(folder: Path, faults: list[Fault]) -> tuple[dict[str, int], frozenset[str]]:
    """What nnU-Net's ``splits_final.json`` in a folder says; empty where there is none.

    Returns:
        Case id -> the fold that tests it; and the cases that train in every fold and are tested in none.
    """
    path = folder / SPLITS
    if not path.is_file():
        return {}, frozenset()
    content = read_json(path, faults)
    if content is None:
        return {}, frozenset()
    if not isinstance(content, list) or not all(isinstance(s, Mapping) and isinstance(s.get("val"), list) for s in content):
        expected = '[{"train": [ids], "val": [ids]}, ...]'
        faults.append(Fault("", SPLITS, expected, f"{content!r}"[:60], "correct or remove it"))
        return {}, frozenset()
    folds: dict[str, int] = {}
    for number, split in enumerate(content):
        for case in map(str, split["val"]):
            if folds.setdefault(case, number) != number:
                found = f"folds {folds[case]} and {number}"
                faults.append(Fault(case, SPLITS, "one fold that tests it", found, "correct or remove the file"))
    if not all(isinstance(split.get("train"), list) for split in content):
        return folds, frozenset()
    sides = [set(map(str, split["train"])) for split in content]
    always = frozenset(set.intersection(*sides) - folds.keys()) if sides else frozenset()
    for number, side in enumerate(sides):
        untrained = {case for case in folds if folds[case] != number} - side
        if untrained:
            found = f"{len(untrained)} in neither part of fold {number}, such as {min(untrained)}"
            remedy = "with folds=file they train there"
            faults.append(Fault("", SPLITS, "each case in train or val of every fold", found, remedy, "warning"))
    return folds, always
