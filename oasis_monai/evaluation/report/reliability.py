"""The page's section on probabilities: the reliability diagram, and the expected calibration error."""

from __future__ import annotations

import math
from typing import Any

from oasis_monai.evaluation.figures import reliability_diagram, svg_element
from oasis_monai.evaluation.reliability_tables import AFTER, BEFORE, calibration_error
from oasis_monai.evaluation.report.results import Field, Row, SortableTable
from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.report.text import NONE
from oasis_monai.evaluation.scores import method_name, method_rank

_HEAD = ("method-n", "label", "temperature", "ECE before, points", "ECE after, points")


def reliability(page: Page) -> dict[str, Any] | None:
    """The main method's diagram, and the numbers of every method; None where nothing was measured."""
    rows = page.reliability
    if rows is None:
        return None
    rows = rows[rows["protocol"] == page.protocol]
    method, n = page.main
    figure = reliability_diagram(rows[(rows["method"] == method) & (rows["n"] == n)])
    if figure is None:
        return None
    lines = []
    for (own, count, label), part in rows.groupby(["method", "n", "label"], sort=False):
        after = part[part["when"] == AFTER]
        errors = [calibration_error(part[part["when"] == BEFORE]), calibration_error(after) if len(after) else math.nan]
        temperature = float(after["temperature"].iloc[0]) if len(after) else math.nan
        fields = [
            Field(method_name(own, count), f"{method_rank(own)} {count:06d}"),
            Field(label, label, left=True),
            Field(NONE if math.isnan(temperature) else f"{temperature:.2f}", temperature),
            *(Field(NONE if math.isnan(error) else f"{100 * error:.1f}", error) for error in errors),
        ]
        lines.append(Row(fields, (own, count) == (method, n)))
    return {"svg": svg_element(figure), "table": SortableTable(_HEAD, lines, ("label",))}
