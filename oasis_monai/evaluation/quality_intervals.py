"""The 90 % intervals of predicted Dice: found from left-out folds, and measured on further ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from oasis_monai.evaluation.conformal import Interval, fit_factor
from oasis_monai.evaluation.quality import FEWEST, cross_fitted
from oasis_monai.transforms.corruptions import UNTOUCHED

# into how many folds the results that an interval is found from are dealt at most: with one for each patient it would take long
MOST_FOLDS = 10


class Results(NamedTuple):
    """The results of one structure by one method, N of them.

    Args:
        values: (N, 2) overlaps, without NaN but for a source that no result has.
        dsc: (N,) true DSC.
        folds: (N,) fold of each.
        corruptions: (N,) :data:`UNTOUCHED` or what was done to the scan.
        patients: (N,) whose each is: what is exchangeable.
        units: (N,) see :func:`.quality.fit`.
    """

    values: np.ndarray
    dsc: np.ndarray
    folds: np.ndarray
    corruptions: np.ndarray
    patients: Sequence[Hashable]
    units: Sequence[Any]

    def of(self, chosen: np.ndarray) -> Results:
        """Those chosen by (N,) bool."""
        where = np.flatnonzero(chosen).tolist()
        patients, units = [self.patients[i] for i in where], [self.units[i] for i in where]
        return Results(self.values[where], self.dsc[where], self.folds[where], self.corruptions[where], patients, units)


def fit_interval(results: Results, predicted: np.ndarray) -> Interval | None:
    """The interval from (N,) Dice that were predicted from other folds; None where nothing could be predicted so."""
    known = ~np.isnan(predicted)
    if not known.any() or len(set(results.folds[known].tolist())) < 2 or known.sum() < FEWEST:
        return None
    own = results.of(known)
    untouched = own.corruptions == UNTOUCHED
    patients = {patient for patient, mine in zip(own.patients, untouched.tolist(), strict=True) if mine}
    return Interval(fit_factor(predicted[known], own.dsc, own.patients, untouched), len(patients))


def cross_fitted_intervals(results: Results, predicted: np.ndarray, fitted: np.ndarray | None = None) -> np.ndarray:
    """(N, 2) lower and upper end of every result's interval; NaN where nothing is known of it.

    A result's own fold takes no part, neither in the prediction nor in the interval round it. The other folds are predicted from
    one another, with which the interval is found. A corrupted copy does not see its own corruption either.

    Args:
        results: all of them.
        predicted: (N,) from :func:`.quality.cross_fitted`, round which the intervals lie.
        fitted: (N,) bool, the results that intervals may be found from; all by default.
    """
    usable = np.ones(len(predicted), bool) if fitted is None else fitted
    bounds = np.full((len(predicted), 2), math.nan)
    for fold, name in sorted(set(zip(results.folds.tolist(), results.corruptions.tolist(), strict=True))):
        apart, same = results.folds != fold, results.corruptions == name
        others = results.of(usable & apart & (~same | (results.corruptions == UNTOUCHED)))
        interval = _inner_interval(others)
        for row in np.flatnonzero(~apart & same):
            if interval is not None and not math.isnan(predicted[row]):
                bounds[row] = interval.bounds(float(predicted[row]))
    return bounds


def _inner_interval(others: Results) -> Interval | None:
    """The interval of results that are predicted from one another, fold by fold."""
    places = np.unique(others.folds, return_inverse=True)[1] % MOST_FOLDS
    inner = others._replace(folds=places)
    predicted, _ = cross_fitted(inner.values, inner.dsc, places.tolist(), inner.corruptions.tolist(), units=inner.units)
    return fit_interval(inner, predicted)


def held(dsc: np.ndarray, bounds: np.ndarray) -> tuple[int, int]:
    """In how many results the (N,) true DSC lies within its (N, 2) interval, and how many have one."""
    known = ~(np.isnan(bounds).any(1) | np.isnan(dsc))
    within = (dsc >= bounds[:, 0]) & (dsc <= bounds[:, 1])
    return int((within & known).sum()), int(known.sum())
