"""A run's folder -> one self-contained page, ``report.html``: opens by double click, asks no network, runs on a phone.

Everything that comes from data (case names, notes, settings) passes through :func:`html.escape`, and a content security
policy lets the page run one script, ours, known by its hash: markup in a case name is inert twice over.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

import pandas as pd

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.figures import dsc_over_n, predicted_dsc, svg_element
from oasis_monai.evaluation.quality_tables import quality_text, read_quality
from oasis_monai.evaluation.report.assets import SCRIPT, STYLE
from oasis_monai.evaluation.report.browse import browser_section, browser_views
from oasis_monai.evaluation.report.markup import anchor, ci, duration, flat, listed, mapping, number, pairs, picture
from oasis_monai.evaluation.report.results import cases, grid_section, results
from oasis_monai.evaluation.report.run import Page, StudyParts, find_pictures, read_run
from oasis_monai.evaluation.scores import method_name
from oasis_monai.utils.files import write_text

MAX_PICTURE_BYTES = 16 * 2**20  # pictures taken into the page, all together; the rest stay in overlays/


def write_report(run_dir: str | Path, parts: StudyParts | None = None) -> Path:
    """Write ``report.html`` beside a run's ``scores.csv``; the same folder gives the same bytes.

    Args:
        run_dir: folder with ``scores.csv``; and, each may be absent, which the page then says: ``run.json`` (what was run:
            task, protocol, folds, seed, command, data {name, cases, citation, licence}, settings, versions, device, threads,
            commit, split_hash, timings_s, notes) and ``overlays/<case>__<method>-<n>.png`` and
            ``browser/`` (:mod:`oasis_monai.evaluation.case_view`).
        parts: of a study; a run of its own shows the browser files in its folder.

    Returns:
        The page's path.

    Raises:
        DataError: there are no readable scores, or ``run.json`` is not a JSON object.
    """
    folder = Path(run_dir)
    scores = tables.read_scores(folder / "scores.csv")
    run = read_run(folder / "run.json")
    parts = parts or StudyParts(browser={folder / "browser": ""})
    quality = tuple(read_quality(folder / "quality.csv"))
    pictures = find_pictures(folder / "overlays")
    page = Page(scores, tables.summarise(scores), run or {}, run is not None, pictures, parts, quality)
    write_text(folder / "report.html", _html(page))
    return folder / "report.html"


def _html(page: Page) -> str:
    name = str(mapping(page.run, "data").get("name") or "scores")
    parts = [f"<header><p class=kicker>oasis-monai report</p><h1>{escape(name)}</h1>{_lead(page)}</header>"]
    parts += [_notices(page)]
    if len(page.scores):
        views, left_out = browser_views(page)
        study = [
            *map(grid_section, page.parts.grids),
            *map(_drawing, page.parts.drawings),
            *map(_study_picture, page.parts.pictures),
        ]
        own = [] if page.parts.drawings else [_curve(page)]
        parts += [_tiles(page), _contents(page, bool(views)), *study, browser_section(views, left_out)]
        parts += [results(page), *own, cases(page), _quality(page), _overlays(page)]
    parts += [_facts(page)]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: oasis-monai report</title><style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    end = f"</main><script>{SCRIPT}</script></body></html>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n{end}\n'


def _lead(page: Page) -> str:
    """One sentence: who was segmented, by what, under which protocol."""
    run, protocol = page.run, page.protocol
    badge = f'<p class="badge {protocol}">{escape(tables.PROTOCOL_TITLES.get(protocol, protocol))}</p>'
    if not len(page.scores):
        return badge
    count, several = page.scores["case"].nunique(), sorted(set(page.scores["n"]) - {0})
    methods = sorted(set(page.scores["method"]), key=tables.method_rank)
    name = mapping(run, "data").get("name")
    who = f"{count} case{'s' if count > 1 else ''}" + (f" of {escape(str(name))}" if name else "")
    folds = f"{escape(str(run['folds']))} folds" if run.get("folds") else "folds"
    drawn = {
        "patient": "drawn over patients: a patient's own scan is never among the atlases, nor in the training behind them.",
        "slice": "drawn over slices, as the paper's figures suggest it did: slices of one patient stand on both sides, so "
        "<strong>these scores do not say how well a new patient is segmented</strong>.",
    }[protocol]
    counts = f"from n = {', '.join(map(str, several))} atlas{'es' if several != [1] else ''}" if several else "without atlases"
    return f"{badge}<p class=lead>{who}, segmented by {_methods(methods)} {counts}, with {folds} {drawn}</p>"


def _methods(names: list[str]) -> str:
    return escape(listed(names)) if len(names) <= 9 else f"{len(names)} methods and variants"


def _notices(page: Page) -> str:
    run, scores, lines = page.run, page.scores, []
    if not page.has_run:
        lines.append("There is no run.json in this folder: the settings, versions and timings of the run are not known.")
    expected = mapping(run, "data").get("cases")
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
    if len(scores) and not page.pictures and not any(folder.is_dir() for folder in page.parts.browser):
        lines.append("No overlay pictures were written in this run.")
    lines += [str(note) for note in run.get("notes") or []]
    return "<section class=notices><ul>" + "".join(f"<li>{escape(x)}</li>" for x in lines) + "</ul></section>" if lines else ""


def _tiles(page: Page) -> str:
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
            ("mean DSC", f"{number(100 * r['dsc_mean'])} %", ci(r, "dsc", 100)),
            ("lowest DSC", f"{number(100 * r['lowest_dsc'])} %", escape(str(r["lowest_case"]))),
            ("mean 95HD", f"{number(r['hd95_mm_mean'])} mm", ci(r, "hd95_mm")),
            ("mean aRVD", f"{number(r['arvd_percent_mean'])} %", ci(r, "arvd_percent")),
            ("missed", str(r["misses"]), f"of {r['cases']} case{'s' if r['cases'] != 1 else ''}"),
        ]
        inner = "".join(f"<div><dt>{a}</dt><dd><b>{b}</b><span>{c}</span></dd></div>" for a, b, c in tiles)
        out.append(f"<h3>{escape(label)}</h3><dl class=tiles>{inner}</dl>{_compared(page, label)}")
    return f"<section><h2>{escape(method_name(method, n))}, whole structure</h2>{''.join(out)}</section>"


def _compared(page: Page, label: str) -> str:
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
        f"{'above' if r['mean'] >= 0 else 'below'}</strong> {escape(method_name(others[0], n))} "
        f"(mean paired difference {number(100 * r['mean'])} {ci(r, '', 100)}).</p>"
    )


def _contents(page: Page, browser: bool) -> str:
    """Links to the parts of a study's page."""
    parts = page.parts
    links = [*(("table", grid.name, grid.title) for grid in parts.grids)]
    links += [("figure", anchor(title), title) for title, _, _ in (*parts.drawings, *parts.pictures)]
    if not links:
        return ""
    links += [("", "browser", "Case browser")] if browser else []
    items = "".join(f'<li><a href="#{escape(name)}">{escape(title)}</a></li>' for _, name, title in links)
    return f"<nav><h2>On this page</h2><ul>{items}</ul></nav>"


def _drawing(part: tuple[str, str, str]) -> str:
    title, svg, note = part
    return (
        f'<section id="{anchor(title)}"><h2>{escape(title)}</h2><figure class="curve wide">{svg}</figure>'
        f"<p class=note>{escape(note)}</p></section>"
    )


def _study_picture(part: tuple[str, Path, str]) -> str:
    title, path, note = part
    return (
        f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{picture(path, title)}<p class=note>{escape(note)}</p></section>'
    )


def _curve(page: Page) -> str:
    figure = dsc_over_n(page.scores)
    if figure is None:
        return ""
    svg = svg_element(figure)
    return (
        f"<section><h2>DSC over n</h2><figure class=curve>{svg}</figure><p class=note>Whole structure. A best n read off here is "
        "chosen on the very cases it is scored on; quote it as such.</p></section>"
    )


def _quality(page: Page) -> str:
    """Predicted against true DSC of the main method."""
    mine = [g for g in page.quality if (g.protocol, g.method, g.n) == (page.protocol, *page.main)]
    figure = predicted_dsc(mine)
    if figure is None:
        return ""
    text = "".join(f"<p>{escape(line)}.</p>" for line in quality_text(mine).splitlines())
    return (
        f"<section><h2>Quality without ground truth</h2>{text}<figure class=curve>{svg_element(figure)}</figure><p class=note>"
        "The DSC of each case predicted from how well the parts of its result agree (networks with each other, atlases with "
        "networks), fitted on the cases of the other folds only. Circles are the scans, diamonds copies of them that were "
        "corrupted on purpose (noise, ghosts, slices lost, wrong way round …), predicted from other folds and other "
        "corruptions. Filled: flagged as a likely failure. On the line both are equal."
        "</p></section>"
    )


def _overlays(page: Page) -> str:
    """The lowest, median and highest case of the main method, then, folded away, what else fits."""
    if not page.pictures:
        return ""
    name = method_name(*page.main)
    s = page.scores[(page.scores["region"] == "whole") & (page.scores["protocol"] == page.protocol) & page.scores["dsc"].notna()]
    names = pd.Series([method_name(m, n) for m, n in zip(s["method"], s["n"], strict=True)], index=s.index, dtype=str)
    means = s.groupby(["case", names])["dsc"].mean().to_dict()
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
            first += picture(page.pictures[key], f"{chosen[key]}: {text}")
        else:
            other += picture(page.pictures[key], text)
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


def _facts(page: Page) -> str:
    run = page.run
    data = mapping(run, "data")
    out = []
    if data.get("citation") or data.get("licence"):
        rows = [(k, data[k]) for k in ("citation", "licence") if data.get(k)]
        out.append(f"<h2>Data</h2>{pairs(rows)}")
    timings = [(k, duration(v)) for k, v in mapping(run, "timings_s").items()]
    if timings:
        out.append(f"<h2>Time taken</h2>{pairs(timings)}")
    keys = ("command", "task", "protocol", "folds", "seed", "device", "threads", "commit", "split_hash")
    facts = [(k.replace("_", " "), run[k]) for k in keys if run.get(k) is not None]
    if facts:
        out.append(f"<h2>How it was run</h2>{pairs(facts)}")
    for key, title in (("settings", "All settings"), ("versions", "Versions")):
        rows = list(flat(mapping(run, key)))
        if rows:
            out.append(f"<details><summary>{title} ({len(rows)})</summary>{pairs(rows)}</details>")
    base = dict(flat(mapping(run, "settings")))
    for name, arm in mapping(run, "arms").items():
        own = [(k, v) for k, v in flat(mapping(arm, "settings")) if base.get(k, arm) != v] if isinstance(arm, dict) else []
        if own:
            out.append(f"<details><summary>What differs in {escape(name)} ({len(own)})</summary>{pairs(own)}</details>")
    return f"<section>{''.join(out)}</section>" if out else ""
