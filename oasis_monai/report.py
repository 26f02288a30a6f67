"""A run's folder -> one self-contained page, ``report.html``: opens by double click, asks no network, runs on a phone.

Everything that comes from data (case names, notes, settings) passes through :func:`html.escape`, and a content security
policy lets the page run one script, ours, known by its hash: markup in a case name is inert twice over.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai import tables
from oasis_monai.errors import DataError, Fault
from oasis_monai.files import write_text
from oasis_monai.overlays import curve_svg

MAX_PICTURE_BYTES = 16 * 2**20  # pictures taken into the page, all together; the rest stay in overlays/
_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_PNG = b"\x89PNG\r\n\x1a\n"


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` beside a run's ``scores.csv``; the same folder gives the same bytes.

    Args:
        run_dir: folder with ``scores.csv``; and, each may be absent, which the page then says: ``run.json`` (what was run:
            task, protocol, folds, seed, command, data {name, cases, citation, licence}, settings, versions, device, threads,
            commit, split_hash, timings_s, notes) and ``overlays/<case>__<method>-<n>.png``.

    Returns:
        The page's path.

    Raises:
        DataError: there are no readable scores, or ``run.json`` is not a JSON object.
    """
    folder = Path(run_dir)
    scores = tables.read_scores(folder / "scores.csv")
    run = _read_run(folder / "run.json")
    page = _Page(scores, tables.summarise(scores), run or {}, run is not None, _pictures(folder / "overlays"))
    write_text(folder / "report.html", _html(page))
    return folder / "report.html"


@dataclass(frozen=True)
class _Page:
    scores: pd.DataFrame
    summary: pd.DataFrame
    run: Mapping[str, Any]
    has_run: bool
    pictures: dict[tuple[str, str], Path]

    @property
    def protocol(self) -> str:
        """The protocol the head of the page speaks of: the honest one where there are both."""
        found = set(self.scores["protocol"])
        return next((p for p in tables.PROTOCOLS if p in found), str(self.run.get("protocol", "patient")))

    @property
    def main(self) -> tuple[str, int]:
        """The method and n the page shows in detail. Fixed in advance, never the best scorer: OASIS, and the paper's n = 6
        (else the largest n)."""
        rows = self.scores[self.scores["protocol"] == self.protocol]
        methods = sorted(set(rows["method"]), key=tables.method_rank)
        method = "OASIS" if "OASIS" in methods else methods[0]
        every = set(rows.loc[rows["method"] == method, "n"])
        return method, int(6 if 6 in every else max(every))

    def of(self, method: str, n: int) -> pd.DataFrame:
        """Rows of one method and n under the main protocol."""
        s = self.scores
        return s[(s["protocol"] == self.protocol) & (s["method"] == method) & (s["n"] == n)]


def _read_run(path: Path) -> dict[str, Any] | None:
    remedy = "delete it, or write it again from the run"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(Fault("", str(path), "a JSON object", str(error), remedy)) from error
    if not isinstance(run, dict):
        raise DataError(Fault("", str(path), "a JSON object", type(run).__name__, remedy))
    return run


def _pictures(folder: Path) -> dict[tuple[str, str], Path]:
    """(case, 'method-n') -> picture, in name order. A name without the parts counts as its own case."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        case, separator, method = path.stem.rpartition("__")
        with open(path, "rb") as stream:
            if stream.read(8) == _PNG:
                found[(case, method) if separator else (path.stem, "")] = path
    return found


def _html(page: _Page) -> str:
    name = str(_dict(page.run, "data").get("name") or "scores")
    parts = [f"<header><p class=kicker>oasis-monai report</p><h1>{escape(name)}</h1>{_lead(page)}</header>"]
    parts += [_notices(page)]
    if len(page.scores):
        parts += [_tiles(page), _results(page), _curve(page), _cases(page), _overlays(page)]
    parts += [_facts(page)]
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: oasis-monai report</title><style>{_STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    end = f"</main><script>{_SCRIPT}</script></body></html>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n{end}\n'


def _lead(page: _Page) -> str:
    """One sentence: who was segmented, by what, under which protocol."""
    run, protocol = page.run, page.protocol
    badge = f'<p class="badge {protocol}">{escape(tables.PROTOCOL_TITLES.get(protocol, protocol))}</p>'
    if not len(page.scores):
        return badge
    cases, several = page.scores["case"].nunique(), sorted(set(page.scores["n"]))
    methods = sorted(set(page.scores["method"]), key=tables.method_rank)
    name = _dict(run, "data").get("name")
    who = f"{cases} case{'s' if cases > 1 else ''}" + (f" of {escape(str(name))}" if name else "")
    folds = f"{escape(str(run['folds']))} folds" if run.get("folds") else "folds"
    drawn = {
        "patient": "drawn over patients: a patient's own scan is never among the atlases, nor in the training behind them.",
        "slice": "drawn over slices, as the paper's figures suggest it did: slices of one patient stand on both sides, so "
        "<strong>these scores do not say how well a new patient is segmented</strong>.",
    }[protocol]
    counts = f"n = {', '.join(map(str, several))} atlas{'es' if several != [1] else ''}"
    return f"{badge}<p class=lead>{who}, segmented by {escape(_listed(methods))} from {counts}, with {folds} {drawn}</p>"


def _notices(page: _Page) -> str:
    run, scores, lines = page.run, page.scores, []
    if not page.has_run:
        lines.append("There is no run.json in this folder: the settings, versions and timings of the run are not known.")
    expected = _dict(run, "data").get("cases")
    expected = len(expected) if isinstance(expected, list | tuple | dict) else expected
    for protocol in sorted(set(scores["protocol"])) or [page.protocol]:
        mine = scores[scores["protocol"] == protocol]
        have = mine["case"].nunique()
        if protocol == "slice" and (not have or (isinstance(expected, int) and have < expected)):
            lines.append(
                f"The slice protocol is not complete: {have} of {expected or 'all'} cases are scored. A case can be scored only "
                "when every fold that holds slices of it has run."
            )
        elif not have:
            lines.append("No case is scored yet.")
        elif isinstance(expected, int) and have < expected:
            done = ", ".join(str(f) for f in sorted(set(mine["fold"])))
            lines.append(f"Only {have} of {expected} cases are scored (fold {done}): the means below are of these.")
        if have == 1:
            lines.append("There is one case only: it has no spread and its mean no interval.")
    if len(set(scores["protocol"])) > 1:
        lines.append("Both protocols are in this run. The head of the page speaks of the patient folds; the tables name theirs.")
    if len(scores) and not page.pictures:
        lines.append("No overlay pictures were written in this run.")
    lines += [str(note) for note in run.get("notes") or []]
    return "<section class=notices><ul>" + "".join(f"<li>{escape(x)}</li>" for x in lines) + "</ul></section>" if lines else ""


def _tiles(page: _Page) -> str:
    method, n = page.main
    out = []
    whole = page.summary[(page.summary["region"] == "whole") & (page.summary["protocol"] == page.protocol)]
    labels = sorted(set(whole["label"]))
    for label in labels:
        row = whole[(whole["label"] == label) & (whole["method"] == method) & (whole["n"] == n)]
        if not len(row):
            continue
        r = row.iloc[0]
        tiles = [
            ("mean DSC", f"{_n(100 * r['dsc_mean'])} %", _ci(r, "dsc", 100)),
            ("lowest DSC", f"{_n(100 * r['lowest_dsc'])} %", escape(str(r["lowest_case"]))),
            ("mean 95HD", f"{_n(r['hd95_mm_mean'])} mm", _ci(r, "hd95_mm")),
            ("mean aRVD", f"{_n(r['arvd_percent_mean'])} %", _ci(r, "arvd_percent")),
            ("missed", str(r["misses"]), f"of {r['cases']} case{'s' if r['cases'] != 1 else ''}"),
        ]
        inner = "".join(f"<div><dt>{a}</dt><dd><b>{b}</b><span>{c}</span></dd></div>" for a, b, c in tiles)
        out.append(f"<h3>{escape(label)}</h3><dl class=tiles>{inner}</dl>{_compared(page, label)}")
    return f"<section><h2>{escape(method)}, n = {n}, whole structure</h2>{''.join(out)}</section>"


def _compared(page: _Page, label: str) -> str:
    """The paired difference to the simplest method of the run at the same n."""
    (method, n), scores = page.main, page.scores[page.scores["protocol"] == page.protocol]
    others = sorted(set(scores.loc[scores["n"] == n, "method"]) - {method}, key=tables.method_rank)
    if not others:
        return ""
    d = tables.paired_difference(scores, (method, n), (others[0], n))
    d = d[(d["label"] == label) & (d["region"] == "whole")]
    if not len(d):
        return ""
    r = d.iloc[0]
    return (
        f"<p>On the same {r['cases']} cases that is <strong>{abs(100 * r['mean']):.1f} points of DSC "
        f"{'above' if r['mean'] >= 0 else 'below'}</strong> {escape(others[0])}-{n} "
        f"(mean paired difference {_n(100 * r['mean'])} {_ci(r, '', 100)}).</p>"
    )


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


def _results(page: _Page) -> str:
    """One tbody per protocol x label x region, so that it reads without the script too; tabs choose among them."""
    s = page.summary
    axes = {
        "protocol": [p for p in tables.PROTOCOLS if p in set(s["protocol"])],
        "label": sorted(set(s["label"])),
        "region": [r for r in tables.REGIONS if r in set(s["region"])],
    }
    rest = "".join(f"<th>{_sorter(name, i + 1)}</th>" if name else "<th>cases, mean</th>" for i, name in enumerate(_COLUMNS))
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
    tabs = "".join(_tabs(axis, values) for axis, values in axes.items() if len(values) > 1)
    head = _HEAD.format(method=_sorter("method-n", 0), rest=rest)
    return (
        f"<section><h2>Results</h2><div class=tabs>{tabs}</div><div class=scroll tabindex=0><table class=sortable>{head}"
        f"{''.join(bodies)}</table></div><p class=note>{_RESULTS_NOTE}</p></section>"
    )


def _result_row(page: _Page, scores: pd.DataFrame, r: pd.Series, low: int) -> str:
    values = scores.loc[(scores["method"] == r["method"]) & (scores["n"] == r["n"]), "dsc"].dropna()
    other = " ".join(f"{r[name]} {name[0]}" for name in ("false_positives", "absent") if r[name]) or _NONE
    cells = [
        _td(r["cases"], str(r["cases"])),
        _td(r["misses"], f"<b class=bad>{r['misses']}</b>" if r["misses"] else "0"),
        _td(r["false_positives"] + r["absent"], other),
        _td(r["dsc_mean"], f"<b>{_n(100 * r['dsc_mean'])}</b> {_ci(r, 'dsc', 100)}"),
        _td(r["dsc_sd"], _n(100 * r["dsc_sd"])),
        _td(r["dsc_median"], _n(100 * r["dsc_median"])),
        _td(r["lowest_dsc"], f"{_n(100 * r['lowest_dsc'])} <small>{escape(str(r['lowest_case']))}</small>"),
        f"<td>{_strip(values, r, low)}</td>",
        _td(r["hd95_mm_mean"], f"{_n(r['hd95_mm_mean'])} {_ci(r, 'hd95_mm')}"),
        *(_td(r[f"{m}_mm_mean"], _n(r[f"{m}_mm_mean"])) for m in ("hd", "abd")),
        _td(r["arvd_percent_mean"], f"{_n(r['arvd_percent_mean'])} {_ci(r, 'arvd_percent')}"),
        _td(r["rvd_percent_mean"], _n(r["rvd_percent_mean"])),
    ]
    rank = f"{tables.method_rank(r['method'])} {r['n']:06d}"
    mark = " class=main" if (r["method"], r["n"]) == page.main else ""
    return f'<tr{mark}><th scope=row data-v="{escape(rank)}">{escape(r["method"])}-{r["n"]}</th>{"".join(cells)}</tr>'


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


def _curve(page: _Page) -> str:
    svg = curve_svg(page.summary)
    if svg is None:
        return ""
    return (
        f"<section><h2>DSC over n</h2><figure class=curve>{svg}</figure><p class=note>Whole structure. A best n read off here is "
        "chosen on the very cases it is scored on; quote it as such.</p></section>"
    )


def _cases(page: _Page) -> str:
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
        cells = [_td(p.get("dsc", math.nan), _n(100 * p.get("dsc", math.nan))) for p in parts.values()]
        cells += [_td(r[c], _n(r[c])) for c in ("hd95_mm", "hd_mm", "abd_mm", "rvd_percent", "reference_ml", "volume_ml")]
        cells += [_td(r["fold"], "all" if r["fold"] < 0 else str(r["fold"]))]
        said = f"<b class=bad>{escape(', '.join(remarks))}</b>" if remarks else ""
        cells += [f'<td class=text data-v="{len(remarks)}">{said}</td>']
        label = f'<td class=text data-v="{escape(r["label"])}">{escape(r["label"])}</td>' if len(labels) > 1 else ""
        rows.append(f'<tr><th scope=row data-v="{escape(r["case"])}">{escape(r["case"])}</th>{label}{"".join(cells)}</tr>')
    matrix = _matrix(page)
    return (
        f"<section><h2>Cases, worst first</h2><p class=note>{escape(method)}, n = {n}, {page.protocol} folds; DSC in %.</p>"
        f"{_table([*first, *names], rows)}{matrix}</section>"
    )


def _matrix(page: _Page) -> str:
    n, s = page.main[1], page.scores
    s = s[(s["protocol"] == page.protocol) & (s["n"] == n) & (s["region"] == "whole")]
    methods = sorted(set(s["method"]), key=tables.method_rank)
    if len(methods) < 2:
        return ""
    several = s["label"].nunique() > 1
    rows = []
    for (case, label), group in s.groupby(["case", "label"]):
        known = dict(zip(group["method"], group["dsc"], strict=True))
        name = f"{case}, {label}" if several else str(case)
        cells = "".join(_td(known.get(m, math.nan), _n(100 * known.get(m, math.nan))) for m in methods)
        rows.append(f'<tr><th scope=row data-v="{escape(name)}">{escape(name)}</th>{cells}</tr>')
    return (
        f"<details><summary>All methods, case by case: whole DSC %, n = {n}</summary>{_table(['case', *methods], rows)}</details>"
    )


def _overlays(page: _Page) -> str:
    """The lowest, median and highest case of the main method, then, folded away, what else fits."""
    if not page.pictures:
        return ""
    name = "{}-{}".format(*page.main)
    s = page.scores[(page.scores["region"] == "whole") & (page.scores["protocol"] == page.protocol) & page.scores["dsc"].notna()]
    means = s.groupby(["case", s["method"] + "-" + s["n"].astype(str)])["dsc"].mean().to_dict()
    ranked = sorted((dsc, case) for (case, method), dsc in means.items() if method == name)
    chosen: dict[tuple[str, str], str] = {}
    for rank, index in (("lowest", 0), ("median", (len(ranked) - 1) // 2), ("highest", -1)):
        if ranked:
            chosen.setdefault((ranked[index][1], name), rank)
    left, first, other, outside = MAX_PICTURE_BYTES, "", "", 0
    folded = 0
    for key in [*(k for k in chosen if k in page.pictures), *(k for k in page.pictures if k not in chosen)]:
        size = page.pictures[key].stat().st_size
        if size > left:
            outside += 1
            continue
        left -= size
        text = " · ".join([part for part in key if part] + ([f"DSC {100 * means[key]:.1f} %"] if key in means else []))
        if key in chosen:
            first += _figure(page.pictures[key], f"{chosen[key]}: {text}")
        else:
            other += _figure(page.pictures[key], text)
            folded += 1
    lacking = [f"{rank} ({key[0]})" for key, rank in chosen.items() if key not in page.pictures]
    notes = [f"No picture of {name} was written for these cases: {', '.join(lacking)}."] if lacking else []
    notes += [f"{outside} more in the folder overlays: with them this page would be too large."] if outside else []
    rest = f"<details><summary>{folded} more</summary>{other}</details>" if folded else ""
    return (
        "<section><h2>Contours</h2><p class=note>Red: reference. Yellow: result. The patient's right is on the left of the "
        f"picture. Lowest, median and highest are by whole DSC of {escape(name)}.</p>{first}"
        f"{''.join(f'<p class=note>{escape(note)}</p>' for note in notes)}{rest}</section>"
    )


def _figure(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="contours, {escape(text)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def _facts(page: _Page) -> str:
    run = page.run
    data = _dict(run, "data")
    out = []
    if data.get("citation") or data.get("licence"):
        rows = [(k, data[k]) for k in ("citation", "licence") if data.get(k)]
        out.append(f"<h2>Data</h2>{_pairs(rows)}")
    timings = [(k, _duration(v)) for k, v in _dict(run, "timings_s").items()]
    if timings:
        out.append(f"<h2>Time taken</h2>{_pairs(timings)}")
    keys = ("command", "task", "protocol", "folds", "seed", "device", "threads", "commit", "split_hash")
    facts = [(k.replace("_", " "), run[k]) for k in keys if run.get(k) is not None]
    if facts:
        out.append(f"<h2>How it was run</h2>{_pairs(facts)}")
    for key, title in (("settings", "All settings"), ("versions", "Versions")):
        rows = list(_flat(_dict(run, key)))
        if rows:
            out.append(f"<details><summary>{title} ({len(rows)})</summary>{_pairs(rows)}</details>")
    return f"<section>{''.join(out)}</section>" if out else ""


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    kinds = {0: " class=key"} | {i: " class=text" for i, name in enumerate(names) if name in ("label", "remarks")}
    head = "".join(f"<th{kinds.get(i, '')}>{_sorter(name, i)}</th>" for i, name in enumerate(names))
    table = f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class=scroll tabindex=0>{table}</div>"


def _sorter(name: str, column: int) -> str:
    return f'<button type=button data-column="{column}">{escape(name)}</button>'


def _tabs(axis: str, values: Sequence[str]) -> str:
    buttons = "".join(
        f'<button type=button data-axis="{axis}" data-value="{i}">{escape(v)}</button>' for i, v in enumerate(values)
    )
    return f'<div role=group aria-label="{axis}">{buttons}</div>'


def _td(value: float, inner: str) -> str:
    return f'<td data-v="{"" if math.isnan(value) else repr(float(value))}">{inner}</td>'


def _n(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.1f}".replace("-", _MINUS)


def _ci(r: pd.Series, metric: str, scale: float = 1.0) -> str:
    low, high = (scale * r[f"{metric}_{end}" if metric else end] for end in ("ci_low", "ci_high"))
    return "" if math.isnan(low) else f"<small>[{_n(low)}, {_n(high)}]</small>"


def _pairs(rows: Iterable[tuple[str, Any]]) -> str:
    return "<dl class=pairs>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_text(v))}</dd>" for k, v in rows) + "</dl>"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return _text(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _dict(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_STYLE = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#5d6771;--line:#dfe2e5;--tint:#eef3f8;--accent:#1f5fa8;--warn:#9a4b00;
 --warnbg:#fff4e3;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f23;--ink:#e4e7ea;--soft:#9aa5b0;--line:#31373e;
 --tint:#202b37;--accent:#7db4f0;--warn:#f0b565;--warnbg:#2e2414;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 font-variant-numeric:tabular-nums}
main{max-width:1280px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1rem 0 .4rem;color:var(--soft);font-weight:600}
p{max-width:75ch;margin:.5rem 0;overflow-wrap:anywhere}
.kicker{color:var(--soft);font-size:.85rem;margin:0 0 .25rem}
.lead{font-size:1.08rem}
.note{color:var(--soft);font-size:.86rem}
.badge{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:.1rem .75rem;font-size:.86rem;
 font-weight:600;color:var(--accent)}
.badge.slice{color:var(--warn);background:var(--warnbg)}
.notices{background:var(--warnbg);border-left:4px solid var(--warn);border-radius:.3rem;padding:.55rem 1rem;margin:1.2rem 0}
.notices ul{margin:0;padding-left:1.1rem;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.75rem;margin:.4rem 0 1rem}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tiles dt{color:var(--soft);font-size:.84rem}
.tiles dd{margin:0;overflow-wrap:anywhere}
.tiles b{display:block;font-size:1.6rem;line-height:1.25;font-weight:650}
.tiles span,small{color:var(--soft);font-size:.82rem}
td small{font-size:.92em}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.83rem;white-space:nowrap}
th,td{padding:.34rem .42rem;text-align:right;border-top:1px solid var(--line)}
thead tr:first-child th{border-top:0}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
thead th[colspan]{text-align:center;border-left:1px solid var(--line)}
th[scope=row],.text,thead .key{text-align:left}
th[scope=row],thead .key{position:sticky;left:0;background:var(--card)}
th[scope=row]{font-weight:600;white-space:normal;overflow-wrap:anywhere;min-width:10.5em}
tr.group th{text-align:left;background:var(--tint);font-weight:650}
tr.main th,tr.main td{background:var(--tint)}
thead button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
thead button:hover{color:var(--accent)}
th[aria-sort=ascending] button:after{content:" ▲";font-size:.7em}
th[aria-sort=descending] button:after{content:" ▼";font-size:.7em}
.bad{color:var(--bad)}
.tabs{display:none;gap:.9rem;flex-wrap:wrap;margin:.2rem 0 .7rem}
.js .tabs{display:flex}
.tabs div{display:flex;flex-wrap:wrap;gap:.3rem}
.tabs button{font:inherit;font-size:.88rem;color:var(--ink);background:var(--card);border:1px solid var(--line);
 border-radius:.4rem;padding:.3rem .8rem;cursor:pointer}
.tabs button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--bg)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.strip{display:block}
.strip path{fill:none;stroke:var(--accent)}
.strip .dots{stroke-width:5;stroke-linecap:round;stroke-opacity:.35}
.strip .ci{stroke-width:3}
.strip .mean{stroke:var(--ink);stroke-width:2}
figure{margin:.8rem 0 1.4rem}
figure img{max-width:100%;height:auto;border-radius:.4rem;display:block;background:#000}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.3rem;overflow-wrap:anywhere}
.curve{max-width:760px}
.curve svg{width:100%;height:auto}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--accent);font-weight:600;padding:.25rem 0}
.pairs{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.2rem 1.2rem;margin:.4rem 0;font-size:.9rem}
.pairs dt{color:var(--soft);overflow-wrap:anywhere}
.pairs dd{margin:0;overflow-wrap:anywhere}
@media(max-width:600px){main{padding:1.2rem .9rem 3rem}h1{font-size:1.5rem}.tiles{grid-template-columns:1fr 1fr}
 .pairs{grid-template-columns:1fr;gap:0}.pairs dd{margin:0 0 .5rem}th[scope=row]{min-width:7.2em}}
@media print{.tabs{display:none!important}.scroll{overflow:visible;border:0}tbody[hidden]{display:table-row-group}}
"""

_SCRIPT = """
document.documentElement.classList.add("js");
const state = {protocol: "0", label: "0", region: "0"};
function show() {
  for (const b of document.querySelectorAll("[data-axis]"))
    b.setAttribute("aria-pressed", String(state[b.dataset.axis] === b.dataset.value));
  for (const t of document.querySelectorAll("tbody[data-region]"))
    t.hidden = Object.keys(state).some(axis => t.dataset[axis] !== state[axis]);
}
function sort(button) {
  const table = button.closest("table"), th = button.closest("th"), column = Number(button.dataset.column);
  const down = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.v;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter(row => !row.classList.contains("group"));
    const numeric = rows.every(row => value(row) === "" || !Number.isNaN(Number(value(row))));
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return down * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, {numeric: true}));
    });
    body.append(...rows);
  }
}
document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.axis) { state[button.dataset.axis] = button.dataset.value; show(); }
  else if (button.dataset.column) sort(button);
});
show();
"""
