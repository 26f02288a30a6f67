"""The page's case browser: slices, contours, scores and atlases of every case and method, drawn by the page's own script.

A case is one inert ``application/json`` element: the slices as one grey WebP picture, each mask as run lengths. It is decoded
when it is opened, so a page of many cases opens at once.
"""

from __future__ import annotations

import base64
import io
import json
import math
from html import escape
from typing import Any

import numpy as np

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.case_view import CaseView, load_browser
from oasis_monai.evaluation.report.run import Page

MAX_BROWSER_BYTES = 48 * 2**20
"""Of all cases together; beyond it the best cases are left out."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def browser_views(page: Page) -> tuple[list[tuple[str, str, str]], int]:
    """(name, what the list tells, JSON) of every case, worst first by the main method; and how many found no room."""
    order: list[tuple[float, str, CaseView]] = []
    protocols = [p for p in tables.PROTOCOLS if p in set(page.scores["protocol"])]
    for protocol in protocols:
        for view in load_browser(page.parts.browser, protocol).values():
            rows = page.scores[(page.scores["protocol"] == protocol) & (page.scores["case"] == view.case)]
            method, n = page.main
            mine = rows[(rows["method"] == method) & (rows["n"] == n) & (rows["region"] == "whole")]["dsc"].dropna()
            order.append((float(mine.mean()) if len(mine) else math.inf, protocol, view))
    order.sort(key=lambda item: (protocols.index(item[1]), item[0], item[2].case))
    entries, used, left_out = [], 0, 0
    for dsc, protocol, view in order:
        text = _json(_entry(page, view))
        if used + len(text) > MAX_BROWSER_BYTES:
            left_out += 1
            continue
        used += len(text)
        name = view.case if len(protocols) == 1 else f"{view.case}, {protocol} folds"
        entries.append((name, "" if math.isinf(dsc) else f"{100 * dsc:.1f}", text))
    return entries, left_out


def browser_section(entries: list[tuple[str, str, str]], left_out: int) -> str:
    """The section, empty without cases."""
    if not entries:
        return ""
    data = "".join(
        f'<script type="application/json" data-entry data-name="{escape(name)}" data-told="{escape(told)}">{text}</script>'
        for name, told, text in entries
    )
    buttons = "".join(
        f'<button type=button data-level="{share}">{name}</button>'
        for name, share in (("apex", 0.1), ("mid", 0.5), ("base", 0.9))
    )
    toggles = "".join(
        f'<button type=button data-toggle="{key}">{name}</button>' for key, name in (("truth", "reference"), ("result", "result"))
    )
    note = f"<p class=note>{left_out} more, the best ones, would make this page too large.</p>" if left_out else ""
    return (
        "<section><h2 id=browser>Case browser</h2><p class=note>Red: reference. Yellow: result. The patient's right is on the "
        "left of the picture. Wheel or arrow keys: slices; m: next method; t, r: reference and result on or off. Bars: DSC of "
        "each slice, from the lowest slice to the highest.</p><div class=browser tabindex=0>"
        '<div class=list><input type=search class=search placeholder="case" aria-label="find a case">'
        "<div class=cases></div></div>"
        "<div><div class=scroll><canvas class=slice width=640 height=480 aria-label=slice></canvas></div>"
        "<canvas class=strip2 width=640 height=54 aria-label='DSC of each slice'></canvas>"
        "<div class=bar><input type=range class=slider min=0 value=0 aria-label=slice><span class=where></span></div>"
        f"<div class=bar>{buttons}{toggles}<button type=button data-zoom=1>zoom</button></div>"
        "<div class='bar methods'></div></div>"
        "<div><table><tbody class=scores></tbody></table><h3>Atlases</h3><table><thead><tr><th>atlas</th><th>distance</th>"
        "<th>weight</th></tr></thead><tbody class=atlases></tbody></table>"
        f"<p class='note noatlas'>This method uses no atlases.</p></div></div>{note}{data}</section>"
    )


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no ``<`` of the data is left."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _entry(page: Page, view: CaseView) -> dict[str, Any]:
    names = sorted(view.results, key=lambda name: (tables.method_rank(tables.plain_method(name)), name))
    depth, height, width = displayed(view.reference).shape
    return {
        "case": view.case,
        "protocol": view.protocol,
        "labels": list(view.labels),
        "size": [depth, height, width],
        "spacing_mm": list(view.spacing_mm),
        "image": _picture(view.image),
        "reference": run_lengths(view.reference),
        "results": {name: run_lengths(view.results[name]) for name in names},
        "outside": dict(sorted(view.outside.items())),
        "atlases": dict(sorted(view.atlases.items())),
        "weights": dict(sorted(view.weights.items())),
        "main": tables.method_name(*page.main),
        "scores": _scores(page, view),
    }


def displayed(array: np.ndarray) -> np.ndarray:
    """(x, y, z) in RAS order -> (slice, row, column): rows from anterior, columns from the patient's right."""
    return array[::-1, ::-1].transpose(2, 1, 0)


def run_lengths(labels: np.ndarray) -> str:
    """(x, y, z) class indices -> ``value:length`` in base 36, comma between runs, in the order of :func:`displayed`; what
    follows the last structure is left out."""
    flat = displayed(labels).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1) != 0) if len(flat) else np.array([], int)
    lengths = np.diff(np.append(starts, len(flat)))
    runs = list(zip(flat[starts].tolist(), lengths.tolist(), strict=True))
    while runs and runs[-1][0] == 0:
        runs.pop()
    return ",".join(f"{_base36(value)}:{_base36(length)}" for value, length in runs)


def _base36(number: int) -> str:
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text


def _picture(image: np.ndarray) -> str:
    """All slices, one below the other, as a data URI."""
    from PIL import Image

    slices = displayed(image)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(slices.reshape(-1, slices.shape[2]))).save(stream, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _scores(page: Page, view: CaseView) -> dict[str, list[list[str]]]:
    """Method name -> lines (what, value) for people."""
    rows = page.scores[(page.scores["protocol"] == view.protocol) & (page.scores["case"] == view.case)]
    out: dict[str, list[list[str]]] = {}
    several = rows["label"].nunique() > 1
    for row in rows.to_dict("records"):
        name = tables.method_name(row["method"], row["n"])
        if name not in view.results:
            continue
        what = f"{row['label']}, {row['region']}" if several else row["region"]
        lines = out.setdefault(name, [])
        lines.append([f"DSC % {what}", _value(100 * row["dsc"]) + (f" ({row['status']})" if row["status"] != "ok" else "")])
        if row["region"] == "whole":
            lines.append([f"95HD mm {what}", _value(row["hd95_mm"])])
            lines.append([f"RVD % {what}", _value(row["rvd_percent"])])
    return out


def _value(value: float) -> str:
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.1f}"
