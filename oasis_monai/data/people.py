"""Whom a case is of and where it was scanned, by the rules of ``data.patient`` and ``data.centre``."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.layouts.files import listed
from oasis_monai.data.layouts.record import SPLITS, Survey
from oasis_monai.data.settings import CONSECUTIVE_PAIRS
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, Fault

PARTS = {"patient": ("patient", "subject"), "centre": ("centre", "center", "site")}
"""Parts of a template that tell of a case without being asked."""
Rule = Callable[[Case], str | None]


def with_people(found: Survey, root: Path, patient: str, centre: str | Mapping[str, str], strict: bool = True) -> Survey:
    """The survey with patient and centre of every case, by these rules, else by what its table or template says.

    Args:
        found: the survey.
        root: what paths are relative to.
        patient, centre: see :class:`oasis_monai.data.settings.DataSettings`.
        strict: whether it is a fault if a rule says nothing of a case.

    Raises:
        ConfigError: a rule is neither a regular expression with one group nor a column.
    """
    cases, faults = list(found.cases), list(found.faults)
    for key, rule in (("patient", patient), ("centre", centre)):
        column = _part(found, PARTS[key] if not rule else (rule,) if isinstance(rule, str) else ())
        if column:
            values = [found.parts.get(case.id, {}).get(column, "") for case in cases]
            if strict and key == "patient":
                _note_empty(column, cases, values, faults)
        elif rule:
            values = _by_rule(key, rule, found, root, faults if strict else [])
        else:
            continue
        cases = [_with(case, key, value) if value else case for case, value in zip(cases, values, strict=True)]
    if strict:
        _note_alike("patient", [case.patient for case in cases if case.patient != case.id], faults)
        _note_alike("centre", [case.centre for case in cases], faults)
        _note_both_sides(cases, faults)
        _note_shared_files(cases, faults)
    return replace(found, cases=cases, faults=faults)


def _note_empty(column: str, cases: Sequence[Case], values: Sequence[str], faults: list[Fault]) -> None:
    """A fault where some cases have a patient and others none: who is nobody's may be anybody's. Scans without a label neither
    train nor are scored."""
    empty = [case.id for case, value in zip(cases, values, strict=True) if not value and case.label is not None]
    if empty and len(empty) < len(cases):
        remedy = "give each its patient, any name that no other has where there is one scan"
        faults.append(Fault("", f"column {column}", "a patient of every case", f"none of {listed(empty)}", remedy))


def _note_alike(key: str, names: Sequence[str], faults: list[Fault]) -> None:
    """A fault for names that differ by capitals or blanks only: typed by hand, they mean one person."""
    spelled: dict[str, set[str]] = defaultdict(set)
    for name in names:
        spelled["".join(unicodedata.normalize("NFKC", name).casefold().split())].add(name)
    for own in spelled.values():
        if len(own) > 1:
            found = " and ".join(repr(name) for name in sorted(own))
            remedy = "write it in one way, or give different names"
            faults.append(Fault("", key, f"names of a {key} that differ by more than capitals and blanks", found, remedy))


def _note_both_sides(cases: Sequence[Case], faults: list[Fault]) -> None:
    """A warning for every patient of whom the data set keeps one scan for testing and gives another to train with: ``folds=file``
    refuses that, and ``evaluate`` leaves the scan out."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.patient].append(case)
    for patient, own in groups.items():
        if len({case.split == "test" for case in own}) > 1:
            found = ", ".join(f"{case.id}: {case.split or 'train'}" for case in own)
            remedy = "put all scans of a patient in one, or correct data.patient"
            faults.append(Fault(own[0].id, f"patient {patient}", "one split", found, remedy, "warning"))


def _note_shared_files(cases: Sequence[Case], faults: list[Fault]) -> None:
    """A fault for every label and further channel that cases of several patients have, and every channel that repeats another:
    a slip of the list, and the answer to one case in another."""
    firsts: dict[Path, Case] = {}
    for case in cases:
        files = [source[0].resolve() for source in case.sources]
        if len(set(files)) < len(files):
            twice = next(file.name for file in files if files.count(file) > 1)
            faults.append(Fault(case.id, "image", "another file for each channel", f"{twice} twice", "correct the path"))
        for kind, file in [("image", file) for file in files[1:]] + [("label", path.resolve()) for path in case.label_files]:
            first = firsts.setdefault(file, case)
            if first.patient != case.patient:
                remedy = "correct the path, or say by data.patient that they are of one patient"
                found = f"{file.name}, as {first.id} has"
                faults.append(Fault(case.id, kind, "a file of its own", found, remedy))


def _with(case: Case, key: str, value: str) -> Case:
    return replace(case, patient=value) if key == "patient" else replace(case, centre=value)


def _part(found: Survey, names: Sequence[str]) -> str:
    """The column or part of one of these names, in any case; empty where there is none."""
    there = {name.lower(): name for parts in found.parts.values() for name in parts}
    return next((there[name.lower().strip("{}")] for name in names if name.lower().strip("{}") in there), "")


def _by_rule(key: str, rule: str | Mapping[str, str], found: Survey, root: Path, faults: list[Fault]) -> list[str]:
    """What a rule says of every case; a fault for those of which it says nothing."""
    cases = found.cases
    if isinstance(rule, Mapping):
        find = _of_map(key, rule, cases, faults)
    elif rule == CONSECUTIVE_PAIRS and key == "patient":
        find = pair_of
    else:
        find = _of_pattern(key, rule, root, list(dict.fromkeys(name for parts in found.parts.values() for name in parts)))
    values = [find(case) for case in cases]
    if lost := [case.id for case, value in zip(cases, values, strict=True) if not value]:
        expected = f"one that says the {key} of every case"
        faults.append(Fault("", f"data.{key}", expected, f"nothing of {listed(lost)}", f"correct data.{key}={rule}"))
    return [value or "" for value in values]


def pair_of(case: Case) -> str | None:
    """The person of a case by the rule that numbers 2k-1 and 2k are one's: both numbers, behind what stands before them. None
    without a number from 1 on: where numbers begin with 0, the rule would part every pair."""
    match = re.fullmatch(r"(.*?)([0-9]+)[^0-9]*", case.id)
    if match is None or not int(match[2]):
        return None
    first = (int(match[2]) - 1) // 2 * 2 + 1
    width = len(match[2])
    return f"{match[1]}{first:0{width}d}-{first + 1:0{width}d}"


def _compiled(key: str, pattern: str, groups: int, columns: Sequence[str] = ()) -> re.Pattern[str]:
    expected = f"a regular expression{' with one group' if groups else ''}"
    expected += {0: "", 1: ", such as ([^_]+)_, a column, or a part of a template"}[groups]
    expected += f", or {CONSECUTIVE_PAIRS}" if key == "patient" else ""
    try:
        made = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.{key}", expected, pattern, f"correct it: {error}") from error
    if made.groups != groups and groups:
        remedy = f"put brackets round what tells {key}s apart"
        raise ConfigError(f"data.{key}", expected, pattern, remedy + (f", or name one of {listed(columns)}" if columns else ""))
    return made


def _of_pattern(key: str, pattern: str, root: Path, columns: Sequence[str]) -> Rule:
    made = _compiled(key, pattern, 1, columns)

    def find(case: Case) -> str | None:
        places = [case.id]
        if case.image.is_relative_to(root):
            places.append(case.image.relative_to(root).as_posix())
        return next((match[1] for place in places if (match := made.search(place)) and match[1]), None)

    return find


def _of_map(key: str, patterns: Mapping[str, str], cases: Sequence[Case], faults: list[Fault]) -> Rule:
    made = {name: _compiled(key, pattern, 0) for name, pattern in patterns.items()}
    for case in cases:
        fits = [name for name, pattern in made.items() if pattern.search(case.id)]
        if len(fits) > 1:
            expected = f"one {key} of a case"
            faults.append(Fault(case.id, f"data.{key}", expected, " and ".join(fits), "make the expressions exclude each other"))

    def find(case: Case) -> str | None:
        return next((name for name, pattern in made.items() if pattern.search(case.id)), None)

    return find


def with_parts(found: Survey) -> Survey:
    """The survey with fold and split of cases whose template has parts of these names."""
    cases, faults = [], list(found.faults)
    for case in found.cases:
        parts = found.parts.get(case.id, {})
        fold, split = parts.get("fold", ""), parts.get("split", "")
        if fold and not fold.isdecimal():
            faults.append(Fault(case.id, "fold", "a whole number of 0 or more", fold, "correct data.image"))
        elif fold:
            case = replace(case, fold=int(fold))
        if split and split.lower() not in SPLITS:
            remedy = "rename it, or call that part of data.image otherwise"
            faults.append(Fault(case.id, "split", "train or test", split, remedy))
        elif split:
            case = replace(case, split=SPLITS[split.lower()])
        cases.append(case)
    return replace(found, cases=cases, faults=faults)
