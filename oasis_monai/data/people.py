"""Whom a case is of and where it was scanned, by the rules of ``data.patient`` and ``data.centre``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oasis_monai.data.layouts.files import listed
from oasis_monai.data.layouts.record import Survey
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
        ConfigError: a rule is no regular expression with one group.
    """
    cases, faults = list(found.cases), list(found.faults)
    for key, rule in (("patient", patient), ("centre", centre)):
        column = _part(found, PARTS[key] if not rule else (rule,) if isinstance(rule, str) else ())
        if column:
            values = [found.parts.get(case.id, {}).get(column, "") for case in cases]
        elif rule:
            values = _by_rule(key, rule, cases, root, faults if strict else [])
        else:
            continue
        cases = [_with(case, key, value) if value else case for case, value in zip(cases, values, strict=True)]
    return replace(found, cases=cases, faults=faults)


def _with(case: Case, key: str, value: str) -> Case:
    return replace(case, patient=value) if key == "patient" else replace(case, centre=value)


def _part(found: Survey, names: Sequence[str]) -> str:
    """The column or part of one of these names, in any case; empty where there is none."""
    there = {name.lower(): name for parts in found.parts.values() for name in parts}
    return next((there[name.lower().strip("{}")] for name in names if name.lower().strip("{}") in there), "")


def _by_rule(key: str, rule: str | Mapping[str, str], cases: Sequence[Case], root: Path, faults: list[Fault]) -> list[str]:
    """What a rule says of every case; a fault for those of which it says nothing."""
    if isinstance(rule, Mapping):
        find = _of_map(key, rule)
    elif rule == CONSECUTIVE_PAIRS and key == "patient":
        find = pair_of
    else:
        find = _of_pattern(key, rule, root)
    values = [find(case) for case in cases]
    if lost := [case.id for case, value in zip(cases, values, strict=True) if not value]:
        expected = f"one that says the {key} of every case"
        faults.append(Fault("", f"data.{key}", expected, f"nothing of {listed(lost)}", f"correct data.{key}={rule}"))
    return [value or "" for value in values]


def pair_of(case: Case) -> str | None:
    """The person of a case by the rule that numbers 2k-1 and 2k are one's: both numbers, behind what stands before them."""
    match = re.fullmatch(r"(.*?)(\d+)\D*", case.id)
    if match is None:
        return None
    first = (int(match[2]) - 1) // 2 * 2 + 1
    width = len(match[2])
    return f"{match[1]}{first:0{width}d}-{first + 1:0{width}d}"


def _compiled(key: str, pattern: str, groups: int) -> re.Pattern[str]:
    expected = f"a regular expression{' with one group' if groups else ''}"
    expected += {0: "", 1: ", such as ([^_]+)_, a column, or a part of a template"}[groups]
    expected += f", or {CONSECUTIVE_PAIRS}" if key == "patient" else ""
    try:
        made = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.{key}", expected, pattern, f"correct it: {error}") from error
    if made.groups != groups and groups:
        raise ConfigError(f"data.{key}", expected, pattern, "put brackets round what tells patients apart")
    return made


def _of_pattern(key: str, pattern: str, root: Path) -> Rule:
    made = _compiled(key, pattern, 1)

    def find(case: Case) -> str | None:
        places = [case.id]
        if case.image.is_relative_to(root):
            places.append(case.image.relative_to(root).as_posix())
        return next((match[1] for place in places if (match := made.search(place)) and match[1]), None)

    return find


def _of_map(key: str, patterns: Mapping[str, str]) -> Rule:
    made = {name: _compiled(key, pattern, 0) for name, pattern in patterns.items()}

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
        if split:
            case = replace(case, split="test" if split.lower().startswith(("te", "ts")) else "train")
        cases.append(case)
    return replace(found, cases=cases, faults=faults)
