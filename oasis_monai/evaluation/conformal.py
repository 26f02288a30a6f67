"""Intervals that hold the Dice of a new patient's result with a stated probability: split conformal prediction.

The interval is ``predicted Dice ± factor x difficulty``, cut to 0 and 1. The difficulty is the predicted loss, 1 minus the
predicted Dice, so doubtful results get wider intervals (normalised scores: Papadopoulos, Gammerman and Vovk, "Normalized
nonconformity measures for regression conformal prediction", 2008; Lei et al., "Distribution-free predictive inference for
regression", JASA 2018, arXiv 1604.04173). The factor is a quantile of the scores ``|true - predicted| / difficulty`` of patients
from whom nothing was learned. No shape of the errors is assumed, only that the new patient is like those.

What is exchangeable are *patients*. The results of one patient, such as two scans of one person, or a scan and its corrupted
copies, are not independent: each patient counts once, and shares that among its results (Dunn, Wasserman and Ramdas,
"Distribution-free prediction sets for two-layer hierarchical models", JASA 2023, arXiv 1809.07441; Lee, Barber and Willett,
"Distribution-free inference with hierarchical data", arXiv 2306.06342).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.90  # probability with which the interval holds the Dice of a new result
LEAST_DIFFICULTY = 0.05  # Dice; added to the predicted loss, as no prediction is certain


@dataclass(frozen=True)
class Interval:
    """How wide the intervals of one structure are.

    Args:
        factor: of the difficulty, on either side of the prediction; None where the patients are too few for :data:`LEVEL`, and
            every interval is 0 to 1.
        patients: from how many it was found.
        held: how many untouched results of left-out folds had their true Dice within an interval found without them, and how
            many there were; (0, 0): not measured.
        held_corrupted: the same for corrupted copies.

    Examples:
        >>> Interval(0.6, 34).bounds(0.9)
        (0.81, 0.99)
    """

    factor: float | None
    patients: int
    held: tuple[int, int] = (0, 0)
    held_corrupted: tuple[int, int] = (0, 0)

    def bounds(self, predicted: float) -> tuple[float, float]:
        """Lower and upper end of the interval round a predicted Dice, both 0 to 1."""
        if self.factor is None:
            return 0.0, 1.0
        reach = self.factor * float(difficulty(predicted))
        return round(max(0.0, predicted - reach), 6), round(min(1.0, predicted + reach), 6)

    def to_json(self) -> dict[str, Any]:
        return {
            "level": LEVEL,
            "factor": None if self.factor is None else round(self.factor, 6),
            "patients": self.patients,
            "held": list(self.held),
            "held_corrupted": list(self.held_corrupted),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Interval:
        """Raises KeyError, TypeError or ValueError where ``values`` is not what :meth:`to_json` gives."""
        factor = None if values["factor"] is None else float(values["factor"])
        if values["level"] != LEVEL or (factor is not None and not 0 <= factor < math.inf):
            raise ValueError(f"expected an interval of level {LEVEL}, found {values!r}")
        (a, b), (c, d) = values["held"], values["held_corrupted"]
        return cls(factor, int(values["patients"]), (int(a), int(b)), (int(c), int(d)))


def difficulty(predicted: np.ndarray | float) -> np.ndarray:
    """By what the error of a prediction is divided to compare it with that of other results."""
    return np.asarray(1 + LEAST_DIFFICULTY - np.asarray(predicted, dtype=float))


def conformal_quantile(scores: np.ndarray, patients: Sequence[Hashable], level: float = LEVEL) -> float:
    """The value that the score of a new patient's result does not exceed with a probability of at least ``level``.

    For one result a patient it is the score of rank ``ceil((K + 1) level)`` of K patients. With several, the results of a patient
    share its weight ``1 / (K + 1)``, and the new patient's weight lies at infinity.

    Args:
        scores: (N,) of results from whose patients the predictor has not learned.
        patients: (N,) whose each is.

    Returns:
        Infinity where the patients are too few (fewer than 9 for 0.9).

    Examples:
        >>> conformal_quantile(np.arange(1.0, 20.0), range(19))
        18.0
        >>> conformal_quantile(np.ones(8), range(8))
        inf
    """
    places: dict[Hashable, int] = {}
    row = np.array([places.setdefault(patient, len(places)) for patient in patients], dtype=int)
    if not len(row):
        return math.inf
    weights = 1 / np.bincount(row)[row] / (len(places) + 1)
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(weights[order].cumsum() >= level - 1e-9)
    return float(scores[order][reached[0]]) if len(reached) else math.inf


def fit_factor(predicted: np.ndarray, true: np.ndarray, patients: Sequence[Hashable], untouched: np.ndarray) -> float | None:
    """The factor of :class:`Interval` from results predicted without their patients.

    It is the larger one of two, of the untouched and of the corrupted scans by themselves: nobody says which kind a new scan is,
    and corrupted ones outnumber the others here as nowhere else. So at least :data:`LEVEL` holds for either kind.

    Args:
        predicted, true: (N,) Dice.
        patients: (N,) whose each is.
        untouched: (N,) bool.

    Returns:
        None where the untouched scans' patients are too few.
    """
    scores = np.abs(true - predicted) / difficulty(predicted)
    found = []
    for kind in (untouched, ~untouched):
        theirs = [patient for patient, mine in zip(patients, kind.tolist(), strict=True) if mine]
        found.append(conformal_quantile(scores[kind], theirs))
    usual, corrupted = found
    if math.isinf(usual):
        return None
    return max(usual, corrupted) if math.isfinite(corrupted) else usual
