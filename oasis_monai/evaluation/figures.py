"""The figures of a study: Dice over n (the paper's Fig. 3), the audit of the folds, the learning curve.

Drawn on matplotlib's Figure objects with the Agg and SVG backends; pyplot and its global state are never touched. A figure is
returned as SVG text in the page's text colour (``currentColor``), or written as a file with dark ink on white. Contours are in
:mod:`.case_grid`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.evaluation.comparison import AUDITED, PRINTED
from oasis_monai.evaluation.quality import risk_coverage
from oasis_monai.evaluation.quality_tables import BOUNDS, QualityGroup, plain_agreement
from oasis_monai.evaluation.reliability_tables import AFTER, BEFORE
from oasis_monai.evaluation.scores import method_rank
from oasis_monai.evaluation.statistics import interval
from oasis_monai.utils.files import atomic_path
from oasis_monai.utils.words import natural

# Okabe and Ito's palette, legible on white and on near-black to colour-blind eyes too; a line's dash and marker differ as well
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a8f98", "#b8a100")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
INK = "#010203"  # placeholder that becomes ``currentColor`` in the finished SVG


def write_figure(path: str | Path, figure: Any) -> None:
    """Write a figure as SVG or PNG by the path's ending, whole or not at all; the same figure, the same bytes."""
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    with atomic_path(path) as temporary:
        if kind == "svg":
            temporary.write_text(_svg(figure), encoding="utf-8")
        else:
            figure.savefig(temporary, format=kind, dpi=160, facecolor="white", metadata={"Software": None})


def svg_element(figure: Any) -> str:
    """The figure as an ``<svg>`` element for a page: transparent, its ink ``currentColor``."""
    text = _svg(figure)
    return text[text.index("<svg") :].replace(INK, "currentColor")


def dsc_over_n(scores: pd.DataFrame, methods: Iterable[str] | None = None) -> Any | None:
    """Fig. 3: mean whole DSC with its 95 % interval over n, a panel per protocol and label; networks without atlases (n = 0)
    are level lines.

    Args:
        scores: as :func:`oasis_monai.evaluation.scores.read_scores` gives.
        methods: which lines; all when None.

    Returns:
        A figure, or None when no method has more than one n.
    """
    whole = scores[(scores["region"] == "whole") & scores["dsc"].notna()]
    if methods is not None:
        whole = whole[whole["method"].isin(list(methods))]
    keys = [(p, label) for p in PROTOCOLS for label in sorted(set(whole["label"]), key=natural)]
    panels = {key: whole[(whole["protocol"] == key[0]) & (whole["label"] == key[1])] for key in keys}
    panels = {key: rows for key, rows in panels.items() if rows[rows["n"] > 0].groupby("method")["n"].nunique().max() > 1}
    if not panels:
        return None
    styles = _styles(set(whole["method"]))
    figure = new_figure(1.6 + 4.0 * len(panels), 4.1)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for ax, ((protocol, label), rows) in zip(axes, panels.items(), strict=True):
        every = sorted(set(rows["n"]) - {0})
        for method in sorted(set(rows["method"]), key=method_rank):
            mine = rows[rows["method"] == method]
            n, mean, low, high = _line(mine)
            if list(n) == [0]:
                n, mean, low, high = np.array([every[0], every[-1]], float), *(np.repeat(v, 2) for v in (mean, low, high))
            handles[method] = _draw(ax, n, mean, low, high, styles[method], level=set(mine["n"]) == {0})
        dress(ax, f"{label}, {protocol} folds", "n, atlases fused")
        ax.set_xticks(every, [str(n) for n in every])
    figure.axes[0].set_ylabel("mean DSC %, 95 % interval", color=INK)
    add_legend(figure, handles)
    return figure


def fold_audit(scores: pd.DataFrame, at_best: pd.DataFrame, printed: bool = False) -> Any | None:
    """What the folds do: left, DSC over n under both protocols (solid: slice folds, dashed: patient folds) with the paper's
    printed values; right, every method's fall from one to the other, in points.

    Args:
        scores: of methods under both protocols.
        at_best: one row per method: ``method``, ``slice_mean``, ``patient_mean``, ``leak`` in percent and points, at n chosen.
        printed: the paper's printed whole DSC as hollow marks.

    Returns:
        A figure, or None when no method has both protocols.
    """
    whole = scores[(scores["region"] == "whole") & scores["dsc"].notna()]
    both = [m for m in at_best["method"] if set(AUDITED) <= set(whole[whole["method"] == m]["protocol"])]
    if not both:
        return None
    styles = _styles(both)
    figure = new_figure(10.2, 4.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1], sharey=True)
    handles: dict[str, Any] = {}
    for method in sorted(both, key=method_rank):
        colour = styles[method]["color"]
        for protocol, dash in zip(("slice", "patient"), ("solid", (0, (4, 2))), strict=True):
            rows = whole[(whole["method"] == method) & (whole["protocol"] == protocol)]
            n, mean, low, high = _line(rows)
            level = list(n) == [0]
            if level:
                every = sorted(set(whole[whole["method"].isin(both)]["n"]) - {0}) or [1, 2]
                n, mean, low, high = np.array([every[0], every[-1]], float), *(np.repeat(v, 2) for v in (mean, low, high))
            drawn = _draw(left, n, mean, low, high, styles[method] | {"linestyle": dash}, level)
            if protocol == "slice":
                handles[method] = drawn
        row = at_best[at_best["method"] == method].iloc[0]
        ends = [row["slice_mean"], row["patient_mean"]]
        right.plot([0, 1], ends, color=colour, marker=styles[method]["marker"], markersize=6, linewidth=2)
        sign = "\N{MINUS SIGN}" if row["leak"] >= 0 else "+"
        right.annotate(
            f"{method}  {sign}{abs(row['leak']):.1f}",
            (1, ends[1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            parse_math=False,
        )
    hollow: dict[str, Any] = {"facecolors": "none", "s": 70, "linewidths": 1.6, "zorder": 5}
    for method, (atlases, values) in PRINTED.items() if printed else ():
        if method in styles and atlases:
            left.scatter([atlases], [values[-1]], marker=styles[method]["marker"], edgecolors=styles[method]["color"], **hollow)
    dress(left, "The same methods, two ways of drawing folds", "n, atlases fused")
    dress(right, "Lost when no patient is on both sides, points", "")
    left.set_xticks(sorted(set(whole["n"]) - {0}))
    left.set_ylabel("whole DSC %, mean and 95 % interval", color=INK)
    right.set_xticks([0, 1], ["slice folds", "patient folds"])
    right.set_xlim(-0.15, 1.75)
    _spread(right)
    caption = "Solid: folds drawn over slices; neighbours of a test slice, of the same patient, are among the atlases. "
    caption += "Dashed: folds drawn over patients."
    caption += "\nHollow: printed in arXiv 1912.02417, Table 1." if printed else ""
    figure.supxlabel(caption, fontsize=8.5, color=INK, x=0.01, ha="left")
    add_legend(figure, handles, "outside upper center")
    return figure


def learning_curve(frame: pd.DataFrame) -> Any | None:
    """Whole DSC over the number of training patients: mean, 95 % interval, and every case as a faint dot; a panel per label.

    Args:
        frame: as :func:`oasis_monai.evaluation.learning_curve.read_learning` gives.
    """
    whole = frame[(frame["region"] == "whole") & frame["dsc"].notna()]
    labels = sorted(set(whole["label"]), key=natural)
    sizes = sorted(set(whole["train_cases"]))
    if len(sizes) < 2:
        return None
    styles = _styles(set(whole["method"]))
    figure = new_figure(1.6 + 4.6 * len(labels), 4.1)
    handles: dict[str, Any] = {}
    order = sorted(styles, key=method_rank)
    for ax, label in zip(figure.subplots(1, len(labels), sharey=True, squeeze=False)[0], labels, strict=True):
        for place, method in enumerate(order):
            rows = whole[(whole["label"] == label) & (whole["method"] == method)]
            of_size = [rows[rows["train_cases"] == s] for s in sizes]
            means = [interval(100 * one["dsc"].to_numpy(), patients=one["patient"].tolist()) for one in of_size]
            x = np.log2(sizes) + 0.05 * (place - (len(order) - 1) / 2)
            mean, _, low, high = (np.array(v) for v in zip(*means, strict=True))
            for at, size in zip(x, sizes, strict=True):
                values = 100 * rows.loc[rows["train_cases"] == size, "dsc"]
                ax.plot(np.full(len(values), at), values, ".", color=styles[method]["color"], alpha=0.3, markersize=4)
            ax.errorbar(x, mean, [mean - low, high - mean], color=styles[method]["color"], linewidth=0, elinewidth=1.4, capsize=2)
            handles[method] = _draw(ax, x, mean, mean, mean, styles[method], level=False)
        dress(ax, label, "training patients")
        ax.set_xticks(np.log2(sizes), [str(s) for s in sizes])
    figure.axes[0].set_ylabel("whole DSC %, mean and 95 % interval", color=INK)
    add_legend(figure, handles)
    return figure


def predicted_dsc(groups: Sequence[QualityGroup]) -> Any | None:
    """Predicted against true DSC, a panel per label, a dot per case with its 90 % interval, a small diamond per corrupted copy;
    filled where it was flagged. None without cases."""
    groups = [g for g in groups if len(g.rows)]
    if not groups:
        return None
    figure = new_figure(0.4 + 4.0 * len(groups), 4.0)
    lowest = 100 * min(
        part[c].min() for g in groups for part in (g.rows, g.corrupted) if len(part) for c in ("predicted_dsc", "dsc")
    )
    low = max(0.0, 10 * math.floor(lowest / 10))
    for ax, group in zip(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups, strict=True):
        ax.plot([low, 100], [low, 100], color=INK, linewidth=0.8, alpha=0.5)
        for rows, mark, size in ((group.corrupted, "D", 3.0), (group.rows, "o", 5.0)):
            x, y, flag = (rows[name].to_numpy() for name in ("predicted_dsc", "dsc", "flag"))
            if mark == "o":
                ends = rows[list(BOUNDS)].to_numpy(dtype=float)
                ax.vlines(100 * x, 100 * ends[:, 0], 100 * ends[:, 1], color=COLOURS[0], linewidth=1, alpha=0.3)
            ax.plot(100 * x[~flag], 100 * y[~flag], mark, color=COLOURS[0], markerfacecolor="none", markersize=size)
            ax.plot(100 * x[flag], 100 * y[flag], mark, color=COLOURS[3], markersize=size)
        dress(ax, group.label, "predicted DSC %")
        ax.set_xlim(low, 100)
        ax.set_ylim(low, 100)
        ax.set_aspect("equal")
    figure.axes[0].set_ylabel("true DSC %", color=INK)
    return figure


def risk_coverage_curves(groups: Sequence[QualityGroup]) -> Any | None:
    """Mean loss (100 - DSC) of the results kept, over how many of them are kept, the surest first: by the predicted DSC, by the
    plain agreement, in the best possible order, and in any order (level). A column per label; a row for the test scans, one for
    them with their corrupted copies. None without two results."""
    groups = [g for g in groups if len(g.rows) > 1]
    if not groups:
        return None
    kinds = [("test scans", False), *([("with corrupted copies", True)] if any(len(g.corrupted) for g in groups) else [])]
    figure = new_figure(1.9 + 3.4 * len(groups), 0.6 + 2.7 * len(kinds))
    panels = figure.subplots(len(kinds), len(groups), sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for (title, both), row in zip(kinds, panels, strict=True):
        for ax, group in zip(row, groups, strict=True):
            rows = pd.concat([group.rows, group.corrupted]) if both else group.rows
            orders = {"predicted DSC": rows["predicted_dsc"], "plain agreement": plain_agreement(rows), "best order": rows["dsc"]}
            for name, colour, dash in zip(orders, COLOURS, ("solid", (0, (5, 2)), (0, (2, 1.5))), strict=False):
                risk = 100 * risk_coverage(orders[name], rows["dsc"])
                share = 100 * np.arange(1, len(risk) + 1) / len(risk)
                handles[name] = ax.plot(share, risk, color=colour, linestyle=dash, linewidth=1.7)[0]
            level = 100 * (1 - rows["dsc"].mean())
            handles["any order"] = ax.plot([0, 100], [level, level], color=INK, linewidth=0.9, alpha=0.6)[0]
            dress(ax, f"{group.label}, {title}", "results kept, %")
            ax.set_xlim(0, 100)
            ax.set_ylim(bottom=0)
        row[0].set_ylabel("mean 100 \N{MINUS SIGN} DSC % of those kept", color=INK)
    add_legend(figure, handles)
    return figure


def reliability_diagram(rows: pd.DataFrame) -> Any | None:
    """How often a structure is there over the probability that results give it, before calibration (dashed, hollow) and after
    (solid, filled), a panel per label; a mark's area is the share of the voxels. None without rows.

    Args:
        rows: of one method and n, as :func:`.reliability_tables.read_reliability` gives.
    """
    labels = list(dict.fromkeys(rows["label"]))
    if not labels:
        return None
    figure = new_figure(1.5 + 3.5 * len(labels), 3.5)
    handles: dict[str, Any] = {}
    for ax, label in zip(figure.subplots(1, len(labels), sharey=True, squeeze=False)[0], labels, strict=True):
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.8, alpha=0.5)
        for when, colour, dash, fill in ((BEFORE, COLOURS[3], DASHES[1], "none"), (AFTER, COLOURS[0], "solid", COLOURS[0])):
            own = rows[(rows["label"] == label) & (rows["when"] == when)]
            x, y = 100 * own["probability"], 100 * own["observed"]
            if len(own):
                handles[when] = ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.4)[0]
                ax.scatter(x, y, s=8 + 300 * own["share"], edgecolors=colour, facecolors=fill, linewidths=1.2)
        dress(ax, label, "probability given, %")
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 100)
        ax.set_aspect("equal")
    figure.axes[0].set_ylabel("structure is there, %", color=INK)
    add_legend(figure, handles)
    return figure


def _line(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """n, mean, low and high of one method's rows."""
    per_n = [(n, interval(100 * part["dsc"].to_numpy(), patients=part["patient"].tolist())) for n, part in rows.groupby("n")]
    table = np.array([[n, mean, low, high] for n, (mean, _, low, high) in per_n], float)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _draw(ax: Any, n: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, style: dict[str, Any], level: bool) -> Any:
    if not np.isnan(low).all():
        ax.fill_between(n, low, high, color=style["color"], alpha=0.05 if level else 0.12, linewidth=0)
    drawn = dict(style) | ({"marker": "none", "linewidth": 1.3} if level else {})
    return ax.plot(n, mean, **drawn)[0]


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method by its place in the fixed order; a variant ("OASIS 3D") has those of the method its name
    starts with, and another dash."""
    out: dict[str, dict[str, Any]] = {}
    kinds: dict[str, int] = {}
    for method in sorted(methods, key=method_rank):
        kind = re.split(r"[ ,]", method)[0]
        place = kinds.setdefault(kind, len(kinds))
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        taken = [other["linestyle"] for other in out.values() if other["color"] == look["color"]]
        dash = next((d for d in DASHES if d not in taken), DASHES[-1])
        out[method] = look | {"linestyle": dash, "linewidth": 1.7, "markersize": 4}
    return out


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def dress(ax: Any, title: str, across: str) -> None:
    ax.set_facecolor("none")
    ax.set_title(title, fontsize=10, color=INK, parse_math=False)
    ax.set_xlabel(across, color=INK)
    ax.tick_params(colors=INK, labelcolor=INK)
    ax.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)


def _spread(ax: Any) -> None:
    """Move the labels at the right end apart until none overlaps its neighbour."""
    texts = sorted(ax.texts, key=lambda t: t.xy[1])
    low, high = ax.get_ylim()
    gap, last = 0.045 * (high - low), -math.inf
    for text in texts:
        y = max(text.xy[1], last + gap)
        text.xyann = (8, (y - text.xy[1]) / (high - low) * 260)
        last = y


def add_legend(figure: Any, handles: Mapping[str, Any], where: str = "outside right upper") -> None:
    columns = len(handles) if "center" in where else 1
    legend = figure.legend(
        list(handles.values()), list(handles), loc=where, ncols=columns, frameon=False, labelcolor=INK, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "oasis-monai", "svg.fonttype": "path"}):  # the same figure, the same bytes
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
