"""Predict the Dice of a result without a reference, from the overlap of its parts.

Methods that fail differently reveal when they fail: where the slice network, the volume network and the aligned atlases of a
joint model disagree, at least one of them is wrong. Two overlaps are measured per structure, on hard labels. *networks* is the
overlap of the slice network with the volume network. *atlases* is the overlap of the fused atlases with the networks' estimate;
a model without these networks compares every warped atlas with the fused result.

A ridge regression turns the overlaps into a predicted Dice. It is fitted on cases with a known reference that took no part in
training. Its prior is that the Dice *is* the mean overlap, which is also the value reported where nothing was fitted. So a case
far outside the fitted range is not predicted to be average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oasis_monai.evaluation.conformal import Interval
from oasis_monai.segmentation.agreement import SOURCES, known_sources
from oasis_monai.transforms.corruptions import UNTOUCHED

FAILURE = 0.70  # DSC of a whole structure below which a result is a failure
PRIOR_CASES = 10.0  # weight of the prior, in cases
FEWEST = 6  # least number of cases for a fit


@dataclass(frozen=True)
class Calibration:
    """Predicts the DSC of one structure from the overlaps: ``offset + sum_i weights_i x_i``, within 0 and 1.

    Args:
        sources: which of :data:`SOURCES` it uses; weights: one each.
        spread: root mean square of truth minus prediction, each fitted case predicted from the others; None where nothing was
            fitted.
        cases: how many they were.
        temperature: that makes the method's probabilities reliable, see :mod:`.reliability`; None where it is not known.
        interval: what holds the true DSC with a probability of 90 %; None where that is not known, as of an earlier version.
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    offset: float = 0.0
    spread: float | None = None
    cases: int = 0
    interval: Interval | None = None
    temperature: float | None = None

    def predict(self, values: Sequence[float]) -> float:
        """The predicted DSC, from ``values`` in the order of :data:`SOURCES`; NaN where it uses no source.

        NaN for a source that it uses counts as 0: its parts found no structure at all, which is no reliable agreement.
        """
        known = dict(zip(SOURCES, values, strict=True))
        used = [0.0 if math.isnan(known[name]) else known[name] for name in self.sources]
        if not used:
            return math.nan
        return float(np.clip(self.offset + np.dot(self.weights, used), 0.0, 1.0))

    def flag(self, predicted: float) -> bool:
        """Whether a failure (DSC below :data:`FAILURE`) lies within one spread of the prediction, or nothing can be predicted."""
        return math.isnan(predicted) or predicted < FAILURE + (self.spread or 0.0)

    def bounds(self, predicted: float) -> tuple[float, float] | None:
        """The 90 % interval of a predicted DSC; None where nothing is known of it."""
        return None if self.interval is None or math.isnan(predicted) else self.interval.bounds(predicted)

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "sources": list(self.sources),
            "weights": [round(w, 6) for w in self.weights],
            "offset": round(self.offset, 6),
            "spread": None if self.spread is None else round(self.spread, 6),
            "cases": self.cases,
        }
        made |= {} if self.interval is None else {"interval": self.interval.to_json()}
        return made if self.temperature is None else made | {"temperature": round(self.temperature, 6)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Raises KeyError, TypeError or ValueError where ``values`` is not what :meth:`to_json` gives."""
        sources, weights = tuple(map(str, values["sources"])), tuple(map(float, values["weights"]))
        if not set(sources) <= set(SOURCES) or len(weights) != len(sources):
            raise ValueError(f"expected a weight per source of {SOURCES}, found {values!r}")
        spread, interval = values["spread"], values.get("interval")
        return cls(
            sources,
            weights,
            float(values["offset"]),
            None if spread is None else float(spread),
            int(values["cases"]),
            None if interval is None else Interval.from_json(interval),
            _positive(values.get("temperature")),
        )


def _positive(value: Any) -> float | None:
    if value is not None and not 0 < float(value) < math.inf:
        raise ValueError(f"expected a temperature above 0, found {value!r}")
    return None if value is None else float(value)


def uncalibrated(values: Sequence[float] | np.ndarray) -> Calibration:
    """The prior alone, for the sources that have a value: the DSC is the mean overlap."""
    sources = tuple(name for name, v in zip(SOURCES, values, strict=True) if not math.isnan(v))
    return Calibration(sources, tuple(1 / len(sources) for _ in sources) if sources else ())


def fit(values: np.ndarray, dsc: Sequence[float] | np.ndarray, units: Sequence[Any] | None = None) -> Calibration:
    """Ridge regression towards the prior of :func:`uncalibrated`.

    Args:
        values: (N, 2) overlaps of N cases; a source that is NaN in any case is left out.
        dsc: (N,) true DSC, 0 to 1.
        units: (N,) what each belongs to; the spread is that of a unit predicted from the others. None: each is one.

    Returns:
        The prior itself (``spread`` None) with fewer than :data:`FEWEST` cases.
    """
    y = np.asarray(dsc, dtype=float)
    there = ~np.isnan(values).any(0)
    prior = uncalibrated(np.where(there, 0.0, math.nan).tolist())
    if len(y) < FEWEST or not prior.sources:
        return prior
    x = values[:, there]
    start = np.array(prior.weights)
    centre, middle = x.mean(0), float(y.mean())
    z, rest = x - centre, (y - middle) - (x - centre) @ start
    # in units of the sources' common spread, so that the prior weighs PRIOR_CASES cases whatever that is
    scale = max(float(z.std()), 1e-3)
    inner = z.T @ z + PRIOR_CASES * scale**2 * np.eye(x.shape[1])
    weights = start + np.linalg.solve(inner, z.T @ rest)
    offset = middle - float(centre @ weights)
    # each case predicted from the others alone: in-sample errors are too small by the numbers fitted, with six cases by a third
    leverage = 1 / len(y) + np.einsum("ij,ij->i", z, np.linalg.solve(inner, z.T).T)
    residual = y - offset - x @ weights
    left_out = y - residual / (1 - leverage)
    for own in _together(units):
        if len(own) < len(y):  # the same for several at once: the block of the hat matrix in the place of the leverage
            hat = 1 / len(y) + z[own] @ np.linalg.solve(inner, z[own].T)
            left_out[own] = y[own] - np.linalg.solve(np.eye(len(own)) - hat, residual[own])
    errors = y - np.clip(left_out, 0, 1)
    return Calibration(prior.sources, tuple(map(float, weights)), offset, float(np.sqrt(np.mean(errors**2))), len(y))


def _together(units: Sequence[Any] | None) -> list[list[int]]:
    """The rows of every unit that has more than one."""
    rows: dict[Any, list[int]] = {}
    for row, unit in enumerate(units or ()):
        rows.setdefault(unit, []).append(row)
    return [own for own in rows.values() if len(own) > 1]


def cross_fitted(
    values: np.ndarray,
    dsc: np.ndarray,
    groups: Sequence[int],
    corruptions: Sequence[str] | None = None,
    fitted: np.ndarray | None = None,
    units: Sequence[Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted DSC and flag of every result: (N,) float and (N,) bool.

    Args:
        values, dsc: as for :func:`fit`, but that nothing is fitted to a DSC of NaN.
        groups: fold of each; nothing is predicted from its own fold.
        corruptions: what was done to the scan of each, :data:`.corruptions.UNTOUCHED` or a name. A corrupted scan is
            not predicted from scans with the same corruption either, as a clinic's next fault will be one nobody thought of.
        fitted: (N,) bool, the results that may be fitted to; all by default.
        units: as for :func:`fit`.
    """
    values, names = known_sources(values), np.array(corruptions if corruptions is not None else [UNTOUCHED] * len(dsc))
    usable = ~np.isnan(dsc) & (fitted if fitted is not None else True)
    predicted, flags = np.full(len(dsc), math.nan), np.ones(len(dsc), bool)
    for group, name in sorted(set(zip(groups, names.tolist(), strict=True))):
        apart = np.asarray(groups) != group
        others = usable & apart & ((names != name) | (names == UNTOUCHED))
        own = ~apart & (names == name)
        kept = None if units is None else [unit for unit, used in zip(units, others.tolist(), strict=True) if used]
        model = fit(values[others], dsc[others], kept) if others.any() else uncalibrated(values[own][0])
        for i in np.flatnonzero(own):
            predicted[i] = model.predict(values[i])
            flags[i] = model.flag(predicted[i])
    return predicted, flags


def correlation(predicted: Iterable[float], true: Iterable[float]) -> float:
    """Pearson's r over the cases where both are known; NaN for fewer than three or where one of them does not vary."""
    pairs = np.array([(a, b) for a, b in zip(predicted, true, strict=True) if not (math.isnan(a) or math.isnan(b))])
    if len(pairs) < 3 or not (pairs.std(0) > 0).all():
        return math.nan
    return float(np.corrcoef(pairs.T)[0, 1])


def risk_coverage(predicted: Iterable[float], true: Iterable[float]) -> np.ndarray:
    """(N,) risk of keeping the 1 to N results of highest predicted Dice: the mean of 1 - true Dice of those kept.

    Results of equal prediction share their mean loss, so that their order does not matter (for the risk where only some of them
    are kept, that is the mean over all their orders). Empty without a result of which both are known.
    """
    pairs = np.array([(a, b) for a, b in zip(predicted, true, strict=True) if not (math.isnan(a) or math.isnan(b))])
    if not len(pairs):
        return np.empty(0)
    values, place = np.unique(-pairs[:, 0], return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    means = np.bincount(place, 1 - pairs[:, 1], minlength=len(values)) / counts
    loss = np.repeat(means, counts)
    return np.asarray(loss.cumsum() / np.arange(1, len(loss) + 1))


def aurc(predicted: Iterable[float], true: Iterable[float]) -> float:
    """Area under the risk-coverage curve: the lower, the better the prediction tells good results from bad ones.

    It is the mean of :func:`risk_coverage` over all coverages (Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation
    for deep neural classifiers", ICLR 2019, arXiv 1805.08206, with 1 - Dice as the loss). A prediction that tells nothing has the
    mean loss of all; the best possible one is the true Dice itself.

    Returns:
        0 to 1; NaN without a result of which both are known.

    Examples:
        >>> aurc([0.9, 0.8, 0.5], [1.0, 0.8, 0.2])
        0.1444...
    """
    risk = risk_coverage(predicted, true)
    return float(risk.mean()) if len(risk) else math.nan
