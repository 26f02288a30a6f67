"""Post-processing in a cross-validation: try it on every result, decide on those of the other folds, apply it.

The anatomy that a fold goes by is that of its own training labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.types import Segmentation
from oasis_monai.evaluation.postprocessing import (
    Decision,
    Decisions,
    Trial,
    choice_for,
    chosen,
    decide_operations,
    keep_decisions,
    plain_decisions,
)
from oasis_monai.evaluation.scores import method_name
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureShape, measure_anatomy
from oasis_monai.segmentation.postprocessing import ALL, NONE, Choice, every_operation, postprocess
from oasis_monai.segmentation.result import Key
from oasis_monai.settings import Settings
from oasis_monai.utils.files import write_json
from oasis_monai.workflows.fold_models import calibration_path, is_for_new_scans
from oasis_monai.workflows.prepare import Dataset

FILE = "postprocessing.json"
"""In the folder of a cross-validation: the decisions for a new scan, and in which folds the others' results decided alike."""


def postprocessing_path(settings: Settings, dataset: Dataset) -> Path:
    """Where a cross-validation leaves its decisions for the model that ``train`` fits with the same settings on the same cases:
    beside the calibrations, under their name."""
    return Path(settings.cache) / "postprocessing" / calibration_path(settings, dataset).name


@dataclass
class CrossPostprocessing:
    """The post-processing of one cross-validation. Under slice folds there is none: a fold's training labels are no whole ones.
    Nor is there where structures share voxels: a piece of one may be the place of another.

    Args:
        folds: those that are scored. One alone has no others to decide by.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    folds: Sequence[Fold]
    _trials: dict[Key, list[Trial]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _anatomy: dict[int, AnatomyStatistics] = field(default_factory=dict, repr=False)
    _choices: dict[tuple[int, Key], Choice] = field(default_factory=dict, repr=False)

    @property
    def decides(self) -> bool:
        """Whether results are tried, so that each fold can be decided on the others'."""
        several = self.split.honest and len(self.folds) > 1
        return self.settings.postprocessing != NONE and several and not self.settings.data.structures

    def anatomy(self, fold: Fold) -> AnatomyStatistics:
        """That of a fold's training labels."""
        if fold.index not in self._anatomy:
            self._anatomy[fold.index] = AnatomyStatistics.of_shapes(self._shapes[case] for case in fold.train)
        return self._anatomy[fold.index]

    @cached_property
    def _shapes(self) -> dict[str, dict[str, StructureShape]]:
        """Every case's anatomy; each fold looks at those of its training cases."""
        names, targets = list(self.settings.data.labels), self.dataset.targets
        label_of = self.dataset.library.label_of
        return {case: measure_anatomy(label_of(case), target.geometry.spacing_mm, names) for case, target in targets.items()}

    def try_out(self, fold: Fold, key: Key, result: Segmentation, truth: torch.Tensor) -> None:
        """Try every operation on a result of a case that the fold tests, and keep how its Dice changes.

        Args:
            result: as the method gave it, on the scan's own grid.
            truth: (x, y, z) class indices there.
        """
        if not self.decides:
            return
        anatomy, names = self.anatomy(fold), list(self.settings.data.labels)
        _, all_changes = postprocess(result, anatomy, every_operation(anatomy), names)
        if not all_changes:
            return
        before = _dice(result.label, truth, names)
        for name, operation in [(change.structure, change.operation) for change in all_changes]:
            tried, _ = postprocess(result, anatomy, {name: (operation,)}, names)
            after = _dice(tried.label, truth, names)
            gains = {one: after[one] - before[one] for one in after.keys() & before.keys()}
            self._trials[key].append(Trial(result.case, name, operation, gains))

    def decisions(self, key: Key, without: Fold | None = None) -> Decisions:
        """Those for one method, on the results of all folds, or of all but one."""
        cases = [case for fold in self.folds if fold is not without for case in fold.test]
        made = decide_operations(self._trials[key], self.dataset.patients, cases, list(self.settings.data.labels))
        return {method_name(*key): made}

    def choice(self, fold: Fold, key: Key) -> Choice:
        """What is done to a method's results of the cases that the fold tests; asked for after all results were tried."""
        if (fold.index, key) not in self._choices:
            self._choices[fold.index, key] = self._chosen(fold, key)
        return self._choices[fold.index, key]

    def _chosen(self, fold: Fold, key: Key) -> Choice:
        if not self.split.honest or not (self.decides or self.settings.postprocessing == ALL):
            return {}
        decisions = self.decisions(key, without=fold)[method_name(*key)] if self.decides else {}
        return choice_for(self.settings.postprocessing, self.anatomy(fold), decisions)

    def apply(self, fold: Fold, key: Key, result: Segmentation) -> Segmentation:
        """A result of a case that the fold tests, post-processed; the same object where nothing changes."""
        choice = self.choice(fold, key)
        return postprocess(result, self.anatomy(fold), choice, list(self.settings.data.labels))[0] if choice else result

    def write(self, run_dir: Path, keys: Sequence[Key]) -> list[str]:
        """Write :data:`FILE` into a run's folder, and for a model of the same settings what all results decide;
        nothing where no fold could be decided.

        Returns:
            What helps, in words.
        """
        (run_dir / FILE).unlink(missing_ok=True)
        if not self.decides:
            return []
        settings = self.settings
        whole: Decisions = {name: made for key in keys for name, made in self.decisions(key).items()}
        by_fold = {
            str(fold.index): {method_name(*key): {k: list(v) for k, v in self.choice(fold, key).items()} for key in keys}
            for fold in self.folds
        }
        write_json(
            run_dir / FILE, {"asked": settings.postprocessing, "decisions": plain_decisions(whole), "done_in_folds": by_fold}
        )
        if is_for_new_scans(settings, self.split):
            keep_decisions(postprocessing_path(settings, self.dataset), whole)
        return [
            f"post-processing of {method}: {_told(name, operation, by_name[name][operation])}"
            for method, by_name in whole.items()
            for name, operations in chosen(by_name).items()
            for operation in operations
        ]


def _told(name: str, operation: str, decision: Decision) -> str:
    changed = f"{decision.better} of {decision.patients} patients better, {decision.worse} worse"
    return f"{operation} of {name} helps ({changed}, mean DSC {100 * decision.mean_gain:+.2f} points)"


def _dice(label: torch.Tensor, truth: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Dice by structure, of those that either has."""
    counts = overlap_counts(label, truth, len(names) + 1).tolist()
    return {name: common / both for name, (common, both) in zip(names, counts, strict=True) if both}
