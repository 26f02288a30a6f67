"""The page's section on predicted Dice: tables, 90 % intervals, risk-coverage curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.figures import predicted_dsc, risk_coverage_curves, svg_element
from oasis_monai.evaluation.quality import FAILURE, aurc, correlation
from oasis_monai.evaluation.quality_tables import QualityGroup, coverage, failures, mean_error, plain_agreement
from oasis_monai.evaluation.report.results import Field, Row, SortableTable
from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.report.text import NONE

FITTED = "Every prediction and every interval is fitted on the cases of the other folds only."
SCANS, COPIES = "test scans", "corrupted copies"
_HEAD = (
    *("method-n", "label", "scans", "number", "mean error", "in 90 % interval [width]"),
    *("AURC [agreement; best; any]", "r", "failures flagged", "false alarms"),
)


def quality(page: Page) -> dict[str, Any] | None:
    """Predicted against true DSC: plots and numbers of the main method, numbers of the others; None where nothing is known."""
    main = [g for g in page.quality if (g.protocol, g.method, g.n) == (page.protocol, *page.main)]
    figure = predicted_dsc(main)
    if figure is None:
        return None
    others = len(page.quality) > len(main)
    curves = risk_coverage_curves(main)
    return {
        "failure": f"{100 * FAILURE:.0f}",
        "fitted": "The model predicts with the calibration that it has." if page.run.get("task") == "evaluate" else FITTED,
        "svg": svg_element(figure),
        "curves": None if curves is None else svg_element(curves),
        "held": [sentence for group in main for sentence in [_held(group)] if sentence],
        "main": _table(page, main),
        "others": _table(page, page.quality) if others else None,
    }


def _held(group: QualityGroup) -> str:
    """How often the intervals of a structure held, as a sentence; empty where there are none."""
    told = []
    for kind, rows in ((SCANS, group.rows), (COPIES, group.corrupted)):
        within, known, width = coverage(rows)
        if known:
            told.append(f"{within} of {known} {kind} (mean width {100 * width:.0f} points)")
    return f"{group.label}: the 90 % interval held the true DSC in {' and in '.join(told)}." if told else ""


def _table(page: Page, groups: Sequence[QualityGroup]) -> SortableTable:
    several = len({g.protocol for g in page.quality}) > 1
    rows = []
    for g in groups:
        name = tables.method_name(g.method, g.n) + (f", {g.protocol} folds" if several else "")
        main = (g.protocol, g.method, g.n) == (page.protocol, *page.main)
        both = [("both", pd.concat([g.rows, g.corrupted]))] if len(g.rows) and len(g.corrupted) else []
        rows += [_row(name, g, scans, part, main) for scans, part in [(SCANS, g.rows), (COPIES, g.corrupted), *both] if len(part)]
    return SortableTable(_HEAD, rows, ("label", "scans"))


def _row(name: str, g: QualityGroup, scans: str, part: pd.DataFrame, main: bool) -> Row:
    failed, caught, good, alarms = failures(part)
    within, known, width = coverage(part)
    predicted, true = part["predicted_dsc"], part["dsc"]
    area, *others = (100 * aurc(order, true) for order in (predicted, plain_agreement(part), true, np.zeros(len(true))))
    r = correlation(predicted, true)
    fields = [
        Field(name, f"{tables.method_rank(g.method)} {g.n:06d}"),
        Field(g.label, g.label, left=True),
        Field(scans, scans, left=True),
        Field(str(len(part)), len(part)),
        Field(f"{100 * mean_error(part):.1f}", mean_error(part)),
        Field(f"{within} of {known}", within / known, f"[{100 * width:.0f}]") if known else Field(NONE),
        Field(f"{area:.1f}", area, f"[{'; '.join(f'{other:.1f}' for other in others)}]"),
        Field(NONE if math.isnan(r) else f"{r:.2f}".replace("-", "\N{MINUS SIGN}"), r),
        Field(f"{caught} of {failed}", caught / failed if failed else math.nan),
        Field(f"{alarms} of {good}", alarms / good if good else math.nan),
    ]
    return Row(fields, main)
