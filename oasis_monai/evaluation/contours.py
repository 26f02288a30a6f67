"""Draw the contours of one result on a few axial slices.

Drawn on matplotlib's Figure objects with the Agg and SVG backends; pyplot and its global state are never touched, so worker
processes and notebooks may call this at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.types import IGNORE
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import atomic_path

TRUTH_COLOUR, RESULT_COLOUR = "#ff2a2a", "#ffe100"  # red and yellow, as in the paper's Fig. 4
UNKNOWN_COLOUR = "#a0a0a0"
_LINE_STYLES: tuple[Any, ...] = ("solid", "dashed", "dotted", "dashdot")
_PANEL_INCHES, _DPI = 2.5, 110


def overlay(
    path: str | Path,
    image: np.ndarray,
    truth: np.ndarray | None,
    result: np.ndarray,
    spacing_mm: tuple[float, float, float],
    title: str,
    slices: int | Sequence[int] = 4,
    zoom: bool = True,
    labels: Mapping[int, str] | None = None,
    structures: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write a PNG of a few axial slices with the reference's contour in red and the result's in yellow.

    Slices are spread evenly from near the lowest to near the highest slice of the structure (the reference's; without one
    the result's). Display is radiological: the patient's right on the left of the picture, anterior at the top. One class
    is drawn solid; several classes differ by line style and are named below. A structure that is not there is said so in
    the title. What nobody labelled (:data:`oasis_monai.data.types.IGNORE`) has a grey dotted outline.

    Args:
        path: the PNG to write, whole or not at all.
        image: (x, y, z), axes in RAS order: x to the patient's right, y anterior, z superior; of several channels the first.
        truth: (x, y, z) class indices, 0 background; None when there is no reference.
        result: (x, y, z) class indices.
        spacing_mm: voxel size along x, y, z; sets the aspect ratio.
        title: plain text (no mathematics) above the slices.
        slices: how many slices, fewer where the structure has fewer; or their indices.
        zoom: crop to the structures with a margin instead of showing the whole field of view.
        labels: names of the classes; without it ``class 1``, ...
        structures: where structures share voxels, the classes of each: their outlines are drawn in the place of those of classes.

    Raises:
        DataError: an array is not three-dimensional, shapes differ, or a spacing is not a positive number.
    """
    image, result = np.asarray(image), np.asarray(result)
    _check(image, truth, result, spacing_mm, title)
    truth = None if truth is None else np.asarray(truth)
    unknown = np.zeros(image.shape, bool) if truth is None else truth == IGNORE
    truth = None if truth is None else np.where(unknown, 0, truth)
    shown = (result != 0) if truth is None else (result != 0) | (truth != 0)
    main = truth if truth is not None and truth.any() else result
    window = crop_box(shown, spacing_mm, 10.0, 0.25) if zoom else (slice(None), slice(None))
    occupied = np.flatnonzero(main.any(axis=(0, 1)))
    numbers = _slice_numbers(occupied, image.shape[2], slices) if isinstance(slices, int) else list(slices)
    # around the structure, so that the bright rim near a coil does not darken it; of the whole slices where it is flat there
    near, whole = (*crop_box(shown, spacing_mm), numbers), (..., numbers)
    low, high = grey_window(image[near].astype(np.float64), image[whole].astype(np.float64), headroom=0.15)
    names = labels or {}
    classes = sorted({int(c) for a in (truth, result) if a is not None for part in a for c in np.unique(part)} - {0})
    drawn = [(names.get(c, f"class {c}"), (c,)) for c in classes] if not structures else _present(structures, classes)
    empty = [name for name, a in (("reference", truth), ("result", result)) if a is not None and not a.any()]
    heading = f"{title}: {' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty" if empty else title

    width_mm, height_mm = (np.array(image[(*window, 0)].shape) * spacing_mm[:2]).tolist()
    figure = _figure(len(numbers), width_mm / height_mm, heading)
    # red lies below and is wider, so that where the two agree both are seen
    outlines = [(a, c, w) for a, c, w in ((truth, TRUTH_COLOUR, 2.0), (result, RESULT_COLOUR, 1.1)) if a is not None]
    for ax, z in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        plane = (*window, z)
        extent = (0, width_mm, height_mm, 0)
        shown_slice = display(image[plane].astype(np.float64))
        ax.imshow(shown_slice, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
        if unknown.any():
            grey = {"colors": [UNKNOWN_COLOUR], "linewidths": 1.1, "linestyles": ["dotted"]}
            contour(ax, display(unknown[plane]), spacing_mm, grey)
        for array, colour, width in outlines:
            for i, (_, own) in enumerate(drawn):
                line = {"colors": [colour], "linewidths": width, "linestyles": [_LINE_STYLES[i % 4]]}
                contour(ax, display(np.isin(array[plane], own)), spacing_mm, line)
        _letter(ax, f"slice {z + 1} of {image.shape[2]}")
    _legend(figure, [name for name, _ in drawn], truth is not None, bool(unknown.any()))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})


def _present(structures: Mapping[str, Sequence[int]], classes: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """The structures of which a class is there."""
    return [(name, tuple(own)) for name, own in structures.items() if set(own) & set(classes)]


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


def crop_box(mask: np.ndarray, spacing_mm: Sequence[float], margin_mm: float = 0.0, margin: float = 0.0) -> tuple[slice, slice]:
    """In-plane box of a (x, y, z) mask, wider on every side by a margin as far as the image goes; all of an empty mask.

    Args:
        margin_mm: the margin, at least.
        margin: the margin as a share of the box's longer side.
    """
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    hits = [np.flatnonzero(mask.any(axis=(1 - axis, 2))) for axis in (0, 1)]
    spans = [(int(hit[0]), int(hit[-1]) + 1) for hit in hits]
    wider_mm = max(margin_mm, margin * max((b - a) * s for (a, b), s in zip(spans, spacing_mm, strict=False)))
    first, second = (
        slice(max(0, a - round(wider_mm / s)), min(size, b + round(wider_mm / s)))
        for (a, b), s, size in zip(spans, spacing_mm, mask.shape, strict=False)
    )
    return first, second


def grey_window(*candidates: np.ndarray, highest: float = 99.0, headroom: float = 0.0) -> tuple[float, float]:
    """The intensities shown black and white: of the first candidate that is not flat, the 1st and the ``highest`` percentile.

    Args:
        candidates: intensities, finite or not; where all percentiles agree, the last one's extremes count.
        headroom: a share of the window added above it, so that bright tissue keeps its structure.
    """
    low = high = 0.0
    for values in candidates:
        finite = values[np.isfinite(values)]
        if not finite.size:
            continue
        low, high = np.percentile(finite, (1, highest)).tolist()
        if high <= low:
            low, high = float(finite.min()), float(finite.max())
            continue
        return low, high + headroom * (high - low)
    return (low, high) if high > low else (low, low + 1)


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


def _letter(ax: Any, name: str) -> None:
    """The slice's name and the patient's right and front, in white with a black rim that keeps them legible on bright tissue."""
    from matplotlib.patheffects import withStroke

    ax.set_axis_off()
    rim = [withStroke(linewidth=2, foreground="black")]
    small = {"color": "white", "fontsize": 8, "transform": ax.transAxes, "path_effects": rim}
    ax.text(0.02, 0.02, name, va="bottom", **small)
    ax.text(0.02, 0.5, "R", va="center", **small)
    ax.text(0.5, 0.98, "A", va="top", ha="center", **small)


def contour(ax: Any, mask: np.ndarray, spacing_mm: tuple[float, ...], line: dict[str, Any]) -> None:
    """The mask's boundary; a ring of background outside closes contours of masks that touch the picture's edge."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float64), 1)
    across, down = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape[::-1], spacing_mm, strict=False))
    ax.contour(across, down, padded, levels=[0.5], **line)


def _legend(figure: Any, names: Sequence[str], reference: bool, unknown: bool) -> None:
    """Name colours and line styles below the slices; where there is no room for all structures, say how many more there are."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=TRUTH_COLOUR, label="reference")] if reference else []
    handles.append(Line2D([], [], color=RESULT_COLOUR, label="result"))
    if unknown:
        handles.append(Line2D([], [], color=UNKNOWN_COLOUR, linestyle="dotted", label="not labelled"))
    if len(names) > 1:
        room = figure.get_size_inches()[0] - sum(_legend_inches(str(handle.get_label())) for handle in handles)
        shown = _names_that_fit(names, room)
        for i, name in enumerate(shown):
            handles.append(Line2D([], [], color="white", linestyle=_LINE_STYLES[i % 4], label=name))
        if len(shown) < len(names):
            handles.append(Line2D([], [], linestyle="none", label=f"and {len(names) - len(shown)} more"))
    legend = figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=8, labelcolor="white")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_inches(text: str) -> float:
    """About the width of an entry of the legend: its line, and its letters of 8 points."""
    return 0.55 + 0.066 * len(text)


def _names_that_fit(names: Sequence[str], inches: float) -> list[str]:
    """The first of the names, as many as a legend of that width holds beside a remark on the others."""
    if sum(map(_legend_inches, names)) <= inches:
        return list(names)
    left, shown = inches - _legend_inches("and 100 more"), list[str]()
    for name in names:
        left -= _legend_inches(name)
        if left < 0:
            break
        shown.append(name)
    return shown
