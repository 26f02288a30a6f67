"""Draw the paper's Fig. 4: cases in rows, methods in columns, red reference and yellow result on one slice each.

The picture shows slices of the scans. Where the data may not be passed on, the picture may not either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.evaluation.case_view import CaseView
from oasis_monai.evaluation.contours import RESULT_COLOUR, TRUTH_COLOUR, contour, display
from oasis_monai.utils.files import atomic_path

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
        for own in view.members or [(c,) for c in range(1, len(view.labels) + 1)]:
            contour(ax, display(np.isin(array[..., z], own)), view.spacing_mm, {"colors": [colour], "linewidths": width})
