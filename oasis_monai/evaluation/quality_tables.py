"""Predicted against true Dice of a cross-validation (``quality.csv``), and its calibrations for trained models."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oasis_monai.evaluation.quality import FAILURE, Calibration, cross_fitted, fit, uncalibrated
from oasis_monai.evaluation.quality_intervals import Results, cross_fitted_intervals, fit_interval, held
from oasis_monai.evaluation.scores import WHOSE, method_name
from oasis_monai.segmentation.agreement import SOURCES, known_sources, overlaps
from oasis_monai.transforms.corruptions import UNTOUCHED
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import locked, write_json, write_text

BOUNDS = ("predicted_low", "predicted_high")  # of the 90 % interval
COLUMNS = (
    *("protocol", "fold", "case", *WHOSE, "method", "n", "label", "corruption"),
    *(*SOURCES, "predicted_dsc", *BOUNDS, "flag", "dsc"),
)
Key = tuple[str, str, int]  # case, method, n


@dataclass(frozen=True)
class QualityGroup:
    """The predictions for one method, n and label of a run."""

    protocol: str
    method: str
    n: int
    label: str
    rows: pd.DataFrame
    """Columns :data:`COLUMNS`; the untouched cases where the true and the predicted DSC are known."""
    corrupted: pd.DataFrame
    """The same for their corrupted copies."""


def mean_error(rows: pd.DataFrame) -> float:
    """Mean absolute difference of predicted and true DSC."""
    return float((rows["predicted_dsc"] - rows["dsc"]).abs().mean())


def failures(rows: pd.DataFrame) -> tuple[int, int, int, int]:
    """Results whose DSC is below :data:`.quality.FAILURE`; those of them flagged; all others; those flagged."""
    bad, flag = rows["dsc"] < FAILURE, rows["flag"]
    return int(bad.sum()), int((bad & flag).sum()), int((~bad).sum()), int((~bad & flag).sum())


def coverage(rows: pd.DataFrame) -> tuple[int, int, float]:
    """How many of the 90 % intervals hold the true DSC, how many results have one, and the mean width (NaN without any)."""
    bounds = rows[list(BOUNDS)].to_numpy(dtype=float)
    within, known = held(rows["dsc"].to_numpy(dtype=float), bounds)
    return within, known, float(np.nanmean(bounds[:, 1] - bounds[:, 0])) if known else math.nan


def plain_agreement(rows: pd.DataFrame) -> np.ndarray:
    """(N,) mean overlap of the parts: what predicts the DSC where nothing is fitted."""
    values = known_sources(rows[list(SOURCES)].to_numpy(dtype=float))
    return np.array([uncalibrated(own).predict(own) for own in values.tolist()])


def quality_rows(
    scores: Iterable[Mapping[str, Any]],
    agreements: Mapping[Key, torch.Tensor],
    labels: list[str],
    groups: Mapping[str, int],
    corrupted: Iterable[tuple[Mapping[str, Any], torch.Tensor]] = (),
) -> tuple[pd.DataFrame, dict[str, dict[str, Calibration]]]:
    """Predict every case from the cases of the other folds, and fit the calibration for new scans on all cases.

    Args:
        scores: score rows of the run, with patient and centre; only whole structures are used. A row absent on both sides has
            no DSC to predict.
        agreements: (2, C-1, 2) counts, see :func:`oasis_monai.segmentation.agreement.agreement`.
        labels: structure names in the order of the classes.
        groups: case -> fold; no case is predicted from its own fold, in which all cases of its patient are.
        corrupted: score rows of corrupted copies of the cases, each with a ``corruption``, and the counts of its result.

    Returns:
        Rows of :data:`COLUMNS`; and "method-n" -> label -> calibration.
    """
    parts: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    untouched = (({**row, "corruption": UNTOUCHED}, agreements.get((row["case"], row["method"], row["n"]))) for row in scores)
    for row, counts in [*untouched, *corrupted]:
        if row["region"] != "whole" or counts is None or math.isnan(row["dsc"]):
            continue
        agreement = overlaps(counts)[labels.index(row["label"])]
        kept = {k: row[k] for k in ("protocol", "fold", "case", "method", "n", "label", "corruption", "dsc")}
        kept |= {"patient": row.get("patient") or row["case"], "centre": row.get("centre") or ""}
        parts[row["method"], row["n"], row["label"]].append(kept | dict(zip(SOURCES, map(float, agreement), strict=True)))
    made: list[dict[str, Any]] = []
    models: dict[str, dict[str, Calibration]] = defaultdict(dict)
    for (method, n, label), rows in sorted(parts.items()):
        told, models[method_name(method, n)][label] = _predict_and_fit(rows, groups)
        made += [row | one for row, one in zip(rows, told, strict=True)]
    return pd.DataFrame(made, columns=list(COLUMNS)), dict(models)


def _predict_and_fit(rows: list[dict[str, Any]], groups: Mapping[str, int]) -> tuple[list[dict[str, Any]], Calibration]:
    """What the other folds predict of every result of one structure; and the calibration for new scans, from all of them."""
    values, dsc = known_sources([[r[s] for s in SOURCES] for r in rows]), np.array([r["dsc"] for r in rows])
    names, folds = np.array([r["corruption"] for r in rows]), np.array([groups[r["case"]] for r in rows])
    results = Results(values, dsc, folds, names, [r["patient"] for r in rows], _independent(rows))
    predicted, flags = cross_fitted(values, dsc, folds.tolist(), names.tolist(), units=results.units)
    bounds = cross_fitted_intervals(results, predicted)
    model, interval = fit(values, dsc, results.units), fit_interval(results, predicted)
    if interval is not None and model.spread is not None:
        clean = names == UNTOUCHED
        measured = [held(dsc[kind], bounds[kind]) for kind in (clean, ~clean)]
        model = replace(model, interval=replace(interval, held=measured[0], held_corrupted=measured[1]))
    told = zip(predicted.tolist(), bounds.tolist(), flags.tolist(), strict=True)
    return [{"predicted_dsc": p, **dict(zip(BOUNDS, ends, strict=True)), "flag": flag} for p, ends, flag in told], model


def _independent(rows: list[dict[str, Any]]) -> list[Any]:
    """What is left out together when a result is predicted from the others: all results of a patient with several cases. The
    corrupted copies of one case count by themselves: what was done to them is what makes them fail."""
    cases: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        cases[row["patient"]].add(row["case"])
    return [row["patient"] if len(cases[row["patient"]]) > 1 else number for number, row in enumerate(rows)]


def write_quality(path: Path, rows: pd.DataFrame) -> None:
    """Write ``quality.csv``, whole or not at all."""
    write_text(path, rows.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def read_quality(path: Path) -> list[QualityGroup]:
    """The groups of a run's ``quality.csv``; empty where there is none.

    Raises:
        DataError: it is not what :func:`write_quality` writes.
    """
    if not path.is_file():
        return []
    try:
        text = dict.fromkeys(("case", "label", "method", "protocol", "corruption", *WHOSE), str)
        rows = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])  # a structure may be called NA
        for column, absent in (*((c, "") for c in WHOSE), *((c, math.nan) for c in BOUNDS)):  # of an earlier version
            rows[column] = rows.get(column, absent)
        numbers = (*SOURCES, "predicted_dsc", *BOUNDS, "dsc")
        rows = rows[list(COLUMNS)].astype({c: float for c in numbers} | {"flag": bool, "n": int})
    except (OSError, ValueError, KeyError) as error:
        remedy = "delete it, or write it again from the run"
        raise DataError(Fault("", str(path), f"a CSV with the columns {', '.join(COLUMNS)}", str(error), remedy)) from error
    known = rows.dropna(subset=["predicted_dsc", "dsc"])
    by = ["protocol", "method", "n", "label"]
    return [
        QualityGroup(str(p), str(m), int(n), str(label), part[clean], part[~clean])
        for (p, m, n, label), part in known.groupby(by, sort=True)
        for clean in [part["corruption"] == UNTOUCHED]
    ]


def write_calibrations(path: Path, models: Mapping[str, Mapping[str, Calibration]]) -> None:
    """Write "method-n" -> label -> calibration as JSON."""
    write_json(path, plain_calibrations(models))


def keep_calibrations(path: Path, models: Mapping[str, Mapping[str, Calibration]]) -> None:
    """Add calibrations to those of earlier runs with other methods or n.

    For the same method, n and label, the calibration fitted on more results stays, or the new one if they are equal. So a run
    without corrupted copies does not replace a better one.
    """
    if not models:
        return
    with locked(path.parent):
        kept = read_calibrations(path) or {}
        for name, by_label in models.items():
            own = kept.setdefault(name, {})
            own |= {label: new for label, new in by_label.items() if label not in own or new.cases >= own[label].cases}
        write_calibrations(path, kept)


def plain_calibrations(models: Mapping[str, Mapping[str, Calibration]]) -> dict[str, Any]:
    """Calibrations as plain JSON values, which :func:`calibrations_of` takes back."""
    return {name: {label: c.to_json() for label, c in by_label.items()} for name, by_label in models.items()}


def read_calibrations(path: Path) -> dict[str, dict[str, Calibration]] | None:
    """Read what :func:`write_calibrations` wrote; None where it is absent or damaged (it can always be computed again)."""
    try:
        return calibrations_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def calibrations_of(record: Any) -> dict[str, dict[str, Calibration]]:
    """Calibrations from their plain JSON value.

    Raises:
        ValueError: it is none.
    """
    try:
        return {str(name): {str(k): Calibration.from_json(v) for k, v in by.items()} for name, by in record.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"calibration: expected method -> label -> weights, found {record!r}") from error


def few_patients(models: Mapping[str, Mapping[str, Calibration]]) -> int:
    """From how many patients the intervals that hold everything come, as these were too few; 0: there is no such interval."""
    intervals = [one.interval for by_label in models.values() for one in by_label.values() if one.interval is not None]
    return max((one.patients for one in intervals if one.factor is None), default=0)


def with_temperatures(
    models: Mapping[str, Mapping[str, Calibration]], temperatures: Mapping[str, float]
) -> dict[str, dict[str, Calibration]]:
    """The calibrations with the temperature of their method: "method-n" -> temperature."""
    return {
        name: {label: replace(one, temperature=temperatures.get(name)) for label, one in by_label.items()}
        for name, by_label in models.items()
    }


def temperature_for(models: Mapping[str, Mapping[str, Calibration]], method: str, n: int) -> float | None:
    """The temperature of a method with n atlases; None where it is not known, or labels disagree (of different runs)."""
    known = {one.temperature for one in models.get(method_name(method, n), {}).values()}
    return known.pop() if len(known) == 1 else None


def calibration_for(
    models: Mapping[str, Mapping[str, Calibration]], method: str, n: int, label: str, values: Iterable[float]
) -> Calibration:
    """What predicts a new scan's Dice: fitted for this method at this very n, else nothing is fitted
    (:func:`oasis_monai.evaluation.quality.uncalibrated`, for the sources that have ``values``). Atlases that are more or fewer
    agree more or less at the same Dice, so that the fit of another n would be no calibration."""
    exact = models.get(method_name(method, n), {}).get(label)
    return uncalibrated(list(values)) if exact is None else exact
