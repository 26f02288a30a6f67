"""Statistics of scores: paired tests with correction, and the choice of n on other folds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MIN_PAIRS = 6
"""Fewer pairs cannot reach p < 0.05 in a two-sided signed-rank test (2 / 2^5 = 0.0625), so none is made."""


def wilcoxon(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired differences.

    Pairs without a difference are kept in the ranking and shared between the signs (Pratt's ``zsplit``, by scipy). NaN for fewer
    than :data:`MIN_PAIRS` pairs, 1 where no pair differs.
    """
    values = np.asarray(differences, dtype=float)
    values = values[~np.isnan(values)]
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
    values: Sequence[float] | np.ndarray, lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float, float, float]:
    """Mean, sd (with k-1) and Student's 95 % t-interval of the mean over the defined values; NaN where there are too few.

    The interval is cut to ``lowest`` .. ``highest``, the values that are possible: that takes nothing from its coverage.
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return (float(known.mean()) if len(known) else math.nan), math.nan, math.nan, math.nan
    from scipy.special import stdtrit  # scipy.stats.t.ppf, without the second that scipy.stats takes to import

    mean, sd = float(known.mean()), float(known.std(ddof=1))
    half = float(stdtrit(len(known) - 1, 0.975)) * sd / math.sqrt(len(known))
    return mean, sd, max(mean - half, lowest), min(mean + half, highest)
