"""The learning curve of a study: read and write its scores, and make its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.comparison import Table
from oasis_monai.evaluation.scores import method_rank
from oasis_monai.evaluation.statistics import interval, wilcoxon
from oasis_monai.evaluation.tables import Cell, Grid, best_bold, interval_text
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import natural

ROW = ["train_cases", "case", "label", "region", "method"]
"""The columns that identify a row of the learning curve: a method has one n at each size."""


def learning_table(frame: pd.DataFrame, main: str = "OASIS 3D") -> Table:
    """The learning curve: whole DSC over the number of training patients, each method compared with ``main`` (paired).

    Args:
        frame: as :func:`read_learning` gives.
    """
    whole = frame[(frame["region"] == "whole") & frame["dsc"].notna()]
    tidy: list[dict[str, Any]] = []
    grids = []
    for label in sorted(set(whole["label"]), key=natural):
        of_label = whole[whole["label"] == label]
        sizes = sorted(set(of_label["train_cases"]))
        methods = sorted(set(of_label["method"]), key=method_rank)
        lines = []
        for method in methods:
            line: list[Cell] = [Cell(method)]
            for size in sizes:
                at = of_label[of_label["train_cases"] == size]
                rows, other = at[at["method"] == method], at[at["method"] == main]
                numbers = interval(100 * rows["dsc"].to_numpy(), patients=rows["patient"].tolist())
                paired = other.merge(rows, on="case", suffixes=("_main", ""))
                difference = 100 * (paired["dsc_main"] - paired["dsc"]).to_numpy()
                patients = paired["patient"].tolist()
                gap = interval(difference, patients=patients)
                line.append(Cell(interval_text(numbers), numbers[0]))
                tidy.append(
                    {
                        **{"label": label, "method": method, "train_cases": size, "cases": len(rows)},
                        **dict(zip(("mean", "sd", "ci_low", "ci_high"), numbers, strict=True)),
                        **{"median": float(100 * rows["dsc"].median()), "lowest": float(100 * rows["dsc"].min())},
                        **{"hd95_mm_median": float(rows["hd95_mm"].median()), "misses": int((rows["status"] == "miss").sum())},
                        **dict(zip(("main_minus", "main_minus_sd", "main_minus_low", "main_minus_high"), gap, strict=True)),
                        "p": wilcoxon(difference, patients) if method != main else math.nan,
                    }
                )
            lines.append(line)
        columns = list(zip(*[line[1:] for line in lines], strict=True))
        bold = best_bold(columns, [True] * len(columns))
        body = tuple((lines[i][0], *(column[i] for column in bold)) for i in range(len(lines)))
        cases = of_label["case"].nunique()
        note = f"Whole DSC %, mean [95 % interval] over {cases} test cases that no training set holds; patient folds."
        head = ("method", *(f"{size} patients" for size in sizes))
        grids.append(Grid("learning", f"Learning curve, {label}", head, body, (note,)))
    return Table(pd.DataFrame(tidy), grids)


def write_learning(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the learning curve's rows: those of :data:`oasis_monai.evaluation.scores.SCORE_COLUMNS` behind ``train_cases``."""
    frame = _whose(pd.DataFrame(list(rows), columns=["train_cases", *tables.SCORE_COLUMNS]))
    frame = frame.sort_values(["train_cases", *tables.KEY_COLUMNS], ignore_index=True)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def read_learning(path: Path) -> pd.DataFrame:
    """Read what :func:`write_learning` wrote.

    Raises:
        DataError: it is absent or not such a file.
    """
    remedy = "run the study again"
    try:
        texts = dict.fromkeys(("case", "label", *tables.WHOSE), str)
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(Fault("", str(path), "the learning curve's scores", str(error), remedy)) from error
    missing = [c for c in ("train_cases", *tables.SCORE_COLUMNS) if c not in (*frame, *tables.WHOSE, *tables.LATER)]
    if missing:
        raise DataError(Fault("", str(path), "the columns of a learning curve", f"no {', '.join(missing)}", remedy))
    frame = _whose(frame)
    twice = frame[frame.duplicated(ROW)]  # would count a case twice, and its intervals and p with it
    if len(twice):
        found = ", ".join(str(twice.iloc[0][column]) for column in ROW)
        raise DataError(Fault("", str(path), f"one row per {' x '.join(ROW)}", f"{found} twice", remedy))
    return frame


def _whose(frame: pd.DataFrame) -> pd.DataFrame:
    """With patient and centre, which files of earlier versions lack."""
    patient, centre = (
        frame[column].astype(object) if column in frame else pd.Series(None, frame.index, object) for column in tables.WHOSE
    )
    return frame.assign(patient=patient.where(patient.notna(), frame["case"]), centre=centre.where(centre.notna(), ""))
