"""Scores by centre: how well the scans of each place are segmented."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from oasis_monai.evaluation.scores import method_name, method_rank, summarise, write_summary
from oasis_monai.evaluation.statistics import interval
from oasis_monai.evaluation.tables import NONE, Cell, Grid, interval_text
from oasis_monai.utils.words import natural

UNKNOWN = "not known"


def by_centre(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every centre, by name; nothing where fewer than two are known."""
    if scores["centre"].replace("", pd.NA).nunique() < 2:
        return {}
    return {str(name) or UNKNOWN: rows for name, rows in scores.groupby("centre", sort=True)}


def write_centres(path: Path, scores: pd.DataFrame) -> None:
    """Write ``centres.csv``: :func:`.summarise` of each centre behind a column ``centre``. Where fewer than two are known there
    is no such file, also none of an earlier run."""
    path.unlink(missing_ok=True)
    if parts := by_centre(scores):
        summary = pd.concat([summarise(rows).assign(centre=name) for name, rows in parts.items()])
        write_summary(path, summary, ("centre",))


def centre_grids(scores: pd.DataFrame, protocol: str) -> list[Grid]:
    """A table per structure: a row per centre, whole DSC of every method at its largest n.

    Args:
        scores: as :func:`oasis_monai.evaluation.scores.read_scores` gives.
        protocol: whose rows.
    """
    whole = scores[(scores["protocol"] == protocol) & (scores["region"] == "whole")]
    parts, grids = by_centre(whole), []
    shown = sorted({m: int(n.max()) for m, n in whole.groupby("method")["n"]}.items(), key=lambda one: method_rank(one[0]))
    for label in sorted(set(whole["label"]), key=natural) if parts else []:
        rows = []
        for name, part in parts.items():
            mine = part[part["label"] == label]
            cells = []
            for method, n in shown:
                own = mine[(mine["method"] == method) & (mine["n"] == n) & mine["dsc"].notna()]
                numbers = interval(100 * own["dsc"].to_numpy(), 0.0, 100.0, own["patient"].tolist())
                cells.append(Cell(interval_text(numbers), numbers[0]) if len(own) else Cell(NONE))
            rows.append((Cell(name), Cell(str(mine["case"].nunique())), Cell(str(mine["patient"].nunique())), *cells))
        left_out = "; each was left out of the training of what segmented it" if protocol == "centre" else ""
        note = f"Mean whole DSC % [95 % interval] over the cases of each centre{left_out}."
        head = ("centre", "cases", "patients", *(method_name(*one) for one in shown))
        grids.append(Grid(f"centres_{label}", f"By centre, {label}", head, tuple(rows), (note,)))
    return grids
