"""The values of the page's tables: results, cases (worst first), all methods case by case."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.report.text import NONE, interval, number
from oasis_monai.evaluation.tables import Grid
from oasis_monai.utils.words import natural

_COLUMNS = (
    *("scored", "missed", "other", "mean [95 % CI]", "sd", "median", "lowest", ""),
    *("95HD [95 % CI]", "HD", "ABD", "NSD [95 % CI]", "|RVD| [95 % CI]", "RVD"),
)


@dataclass(frozen=True)
class Field:
    """A table's field.

    Args:
        text: what stands in it.
        sort: what it sorts by; NaN is last.
        small: smaller text after it.
        style: ``strong``, ``bad`` or empty.
        left: set to the left, as text is.
    """

    text: str
    sort: float | str = math.nan
    small: str = ""
    style: str = ""
    left: bool = False

    @property
    def sort_key(self) -> str:
        """``sort`` as the page's script reads it."""
        if isinstance(self.sort, str):
            return self.sort
        return "" if math.isnan(self.sort) else repr(float(self.sort))


@dataclass(frozen=True)
class Row:
    """A table's row; the first field names it. ``main``: of the method the page shows in detail."""

    fields: Sequence[Field]
    main: bool = False
    strip: dict[str, str] | None = None


@dataclass(frozen=True)
class SortableTable:
    """``left``: names of the columns whose heading is set to the left."""

    head: Sequence[str]
    rows: Sequence[Row]
    left: Sequence[str] = ()


def results(page: Page) -> dict[str, Any]:
    """One body per protocol x label x region, so that it reads without the script too; tabs choose among them."""
    summary = page.summary
    axes = {
        "protocol": [p for p in PROTOCOLS if p in set(summary["protocol"])],
        "label": sorted(set(summary["label"]), key=natural),
        "region": [r for r in tables.REGIONS if r in set(summary["region"])],
    }
    bodies = []
    for key, table in summary.groupby(list(axes), sort=False):
        protocol, label, region = key
        scores = page.scores
        for column, value in zip(axes, key, strict=True):
            scores = scores[scores[column] == value]
        low = min(10 * math.floor(10 * min([1.0, *scores["dsc"].dropna()])), 90)
        body: dict[str, Any] = {axis: axes[axis].index(value) for axis, value in zip(axes, key, strict=True)}
        body |= {"title": f"{label} · {region} · {protocol} folds", "low": low}
        bodies.append(body | {"rows": [_result_row(page, scores, row, low) for _, row in table.iterrows()]})
    tabs = [(axis, values) for axis, values in axes.items() if len(values) > 1]
    columns = (*_COLUMNS, *(["found/missed/false"] if tables.of_several_pieces(summary) else []))
    return {"tabs": tabs, "columns": columns, "bodies": bodies}


def _result_row(page: Page, scores: pd.DataFrame, r: pd.Series, low: int) -> Row:
    values = scores.loc[(scores["method"] == r["method"]) & (scores["n"] == r["n"]), "dsc"].dropna()
    other = " ".join(f"{r[name]} {name[0]}" for name in ("false_positives", "absent") if r[name]) or NONE
    fields = [
        Field(tables.method_name(r["method"], r["n"]), f"{tables.method_rank(r['method'])} {r['n']:06d}"),
        Field(str(r["cases"]), r["cases"]),
        Field(str(r["misses"]), r["misses"], style="bad" if r["misses"] else ""),
        Field(other, r["false_positives"] + r["absent"]),
        Field(number(100 * r["dsc_mean"]), r["dsc_mean"], interval(r, "dsc", 100), "strong"),
        Field(number(100 * r["dsc_sd"]), r["dsc_sd"]),
        Field(number(100 * r["dsc_median"]), r["dsc_median"]),
        Field(number(100 * r["lowest_dsc"]), r["lowest_dsc"], str(r["lowest_case"])),
        Field(number(r["hd95_mm_mean"]), r["hd95_mm_mean"], interval(r, "hd95_mm")),
        *(Field(number(r[f"{m}_mm_mean"]), r[f"{m}_mm_mean"]) for m in ("hd", "abd")),
        Field(number(100 * r["nsd_mean"]), r["nsd_mean"], interval(r, "nsd", 100)),
        Field(number(r["arvd_percent_mean"]), r["arvd_percent_mean"], interval(r, "arvd_percent")),
        Field(number(r["rvd_percent_mean"]), r["rvd_percent_mean"]),
    ]
    if tables.of_several_pieces(page.summary):
        fields.append(Field(tables.pieces_text(r), r["found_pieces"]))
    return Row(fields, (r["method"], r["n"]) == page.main, _strip(values, r, low))


def _strip(values: Iterable[float], r: pd.Series, low: int) -> dict[str, str] | None:
    """SVG paths of every case as a dot and of the mean with its interval, on the group's common scale."""

    def x(dsc: float) -> str:
        return f"{4 + 92 * (100 * dsc - low) / (100 - low):.1f}"

    dots = "".join(f"M{x(v)} 9h0" for v in values)
    if not dots:
        return None
    bar = "" if math.isnan(r["dsc_ci_low"]) else f"M{x(r['dsc_ci_low'])} 9H{x(r['dsc_ci_high'])}"
    return {"dots": dots, "bar": bar, "mean": f"M{x(r['dsc_mean'])} 3v12"}


def case_table(page: Page) -> SortableTable:
    """The main method's cases, worst first."""
    mine = page.of(*page.main)
    several = mine["label"].nunique() > 1
    thirds = [r for r in tables.REGIONS[1:] if r in set(mine["region"])]
    whole = mine[mine["region"] == "whole"].sort_values(["dsc", "case", "label"], na_position="last")
    by_key = {(r["case"], r["label"], r["region"]): r for r in mine.to_dict("records")}
    pieces, rows = tables.of_several_pieces(page.summary), []
    for r in whole.to_dict("records"):
        parts = {region: by_key.get((r["case"], r["label"], region), {}) for region in ("whole", *thirds)}
        remarks = [f"{region} {p['status'].replace('_', ' ')}" for region, p in parts.items() if p and p["status"] != "ok"]
        dsc = [p.get("dsc", math.nan) for p in parts.values()]
        fields = [Field(r["case"], r["case"])]
        fields += [Field(r["label"], r["label"], left=True)] if several else []
        fields += [Field(number(100 * value), value) for value in dsc]
        fields += [Field(number(r[c]), r[c]) for c in ("hd95_mm", "hd_mm", "abd_mm")]
        fields += [Field(number(100 * r["nsd"]), r["nsd"])]
        fields += [Field(number(r[c]), r[c]) for c in ("rvd_percent", "reference_ml", "volume_ml")]
        fields += [Field(tables.pieces_text(r), r["found_pieces"])] if pieces else []
        fields += [Field("all" if r["fold"] < 0 else str(r["fold"]), r["fold"])]
        fields += [Field(", ".join(remarks), str(len(remarks)), style="bad" if remarks else "", left=True)]
        rows.append(Row(fields))
    measures: tuple[str, ...] = ("95HD mm", "HD mm", "ABD mm", "NSD %", "RVD %", "reference mL", "result mL")
    measures = (*measures, *(["pieces found/missed/false"] if pieces else []), "fold", "remarks")
    head = ["case", *(["label"] if several else []), "whole", *thirds, *measures]
    return SortableTable(head, rows, ("label", "remarks"))


def method_table(page: Page) -> SortableTable | None:
    """Every method's DSC of every case at the main method's n; None with fewer than two methods."""
    s = page.scores
    s = s[(s["protocol"] == page.protocol) & s["n"].isin([0, page.main[1]]) & (s["region"] == "whole")]
    methods = sorted(set(s["method"]), key=tables.method_rank)
    if len(methods) < 2:
        return None
    several = s["label"].nunique() > 1
    rows = []
    for (case, label), group in s.groupby(["case", "label"]):
        known = dict(zip(group["method"], group["dsc"], strict=True))
        name = f"{case}, {label}" if several else str(case)
        values = [known.get(m, math.nan) for m in methods]
        rows.append(Row([Field(name, name), *(Field(number(100 * v), v) for v in values)]))
    return SortableTable(["case", *methods], rows)


def grid_table(grid: Grid) -> SortableTable:
    """A study's table. An interval stands small beneath its value: a table of many columns stays within the page."""
    rows = []
    for row in grid.rows:
        fields = [Field(row[0].text, row[0].text)]
        for cell in row[1:]:
            value, bracket, rest = cell.text.partition(" [")
            text = math.isnan(cell.value)
            fields.append(
                Field(
                    value,
                    cell.text if text else cell.value,
                    f"[{rest}" if bracket else "",
                    "strong" if cell.bold else "",
                    text and cell.text[:1].isalpha(),
                )
            )
        rows.append(Row(fields))
    return SortableTable(grid.head, rows)
