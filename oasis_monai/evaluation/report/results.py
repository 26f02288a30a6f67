"""The page's tables of a run: results, cases worst first, every method case by case."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

import pandas as pd

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.report.markup import NONE, ci, number, sortable, sorter, tab_row, td
from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.tables import Cell, Grid

_HEAD = (
    "<thead><tr><th rowspan=2 class=key>{method}</th><th colspan=3>cases</th><th colspan=5>DSC %</th>"
    "<th colspan=3>surface distance, mm</th><th colspan=2>volume difference, %</th></tr><tr>{rest}</tr></thead>"
)
_COLUMNS = (
    *("scored", "missed", "other", "mean [95 % CI]", "sd", "median", "lowest", ""),
    *("95HD [95 % CI]", "HD", "ABD", "|RVD| [95 % CI]", "RVD"),
)
_RESULTS_NOTE = (
    "Interval: Student's 95 % t-interval of the mean. A missed structure counts in every mean, with DSC 0 and the image's "
    "diagonal as its distance. Other: f, false positives (the reference has none; they count likewise, but their volume "
    "difference has no value); a, absent on both sides (nothing to measure, in no mean). |RVD| is the paper's aRVD. HD: "
    "Hausdorff distance, 95HD: its 95th percentile, ABD: average boundary distance. Click a heading to sort."
)


def results(page: Page) -> str:
    """One tbody per protocol x label x region, so that it reads without the script too; tabs choose among them."""
    s = page.summary
    axes = {
        "protocol": [p for p in tables.PROTOCOLS if p in set(s["protocol"])],
        "label": sorted(set(s["label"])),
        "region": [r for r in tables.REGIONS if r in set(s["region"])],
    }
    rest = "".join(f"<th>{sorter(name, i + 1)}</th>" if name else "<th>cases, mean</th>" for i, name in enumerate(_COLUMNS))
    bodies = []
    for key, table in s.groupby(list(axes), sort=False):
        where = " ".join(f'data-{axis}="{axes[axis].index(value)}"' for axis, value in zip(axes, key, strict=True))
        scores = page.scores
        for column, value in zip(axes, key, strict=True):
            scores = scores[scores[column] == value]
        low = 10 * math.floor(10 * min([1.0, *scores["dsc"].dropna()]))
        low = min(low, 90)
        title = (
            f"{escape(key[1])} · {key[2]} · {key[0]} folds <small>dots: cases; bar: mean and its interval, {low} to 100 %</small>"
        )
        rows = "".join(_result_row(page, scores, row, low) for _, row in table.iterrows())
        bodies.append(f"<tbody {where}><tr class=group><th colspan=14 scope=rowgroup>{title}</th></tr>{rows}</tbody>")
    tabs = "".join(tab_row(axis, values) for axis, values in axes.items() if len(values) > 1)
    head = _HEAD.format(method=sorter("method-n", 0), rest=rest)
    return (
        f"<section><h2>Results</h2><div class=tabs>{tabs}</div><div class=scroll tabindex=0><table class=sortable>{head}"
        f"{''.join(bodies)}</table></div><p class=note>{_RESULTS_NOTE}</p></section>"
    )


def _result_row(page: Page, scores: pd.DataFrame, r: pd.Series, low: int) -> str:
    values = scores.loc[(scores["method"] == r["method"]) & (scores["n"] == r["n"]), "dsc"].dropna()
    other = " ".join(f"{r[name]} {name[0]}" for name in ("false_positives", "absent") if r[name]) or NONE
    cells = [
        td(r["cases"], str(r["cases"])),
        td(r["misses"], f"<b class=bad>{r['misses']}</b>" if r["misses"] else "0"),
        td(r["false_positives"] + r["absent"], other),
        td(r["dsc_mean"], f"<b>{number(100 * r['dsc_mean'])}</b> {ci(r, 'dsc', 100)}"),
        td(r["dsc_sd"], number(100 * r["dsc_sd"])),
        td(r["dsc_median"], number(100 * r["dsc_median"])),
        td(r["lowest_dsc"], f"{number(100 * r['lowest_dsc'])} <small>{escape(str(r['lowest_case']))}</small>"),
        f"<td>{_strip(values, r, low)}</td>",
        td(r["hd95_mm_mean"], f"{number(r['hd95_mm_mean'])} {ci(r, 'hd95_mm')}"),
        *(td(r[f"{m}_mm_mean"], number(r[f"{m}_mm_mean"])) for m in ("hd", "abd")),
        td(r["arvd_percent_mean"], f"{number(r['arvd_percent_mean'])} {ci(r, 'arvd_percent')}"),
        td(r["rvd_percent_mean"], number(r["rvd_percent_mean"])),
    ]
    rank = f"{tables.method_rank(r['method'])} {r['n']:06d}"
    mark = " class=main" if (r["method"], r["n"]) == page.main else ""
    name = escape(tables.method_name(r["method"], r["n"]))
    return f'<tr{mark}><th scope=row data-v="{escape(rank)}">{name}</th>{"".join(cells)}</tr>'


def _strip(values: Iterable[float], r: pd.Series, low: int) -> str:
    """Every case as a dot and the mean with its interval, on the group's common scale."""

    def x(dsc: float) -> str:
        return f"{4 + 92 * (100 * dsc - low) / (100 - low):.1f}"

    dots = "".join(f"M{x(v)} 9h0" for v in values)
    if not dots:
        return ""
    bar = f'<path class=ci d="M{x(r["dsc_ci_low"])} 9H{x(r["dsc_ci_high"])}"/>' if not math.isnan(r["dsc_ci_low"]) else ""
    return (
        f'<svg class=strip viewBox="0 0 100 18" width=100 height=18 aria-hidden=true><path class=dots d="{dots}"/>{bar}'
        f'<path class=mean d="M{x(r["dsc_mean"])} 3v12"/></svg>'
    )


def cases(page: Page) -> str:
    """Worst first, for the main method; folded away beneath, every method's DSC of every case at the same n."""
    method, n = page.main
    mine = page.of(method, n)
    labels = sorted(set(mine["label"]))
    thirds = [r for r in tables.REGIONS[1:] if r in set(mine["region"])]
    whole = mine[mine["region"] == "whole"].sort_values(["dsc", "case", "label"], na_position="last")
    by_key = {(r["case"], r["label"], r["region"]): r for r in mine.to_dict("records")}
    names = ["whole", *thirds, "95HD mm", "HD mm", "ABD mm", "RVD %", "reference mL", "result mL", "fold", "remarks"]
    first = ["case", *(["label"] if len(labels) > 1 else [])]
    rows = []
    for r in whole.to_dict("records"):
        parts = {region: by_key.get((r["case"], r["label"], region), {}) for region in ("whole", *thirds)}
        remarks = [f"{region} {p['status'].replace('_', ' ')}" for region, p in parts.items() if p and p["status"] != "ok"]
        cells = [td(p.get("dsc", math.nan), number(100 * p.get("dsc", math.nan))) for p in parts.values()]
        cells += [td(r[c], number(r[c])) for c in ("hd95_mm", "hd_mm", "abd_mm", "rvd_percent", "reference_ml", "volume_ml")]
        cells += [td(r["fold"], "all" if r["fold"] < 0 else str(r["fold"]))]
        said = f"<b class=bad>{escape(', '.join(remarks))}</b>" if remarks else ""
        cells += [f'<td class=text data-v="{len(remarks)}">{said}</td>']
        label = f'<td class=text data-v="{escape(r["label"])}">{escape(r["label"])}</td>' if len(labels) > 1 else ""
        rows.append(f'<tr><th scope=row data-v="{escape(r["case"])}">{escape(r["case"])}</th>{label}{"".join(cells)}</tr>')
    matrix = _matrix(page)
    return (
        f"<section><h2>Cases, worst first</h2><p class=note>{escape(method)}, n = {n}, {page.protocol} folds; DSC in %.</p>"
        f"{sortable([*first, *names], rows)}{matrix}</section>"
    )


def _matrix(page: Page) -> str:
    n, s = page.main[1], page.scores
    s = s[(s["protocol"] == page.protocol) & s["n"].isin([0, n]) & (s["region"] == "whole")]
    methods = sorted(set(s["method"]), key=tables.method_rank)
    if len(methods) < 2:
        return ""
    several = s["label"].nunique() > 1
    rows = []
    for (case, label), group in s.groupby(["case", "label"]):
        known = dict(zip(group["method"], group["dsc"], strict=True))
        name = f"{case}, {label}" if several else str(case)
        cells = "".join(td(known.get(m, math.nan), number(100 * known.get(m, math.nan))) for m in methods)
        rows.append(f'<tr><th scope=row data-v="{escape(name)}">{escape(name)}</th>{cells}</tr>')
    table = sortable(["case", *methods], rows)
    return f"<details><summary>All methods, case by case: whole DSC %, n = {n}</summary>{table}</details>"


def grid_section(grid: Grid) -> str:
    """A study's table, sortable, with its footnotes."""
    head = "".join(f"<th{' class=key' if i == 0 else ''}>{sorter(name, i)}</th>" for i, name in enumerate(grid.head))
    rows = []
    for row in grid.rows:
        first, *rest = row
        cells = "".join(
            f'<td{" class=text" if math.isnan(c.value) and c.text[:1].isalpha() else ""} data-v="{_sort_value(c)}">'
            f"{_two_lines(c)}</td>"
            for c in rest
        )
        rows.append(f'<tr><th scope=row data-v="{escape(first.text)}">{escape(first.text)}</th>{cells}</tr>')
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in grid.notes)
    table = f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    title = f'<h2 id="{escape(grid.name)}">{escape(grid.title)}</h2>'
    return f"<section>{title}<div class=scroll tabindex=0>{table}</div>{notes}</section>"


def _sort_value(cell: Cell) -> str:
    return escape(cell.text if math.isnan(cell.value) else repr(float(cell.value)))


def _two_lines(cell: Cell) -> str:
    """The value, and its interval small beneath it: a table of many columns stays within the page."""
    value, bracket, interval = escape(cell.text).partition(" [")
    value = f"<b>{value}</b>" if cell.bold else value
    return f"{value}<br><small>[{interval}</small>" if bracket else value
