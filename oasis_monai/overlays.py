"""Pictures: contours on a few axial slices (the paper's Fig. 4) and the mean DSC over n (its Fig. 3).

Drawn on matplotlib's Figure objects with the Agg and SVG backends; pyplot and its global state are never touched, so worker
processes and notebooks may call this at any time.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.errors import DataError, Fault
from oasis_monai.files import atomic_path

TRUTH_COLOUR, RESULT_COLOUR = "#ff2a2a", "#ffe100"  # red and yellow, as in the paper's Fig. 4
_LINE_STYLES: tuple[Any, ...] = ("solid", "dashed", "dotted", "dashdot")
# legible on white and on near-black
_LINE_COLOURS = ("#2f7fd1", "#d9822b", "#2a9d6f", "#b04fc0", "#8a8f98", "#c94f4f", "#8c7a1f")
_INK = "#010203"  # stands for "the colour of the text around" until the SVG is done
_PANEL_INCHES, _DPI = 2.5, 110


def overlay(
    path: str | Path,
    image: np.ndarray,
    truth: np.ndarray | None,
    result: np.ndarray,
    spacing_mm: tuple[float, float, float],
    title: str,
    slices: int = 4,
    zoom: bool = True,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write a PNG of a few axial slices with the reference's contour in red and the result's in yellow.

    Slices are spread evenly from near the lowest to near the highest slice of the structure (the reference's; without one
    the result's). Display is radiological: the patient's right on the left of the picture, anterior at the top. One class
    is drawn solid; several classes differ by line style and are named below. A structure that is not there is said so in
    the title.

    Args:
        path: the PNG to write, whole or not at all.
        image: (x, y, z), axes in RAS order: x to the patient's right, y anterior, z superior.
        truth: (x, y, z) class indices, 0 background; None when there is no reference.
        result: (x, y, z) class indices.
        spacing_mm: voxel size along x, y, z; sets the aspect ratio.
        title: plain text (no mathematics) above the slices.
        slices: how many slices; fewer where the structure has fewer.
        zoom: crop to the structures with a margin instead of showing the whole field of view.
        labels: names of the classes; without it ``class 1``, ...

    Raises:
        DataError: an array is not three-dimensional, shapes differ, or a spacing is not a positive number.
    """
    from matplotlib.patheffects import withStroke

    image = np.asarray(image, dtype=np.float64)
    result = np.asarray(result)
    _check(image, truth, result, spacing_mm, title)
    truth = None if truth is None else np.asarray(truth)
    shown = (result != 0) if truth is None else (result != 0) | (truth != 0)
    main = truth if truth is not None and truth.any() else result
    window = _crop(shown, spacing_mm) if zoom else (slice(None), slice(None))
    numbers = _slice_numbers(np.flatnonzero(main.any(axis=(0, 1))), image.shape[2], slices)
    low, high = _grey_window(image[(*_crop(shown, spacing_mm, margin=0), numbers)], image[..., numbers])
    classes = sorted({int(c) for a in (truth, result) if a is not None for c in np.unique(a)} - {0})
    empty = [name for name, a in (("reference", truth), ("result", result)) if a is not None and not a.any()]
    heading = f"{title}: {' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty" if empty else title

    width_mm, height_mm = (np.array(image[(*window, 0)].shape) * spacing_mm[:2]).tolist()
    figure = _figure(len(numbers), width_mm / height_mm, heading)
    axes = figure.subplots(1, len(numbers), squeeze=False)[0]
    rim = [withStroke(linewidth=2, foreground="black")]  # keeps white letters legible on bright tissue
    # red lies below and is wider, so that where the two agree both are seen
    outlines = [(a, c, w) for a, c, w in ((truth, TRUTH_COLOUR, 2.0), (result, RESULT_COLOUR, 1.1)) if a is not None]
    for ax, z in zip(axes, numbers, strict=True):
        grey = display(image[(*window, z)])
        ax.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=(0, width_mm, height_mm, 0), interpolation="bilinear")
        for array, colour, width in outlines:
            for i, c in enumerate(classes):
                line = {"colors": [colour], "linewidths": width, "linestyles": [_LINE_STYLES[i % 4]]}
                contour(ax, display(array[(*window, z)] == c), spacing_mm, line)
        ax.set_axis_off()
        small = {"color": "white", "fontsize": 8, "transform": ax.transAxes, "path_effects": rim}
        ax.text(0.02, 0.02, f"slice {z + 1} of {image.shape[2]}", va="bottom", **small)
        ax.text(0.02, 0.5, "R", va="center", **small)
        ax.text(0.5, 0.98, "A", va="top", ha="center", **small)
    _legend(figure, classes, truth is not None, labels or {})
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})


def curve(path: str | Path, summary: pd.DataFrame) -> bool:
    """Write the mean whole-structure DSC over n, one line per method with its 95 % interval (the paper's Fig. 3), as SVG or
    PNG by the path's ending. A panel per protocol and label.

    Args:
        path: ``*.svg`` or ``*.png``.
        summary: as :func:`oasis_monai.tables.summarise` gives.

    Returns:
        False, and nothing is written, when no method has more than one n: there is no curve.
    """
    figure = _curve_figure(summary, ink="#333333")
    if figure is None:
        return False
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    with atomic_path(path) as temporary:
        if kind == "svg":
            temporary.write_text(_svg(figure), encoding="utf-8")
        else:
            figure.savefig(temporary, format=kind, dpi=150, facecolor="white", metadata={"Software": None})
    return True


def curve_svg(summary: pd.DataFrame) -> str | None:
    """:func:`curve` as an ``<svg>`` element for a page: transparent, its ink the page's text colour (``currentColor``), so
    that it is legible on a light and on a dark page. None when there is no curve."""
    figure = _curve_figure(summary, ink=_INK)
    if figure is None:
        return None
    text = _svg(figure)
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _check(image: np.ndarray, truth: Any, result: np.ndarray, spacing_mm: tuple[float, ...], title: str) -> None:
    if image.ndim != 3 or 0 in image.shape:
        raise DataError(Fault(title, "image of the overlay", "an array (x, y, z)", f"shape {image.shape}", "pass one volume"))
    for name, array in (("reference", truth), ("result", result)):
        if array is not None and np.shape(array) != image.shape:
            remedy = "bring it to the image's grid"
            raise DataError(Fault(title, f"{name} of the overlay", f"shape {image.shape}", f"{np.shape(array)}", remedy))
    if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise DataError(Fault(title, "spacing of the overlay", "three positive numbers", f"{spacing_mm}", "check the header"))


def display(plane: np.ndarray) -> np.ndarray:
    """(x, y) in RAS order -> (row, column): first row the most anterior, first column the patient's right."""
    return plane[::-1, ::-1].T


def _slice_numbers(occupied: np.ndarray, depth: int, count: int) -> list[int]:
    """Evenly spread over the occupied slices, a little in from both ends; over the volume when there is no structure."""
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, depth - 1)
    inset = 0.08 * (last - first)
    spread = np.linspace(first + inset, last - inset, count) if count > 1 else np.array([(first + last) / 2])
    return sorted({int(z) for z in np.rint(spread)})


def _crop(shown: np.ndarray, spacing_mm: tuple[float, float, float], margin: float = 0.25) -> tuple[slice, slice]:
    """In-plane box of the structures, wider on every side by ``margin`` of its longer side (at least 10 mm, if at all)."""
    if not shown.any():
        return slice(None), slice(None)
    spans = []
    for axis in (0, 1):
        hit = np.flatnonzero(shown.any(axis=(1 - axis, 2)))
        spans.append((int(hit[0]), int(hit[-1]) + 1))
    margin_mm = (margin > 0) * max(10.0, margin * max((b - a) * s for (a, b), s in zip(spans, spacing_mm, strict=False)))
    first, second = (
        slice(max(0, a - round(margin_mm / s)), min(size, b + round(margin_mm / s)))
        for (a, b), s, size in zip(spans, spacing_mm, shown.shape, strict=False)
    )
    return first, second


def _grey_window(near: np.ndarray, everything: np.ndarray) -> tuple[float, float]:
    """Black and white levels: the 1st and 99th percentile around the structure, with some room above, so that a coil's glare
    elsewhere does not darken it; of the whole slices where it is flat there."""
    for values in (near, everything):
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (1, 99)).tolist() if finite.size else (0.0, 0.0)
        if high > low:
            return low, high + 0.15 * (high - low)
    return low, low + 1


def _figure(panels: int, aspect: float, heading: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panel_width = _PANEL_INCHES * min(max(aspect, 0.4), 2.5)
    width = max(panels * panel_width, 4.5)
    figure = Figure(figsize=(width, _PANEL_INCHES + 0.6), facecolor="black")
    FigureCanvasAgg(figure)
    height = _PANEL_INCHES + 0.6
    figure.subplots_adjust(left=0, right=1, bottom=0.28 / height, top=1 - 0.32 / height, wspace=0.02)
    size = min(10.0, 10.0 * width / max(0.085 * len(heading), 1e-9))  # a long heading shrinks rather than being cut off
    figure.text(0.01, 1 - 0.16 / height, heading, color="white", fontsize=size, va="center", parse_math=False)
    return figure


def contour(ax: Any, mask: np.ndarray, spacing_mm: tuple[float, ...], line: dict[str, Any]) -> None:
    """The mask's boundary; a ring of background outside closes contours of masks that touch the picture's edge."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float64), 1)
    across, down = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape[::-1], spacing_mm, strict=False))
    ax.contour(across, down, padded, levels=[0.5], **line)


def _legend(figure: Any, classes: list[int], reference: bool, labels: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=TRUTH_COLOUR, label="reference")] if reference else []
    handles.append(Line2D([], [], color=RESULT_COLOUR, label="result"))
    if len(classes) > 1:
        for i, c in enumerate(classes):
            handles.append(Line2D([], [], color="white", linestyle=_LINE_STYLES[i % 4], label=labels.get(c, f"class {c}")))
    legend = figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=8, labelcolor="white")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _curve_figure(summary: pd.DataFrame, ink: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from oasis_monai.tables import method_rank

    whole = summary[(summary["region"] == "whole") & (summary["cases"] > 0)]
    panels = [(key, t) for key, t in whole.groupby(["protocol", "label"]) if t.groupby("method")["n"].nunique().max() > 1]
    if not panels:
        return None
    figure = Figure(figsize=(max(6.4, 4.2 * len(panels)), 3.9), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    colours = {m: _LINE_COLOURS[i % len(_LINE_COLOURS)] for i, m in enumerate(sorted(set(whole["method"]), key=method_rank))}
    every = sorted(set(whole["n"]))
    handles: dict[str, Any] = {}
    thin: dict[str, Any] = {"markersize": 3.5, "linewidth": 1.6}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, ((protocol, label), table) in zip(axes, panels, strict=True):
        ax.set_facecolor("none")
        for method in sorted(set(table["method"]), key=method_rank):
            line = table[table["method"] == method].sort_values("n")
            n, dashes = line["n"].to_numpy(float), ("solid", "dashed")[list(colours).index(method) >= 3]
            low, high = (100 * line[f"dsc_ci_{end}"].to_numpy(float) for end in ("low", "high"))
            ax.fill_between(n, low, high, color=colours[method], alpha=0.1, linewidth=0)
            (handles[method],) = ax.plot(n, 100 * line["dsc_mean"], marker="o", linestyle=dashes, color=colours[method], **thin)
        ax.set_title(f"{label}, {protocol} folds", fontsize=10, color=ink, parse_math=False)
        ax.set_xlabel("n, atlases fused", color=ink)
        ax.set_xticks(every, [str(n) for n in every])
        ax.tick_params(colors=ink, labelcolor=ink)
        ax.grid(axis="y", color=ink, alpha=0.15, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(ink)
    figure.axes[0].set_ylabel("mean DSC %, 95 % CI", color=ink)
    legend = figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, labelcolor=ink)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "oasis-monai", "svg.fonttype": "path"}):  # the same figure, the same bytes
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
