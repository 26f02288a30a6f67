"""DICOM series below a folder, and the names of their cases."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from oasis_monai.data.formats.dicom import series_among, series_parts
from oasis_monai.data.types import Case


def series_cases(root: Path, files: Iterable[Path], anonymous: bool = False) -> list[Case]:
    """A case for every DICOM series among some files below ``root``, named as short as keeps the names apart."""
    series = series_among(files)
    unreadable = series.pop("", [])
    found = [(_home(part), uid, part) for uid, files in series.items() for part in series_parts(files)]
    readable = {file.parent for files in series.values() for file in files}
    # beside a series they may be slices of it, and reading it tells
    found += [(file.parent, "", (file,)) for file in _first_of_each_folder(unreadable) if file.parent not in readable]
    homes = sorted({home for home, _, _ in found})
    names = [home.resolve().name for home in homes]
    cases = []
    for home, uid, part in found:
        name = home.resolve().name
        if names.count(name) > 1:
            name = "_".join(home.relative_to(root).parts) or name
        uids = [other for at, other, _ in found if at == home]
        name = f"{name}_{_tail(uid, set(uids))}" if len(set(uids)) > 1 else name
        if uids.count(uid) > 1:  # several scans in several folders under one UID
            name = "_".join((name, *part[0].parent.relative_to(home).parts))
        cases.append(Case(name, part[0], more=part[1:]))
    return cases


def _home(files: Sequence[Path]) -> Path:
    """The folder that holds all of some files."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _first_of_each_folder(files: Iterable[Path]) -> list[Path]:
    return list({file.parent: file for file in reversed(list(files))}.values())


def _tail(uid: str, others: Iterable[str]) -> str:
    """The last parts of a SeriesInstanceUID, as many as tell it from the others; fit for a file name, whatever the file holds."""
    parts = uid.split(".")
    tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    tail = next((t for t in tails if sum(f".{o}".endswith(f".{t}") for o in others) == 1), uid)
    return re.sub(r"[^0-9A-Za-z.-]", "_", tail)
