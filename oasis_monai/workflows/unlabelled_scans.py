"""Find and check scans without labels that a model is to be trained on with, beside its labelled cases.

A scan that is tested must never be among them, nor any other scan of its patient: networks that have seen them would be tested on
what they know. And a labelled case that comes again without its label would be trained with twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from oasis_monai.data.folds import Fold
from oasis_monai.data.scans import find_scans
from oasis_monai.data.settings import CONSECUTIVE_PAIRS, DataSettings
from oasis_monai.data.types import Case, Preprocessed
from oasis_monai.settings import REST, Settings
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.errors import DataError, Fault, with_case_in_errors
from oasis_monai.workflows.prepare import Dataset, Log, channel_names, find_selected_cases, split_of

SAME = 0.01
"""Standard deviations by which voxels of one scan may differ in two files: an affine is float32 in NIfTI."""
SAMPLE = 61  # every so many voxels are compared first


def with_unlabelled(settings: Settings, dataset: Dataset, cache: Path | None, log: Log, tests: bool = True) -> Dataset:
    """The data set with its pool: the scans of ``settings.unlabelled``, all checked. One that is there twice is taken once.

    Args:
        tests: whether every labelled case is tested, as in a cross-validation: then no other scan of their patients may be there.
            Else only patients whom the data set itself keeps for a test are tested.

    Raises:
        DataError: there is none, or one that cannot be read, has other channels, shows nothing, is a labelled case, or is of a
            patient who is tested.
    """
    if settings.unlabelled is None or settings.unlabelled == REST:
        return dataset
    store = PreprocessCache(cache / "preprocessed" if cache else None, settings.preprocessing, settings.data.label_values)
    names = channel_names(settings, dataset.library.channels)
    found = _found(settings.unlabelled, settings.data, names, log)
    kept_for_tests = {case.id: case for case in find_selected_cases(settings.data, "all")[0] if case.id not in dataset.cases}
    tested = {case.patient for case in kept_for_tests.values()}
    if tests:
        tested |= set(dataset.patients.values())
    check = _Check(dataset, names, tested, store)
    for kept in kept_for_tests.values():
        check.know(kept.id, store.get(kept.without_label()), "a case that is kept for tests")
    for name, target in dataset.targets.items():
        check.know(name, target, "a labelled case")
    pool: dict[str, Case] = {}
    for case in found:
        with with_case_in_errors(case.id):
            own = _renamed(case, {*dataset.cases, *kept_for_tests, *pool})
            if check.take(own, log):
                pool[own.id] = own
    if check.faults:
        raise DataError(check.faults)
    log(f"unlabelled: {len(pool)} scans without labels in {settings.unlabelled}")
    return replace(dataset, pool=pool, pool_scans={case: store.image_content(pool[case]) for case in pool})


def rest_of(settings: Settings, dataset: Dataset, fold: Fold) -> dict[str, Case]:
    """The training cases of a fold that ``train_cases`` leaves out, without their labels. No patient that the fold tests is among
    them, as none is among its training cases."""
    whole = split_of(replace(settings, train_cases=None, unlabelled=None), dataset).folds[fold.index]
    assert whole.test == fold.test
    return {case: dataset.cases[case].without_label() for case in sorted(whole.train.keys() - fold.train.keys())}


def _found(root: str, data: DataSettings, channels: Collection[str], log: Log) -> list[Case]:
    """The scans of a folder; who they are of is found by the rule of the labelled ones, where that looks at names."""
    rule = data.patient if "(" in data.patient or data.patient == CONSECUTIVE_PAIRS else ""
    how = DataSettings(channels=data.channels, patient=rule, anonymous=data.anonymous)
    try:
        return find_scans(root, how, tuple(channels), lambda fault: log(f"warning: unlabelled: {fault}"))
    except DataError as error:
        raise DataError(_named(error)) from error


def _named(error: DataError, case: str = "") -> list[Fault]:
    """The faults of scans without labels, told apart from those of labelled ones."""
    return [replace(fault, case=fault.case or case, field=f"unlabelled: {fault.field}") for fault in error.faults]


def _renamed(case: Case, taken: Collection[str]) -> Case:
    """An id is only a file's name: that of an unlabelled scan may be a labelled case's too."""
    name, number = case.id, 1
    while name in taken:
        number += 1
        name = f"unlabelled-{case.id}" if number == 2 else f"unlabelled-{case.id}-{number - 1}"
    return case if name == case.id else replace(case, id=name, patient=name if case.patient == case.id else case.patient)


@dataclass
class _Check:
    """What is known of the scans so far, and what is wrong with the new ones.

    Args:
        tested: patients none of whose scans may be taken.
    """

    dataset: Dataset
    names: Collection[str]
    tested: Collection[str]
    store: PreprocessCache
    faults: list[Fault] = field(default_factory=list)
    _known: dict[str, tuple[torch.Tensor, str]] = field(default_factory=dict)

    def know(self, case: str, target: Preprocessed, what: str) -> None:
        """Remember a scan that must not come again."""
        self._known[case] = target.image, what

    def take(self, case: Case, log: Log) -> bool:
        """Whether a scan is new; one that cannot be used is a fault."""
        try:
            target = self.store.get(case.without_label())
        except DataError as error:
            self.faults += [
                replace(fault, case=fault.case or case.id, field=f"unlabelled: {fault.field}") for fault in error.faults
            ]
            return False
        twin = self._twin(target.image)
        if twin is not None and not twin[1]:
            log(f"note: {case.id} is left out, as it is the same scan as {twin[0]}")
            return False
        if (fault := self._fault(case, target, twin)) is not None:
            self.faults.append(fault)
            return False
        self.know(case.id, target, "")
        return True

    def _fault(self, case: Case, target: Preprocessed, twin: tuple[str, str] | None) -> Fault | None:
        if len(target.image) != len(self.names):
            expected = f"{len(self.names)} as the labelled cases have ({', '.join(self.names)})"
            remedy = "give scans with the same images, or choose some by data.channels"
            return Fault(case.id, "unlabelled: channels", expected, str(len(target.image)), remedy)
        if float(target.image.min()) == float(target.image.max()):
            remedy = "leave it out, or export it again"
            return Fault(
                case.id, "unlabelled: image", "different intensities in the field of view", "one value everywhere", remedy
            )
        if twin is not None:
            found = f"the voxels of {twin[0]}, {twin[1]}"
            return Fault(case.id, "unlabelled: image", "a scan that is no labelled case", found, "leave it out")
        if case.patient != case.id and case.patient in self.tested:
            expected = "scans of patients who are not tested"
            return Fault(case.id, "unlabelled: patient", expected, f"{case.patient}, who is", "leave this patient's scans out")
        return None

    def _twin(self, image: torch.Tensor) -> tuple[str, str] | None:
        """The scan with the same voxels, and what it is."""
        few = image.flatten()[::SAMPLE]
        for case, (other, what) in self._known.items():
            if other.shape != image.shape or not bool(((other.flatten()[::SAMPLE] - few).abs() <= SAME).all()):
                continue
            if bool(((other - image).abs() <= SAME).all()):
                return case, what
        return None
