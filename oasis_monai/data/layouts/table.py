"""A table of cases, CSV or TSV: a line for each, with its files and what there is to know of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from oasis_monai.data.formats.dispatch import ending
from oasis_monai.data.layouts.channels import chosen
from oasis_monai.data.layouts.files import case_of, listed, series_at, short_names
from oasis_monai.data.layouts.record import SPLITS, Layout, Request, Survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault

ENDINGS = (".csv", ".tsv")
COLUMNS = {
    "image": ("image", "img", "scan", "volume"),
    "label": ("label", "mask", "seg", "segmentation"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "person"),
    "centre": ("centre", "center", "site"),
    "fold": ("fold",),
    "split": ("split", "subset"),
    "id": ("id", "case", "case_id", "caseid"),
}
"""What a column is, by its name in any case."""
ALIKE = 0.8
"""Similarity from which on an unused column looks like one of these misspelt: patients, pateint_id."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        line: the number in the file, from 1, where it begins.
        cells: by column, without blanks round them.
    """

    line: int
    cells: Mapping[str, str]


def read_rows(path: Path, faults: list[Fault]) -> tuple[list[str], list[Row]]:
    """Columns and rows of a table: separated by commas, semicolons or tabs, with quotes or without, in UTF-8.

    Raises:
        DataError: it has no text in UTF-8, no header, or a column twice.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"another byte in line {data[: error.start].count(10) + 1}"
        fault = Fault("", path.name, "text in UTF-8", found, "save it as CSV UTF-8 in your spreadsheet program")
        raise DataError(fault) from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    written = list(io.StringIO(text, newline=""))
    reader = csv.reader(written, delimiter=separator, skipinitialspace=True)
    columns: list[str] = []
    rows, line = [], 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = cells
                continue
            if len(cells) > len(columns) and not any(cells[len(columns) :]):
                cells = cells[: len(columns)]
            quotes = sum(one.count('"') for one in written[begun - 1 : reader.line_num])
            if len(cells) != len(columns) or (quotes % 2 and any("\n" in cell for cell in cells)):
                faults.append(_uneven(f"{path.name} line {begun}", columns, cells, separator if quotes % 2 else ""))
                continue
            rows.append(Row(begun, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        fault = Fault("", f"{path.name} line {line}", "cells of a table", str(error), "correct the line")
        raise DataError(fault) from error
    twice = [name for name in columns if columns.count(name) > 1]
    if not columns or twice or not all(columns):
        found = f"{twice[0]!r} twice" if twice else ("a column without a name" if columns else "nothing")
        fault = Fault("", f"{path.name} line 1", "a header that names each column once", found, "correct it")
        raise DataError(fault)
    return columns, rows


def _uneven(where: str, columns: list[str], cells: list[str], separator: str) -> Fault:
    """A line with fewer or more cells than there are columns, and from where on.

    Args:
        where: the line.
        columns: of the table.
        cells: of the line.
        separator: of the cells, where a quote does not end; else empty.
    """
    expected, found = f"{len(columns)} cells, one for each column", str(len(cells))
    if separator:  # the cell with that quote holds what should be the next ones
        long = [column for column, cell in zip(columns, cells, strict=False) if separator in cell or "\n" in cell]
        where = f"{where}, column {long[0]}" if long else where
        return Fault("", where, expected, f"{found}, and a quote that does not end", "remove the quote, or end it")
    if len(cells) < len(columns):
        return Fault("", f"{where}, column {columns[len(cells)]}", expected, found, "add what is missing there")
    found += f", the first without a column {cells[len(columns)][:60]!r}"
    return Fault(
        "", f"{where}, after column {columns[-1]}", expected, found, "correct the line (text with a separator needs quotes)"
    )


def find(request: Request) -> Survey:
    """A case for each line. Paths are relative to the table's folder; it is the user's own list, so they may lead anywhere.

    Raises:
        ConfigError: a column that ``data.image``, ``data.label`` or ``data.channels`` names is not there.
        DataError: it is no table, or has no column of images.
    """
    path, data = request.root, request.data
    faults: list[Fault] = []
    columns, rows = read_rows(path, faults)
    roles = _roles(columns, data)
    _note_columns(columns, roles, path, faults)
    images = _images(columns, rows, roles, data, path)
    if request.labelled and "label" not in roles:
        fault = Fault("", f"{path.name} line 1", "a column label", listed(columns), "add it, or name it by data.label=COLUMN")
        raise DataError(fault)
    masks = {} if isinstance(data.label, str) else {name: _column(columns, text) for name, text in data.label.items()}
    reader = _Reader(path, roles, images, request.labelled, faults, masks)
    read = [(row, made) for row in rows if (made := reader.case(row)) is not None]
    named = short_names([case.image for _, case in read]) if read else []
    cases: list[Case] = []
    lines: dict[str, int] = {}
    parts: dict[str, Mapping[str, str]] = {}
    for (row, case), short in zip(read, named, strict=True):
        own = row.cells[roles["id"]] if "id" in roles else short
        if own in lines:
            found, remedy = f"{own} as in line {lines[own]}", "give each case its own id (column id)"
            where = f"{path.name} line {row.line}, column {roles.get('id') or next(iter(images.values()))}"
            faults.append(Fault("", where, "another id for each line", found, remedy))
            continue
        lines[own] = row.line
        parts[own] = row.cells
        cases.append(replace(case, id=own, patient=row.cells[roles["patient"]] if "patient" in roles else ""))
    _note_images(cases, lines, faults)
    names = tuple(name for name in images if name)
    return Survey(cases, faults, channels=names, cut=bool(names), parts=parts, structures=tuple(masks))


def _column(columns: list[str], text: str) -> str:
    """A column by its name in any case."""
    return next(name for name in columns if name.lower() == text.lower())


def _roles(columns: list[str], data: DataSettings) -> dict[str, str]:
    """What is in which column, by the names people give them and by what the settings name."""
    lower = {name.lower(): name for name in reversed(columns)}
    roles = {role: lower[name] for role, names in COLUMNS.items() for name in reversed(names) if name in lower}
    for column in reversed(data.label_parts.values()):  # of several masks the first is the label
        if column.lower() not in lower:
            raise ConfigError("data.label", f"one of the columns {', '.join(columns)}", column)
        roles["label"] = lower[column.lower()]
    return roles


def _images(columns: list[str], rows: list[Row], roles: Mapping[str, str], data: DataSettings, path: Path) -> dict[str, str]:
    """The columns of images by channel: those that ``data.image`` names, the column ``image``, else all that hold paths of
    images; cut to ``data.channels``."""
    lower = {name.lower(): name for name in reversed(columns)}
    if asked := data.images:
        if absent := [name for name in asked.values() if name.lower() not in lower]:
            raise ConfigError("data.image", f"some of the columns {', '.join(columns)}", absent[0])
        found = {name if isinstance(data.image, Mapping) else lower[c.lower()]: lower[c.lower()] for name, c in asked.items()}
    elif "image" in roles:
        found = {"": roles["image"]}
    else:
        found = {name: name for name in columns if name not in roles.values() and _holds_images(name, rows)}
    if not found:
        fault = Fault("", f"{path.name} line 1", "a column image, or one for each channel", listed(columns), "add it")
        raise DataError(fault)
    if list(found) == [""]:
        return found
    names = list(found)
    return {names[index]: found[names[index]] for index in chosen(names, data.channels)}


def _holds_images(column: str, rows: list[Row]) -> bool:
    own = [row.cells[column] for row in rows if row.cells[column]]
    return bool(own) and all(ending(cell) or Path(cell).suffix.lower() == ".dcm" for cell in own)


@dataclass(frozen=True)
class _Reader:
    """Makes cases of the rows of one table."""

    path: Path
    roles: Mapping[str, str]
    images: Mapping[str, str]
    labelled: bool
    faults: list[Fault]
    masks: Mapping[str, str]

    def case(self, row: Row) -> Case | None:
        """The case of one line; None, and faults, where it has none."""
        before = len(self.faults)
        split = self._split(row)
        fold = self._fold(row)
        sources = [self._file(row, column) for column in self.images.values()]
        has_label = self.labelled and "label" in self.roles
        label = self._file(row, self.roles["label"], split != "test") if has_label else ()
        others = [] if not label else [(name, self._file(row, column)) for name, column in list(self.masks.items())[1:]]
        if "id" in self.roles and not row.cells[self.roles["id"]]:
            self._fault(row, self.roles["id"], "an id", "an empty cell", "give it, or remove the column")
        centre = row.cells[self.roles["centre"]] if "centre" in self.roles else ""
        if len(self.faults) > before or not all(sources):
            return None
        made = case_of("line", sources, label[0] if label else None, centre=centre, fold=fold, split=split)
        named = [*self.images.values(), self.roles.get("label", "")]
        if label and self.masks:
            every = ((next(iter(self.masks)), label), *others)
            made = replace(made, masks=tuple((name, files[0]) for name, files in every if files))
        return replace(made, origin=tuple(self._place(row, column) for column in named))

    def _place(self, row: Row, column: str) -> str:
        return f"{self.path.name} line {row.line}, column {column}"

    def _fault(self, row: Row, column: str, expected: str, found: str, remedy: str) -> None:
        self.faults.append(Fault("", self._place(row, column), expected, found, remedy))

    def _file(self, row: Row, column: str, needed: bool = True) -> tuple[Path, ...]:
        """The file that a cell names, or the DICOM series in the folder that it names."""
        cell = row.cells[column]
        if not cell:
            if needed:
                self._fault(row, column, "a file", "an empty cell", "give the file, or remove the line")
            return ()
        if "\0" in cell:
            self._fault(row, column, "a file", "a zero byte", "correct the cell")
            return ()
        path = self.path.parent / Path(cell.replace("\\", "/") if re.match(r"[\w. -]+\\", cell) else cell).expanduser()
        files = series_at(path)
        if not files:
            found = f"none at {cell}" if not path.exists() else f"the folder {cell} without one DICOM series"
            self._fault(row, column, "a file, relative to the table's folder, or an absolute path", found, "correct the path")
        return files

    def _split(self, row: Row) -> str:
        cell = row.cells[self.roles["split"]] if "split" in self.roles else ""
        if cell and cell.lower() not in SPLITS:
            self._fault(row, self.roles["split"], "train or test", cell, "correct it, or leave it empty")
        return SPLITS.get(cell.lower(), "")

    def _fold(self, row: Row) -> int | None:
        cell = row.cells[self.roles["fold"]] if "fold" in self.roles else ""
        cell = cell.removesuffix(".0")  # a spreadsheet's number
        if cell and not (cell.isascii() and cell.isdecimal()):
            self._fault(row, self.roles["fold"], "a whole number of 0 or more", cell, "correct it, or leave it empty")
            return None
        return int(cell) if cell else None


def _note_columns(columns: list[str], roles: Mapping[str, str], path: Path, faults: list[Fault]) -> None:
    """Warn of columns that look like a known one misspelt: without a word, patients would be told apart by nothing."""
    words = [name for role in ("patient", "centre", "fold", "split") if role not in roles for name in COLUMNS[role]]
    for column in columns:
        near = get_close_matches(column.lower(), words, 1, ALIKE) if column not in roles.values() else []
        if near:
            found, remedy = f"{column}, which is not used", "correct it if it is meant to be that"
            faults.append(
                Fault("", f"{path.name} line 1, column {column}", f"a name such as {near[0]}", found, remedy, "warning")
            )


def _note_images(cases: list[Case], lines: Mapping[str, int], faults: list[Fault]) -> None:
    """A fault for every image that two lines have, however its path is written."""
    seen: dict[Path, str] = {}
    for case in cases:
        first = seen.setdefault(case.image.resolve(), case.id)
        if first != case.id:
            found = f"{case.image.name} as in line {lines[first]}"
            faults.append(Fault("", case.origin[0], "each image once", found, "remove one of the lines"))


LAYOUT = Layout(
    "table",
    "a table with a line for each case",
    "lines with an image (and its label)",
    lambda root: root.is_file() and root.suffix.lower() in ENDINGS,
    find,
)
