"""The report's case browser: slices, contours, scores and atlases of every case and method, drawn by a script.

A case is one inert ``application/json`` element: the slices as one grey WebP picture, each mask as run lengths. The script
decodes it when it is opened, so a page of many cases opens at once.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps

from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.case_view import CaseView, load_browser
from oasis_monai.evaluation.report.run import Page

MAX_BROWSER_BYTES = 48 * 2**20
"""Size of all cases on the page together; beyond it the best cases are left out."""
_GREY_QUALITY = 75
_WEBP_SIDE = 16383  # pixels, the format's limit


def browser_entries(page: Page) -> dict[str, Any]:
    """``entries``: name, DSC and JSON of every case, worst first by the main method; ``left_out``: how many found no room."""
    order: list[tuple[float, str, CaseView]] = []
    protocols = [p for p in PROTOCOLS if p in set(page.scores["protocol"])]
    for protocol in protocols:
        for view in load_browser(page.parts.browser, protocol).values():
            rows = page.scores[(page.scores["protocol"] == protocol) & (page.scores["case"] == view.case)]
            method, n = page.main
            mine = rows[(rows["method"] == method) & (rows["n"] == n) & (rows["region"] == "whole")]["dsc"].dropna()
            order.append((float(mine.mean()) if len(mine) else math.inf, protocol, view))
    order.sort(key=lambda item: (protocols.index(item[1]), item[0], item[2].case))
    entries, used, left_out = [], 0, 0
    for dsc, protocol, view in order:
        # JSON that can stand in a script element: no "<" of the data is left
        text = htmlsafe_json_dumps(_entry(page, view), separators=(",", ":"), allow_nan=False)
        if used + len(text) > MAX_BROWSER_BYTES:
            left_out += 1
            continue
        used += len(text)
        name = view.case if len(protocols) == 1 else f"{view.case}, {protocol} folds"
        entries.append({"name": name, "dsc": "" if math.isinf(dsc) else f"{100 * dsc:.1f}", "json": text})
    return {"entries": entries, "left_out": left_out}


def _entry(page: Page, view: CaseView) -> dict[str, Any]:
    names = sorted(view.results, key=lambda name: (tables.method_rank(tables.plain_method(name)), name))
    depth, height, width = displayed(view.reference).shape
    image, columns = _picture(view.image)
    return {
        "case": view.case,
        "protocol": view.protocol,
        "labels": list(view.labels),
        **({"members": [list(own) for own in view.members]} if view.members else {}),
        "size": [depth, height, width],
        "spacing_mm": list(view.spacing_mm),
        "image": image,
        "columns": columns,
        "reference": run_lengths(view.reference),
        "results": {name: run_lengths(view.results[name]) for name in names},
        "uncertain": {name: _picture(view.uncertain[name])[0] for name in names if name in view.uncertain},
        "outside": dict(sorted(view.outside.items())),
        "atlases": dict(sorted(view.atlases.items())),
        "weights": dict(sorted(view.weights.items())),
        "views": dict(sorted(view.views.items())),
        "main": tables.method_name(*page.main),
        "scores": _scores(page, view),
    }


def displayed(array: np.ndarray) -> np.ndarray:
    """(x, y, z) in RAS order -> (slice, row, column): rows from anterior, columns from the patient's right."""
    return array[::-1, ::-1].transpose(2, 1, 0)


def run_lengths(labels: np.ndarray) -> str:
    """(x, y, z) class indices as run lengths in base 36 with commas between, in the order of :func:`displayed`.

    Background and the last structure take turns, beginning with background; a run of another value is ``value:length``. What
    follows the last structure is left out.
    """
    flat = displayed(labels).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1) != 0) if len(flat) else np.array([], int)
    lengths = np.diff(np.append(starts, len(flat)))
    runs = list(zip(flat[starts].tolist(), lengths.tolist(), strict=True))
    while runs and runs[-1][0] == 0:
        runs.pop()
    texts, expected, structure = [], 0, 1
    for value, length in runs:
        texts.append(_base36(length) if value == expected else f"{_base36(value)}:{_base36(length)}")
        structure = value or structure
        expected = 0 if value else structure
    return ",".join(texts)


def _base36(number: int) -> str:
    return np.base_repr(number, 36).lower()


def _picture(image: np.ndarray) -> tuple[str, int]:
    """All slices as one picture, row by row as one reads, as a data URI; and how many stand in a row."""
    from PIL import Image

    slices = displayed(image)
    depth, height, width = slices.shape
    columns = -(-depth // max(1, _WEBP_SIDE // height))  # as few as the format's longest side allows
    rows = -(-depth // columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[:depth] = slices
    sheet = sheet.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(stream, "WEBP", quality=_GREY_QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode(), columns


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
            lines.append([f"NSD % {what}", _value(100 * row["nsd"])])
            lines.append([f"RVD % {what}", _value(row["rvd_percent"])])
    return out


def _value(value: float) -> str:
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.1f}"
