"""Complete what a run is told of its data set by what the data set's own files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oasis_monai.data.cases import LAYOUTS, Survey, survey
from oasis_monai.data.formats.dicom_labels import names_for
from oasis_monai.data.found_structures import with_structures
from oasis_monai.data.known import known_values, with_known
from oasis_monai.data.label_names import find_names, names_in, names_itself
from oasis_monai.data.layouts.channels import with_channels
from oasis_monai.data.scans import for_model
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault

ONLY_REMEDY = "correct the list (an id that begins with 0 needs quotes: '007')"
PARTS = ("train", "test", "all")


@dataclass(frozen=True)
class FoundData:
    """A data set as it lies there.

    Args:
        data: the settings, complete: name, layout, labels, structures, channels, ignore, regions.
        cases: those to use.
        faults: what is wrong with how its files lie there.
        said: lines that tell the reader what was recognised.
    """

    data: DataSettings
    cases: list[Case]
    faults: list[Fault]
    said: tuple[str, ...] = ()


def find_data(data: DataSettings, cache: Path | None = None, part: str = "train", channels: Sequence[str] = ()) -> FoundData:
    """Find a labelled data set, and complete its settings.

    Args:
        data: its settings; what is empty there is found.
        cache: folder in which the values of label files are kept, so that they are read once.
        part: ``train``: without the cases that the data set itself keeps for testing (``imagesTs`` with ``labelsTs``, a column
            ``split``); ``test``: those only, or all where it keeps none; ``all``.
        channels: the names of a model's channels: those to take where ``data.channels`` names none.

    Returns:
        Its cases, cut to ``data.include`` where that names any. Where there are faults, they are for a look at the files only.

    Raises:
        DataError: the root is absent, or ``data.include`` names what is not there.
        ConfigError: no root is given, or the settings do not fit the data set.

    Examples:
        >>> from oasis_monai.data.found import find_data
        >>> from oasis_monai.data.settings import DataSettings
        >>> found = find_data(DataSettings(root="data/prostate"))
        >>> found.data.layout, dict(found.data.labels), found.cases[0].id
        ('promise12', {'prostate': 1}, 'Case00')
    """
    if not data.root:
        raise ConfigError("data.root", "the folder of the data set", data.root, "add data.root=PATH")
    if data.layout == "folder":
        labelled = [name for name in LAYOUTS if name != "folder"]
        raise ConfigError("data.layout", f"one of {['auto', *labelled]}", data.layout, "choose one that has labels")
    found = survey(data.root, data.layout, data)
    found, data = for_model(found, data, channels, lambda own: survey(own.root, own.layout, own))
    faults = list(found.faults)
    cases = _selected(found.cases, data.include, faults)
    faults = [fault for fault in faults if not data.include or fault.case in ("", *data.include)]
    cases, kept = _part(cases, part)
    said = [f"data: {data.root}: {LAYOUTS[found.layout].description} (layout {found.layout})"] if data.layout == "auto" else []
    if kept:
        said.append(f"data: {kept} cases that the data set keeps for testing are not used here")
    known = known_values(found, data)
    made = replace(with_known(data, known), layout=found.layout)
    if known and made != replace(data, layout=found.layout):
        said.append(f"data: recognised as {made.name} (conf/data/{found.known}.yaml); if it is another, give data.name=NAME")
    if made.ignore is None and found.ignore not in (*made.labels.values(), *made.background):
        made = replace(made, ignore=found.ignore)
    made, cases = with_channels(made, cases, found)
    own = names_in(cases) if not found.structures else {}
    if made.overlap or made.structures or (found.regions and not data.labels):
        made, cases, told = with_structures(made, cases, found, own, cache, faults)
    else:
        made, told = _with_labels(made, data.labels, cases, found, known.get("labels", {}) or own, cache, faults)
    if own and not made.overlap:
        names = names_for(own, made.labels)
        cases = [replace(c, names=names) if c.label is not None and names_itself(c.label) else c for c in cases]
    if made.background:
        cases = [replace(case, background=made.background) for case in cases]
    made = replace(made, name=made.name or found.name or _name(made.root), regions=made.regions or ("whole",))
    return FoundData(made, cases, faults, (*said, *told))


def is_complete(data: DataSettings) -> bool:
    """Whether nothing is left to be found."""
    return bool(data.labels and data.regions and data.name and data.layout != "auto")


def _name(root: str) -> str:
    path = Path(root).expanduser().resolve()
    return path.name if path.is_dir() else path.stem


def _selected(cases: Sequence[Case], include: Sequence[str], faults: list[Fault]) -> list[Case]:
    """The cases that ``data.include`` names.

    Raises:
        DataError: it names what is not there.
    """
    if not include:
        return list(cases)
    if absent := sorted(set(include) - {case.id for case in cases} - {fault.case for fault in faults}):
        raise DataError([Fault(case, "data.include", "an id of the data set", "no such case", ONLY_REMEDY) for case in absent])
    return [case for case in cases if case.id in include]


def _part(cases: list[Case], part: str) -> tuple[list[Case], int]:
    """The cases of a part, and how many of the test part are left out."""
    if part not in PARTS:
        raise ValueError(f"part: expected one of {PARTS}, found {part!r}")
    tests = [case for case in cases if case.split == "test"]
    if part == "all" or not tests:
        return cases, 0
    return (tests, 0) if part == "test" else ([case for case in cases if case.split != "test"], len(tests))


def _with_labels(
    data: DataSettings,
    asked: Mapping[str, int],
    cases: list[Case],
    found: Survey,
    known: Mapping[str, int],
    cache: Path | None,
    faults: list[Fault],
) -> tuple[DataSettings, list[str]]:
    """Structures by their values: those asked for, else all that the data set's files name, else all values in its label files.

    Where the files name structures and fewer are asked for, the others are background.
    """
    named = dict(known or found.labels)
    if asked:
        others = {name: value for name, value in named.items() if value not in (*asked.values(), data.ignore, *data.background)}
        if not others:
            return data, []
        line = f"data: {', '.join(others)} count as background, as data.labels leaves them out"
        return replace(data, background=(*data.background, *sorted(others.values()))), [line]
    if named:
        return replace(data, labels={name: v for name, v in named.items() if v not in data.background}), []
    ignored = (data.ignore, *data.background)
    names = find_names(cases, Path(data.root).expanduser(), data.ignore, cache, faults)
    labels = {name: value for name, value in names.labels.items() if value not in ignored}
    told = ", ".join(f"{name}: {value}" for name, value in labels.items())
    return replace(data, labels=labels), [f"data: labels {{{told}}}, from {names.source}"] if labels else []
