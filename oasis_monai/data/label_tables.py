"""Tables that name the values of label files: those of ITK-SNAP, FreeSurfer and BIDS, and plain ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oasis_monai.data.layouts.dataset_json import read_json
from oasis_monai.utils.errors import Fault

STEMS = ("labels", "label_names", "label_descriptions", "label_description", "dseg", "lut", "colorlut", "freesurfercolorlut")
ENDINGS = (".json", ".csv", ".tsv", ".txt", ".label")
SNAP = re.compile(r"\s*(\d+)(?:\s+[\d.]+){4,6}\s+\"([^\"]*)\"\s*")  # value, colour, opacity and two switches, "name"
FREESURFER = re.compile(r"\s*(\d+)\s+([^\s\d\"]\S*)(?:\s+\d+){3,4}\s*")  # value, name, colour
PLAIN = (
    re.compile(r"\s*(\d+)\s*[:=,;\t ]\s*\"?([^\d\s\"][^\"]*?)\"?\s*"),
    re.compile(r"\s*\"?([^\"]*?[^\s\"])\"?\s*[:=,;\t ]\s*(\d+)\s*"),
)
VALUES = ("index", "value", "id", "label", "key", "number", "intensity")
NAMES = ("name", "structure", "label", "description", "class")
MOST_BYTES = 4 * 2**20
Table = dict[int, str]


def find_table(folders: Iterable[Path], faults: list[Fault]) -> tuple[Path | None, Table]:
    """The first table in some folders, ``labels.json`` and the like, and value -> name without the background."""
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            named = path.suffix.lower() in ENDINGS and path.stem.lower() in STEMS
            if named and path.is_file() and path.stat().st_size < MOST_BYTES:
                table = read_table(path, faults)
                if table:
                    return path, table
    return None, {}


def read_table(path: Path, faults: list[Fault]) -> Table:
    """Value -> name of one file. What is no such table is a warning, and empty."""
    if path.suffix.lower() == ".json":
        content = read_json(path, faults, "warning")
        found = _pairs(content.get("labels", content) if isinstance(content, Mapping) else None)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError):
            text = ""
        columns = path.suffix.lower() in (".csv", ".tsv")
        found = (_columns(text) if columns else {}) or _lines(text)
    if not found:
        expected = "names and values of structures"
        faults.append(Fault("", path.name, expected, "none", "correct or rename it; it is not used", "warning"))
    return {value: name for value, name in found.items() if value}


def _pairs(content: Any) -> Table:
    """Names by values, or values by names."""
    found: Table = {}
    if not isinstance(content, Mapping):
        return found
    for key, other in content.items():
        if isinstance(other, int) and not isinstance(other, bool):
            found[other] = " ".join(str(key).split())
        elif isinstance(other, str) and str(key).isdecimal():
            found[int(key)] = " ".join(other.split())
    return found if len(found) == len(content) else {}


def _columns(text: str) -> Table:
    """A table with a header, such as BIDS' ``dseg.tsv``."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return {}
    separator = max(",;\t", key=lines[0].count)
    rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    header = [cell.strip().lower() for cell in rows[0]]
    value = next((header.index(name) for name in VALUES if name in header), None)
    name = next((header.index(name) for name in NAMES if name in header and header.index(name) != value), None)
    if value is None or name is None:
        return {}
    cells = [row for row in rows[1:] if len(row) > max(value, name) and row[value].strip().isdecimal()]
    if not cells and header[value] == "label":  # the names stand there
        value, name = name, value
        cells = [row for row in rows[1:] if len(row) > max(value, name) and row[value].strip().isdecimal()]
    return {int(row[value]): row[name].strip() for row in cells}


def _lines(text: str) -> Table:
    """Lines of ITK-SNAP, of FreeSurfer, or a value and a name in either order; all of one kind."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for pattern in (SNAP, FREESURFER, *PLAIN):
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        if matches and len(matches) == len(lines):
            first, second = (2, 1) if pattern is PLAIN[1] else (1, 2)
            return {int(match[first]): match[second].strip() for match in matches}
    return {}
