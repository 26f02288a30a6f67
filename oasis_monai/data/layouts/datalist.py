"""A data list of MONAI: JSON with the lists ``training``, ``validation`` and ``test``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.dataset_json import describe, read_json
from oasis_monai.data.layouts.files import case_of, series_at, short_names
from oasis_monai.data.layouts.record import Layout, Request, Survey
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import DataError, Fault

LISTS = {"training": "", "validation": "", "test": "test", "testing": "test"}
"""The lists, and the ``split`` of their cases."""
IDS = ("id", "case", "case_id", "name")
PATIENTS = ("patient", "patient_id", "subject", "subject_id")
CENTRES = ("centre", "center", "site")


def find(request: Request) -> Survey:
    """The cases of all its lists (without labels: of ``test`` where there is one). Its paths must lie in its own folder: it may
    come from someone else.

    Raises:
        DataError: it is no such list.
    """
    path = request.root
    faults: list[Fault] = []
    content = read_json(path, faults)
    if content is None:
        raise DataError(faults)
    lists = {name: content[name] for name in LISTS if isinstance(content, Mapping) and isinstance(content.get(name), list)}
    if not lists:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        fault = Fault(
            "", path.name, "a list training, or validation or test", keys[:200], "correct it, or give a folder or a CSV"
        )
        raise DataError(fault)
    if not request.labelled and any(LISTS[name] for name in lists):
        lists = {name: entries for name, entries in lists.items() if LISTS[name]}
    told = describe(content, path.name, faults)
    reader = _Reader(path, request, told.channels, faults)
    found = []
    for name, entries in lists.items():
        for index, entry in enumerate(entries):
            made = reader.case(f"{name}[{index}]", entry, LISTS[name])
            if made is not None:
                found.append((f"{name}[{index}]", entry, made))
    named = short_names([case.image for _, _, case in found]) if found else []
    cases: dict[str, Case] = {}
    parts: dict[str, Mapping[str, str]] = {}
    for (where, entry, case), short in zip(found, named, strict=True):
        own = _text(entry, IDS) or short
        if own in cases:
            faults.append(Fault("", f"{path.name} {where}", "another id for each entry", own, "give each its own id"))
            continue
        cases[own] = replace(case, id=own, patient=_text(entry, PATIENTS), centre=_text(entry, CENTRES))
        parts[own] = (
            {key: text for key, value in entry.items() if (text := _as_text(value))} if isinstance(entry, Mapping) else {}
        )
    return Survey(
        list(cases.values()),
        faults,
        labels=told.labels,
        channels=reader.used or told.channels,
        cut=bool(reader.used),
        ignore=told.ignore,
        name=told.name,
        parts=parts,
        regions=told.regions,
        order=told.order,
    )


def has_lists(path: Path) -> bool:
    """Whether a JSON file has lists of cases."""
    content = read_json(path, [])
    return isinstance(content, Mapping) and any(isinstance(content.get(name), list) for name in LISTS)


def _text(entry: Any, keys: tuple[str, ...]) -> str:
    """The first of these values of an entry, as text."""
    values = (entry[key] for key in keys if isinstance(entry, Mapping) and key in entry)
    return next((text for value in values if (text := _as_text(value))), "")


def _as_text(value: Any) -> str:
    """A value as a name; 7.0, as pandas writes numbers beside empty cells, is 7. Empty where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split()) if isinstance(value, str | int) else ""


class _Reader:
    """Makes cases of the entries of one list."""

    def __init__(self, path: Path, request: Request, channels: tuple[str, ...], faults: list[Fault]) -> None:
        self.path, self.asked, self.channels, self.faults = path, request.data.channels, channels, faults
        self.labelled = request.labelled
        self.used: tuple[str, ...] = ()

    def case(self, where: str, entry: Any, split: str) -> Case | None:
        """The case of one entry; None, and faults, where it has none."""
        before = len(self.faults)
        entry = {"image": entry} if isinstance(entry, str | list) else entry
        if not isinstance(entry, Mapping):
            self._fault(where, '{"image": "...", "label": "..."}', f"{entry!r}"[:60], "correct it")
            return None
        images = entry.get("image")
        images = images if isinstance(images, list) else [images]
        if len(images) > 1:
            names = self.channels if len(self.channels) == len(images) else tuple(map(str, range(len(images))))
            wanted = chosen(names, self.asked)
            images, used = [images[index] for index in wanted], tuple(names[index] for index in wanted)
            if self.used not in ((), used):
                found = f"{len(images)}, others have {len(self.used)}"
                self._fault(f"{where}.image", "as many images as the other entries", found, "correct it")
            self.used = used
        sources = [self._file(f"{where}.image", image) for image in images]
        label = entry.get("label")
        label = label[0] if isinstance(label, list) and len(label) == 1 else label
        mask = self._file(f"{where}.label", label) if self.labelled and (label or not split) else ()
        fold = entry.get("fold")
        if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
            self._fault(f"{where}.fold", "a whole number of 0 or more", f"{fold!r}"[:60], "correct it, or leave it out")
        if len(self.faults) > before or not all(sources):
            return None
        made = case_of("entry", sources, mask[0] if mask else None, fold=fold, split=split)
        own = f"{self.path.name} {where}"
        return replace(made, origin=(*[f"{own}.image"] * len(sources), f"{own}.label"))

    def _fault(self, where: str, expected: str, found: str, remedy: str) -> None:
        self.faults.append(Fault("", f"{self.path.name} {where}", expected, found, remedy))

    def _file(self, where: str, name: Any) -> tuple[Path, ...]:
        """The file (or DICOM series) of a path inside the list's folder."""
        if not isinstance(name, str) or not name or "\0" in name:
            self._fault(where, "a path", "none" if name in (None, "") else f"{name!r}"[:60], "correct it")
            return ()
        relative = os.path.normpath(name)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == "..":
            remedy = "move the list there and make its paths relative, or give a CSV of your own, whose paths may lead anywhere"
            self._fault(where, "a path inside the list's own folder", name[:200], remedy)
            return ()
        files = series_at(self.path.parent / relative)
        if not files:
            self._fault(where, "a file", f"none at {relative[:200]}", "correct the path: it is relative to the list's folder")
        return files


LAYOUT = Layout(
    "datalist",
    "a data list of MONAI (training, validation, test)",
    'entries {"image": ..., "label": ...}',
    lambda root: root.is_file() and root.suffix.lower() == ".json",
    find,
)
