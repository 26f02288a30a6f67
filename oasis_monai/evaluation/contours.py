"""Pictures: contours of one result on a few axial slices.

Drawn on matplotlib's Figure objects with the Agg and SVG backends; pyplot and its global state are never touched, so worker
processes and notebooks may call this at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.evaluation.case_view import CaseView
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import atomic_path

TRUTH_COLOUR, RESULT_COLOUR = "#ff2a2a", "#ffe100"  # red and yellow, as in the paper's Fig. 4
_LINE_STYLES: tuple[Any, ...] = ("solid", "dashed", "dotted", "dashdot")
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


LEVELS = {"apex": 1 / 6, "mid": 1 / 2, "base": 5 / 6}


def ranked_cases(dsc: Mapping[str, float]) -> list[tuple[str, str]]:
    """(rank, case) of the best, the median (the lower of two) and the worst case; each case once."""
    order = sorted(dsc, key=lambda case: (-dsc[case], case))
    picks = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    chosen: dict[str, str] = {}
    for rank, place in picks.items():
        if order:
            chosen.setdefault(order[place], rank)
    return [(rank, case) for case, rank in chosen.items()]


def case_grid(
    path: str | Path,
    rows: Sequence[tuple[str, CaseView]],
    methods: Sequence[str],
    dsc: Mapping[tuple[str, str], float],
    level: str = "mid",
) -> bool:
    """Write Fig. 4 as a PNG, whole or not at all.

    Args:
        rows: (rank or other text, case) from top to bottom.
        methods: names of results, left to right; a case without one has an empty field.
        dsc: (case, method name) -> whole DSC 0..1, printed under each field.
        level: ``apex``, ``mid`` or ``base``: the slice at 1/6, 1/2 or 5/6 of the reference's slices.

    Returns:
        False, and nothing is written, without rows or methods.
    """
    if not rows or not methods:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inch = 1.75
    figure = Figure(
        figsize=(inch * len(methods) + 0.9, (inch + 0.28) * len(rows) + 0.35), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(methods), squeeze=False)
    for line, (rank, view) in enumerate(rows):
        z = _slice(view.reference, level)
        for column, method in enumerate(methods):
            ax = axes[line, column]
            _field(ax, view, method, z)
            if line == 0:
                ax.set_title(method, fontsize=9, parse_math=False)
            value = dsc.get((view.case, method))
            ax.set_xlabel("" if value is None else f"DSC {100 * value:.1f} %", fontsize=8)
            if column == 0:
                ax.set_ylabel(f"{rank}: {view.case}\nslice {z + 1}", fontsize=9, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return True


def _slice(reference: np.ndarray, level: str) -> int:
    occupied = np.flatnonzero(reference.any(axis=(0, 1)))
    if not len(occupied):
        return reference.shape[2] // 2
    return round(occupied[0] + LEVELS[level] * (occupied[-1] - occupied[0]))


def _field(ax: Any, view: CaseView, method: str, z: int) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    across, down = (n * s for n, s in zip(view.image.shape[:2], view.spacing_mm[:2], strict=True))
    ax.imshow(display(view.image[..., z]), cmap="gray", vmin=0, vmax=255, extent=(0, across, down, 0), interpolation="bilinear")
    layers: list[tuple[np.ndarray, str, float]] = [(view.reference, TRUTH_COLOUR, 1.6)]
    if method in view.results:
        layers.append((view.results[method], RESULT_COLOUR, 1.0))
    else:
        ax.text(0.5, 0.5, "no result", transform=ax.transAxes, color="white", ha="center")
    for array, colour, width in layers:
        for c in range(1, len(view.labels) + 1):
            contour(ax, display(array[..., z] == c), view.spacing_mm, {"colors": [colour], "linewidths": width})
