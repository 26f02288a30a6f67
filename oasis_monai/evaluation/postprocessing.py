"""Which post-processing helps: decided on the results of a cross-validation, for each method, structure and operation.

An operation is chosen for a structure if, over the patients whose results decide,

- there are :data:`FEWEST_PATIENTS` of them or more,
- the mean change of the structure's Dice is :data:`LEAST_GAIN` or more, and more patients gain than lose,
- it does not fall below 0 without the patient that gains most, so that no single one outweighs losses of others, and
- the mean Dice of no other structure falls.

A patient whose result the operation leaves as it is counts with 0. For a fold the patients of the other folds decide; for a model
trained on all cases, all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oasis_monai.segmentation.anatomy import AnatomyStatistics
from oasis_monai.segmentation.postprocessing import ALL, AUTO, MODES, NONE, OPERATIONS, Choice, every_operation
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import locked, write_json

FEWEST_PATIENTS = 5
"""Three patients who all gain by chance are one of eight draws."""
LEAST_GAIN = 1e-4
"""A hundredth of a point of Dice. Below it are crumbs, about which the folds of one run disagree."""
ROUNDING = 1e-9  # below it a mean change of Dice is none


class Trial(NamedTuple):
    """What one operation for one structure would change in one result. Where it changes nothing there is no trial.

    Args:
        case: whose result.
        structure, operation: what was tried.
        gains: structure -> by how much its Dice changes; of every structure of which it is known.
    """

    case: str
    structure: str
    operation: str
    gains: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """Whether an operation is done for a structure, and why.

    Args:
        chosen: the answer for a new scan.
        patients: on how many it was decided.
        changed, better, worse: of these, with another Dice of the structure's own results, and which way.
        mean_gain, largest_gain, largest_loss: of the structure's Dice, over all patients; 0 to 1.
    """

    chosen: bool
    patients: int
    changed: int
    better: int
    worse: int
    mean_gain: float
    largest_gain: float
    largest_loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        counts = (int(values[key]) for key in ("patients", "changed", "better", "worse"))
        gains = (float(values[key]) for key in ("mean_gain", "largest_gain", "largest_loss"))
        return cls(bool(values["chosen"]), *counts, *gains)


Decisions = Mapping[str, Mapping[str, Mapping[str, Decision]]]
"""By "method-n", structure and operation."""


def decide_operation(gains: np.ndarray, own: int) -> Decision:
    """Whether an operation helps.

    Args:
        gains: (P, S), the change of Dice of each patient and structure.
        own: the structure for which the operation is.
    """
    of_own = gains[:, own] if len(gains) else np.zeros(1)
    without_best = of_own.sum() - of_own.max()
    others = np.delete(gains, own, 1).mean(0) if len(gains) else np.zeros(0)
    up, down = int((of_own > ROUNDING).sum()), int((of_own < -ROUNDING).sum())
    helps = len(gains) >= FEWEST_PATIENTS and of_own.mean() >= LEAST_GAIN and up > down
    helps = helps and without_best >= -ROUNDING and bool((others >= -ROUNDING).all())
    extremes = (float(max(0.0, of_own.max())), float(max(0.0, -of_own.min())))
    return Decision(bool(helps), len(gains), up + down, up, down, float(of_own.mean()), *extremes)


def decide_operations(
    trials: Iterable[Trial], patients: Mapping[str, str], deciding: Collection[str], structures: Sequence[str]
) -> dict[str, dict[str, Decision]]:
    """The decisions of one method, by structure and operation.

    Args:
        trials: of the method's results.
        patients: case -> the person it is of; a patient's gain is the mean over the cases.
        deciding: the cases whose results count.
        structures: names.
    """
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients[case] for case in deciding))}
    cases = np.zeros(len(numbers))
    for case in deciding:
        cases[numbers[patients[case]]] += 1
    tried: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((len(numbers), len(structures))))
    for trial in trials:
        if trial.case in deciding:
            number = numbers[patients[trial.case]]
            for name, gain in trial.gains.items():
                tried[trial.structure, trial.operation][number, structures.index(name)] += gain / cases[number]
    return {name: {op: decide_operation(tried[name, op], own) for op in OPERATIONS} for own, name in enumerate(structures)}


def chosen(decisions: Mapping[str, Mapping[str, Decision]]) -> Choice:
    """What is done, of :func:`decide_operations`."""
    found = {name: tuple(op for op, one in by.items() if one.chosen) for name, by in decisions.items()}
    return {name: operations for name, operations in found.items() if operations}


def check_mode(asked: str, anatomy: AnatomyStatistics | None) -> None:
    """Refuse what is no post-processing, or none that a model can do.

    Args:
        anatomy: of the model's labels; None where it does not know it.

    Raises:
        ConfigError: naming what can be.
    """
    if asked not in MODES:
        raise ConfigError("postprocessing", f"one of {', '.join(MODES)}", asked)
    if asked == ALL and anatomy is None:
        remedy = "train it again: models of earlier versions do not know the anatomy of their labels"
        raise ConfigError("postprocessing", f"{AUTO} or {NONE} for this model", asked, remedy)


def choice_for(asked: str, anatomy: AnatomyStatistics | None, decisions: Mapping[str, Mapping[str, Decision]]) -> Choice:
    """What is done to a method's results.

    Args:
        asked: ``auto``: what the decisions say, nothing where there are none; ``none``: nothing; ``all``: every operation for
            every structure that the training labels show.
        anatomy: of the training labels; None: not known, nothing is done.
        decisions: of the method, with its number of atlases.
    """
    if asked == NONE or anatomy is None:
        return {}
    return every_operation(anatomy) if asked == ALL else chosen(decisions)


def plain_decisions(decisions: Decisions) -> dict[str, Any]:
    """Decisions as plain JSON values, which :func:`decisions_of` takes back."""
    return {
        method: {name: {op: one.to_json() for op, one in by.items()} for name, by in by_name.items()}
        for method, by_name in decisions.items()
    }


def decisions_of(record: Any) -> dict[str, dict[str, dict[str, Decision]]]:
    """Decisions from their plain JSON value.

    Raises:
        ValueError: it is none.
    """
    try:
        return {
            str(method): {str(name): {str(op): Decision.from_json(one) for op, one in by.items()} for name, by in by_name.items()}
            for method, by_name in record.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"postprocessing: expected method -> structure -> operation -> decision, found {record!r}") from error


def read_decisions(path: Path) -> dict[str, dict[str, dict[str, Decision]]] | None:
    """Read what :func:`keep_decisions` wrote; None where it is absent or damaged (it can always be computed again)."""
    try:
        return decisions_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def keep_decisions(path: Path, decisions: Decisions) -> None:
    """Add decisions to those of earlier runs with other methods or n; for the same ones those of more patients stay, or the new
    ones if they are equal."""
    with locked(path.parent):
        kept: dict[str, Any] = dict(read_decisions(path) or {})
        kept |= {name: new for name, new in decisions.items() if name not in kept or _patients(new) >= _patients(kept[name])}
        write_json(path, plain_decisions(kept))


def _patients(decisions: Mapping[str, Mapping[str, Decision]]) -> int:
    return max((one.patients for by in decisions.values() for one in by.values()), default=0)
