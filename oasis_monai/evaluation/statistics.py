"""Statistics of scores: paired tests with correction, and the choice of n on other folds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MIN_PAIRS = 6
"""Fewer pairs cannot reach p < 0.05 in a two-sided signed-rank test (2 / 2^5 = 0.0625), so none is made."""


def wilcoxon(differences: Sequence[float] | np.ndarray, patients: Sequence[str] | None = None) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired differences; of a patient with several, on their mean.

    Pairs without a difference are kept in the ranking and shared between the signs (Pratt's ``zsplit``, by scipy). NaN for fewer
    than :data:`MIN_PAIRS` pairs, 1 where no pair differs.

    Args:
        differences: (N,); NaN is left out.
        patients: the person of each; None: each is of another.
    """
    values, groups = _known(differences, patients)
    if groups is not None:
        values = np.bincount(groups, values) / np.bincount(groups)
    if len(values) < MIN_PAIRS:
        return math.nan
    if not values.any():
        return 1.0
    from scipy.stats import wilcoxon as signed_rank

    return float(signed_rank(values, zero_method="zsplit").pvalue)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values (Scand. J. Statist. 6, 1979), in their order; NaN stays out.

    Written here because scipy does not have it, and statsmodels would be a dependency for it alone.
    """
    known = sorted((p, i) for i, p in enumerate(pvalues) if not math.isnan(p))
    adjusted = [math.nan] * len(pvalues)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


def choose_n(scores: pd.DataFrame, method: str, groups: Mapping[str, int]) -> dict[int, int]:
    """For every fold the n of best mean whole-structure DSC over the cases of the *other* folds; ties go to the smaller n.

    So the n a case is scored with never depends on the case's own scores, nor on those of its fold. Where all cases are of one
    fold there is nothing to choose by, and it is the smallest.

    Args:
        scores: rows of one protocol, as :func:`.read_scores` gives; means are over cases and labels, a row
            that is absent on both sides left out.
        groups: case -> fold. Under slice folds, where a case's slices are in all folds, the patient folds of the same seed.

    Raises:
        ValueError: a case has no fold.
    """
    mine = scores[(scores["method"] == method) & (scores["region"] == "whole") & scores["dsc"].notna()]
    without = sorted(set(mine["case"]) - set(groups))
    if without:
        raise ValueError(f"groups: expected a fold of every case, found none of {', '.join(without)}")
    fold = mine["case"].map(dict(groups))
    chosen = {}
    for own in sorted(set(fold)):
        means = mine[fold != own].groupby("n")["dsc"].mean()
        best = means[means >= means.max() - 1e-12].index
        chosen[int(own)] = int(best.min() if len(best) else mine["n"].min())
    return chosen


def at_best_n(scores: pd.DataFrame, method: str, groups: Mapping[str, int]) -> tuple[pd.DataFrame, dict[int, int]]:
    """A method's rows, each case at the n chosen for its fold by :func:`choose_n`; and those n by fold.

    A method without atlases (n = 0 throughout) comes back as it is, with no n.
    """
    mine = scores[scores["method"] == method]
    if set(mine["n"]) <= {0}:
        return mine, {}
    chosen = choose_n(scores, method, groups)
    wanted = mine["case"].map(dict(groups)).map(chosen)
    return mine[mine["n"] == wanted], chosen


def interval(
    values: Sequence[float] | np.ndarray,
    lowest: float = -math.inf,
    highest: float = math.inf,
    patients: Sequence[str] | None = None,
) -> tuple[float, float, float, float]:
    """Mean, sd (with k-1) and Student's 95 % t-interval of the mean over the defined values; NaN where there are too few.

    Mean and sd are over the values. Scans of one patient are alike, so that the interval counts patients: the values of each
    depart from the mean together (the cluster-robust variance of a mean, with the degrees of freedom of the patients). With one
    value each it is the common interval.

    Args:
        values: (N,); NaN is left out.
        lowest, highest: the values that are possible; the interval is cut to them, which takes nothing from its coverage.
        patients: the person of each value; None: each is of another.
    """
    known, groups = _known(values, patients)
    if len(known) < 2:
        return (float(known.mean()) if len(known) else math.nan), math.nan, math.nan, math.nan
    from scipy.special import stdtrit  # scipy.stats.t.ppf, without the second that scipy.stats takes to import

    mean, sd = float(known.mean()), float(known.std(ddof=1))
    count, error = len(known), sd / math.sqrt(len(known))
    if groups is not None:
        apart = np.bincount(groups, known - mean)
        count = len(apart)
        if count < 2:
            return mean, sd, math.nan, math.nan
        error = math.sqrt(count / (count - 1) * float(np.square(apart).sum())) / len(known)
    half = float(stdtrit(count - 1, 0.975)) * error
    return mean, sd, max(mean - half, lowest), min(mean + half, highest)


def _known(values: Sequence[float] | np.ndarray, patients: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The defined values, and the number of each one's patient; None where no patient has two."""
    known = np.asarray(values, dtype=float)
    defined = ~np.isnan(known)
    if patients is None:
        return known[defined], None
    names, groups = np.unique(np.asarray(patients, dtype=str)[defined], return_inverse=True)
    return known[defined], groups if len(names) < defined.sum() else None
