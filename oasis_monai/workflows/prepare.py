"""Prepare a data set for training: find, check, preprocess and embed its cases, and split them into folds.

Each step is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from oasis_monai.atlases.library import AtlasLibrary, build_library
from oasis_monai.data.folds import Split, by_patient, limit_training, make_split, several_cases
from oasis_monai.data.found import FoundData, find_data, is_complete
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Preprocessed
from oasis_monai.segmentation.methods import needs_alignment, needs_atlases
from oasis_monai.settings import Settings
from oasis_monai.transforms.labels import ignored, structures
from oasis_monai.transforms.preprocessing import PreprocessCache
from oasis_monai.utils.device import resolve_device
from oasis_monai.utils.errors import ConfigError, DataError, Fault, with_case_in_errors
from oasis_monai.utils.files import digest, write_json

ONE_CHANNEL = ("image",)
"""The name of the only channel where nobody names it."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """A data set ready for atlas work.

    Args:
        cases: all cases, by id.
        targets: the preprocessed cases **without labels**: what ``segment`` may see.
        library: every image of every case as an atlas, with labels and features.
        content: case id -> digest of its files.
        scans: case id -> digest of its image's files alone.
        embedding: what the features are of, see :class:`oasis_monai.atlases.features.Embedder`.
        pool: scans without labels to train on with, by id, see :mod:`.unlabelled_scans`.
        pool_scans: id -> digest of the scan's files, of the pool.
    """

    cases: dict[str, Case]
    targets: dict[str, Preprocessed]
    library: AtlasLibrary
    content: dict[str, str]
    scans: dict[str, str]
    embedding: str
    pool: Mapping[str, Case] = field(default_factory=dict)
    pool_scans: Mapping[str, str] = field(default_factory=dict)

    @property
    def patients(self) -> dict[str, str]:
        """Case id -> the person it is of."""
        return {case.id: case.patient for case in self.cases.values()}

    def identity(self, cases: Iterable[str] | None = None) -> dict[str, Any]:
        """What training on cases (None: all, and the pool) depends on: their content, and which are of one person where several
        are. The names of patients do not count, so a data set with one case each is what it was before it named them."""
        chosen = list(self.cases if cases is None else cases)
        groups = several_cases(chosen, self.patients)
        found: dict[str, Any] = {case: self.content[case] for case in chosen}
        found |= {"cases of one patient": groups} if groups else {}
        return found | ({"scans without labels": dict(self.pool_scans)} if cases is None and self.pool_scans else {})

    @cached_property
    def no_atlases(self) -> frozenset[str]:
        """Cases of volumes without any structure on the working grid: they teach the networks, but have nothing to fuse. Slices
        without one stay atlases, as the paper has them."""
        if self.library.spatial_dims == 2:
            return frozenset()
        pairs = zip(self.library.cases, self.library.labels, strict=True)
        return frozenset(case for case, label in pairs if not structures(label).any())

    @cached_property
    def unlabelled(self) -> frozenset[int]:
        """Rows of the library in which every voxel is ignored: they are no atlases and teach nothing."""
        return frozenset(row for row, label in enumerate(self.library.labels) if bool(ignored(label).all()))

    def rows(self, case: str) -> torch.Tensor:
        """Rows of the library that are this case's, in slice order."""
        return torch.tensor(self._rows.get(case, []), dtype=torch.int64)

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, case in enumerate(self.library.cases):
            found.setdefault(case, []).append(row)
        return found


def find_and_check(settings: Settings, cache: Path | None, log: Log, part: str = "") -> list[Case]:
    """Find the cases of the data set and check them: all errors are raised together, warnings are logged.

    A data set without errors is not checked again while its files stay the same.

    Args:
        part: ``train``, ``test`` or ``all``, see :func:`oasis_monai.data.found.find_data`; empty for what the folds deal.
    """
    from oasis_monai.workflows.check import check_cases

    data = settings.data
    cases, unpaired = find_selected_cases(data, part or part_to_deal(settings.folds))
    stamp = digest(
        file_stamps(cases)
        + [list(data.label_values)]
        + [list(case.background) for case in cases if case.background]
        + several_cases([case.id for case in cases], {case.id: case.patient for case in cases})
        + ([] if data.ignore is None else [data.ignore])
        + [list(case.take) for case in cases if case.take]
        + [list(case.names) for case in cases if case.names]
        + [list(case.structures) for case in cases if case.structures]
    )
    checked = cache / "checked" / f"{stamp}.json" if cache else None
    for fault in unpaired:  # at every run: unpaired files are not part of the stamp
        if fault.severity != "error":
            log(f"warning: {fault}")
    if checked is None or not checked.exists() or any(fault.severity == "error" for fault in unpaired):
        found = check_cases(cases, data.label_values, ignore=data.ignore, structures=data.shared)
        faults = unpaired + found
        errors = [f for f in faults if f.severity == "error"]
        for fault in found:
            if fault.severity != "error":
                log(f"warning: {fault}")
        if errors:
            raise DataError(errors)
        if checked:
            write_json(checked, {"faults": [str(f) for f in faults]})
    return cases


def part_to_deal(folds: str) -> str:
    """The part of a data set that folds are made of: without what it keeps for a test, unless it says the folds itself."""
    return "all" if folds == "file" else "train"


def find_selected_cases(data: DataSettings, part: str = "train") -> tuple[list[Case], list[Fault]]:
    """The cases of a data set, cut to ``data.include`` where that names any, and what is wrong with how their files lie there.

    Raises:
        DataError: the folder is absent, or ``data.include`` names what is not there.
    """
    found = find_data(data, part=part)
    return found.cases, found.faults


def complete_data(data: DataSettings, cache: Path | None, part: str = "train", channels: Sequence[str] = ()) -> FoundData:
    """:func:`oasis_monai.data.found.find_data`, of a data set with structures.

    Raises:
        DataError: also where none are named or found.
    """
    found = find_data(data, cache, part, channels)
    if not found.data.labels:
        raise DataError([fault for fault in found.faults if fault.severity == "error"] or [NO_LABELS])
    return found


def with_found_data(settings: Settings, cache: Path | None, log: Log) -> Settings:
    """Settings whose ``data`` is complete: what they leave empty is what the data set's own files say. Says what was recognised.

    Raises:
        DataError, ConfigError: see :func:`oasis_monai.data.found.find_data`; no structures are found.
    """
    if is_complete(settings.data):
        return settings
    found = complete_data(settings.data, cache, part_to_deal(settings.folds))
    for line in found.said:
        log(line)
    return replace(settings, data=found.data)


NO_LABELS = Fault("", "data.labels", "structures to segment", "none", "correct data.root, or add data.labels={NAME: VALUE}")


def channel_names(settings: Settings, count: int) -> list[str]:
    """The names of the channels of a data set of ``count``, in order: those chosen by ``data.channels``, those that the data set
    says, or numbers."""
    from oasis_monai.data.cases import survey

    names = list(settings.data.channels)
    if not names and count > 1:
        names = list(survey(settings.data.root, settings.data.layout).channels)
    if len(names) == count:
        return names
    return list(ONE_CHANNEL) if count == 1 else [f"channel {number}" for number in range(1, count + 1)]


def file_stamps(cases: Sequence[Case]) -> list[list[str | int]]:
    """Path, size and time of every file of the cases: while these stay, so do the scans."""
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for case in cases for f in _files(case)]


def _files(case: Case) -> list[Path]:
    from oasis_monai.data.formats.dispatch import data_files

    files: list[Path] = []
    for source in (*case.sources, *((label,) for label in case.label_files)):
        try:
            files += data_files(source if len(source) > 1 else source[0])
        except DataError:  # the check that follows reports it with all other faults
            files += source
    return [file for file in files if file.exists()]


def prepare(settings: Settings, cases: list[Case], cache: Path | None, log: Log) -> Dataset:
    """Preprocess and embed all cases (from the cache where it holds them)."""
    from oasis_monai.atlases.features import embedder

    data = settings.data
    store = PreprocessCache(cache / "preprocessed" if cache else None, settings.preprocessing, data.label_values, data.ignore)
    embed = embedder(settings.features.name, settings.features.weights, resolve_device(settings.device))
    if cache:
        embed = replace(embed, cache=cache / "features")
    items = []
    for case in cases:
        with with_case_in_errors(case.id):
            items.append(store.get(case))
    for fault in store.faults():
        log(f"warning: {fault}")
    library = build_library(items, settings.spatial_dims, embed, data.classes, {c.id: c.patient for c in cases})
    library = replace(library, structures=data.members)
    targets = {item.case: item.without_label() for item in items}
    scans = {c.id: store.image_content(c) for c in cases}
    labels = {c.id: [*map(store.content, c.label_files), *c.names, *c.structures] for c in cases}
    content = {c.id: digest([scans[c.id], *labels[c.id]]) for c in cases}
    return Dataset({c.id: c for c in cases}, targets, library, content, scans, embed.key)


def check_pairs(settings: Settings, split: Split, no_atlases: frozenset[str] = frozenset()) -> None:
    """Refuse folds with too few training patients (slices, under slice folds) to form a pair for a registration network.

    Args:
        no_atlases: cases that are never aligned, see :attr:`Dataset.no_atlases`.

    Raises:
        ConfigError: naming how many there are.
    """
    what = "patients" if split.honest else "slices"
    fewest = min(
        len(by_patient(fold.train.keys() - no_atlases, split.patients)) if split.honest else sum(map(len, fold.train.values()))
        for fold in split.folds
    )
    if needs_alignment(settings.methods) and fewest < 2:
        raise ConfigError("data", f"at least two training {what} to form pairs", f"{fewest}", "add cases")


def split_of(settings: Settings, dataset: Dataset) -> Split:
    """The folds of a run, their training side cut to ``train_cases`` patients where that is set.

    Raises:
        ConfigError: there are fewer atlases than n, fewer cases than folds, or no pairs to train the STM with. This is
            checked before training.
    """
    counts = {case: int((dataset.rows(case)).numel()) for case in dataset.targets}
    cases = dataset.cases.values()
    split = make_split(counts, settings.k, settings.seed, settings.folds, settings.spatial_dims, cases)
    split.choose(settings.fold)
    if settings.train_cases is not None:
        split = limit_training(split, settings.train_cases)
    available = min(
        sum(len(images) for case, images in fold.train.items() if case not in dataset.no_atlases) for fold in split.folds
    )
    if needs_atlases(settings.methods) and max(settings.n) > available:
        raise ConfigError("n", f"1 to {available}, the atlases of the smallest fold", list(settings.n), "lower n or add cases")
    check_pairs(settings, split, dataset.no_atlases)
    if settings.uses_joint_model and settings.joint.atlases:
        sizes = [
            [sum(len(fold.train[case]) for case in group) for group in by_patient(fold.train, split.patients)]
            for fold in split.folds
        ]
        others = min(sum(own) - (max(own) if split.honest else 1) for own in sizes)  # without those of the slice's own patient
        if settings.joint.atlases > others:
            expected = f"0, as a fold has {others} atlases for a slice"
            raise ConfigError("joint.atlases", expected, settings.joint.atlases, "add cases")
    return split
