"""Write ``report.html`` from a run's folder: one page that needs no network and also works on a phone.

The page is made from the templates, the style and the script beside this module. The templates escape everything that comes from
data (case names, notes, settings). A content security policy lets the page run a single script, ours, identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.centres import centre_grids
from oasis_monai.evaluation.figures import dsc_over_n, svg_element
from oasis_monai.evaluation.quality_tables import read_quality
from oasis_monai.evaluation.reliability_tables import RELIABILITY, read_reliability
from oasis_monai.evaluation.report.browse import browser_entries
from oasis_monai.evaluation.report.pictures import contours, picture_uris
from oasis_monai.evaluation.report.quality import quality
from oasis_monai.evaluation.report.reliability import reliability
from oasis_monai.evaluation.report.results import case_table, grid_table, method_table, results
from oasis_monai.evaluation.report.run import Page, StudyParts, find_pictures, read_run
from oasis_monai.evaluation.report.suspects import suspect_section
from oasis_monai.evaluation.report.text import anchor, duration, flat, interval, joined, mapping, number, plain
from oasis_monai.evaluation.report.training import training
from oasis_monai.evaluation.scores import method_name
from oasis_monai.evaluation.suspects import read_suspects
from oasis_monai.evaluation.training_curves import read_histories
from oasis_monai.training.tracking import HISTORIES
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import natural

EVALUATED = "a trained model on other cases"
_FACTS = ("command", "task", "protocol", "folds", "seed", "device", "threads", "commit", "split_hash")


def write_report(run_dir: str | Path, parts: StudyParts | None = None) -> Path:
    """Write ``report.html`` beside a run's ``scores.csv``; the same folder gives the same bytes.

    Args:
        run_dir: folder with ``scores.csv``; and, each may be absent, which the page then says: ``run.json`` (what was run:
            task, protocol, folds, seed, command, data {name, cases, citation, licence}, settings, versions, device, threads,
            commit, split_hash, timings_s, notes), ``suspects.csv`` with ``suspects/<case>.png``,
            ``overlays/<case>__<method>-<n>.png``, ``browser/`` (:mod:`oasis_monai.evaluation.case_view`) and
            ``training/<network>.csv``.
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
    predicted = tuple(read_quality(folder / "quality.csv"))
    pictures = find_pictures(folder / "overlays")
    suspects = suspect_section(read_suspects(folder / "suspects.csv"), folder / "suspects")
    reliable = read_reliability(folder / RELIABILITY)
    histories = read_histories(folder / HISTORIES)
    page = Page(
        scores, tables.summarise(scores), run or {}, run is not None, pictures, parts, predicted, suspects, reliable, histories
    )
    write_text(folder / "report.html", _html(page))
    return folder / "report.html"


def write_suspect_page(folder: str | Path, name: str) -> Path:
    """Write ``suspects.html`` beside ``suspects.csv`` and ``suspects/<case>.png``, where there are no scores to report.

    Args:
        folder: with these files.
        name: of the data set.

    Raises:
        DataError: ``suspects.csv`` is something else.
    """
    folder = Path(folder)
    suspects = suspect_section(read_suspects(folder / "suspects.csv"), folder / "suspects")
    write_text(folder / "suspects.html", _rendered("suspects_page.html.j2", name=name, suspects=suspects))
    return folder / "suspects.html"


def _html(page: Page) -> str:
    page_values = _head(page) | (_body(page) if len(page.scores) else {}) | {"facts": _facts(page)}
    return _rendered("report.html.j2", **page_values)


def _rendered(template: str, **values: Any) -> str:
    """A page of its own, with the style and the script in it."""
    loader = jinja2.PackageLoader(__package__)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    static = resources.files(__package__) / "static"
    style, script = ((static / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(style=style, script=script, script_sha256=digest, **values)


def _head(page: Page) -> dict[str, Any]:
    return {
        "name": str(mapping(page.run, "data").get("name") or "scores"),
        "protocol": page.protocol,
        "protocol_title": EVALUATED
        if page.run.get("task") == "evaluate"
        else tables.PROTOCOL_TITLES.get(page.protocol, page.protocol),
        "lead": _lead(page) if len(page.scores) else None,
        "notices": _notices(page),
        "summary": [],
        "links": [],
    }


def _body(page: Page) -> dict[str, Any]:
    parts = page.parts
    browser = browser_entries(page)
    curve = None if parts.drawings else dsc_over_n(page.scores)  # a study draws its own
    return {
        "main_name": method_name(*page.main),
        "main_n": page.main[1],
        "summary": _summary(page),
        "links": _links(parts, bool(browser["entries"])),
        "grids": [
            {"name": g.name, "title": g.title, "table": grid_table(g), "notes": g.notes}
            for g in (*parts.grids, *centre_grids(page.scores, page.protocol))
        ],
        "drawings": [{"anchor": anchor(t), "title": t, "svg": svg, "note": note} for t, svg, note in parts.drawings],
        "pictures": [
            {"anchor": anchor(t), "title": t, "layers": picture_uris(path), "note": note} for t, path, note in parts.pictures
        ],
        "browser": browser,
        "results": results(page),
        "curve": None if curve is None else svg_element(curve),
        "cases": case_table(page),
        "all_methods": method_table(page),
        "quality": quality(page),
        "reliability": reliability(page),
        "training": training(page),
        "contours": contours(page),
        "suspects": page.suspects,
    }


def _lead(page: Page) -> dict[str, str | bool]:
    """Who was segmented, by what, with how many atlases and folds."""
    count, several = page.scores["case"].nunique(), sorted(set(page.scores["n"]) - {0})
    patients = page.scores["patient"].nunique()
    methods = sorted(set(page.scores["method"]), key=tables.method_rank)
    name = mapping(page.run, "data").get("name")
    ns = ", ".join(map(str, several))
    return {
        "cases": f"{count} case{'s' if count > 1 else ''}"
        + (f" of {patients} patient{'s' if patients > 1 else ''}" if patients < count else "")
        + (f" of {name}" if name else ""),
        "methods": joined(methods) if len(methods) <= 9 else f"{len(methods)} methods and variants",
        "atlases": f"from n = {ns} atlas{'es' if several != [1] else ''}" if several else "without atlases",
        "trained": page.run.get("task") == "evaluate",
        "folds": f"{page.run['folds']} folds" if page.run.get("folds") else "folds",
        "dealt": _dealt(page, patients, count),
    }


def _dealt(page: Page, patients: int, scans: int) -> str:
    """How the cases were dealt to the folds."""
    whole = "no scan of a test patient is among the atlases or the training scans"
    if patients < scans:
        whole += f" ({patients} patients, {scans} scans)"
    if page.protocol == "centre":
        centres = [str(centre) for centre in page.scores["centre"].dropna().unique()]
        left = centres[0] if len(centres) == 1 else f"{len(centres)} centres"
        return f"leaving one centre out ({left}): the model that segments a scan has seen none of its centre, and {whole}."
    return f"split {'as the data set says' if page.protocol == 'file' else 'by patient'}: {whole}."


def _notices(page: Page) -> list[str]:
    """What is missing in the folder or limits what the scores say."""
    run, scores, lines = page.run, page.scores, []
    if not page.has_run:
        lines.append("There is no run.json in this folder: the run's settings, versions and times are not known.")
    expected = mapping(run, "data").get("tested", mapping(run, "data").get("cases"))
    expected = len(expected) if isinstance(expected, list | tuple | dict) else expected
    for protocol in sorted(set(scores["protocol"])) or [page.protocol]:
        mine = scores[scores["protocol"] == protocol]
        have = mine["case"].nunique()
        if protocol == "slice" and (not have or (isinstance(expected, int) and have < expected)):
            lines.append(
                f"The slice protocol is not complete: {have} of {expected or 'all'} cases are scored. A case is scored once all "
                "folds that hold its slices have run."
            )
        elif not have:
            lines.append("No case is scored yet.")
        elif isinstance(expected, int) and have < expected:
            done = ", ".join(str(f) for f in sorted(set(mine["fold"])))
            lines.append(f"Only {have} of {expected} cases are scored (fold {done}). All means are over these cases.")
        if have == 1:
            lines.append("There is only one case, so there is no standard deviation and no confidence interval.")
    if len(set(scores["protocol"])) > 1:
        lines.append("This run used both protocols. The head of the page is about the patient folds; each table names its folds.")
    if len(scores) and not page.pictures and not any(folder.is_dir() for folder in page.parts.browser):
        lines.append("This run wrote no contour pictures.")
    return lines + [str(note) for note in run.get("notes") or []]


def _summary(page: Page) -> list[dict[str, Any]]:
    """The main method in a few numbers, per label."""
    method, n = page.main
    whole = page.summary[(page.summary["region"] == "whole") & (page.summary["protocol"] == page.protocol)]
    parts = []
    for label in sorted(set(whole["label"]), key=natural):
        row = whole[(whole["label"] == label) & (whole["method"] == method) & (whole["n"] == n)]
        if not len(row):
            continue
        r = row.iloc[0]
        tiles = [
            ("mean DSC", f"{number(100 * r['dsc_mean'])} %", interval(r, "dsc", 100)),
            ("lowest DSC", f"{number(100 * r['lowest_dsc'])} %", str(r["lowest_case"])),
            ("mean 95HD", f"{number(r['hd95_mm_mean'])} mm", interval(r, "hd95_mm")),
            ("mean aRVD", f"{number(r['arvd_percent_mean'])} %", interval(r, "arvd_percent")),
            ("missed", str(r["misses"]), f"of {r['cases']} case{'s' if r['cases'] != 1 else ''}"),
        ]
        shown = [dict(zip(("name", "value", "below"), tile, strict=True)) for tile in tiles]
        parts.append({"label": label, "tiles": shown, "compared": _compared(page, label)})
    return parts


def _compared(page: Page, label: str) -> dict[str, Any] | None:
    """The paired difference to the simplest method of the run at the same n."""
    (method, n), scores = page.main, page.scores[page.scores["protocol"] == page.protocol]
    others = sorted(set(scores.loc[scores["n"] == n, "method"]) - {method}, key=tables.method_rank)
    if not others:
        return None
    d = tables.paired_difference(scores, (method, n), (others[0], n))
    d = d[(d["label"] == label) & (d["region"] == "whole")]
    if not len(d):
        return None
    r = d.iloc[0]
    return {
        "cases": r["cases"],
        "points": f"{abs(100 * r['mean']):.1f}",
        "side": "above" if r["mean"] >= 0 else "below",
        "other": method_name(others[0], n),
        "difference": number(100 * r["mean"]),
        "interval": interval(r, scale=100),
    }


def _links(parts: StudyParts, browser: bool) -> list[tuple[str, str]]:
    """(anchor, title) of the parts of a study's page."""
    links = [(grid.name, grid.title) for grid in parts.grids]
    links += [(anchor(title), title) for title, _, _ in (*parts.drawings, *parts.pictures)]
    return [*links, ("browser", "Case browser")] if links and browser else links


def _facts(page: Page) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """(title, rows) of lists of facts: open ones and folded ones. An empty list is left out."""
    run, data = page.run, mapping(page.run, "data")
    opened = {
        "Data": [(k, plain(data[k])) for k in ("citation", "licence") if data.get(k)],
        "Time taken": [(k, duration(v)) for k, v in mapping(run, "timings_s").items()],
        "How it was run": [(k.replace("_", " "), plain(run[k])) for k in _FACTS if run.get(k) is not None],
    }
    base = dict(flat(mapping(run, "settings")))
    folded = {"All settings": base, "Versions": dict(flat(mapping(run, "versions")))}
    for name, arm in mapping(run, "arms").items():
        own = flat(mapping(arm, "settings")) if isinstance(arm, dict) else ()
        folded[f"What differs in {name}"] = {k: v for k, v in own if k not in base or base[k] != v}
    return {
        "open": [(title, rows) for title, rows in opened.items() if rows],
        "folded": [(title, [(k, plain(v)) for k, v in rows.items()]) for title, rows in folded.items() if rows],
    }
