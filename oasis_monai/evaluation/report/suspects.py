"""The page's list of suspects: cases whose reference disagrees with a result that is sure of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.evaluation.report.pictures import picture_uris
from oasis_monai.evaluation.report.results import Field, Row, SortableTable
from oasis_monai.evaluation.report.text import number
from oasis_monai.evaluation.scores import method_name
from oasis_monai.evaluation.suspects import SUSPECT

FIRST = 10  # cases that are shown with their slices


def suspect_section(rows: pd.DataFrame, folder: Path) -> dict[str, Any] | None:
    """What the page shows of ``suspects.csv``; None where nothing was looked for.

    Args:
        rows: of :func:`oasis_monai.evaluation.suspects.read_suspects`, the worst case first.
        folder: of the pictures, one a case.
    """
    if not len(rows):
        return None
    cases = [part for _, part in rows.groupby("case", sort=False)]
    suspects = [part for part in cases if part["score"].max() >= SUSPECT]
    entries = []
    for part in suspects[:FIRST]:
        case, picture = str(part["case"].iloc[0]), folder / f"{part['case'].iloc[0]}.png"
        told = part[part["score"] >= SUSPECT]
        lines = [_line(row, rows["label"].nunique() > 1) for row in told.to_dict("records")]
        entries.append({"case": case, "lines": lines, "layers": picture_uris(picture) if picture.is_file() else []})
    return {
        "entries": entries,
        "cases": len(cases),
        "more": max(0, len(suspects) - FIRST),
        "limit": f"{SUSPECT:g}",
        "methods": " and ".join(dict.fromkeys(method_name(m, n) for m, n in zip(rows["method"], rows["n"], strict=True))),
        "table": _table(cases),
    }


def _line(row: dict[str, Any], several: bool) -> str:
    """One structure of a suspect in a sentence."""
    text = f"{row['label']}: {row['looks_like']}" if several else str(row["looks_like"])
    found = f"DSC {number(100 * row['dsc'])} %, predicted {number(100 * row['predicted_dsc'])} %"
    return f"{text[:1].upper()}{text[1:]}. {found}; score {row['score']:.1f}."


def _table(cases: Sequence[pd.DataFrame]) -> SortableTable:
    rows = []
    for row in pd.concat(cases).to_dict("records"):
        explained = row["explained_dsc"]
        fields = [
            Field(row["case"], row["case"]),
            Field(row["label"], row["label"], left=True),
            Field(f"{row['score']:.1f}", row["score"], style="strong" if row["score"] >= SUSPECT else ""),
            *(Field(number(100 * row[column]), row[column]) for column in ("predicted_dsc", "dsc")),
            Field("" if math.isnan(explained) else number(100 * explained), explained),
            Field(row["looks_like"], row["looks_like"], left=True),
        ]
        rows.append(Row(fields, row["score"] >= SUSPECT))
    head = ["case", "label", "score", "predicted DSC", "DSC", "once undone", "what it looks like"]
    return SortableTable(head, rows, ("label", "what it looks like"))
