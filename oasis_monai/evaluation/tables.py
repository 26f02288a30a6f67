"""Small tables with a head, bold best values and footnotes, as Markdown, LaTeX and aligned plain text.

The report renders them as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """What stands in a field, the value it sorts by (NaN: last) and whether it is set in bold."""

    text: str
    value: float = math.nan
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table for people. The first column names the row.

    Args:
        name: of the files it is written to.
        title: plain text above it.
        head: column names, the first of the row names.
        rows: cells, as many as ``head``.
        notes: footnotes, plain text.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"{self.name}: expected {len(self.head)} cells in every row, found {len(row)}")


def aligned_text(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Rows of cells as lines of plain text, a head being the first; columns ``left`` are set to the left, others to the right."""
    sides = ["left" if i in left else "right" for i in range(len(lines[0]))]
    return tabulate(lines, tablefmt="plain", colalign=sides, disable_numparse=True) + "\n"


def interval_text(statistics: tuple[float, float, float, float], signed: bool = False) -> str:
    """``81.2 [78.8, 83.5]`` of (mean, sd, low, high), as :func:`oasis_monai.evaluation.statistics.interval` gives."""
    mean, _, low, high = statistics
    text = number_text(mean, signed)
    return text if math.isnan(low) else f"{text} [{number_text(low, signed)}, {number_text(high, signed)}]"


def number_text(value: float, signed: bool = False) -> str:
    """One decimal; a dash for NaN."""
    if math.isnan(value):
        return NONE
    return (f"{value:+.1f}" if signed else f"{value:.1f}").replace("-", "\N{MINUS SIGN}")


def best_bold(columns: Sequence[Sequence[Cell]], highest: Sequence[bool]) -> list[list[Cell]]:
    """Columns of cells with the best value of each in bold, ties all; ``highest``: per column whether more is better."""
    out = []
    for cells, up in zip(columns, highest, strict=True):
        known = [round(c.value, 4) for c in cells if not math.isnan(c.value)]
        best = (max if up else min)(known) if known else math.nan
        out.append([Cell(c.text, c.value, round(c.value, 4) == best if not math.isnan(c.value) else False) for c in cells])
    return out


def markdown(grid: Grid) -> str:
    """The table in GitHub's Markdown, its title a bold line, its footnotes a list."""

    def text(cell: Cell) -> str:
        plain = _markdown_escaped(cell.text)
        return f"**{plain}**" if cell.bold and plain else plain

    head, rows = [_markdown_escaped(h) for h in grid.head], [[text(cell) for cell in row] for row in grid.rows]
    sides = ["left"] + ["right"] * (len(head) - 1)
    table = tabulate(rows, head, tablefmt="pipe", colalign=sides, disable_numparse=True)
    notes = [f"- {_markdown_escaped(note)}" for note in grid.notes]
    return "\n".join([f"**{_markdown_escaped(grid.title)}**", "", table, *(["", *notes] if notes else [])]) + "\n"


def latex(grid: Grid) -> str:
    """The table as a ``tabular`` with booktabs' rules, the title as a comment, the footnotes below: a stand-alone block.

    Written here and not by tabulate or pandas: neither escapes the minus sign, nor offers its escaping for the footnotes.
    """

    def text(cell: Cell) -> str:
        plain = _latex_escaped(cell.text)
        return f"\\textbf{{{plain}}}" if cell.bold and plain else plain

    lines = [
        f"% {' '.join(grid.title.split())}; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{l{'r' * (len(grid.head) - 1)}}}",
        "\\toprule",
        " & ".join(_latex_escaped(h) for h in grid.head) + " \\\\",
        "\\midrule",
        *(" & ".join(text(cell) for cell in row) + " \\\\" for row in grid.rows),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par\\footnotesize {_latex_escaped(note)}" for note in grid.notes),
    ]
    return "\n".join(lines) + "\n"


def _markdown_escaped(text: str) -> str:
    for mark in "\\`*_|<>":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
}


def _latex_escaped(text: str) -> str:
    return " ".join("".join(_LATEX.get(mark, mark) for mark in text).split())
