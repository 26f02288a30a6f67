"""The page's section on the training of the networks: curves, and how each ended."""

from __future__ import annotations

import math
from typing import Any

from oasis_monai.evaluation.figures import svg_element
from oasis_monai.evaluation.report.results import Field, Row, SortableTable
from oasis_monai.evaluation.report.run import Page
from oasis_monai.evaluation.report.text import NONE
from oasis_monai.evaluation.training_curves import parts_of_name, training_curves
from oasis_monai.training.tracking import VALIDATION as DICE

_HEAD = ("network", "fold", "steps", "minutes", "last loss")


def training(page: Page) -> dict[str, Any] | None:
    """Curves and last values; None where the folder has no history of a network."""
    figure = training_curves(page.histories)
    if figure is None:
        return None
    validated = any(DICE in history for history in page.histories.values())
    rows = []
    for name, history in page.histories.items():
        network, fold, part = parts_of_name(name)
        last, title = history.iloc[-1], " ".join(filter(None, [network, part]))
        fields = [
            Field(title, title),
            Field(NONE if fold is None else str(fold), math.nan if fold is None else fold),
            Field(f"{last['step']:.0f}", last["step"]),
            Field(f"{last['seconds'] / 60:.1f}", last["seconds"]),
            Field(f"{last['loss']:.3f}".replace("-", "\N{MINUS SIGN}"), last["loss"]),
        ]
        if validated:
            known = history[DICE].dropna() if DICE in history else history["loss"].iloc[:0]
            value = float(known.iloc[-1]) if len(known) else math.nan
            fields.append(Field(NONE if math.isnan(value) else f"{100 * value:.1f}", value))
        rows.append(Row(fields))
    head = [*_HEAD, *(["held-out Dice, %"] if validated else [])]
    return {"svg": svg_element(figure), "table": SortableTable(head, rows), "validated": validated}
