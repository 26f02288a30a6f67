"""Wrong labels found: cases whose reference disagrees with a result on which atlases and networks agree.

A low Dice has two causes: the result is wrong, or the reference is. The agreement of the result's parts tells them apart, as it
predicts the Dice without the reference (:mod:`.quality`). Where much was predicted and little is found, the reference is a
suspect. So is one that agrees with the result after one simple change (:mod:`.label_faults`): that two labels made independently
fit each other once one of them is moved by two slices is no accident, and confirms the result.

The score adds up both, in spreads: how far the Dice lies below the predicted one, and how much a simple change brings. It says
where to look; whether a label is wrong a person has to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.evaluation.label_faults import Compared, Explanation, explanations, named_slices
from oasis_monai.evaluation.quality import FEWEST, cross_fitted
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import write_text

SUSPECT = 3.0  # score from which a case is a suspect
LEAST_SPREAD = 0.03  # Dice; two people differ as much
LEAST_GAIN = 0.03  # Dice that an explanation has to gain to be told
SHOWN = 4  # slices to look at
COLUMNS = (
    *("protocol", "case", "patient", "centre", "method", "n", "label", "score", "predicted_dsc", "dsc", "explained_dsc"),
    *("kind", "looks_like", "slices"),
)
_NUMBERS = ("score", "predicted_dsc", "dsc", "explained_dsc")


@dataclass(frozen=True)
class Finding:
    """How one structure of a result and its reference differ.

    Args:
        case, label: of which case, which structure.
        dsc: Dice of both.
        explained: what may be wrong with the reference, the best first.
        difference: where they differ, for people.
        slices: axial slices to look at, counted from 0 at the feet.
    """

    case: str
    label: str
    dsc: float
    explained: tuple[Explanation, ...]
    difference: str
    slices: tuple[int, ...]


@dataclass(frozen=True)
class Suspect:
    """A :class:`Finding` with its score; ``explanation`` is None where no simple change makes the reference fit."""

    finding: Finding
    predicted: float
    score: float
    explanation: Explanation | None

    @property
    def text(self) -> str:
        """What it looks like, in a sentence without its full stop."""
        if self.explanation is None:
            return self.finding.difference
        return f"{self.explanation.text} (Dice {self.finding.dsc:.2f}, with that undone {self.explanation.dsc:.2f})"


def findings(case: str, compared: Compared) -> list[Finding]:
    """How each structure of a case differs from its reference; those that neither has are left out."""
    found, known = explanations(compared), []
    for index, label in enumerate(compared.labels, 1):
        dsc = compared.dice(index)
        if not math.isnan(dsc):
            unseen, denied = compared.unseen(index), compared.denied(index)
            weight = (unseen | denied).sum((0, 1)) if (unseen | denied).any() else compared.differing(index).sum((0, 1))
            words = _difference(compared, index, unseen, denied)
            known.append(Finding(case, label, dsc, tuple(found[label]), words, spread_slices(weight)))
    return known


def spread_slices(weight: np.ndarray, count: int = SHOWN) -> tuple[int, ...]:
    """(z,) voxels that differ -> a few slices such that each stands for the same share of them; none where nothing differs."""
    total = weight.sum()
    if not total:
        return ()
    places = (np.arange(count) + 0.5) / count * total
    return tuple(sorted({int(z) for z in np.searchsorted(np.cumsum(weight), places)}))


def _difference(case: Compared, index: int, unseen: np.ndarray, denied: np.ndarray) -> str:
    """Where a structure differs, in words: what is missing in its reference, or too much."""
    label, (sized, refers) = case.labels[index - 1], (case.counts.sum(1)[index], case.counts.sum(0)[index])
    if not refers:
        return f"the reference has no {label}, of which the result sees {sized * case.voxel_ml:.2g} ml"
    if not sized:
        return f"the reference has {refers * case.voxel_ml:.2g} ml of {label}, of which the result sees nothing"
    parts, told = [], 0.2 * max(unseen.sum(), denied.sum())  # the smaller one is told where it is worth it
    if unseen.any() and unseen.sum() >= told:
        parts.append(f"the result is sure of {_amount(case, unseen)} that the reference leaves out")
    if denied.any() and denied.sum() >= told:
        parts.append(f"the reference has {_amount(case, denied)} where the result is sure of something else")
    return "; ".join(parts) or "only the border differs"


def _amount(case: Compared, mask: np.ndarray) -> str:
    """Volume of a mask, and the run of slices that holds most of it."""
    per_slice = mask.sum(tuple(axis for axis in range(3) if axis != case.slice_axis))
    inner = np.searchsorted(np.cumsum(per_slice), np.array([0.1, 0.9]) * per_slice.sum())
    return f"{mask.sum() * case.voxel_ml:.2g} ml (mostly in {named_slices(range(int(inner[0]), int(inner[1]) + 1))})"


def expected_dice(overlaps: np.ndarray, dsc: np.ndarray, groups: Sequence[int]) -> tuple[np.ndarray, float]:
    """The Dice to expect of every result of one structure, from the other folds, and the usual error of that.

    Wrong references must not hide themselves: cases far below what was predicted are left out of the fit, and the error is
    measured by medians.

    Args:
        overlaps: (N, 2) of :func:`oasis_monai.segmentation.agreement.overlaps`.
        dsc: (N,) Dice with the reference.
        groups: fold of each.

    Returns:
        (N,) expected Dice, 0 to 1, NaN where no parts were compared; and the spread.
    """
    fitted = np.ones(len(dsc), bool)
    predicted, spread = np.full(len(dsc), math.nan), LEAST_SPREAD
    for _ in range(3):
        predicted, _flags = cross_fitted(overlaps, dsc, groups, fitted=fitted)
        errors = dsc - predicted
        middle, spread = robust_spread(errors)
        predicted = np.clip(predicted + middle, 0, 1)
        fitted = ~(errors < middle - SUSPECT * spread)
    return predicted, spread


def robust_spread(errors: np.ndarray) -> tuple[float, float]:
    """Median of errors, and their spread round it: 1.4826 median absolute deviations (a standard deviation, were they normal), at
    least :data:`LEAST_SPREAD`. With fewer than :data:`.quality.FEWEST` errors nothing is known: 0 and twice that."""
    known = errors[~np.isnan(errors)]
    if len(known) < FEWEST:
        return 0.0, 2 * LEAST_SPREAD
    middle = float(np.median(known))
    return middle, max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(known - middle))))


def suspect(finding: Finding, predicted: float, spread: float, usual: float) -> Suspect | None:
    """The score of one finding: what its Dice lacks to the predicted one, in spreads, and what the best explanation gains, in
    units of :data:`LEAST_SPREAD`. None where no Dice was predicted.

    A bad result says little of its reference, so the units grow with what the better of both Dice lacks to 1.

    Args:
        spread: the usual error of a prediction; usual: the usual predicted Dice, from which the units grow.
    """
    if math.isnan(predicted):
        return None
    best = max(finding.explained, key=lambda one: one.dsc, default=None)
    gain = max(0.0, best.dsc - finding.dsc) if best else 0.0
    lack = predicted - finding.dsc
    wider = max(1.0, (1 - max(predicted, finding.dsc + gain)) / max(1 - usual, LEAST_SPREAD))
    return Suspect(finding, predicted, (lack / spread + gain / LEAST_SPREAD) / wider, _told(finding, predicted))


def _told(finding: Finding, predicted: float) -> Explanation | None:
    """The best explanation that brings much of what is missing. That the reference lacks slices is so whatever the rest of it is
    like; a shift or another change counts only where the reference fits once it is undone."""
    for one in sorted(finding.explained, key=lambda one: -one.dsc):
        gain = one.dsc - finding.dsc
        fits = one.kind.endswith("slices") or one.dsc >= predicted - 2 * LEAST_SPREAD
        if fits and gain >= max(LEAST_GAIN, 0.5 * (predicted - finding.dsc)):
            return one
    return None


def ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The worst first; the structures of a case follow each other, and its worst one places it."""
    worst: dict[str, float] = {}
    for one in suspects:
        worst[one.finding.case] = max(one.score, worst.get(one.finding.case, -math.inf))
    return sorted(suspects, key=lambda one: (-worst[one.finding.case], one.finding.case, -one.score, one.finding.label))


def suspect_rows(suspects: Sequence[Suspect], about: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of :data:`COLUMNS`.

    Args:
        about: case -> protocol, patient, centre, method, n.
    """
    rows = []
    for one in suspects:
        finding, told = one.finding, one.explanation
        row = {"case": finding.case, "label": finding.label, "score": one.score, "predicted_dsc": one.predicted}
        row |= {"dsc": finding.dsc, "explained_dsc": told.dsc if told else math.nan, "kind": told.kind if told else "differs"}
        row |= {"looks_like": one.text, "slices": " ".join(str(z + 1) for z in finding.slices)}
        rows.append(dict(about[finding.case]) | row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_suspects(path: Path, rows: pd.DataFrame) -> None:
    """Write ``suspects.csv``, whole or not at all."""
    write_text(path, rows.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def read_suspects(path: Path) -> pd.DataFrame:
    """What :func:`write_suspects` wrote; no rows where there is no file.

    Raises:
        DataError: it is something else.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        text = dict.fromkeys((name for name in COLUMNS if name not in (*_NUMBERS, "n")), str)
        rows = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={name: [""] for name in _NUMBERS})
        return rows[list(COLUMNS)].astype({name: float for name in _NUMBERS} | {"n": int})
    except (OSError, ValueError, KeyError) as error:
        remedy = "delete it, or write it again from the run"
        raise DataError(Fault("", str(path), f"a CSV with the columns {', '.join(COLUMNS)}", str(error), remedy)) from error
