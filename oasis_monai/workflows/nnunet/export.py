"""Write what nnU-Net v2 reads: a data set, its folds as ``splits_final.json``, and the results of a cross-validation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from oasis_monai.data.folds import Split, check_no_leak, limit_training, make_split
from oasis_monai.data.layouts.dataset_json import NAME, SPLITS
from oasis_monai.data.types import Case
from oasis_monai.settings import Settings, build
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import atomic_path, write_text
from oasis_monai.workflows.nnunet.dataset import (
    ENDING,
    NnunetLabels,
    as_json,
    consecutive_labels,
    name_dataset,
    own_labels,
    write_raw,
)
from oasis_monai.workflows.nnunet.results import (
    Found,
    configuration,
    find_results,
    model_folder,
    write_fold,
    write_plans,
)
from oasis_monai.workflows.prepare import Log, find_and_check, with_found_data

FOLDERS = RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
"""nnU-Net's folders, and the environment variables that name them."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        name: of the data set, ``DatasetXXX_NAME``.
        raw: its scans and labels; those of the user where they were nnU-Net's already.
        splits: ``splits_final.json``.
        models: a folder for each method and number of atlases, with a folder for each fold.
        notes: what the reader should know.
    """

    name: str
    raw: Path
    splits: Path
    models: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def export_nnunet(
    output: Path,
    settings: Settings | None = None,
    results: Path | None = None,
    dataset: str | None = None,
    methods: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
    overwrite: bool = False,
    log: Log = print,
) -> Exported:
    """Write a data set, its folds and the results of a cross-validation as nnU-Net v2 has them.

    A data set that is nnU-Net's already (in a folder ``DatasetXXX_NAME``) is left where it is; any other is converted: scans and
    labels as ``.nii.gz`` on their own grids, labels 1, 2, ... without a gap, structures that share voxels as regions, voxels that
    nobody labelled as ``ignore``. All scans of a patient are in one fold, as in :func:`oasis_monai.data.folds.make_split`.

    Args:
        output: folder for ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results``.
        settings: the data set and how its folds are made. With ``results`` only ``data.root`` counts, if the data has moved.
        results: the folder of a finished cross-validation, or of a sweep over its folds, which kept its segmentations; its data
            set and folds are exported with them. None: no results.
        dataset: ``DatasetXXX_NAME``; None: as its folder is called, else ``data.name`` with the next free number from 501.
        methods, n: of the results; None for all.
        overwrite: replace another data set, other folds or other results of that name.

    Raises:
        ConfigError: there is something else of that name, the folds are of slices, or the run did not keep its segmentations.
        DataError: a fault of the data; the results are not of this data set.

    Examples:
        >>> from pathlib import Path
        >>> from oasis_monai.workflows.nnunet import export_nnunet
        >>> made = export_nnunet(Path("nnunet"), results=Path("outputs/runs/hippocampus"))
        >>> made.name, made.models[0].name
        ('Dataset501_hippocampus', 'OasisMonai__OASIS-joint__3d_n6')
    """
    output = output.resolve()  # the summaries name their files
    runs = [] if results is None else _runs(results)
    if runs:
        settings = _settings_of(runs[0], settings)
    assert settings is not None
    _refuse_slices(settings.folds)
    cache = Path(settings.cache)
    settings = with_found_data(settings, cache, log)
    cases = find_and_check(settings, cache, log)
    split = _split_of_runs(runs, cases) if runs else _split(settings, cases)
    found = find_results(runs, methods, n) if runs else []
    own = own_labels(settings.data, cases)
    if own is not None and dataset in (None, own[0].name):
        raw, labels, ending = own
        name, notes = raw.name, [f"{raw} is nnU-Net's already: it is left as it is"]
    else:
        labels, ending = consecutive_labels(settings.data), ENDING
        name = name_dataset(dataset, settings.data, output / RAW)
        raw, own, notes = output / RAW / name, None, _lost(labels)
    preprocessed = output / PREPROCESSED / name
    splits = _splits_json(split)
    new_folds = _are_new(preprocessed / SPLITS, splits, overwrite)
    models = _models(output / RESULTS / name, found, settings)
    _refuse_other_results(models, overwrite)
    if own is None:
        write_raw(raw, settings, labels, cases, as_json(splits), overwrite)
    if new_folds:
        write_text(preprocessed / SPLITS, as_json(splits))
    _write_results(models, name, raw, preprocessed, {case.id: case for case in cases}, settings, labels, ending)
    return Exported(name, raw, preprocessed / SPLITS, tuple(models), tuple(notes))


def _runs(folder: Path) -> list[Path]:
    """The folder of a cross-validation, or those of the jobs of a sweep."""
    if (folder / "split.json").is_file():
        found = [folder]
    else:
        found = sorted(path.parent for path in folder.glob("*/split.json") if (path.parent / "scores.csv").is_file())
    if not found or not all((one / name).is_file() for one in found for name in ("scores.csv", "run.json")):
        remedy = "give the folder of a finished crossval (hydra.run.dir), or of a sweep"
        raise ConfigError("results", "a folder with split.json, scores.csv and run.json", str(folder), remedy)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        found = type(content).__name__
    except ValueError as error:
        found = str(error)
    raise ConfigError("results", "JSON as crossval writes it", f"{path}: {found}", "repeat the run")


def _settings_of(run: Path, given: Settings | None) -> Settings:
    """The settings of a run; where the data set lies now, if that is given."""
    settings = build(_read(run / "run.json").get("settings") or {})
    if given is None:
        return settings
    root = given.data.root or settings.data.root
    return replace(settings, data=replace(settings.data, root=root), cache=given.cache, progress=given.progress)


def _refuse_slices(protocol: str) -> None:
    if protocol == "slice":
        remedy = "cross-validate with folds=patient"
        raise ConfigError("folds", "patient, centre or file: nnU-Net's folds are of whole scans", protocol, remedy)


def _split(settings: Settings, cases: Sequence[Case]) -> Split:
    """The folds that a cross-validation with these settings makes."""
    split = make_split({case.id: 1 for case in cases}, settings.k, settings.seed, settings.folds, cases=cases)
    return split if settings.train_cases is None else limit_training(split, settings.train_cases)


def _split_of_runs(runs: Sequence[Path], cases: Sequence[Case]) -> Split:
    """The folds of a run, or those that all jobs of a sweep have."""
    told = [_read(run / "split.json") for run in runs]
    if other := next((run for run, one in zip(runs, told, strict=True) if one != told[0]), None):
        remedy = "give the folder of one of the jobs"
        raise ConfigError("results", "jobs of the same folds", f"others in {runs[0]} and {other}", remedy)
    try:
        split = Split.from_json(told[0])
    except (KeyError, TypeError, AttributeError):
        raise ConfigError("results", "folds as crossval writes them", f"{runs[0] / 'split.json'}", "repeat the run") from None
    check_no_leak(split)
    there = {case.id for case in cases}
    if absent := sorted({case for fold in split.folds for case in (*fold.train, *fold.test)} - there):
        told_absent = f"{len(absent)} are not there, such as {absent[0]}"
        raise ConfigError("data.root", "the scans of this run", told_absent, "give the folder where they lie now by data.root")
    return split


def _splits_json(split: Split) -> list[dict[str, list[str]]]:
    return [{"train": sorted(fold.train), "val": sorted(fold.test)} for fold in split.folds]


def _lost(labels: NnunetLabels) -> list[str]:
    """What nnU-Net cannot do with these structures, in words."""
    if not labels.lost:
        return []
    which = ", ".join(labels.lost)
    return [
        f"warning: nnU-Net writes one region over the other, so its own results cannot have voxels of {which}: regions that share"
        " voxels must contain one another there"
    ]


def _are_new(path: Path, splits: Sequence[dict[str, list[str]]], overwrite: bool) -> bool:
    """Whether a ``splits_final.json`` is to be written: the same folds in another order of their cases stay.

    Raises:
        ConfigError: there are others.
    """
    if not path.is_file():
        return True
    try:
        there = [{side: set(map(str, one[side])) for side in ("train", "val")} for one in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError):
        there = []
    if there == [{side: set(own) for side, own in one.items()} for one in splits]:
        return False
    if not overwrite:
        remedy = "cross-validate with folds=file and this file beside dataset.json, or add overwrite=true to replace it"
        raise ConfigError("output", "no other folds of that data set", str(path), remedy)
    return True


Models = dict[Path, list[Found]]
"""The folder of a method and a number of atlases, and its results."""


def _models(results: Path, found: Sequence[Found], settings: Settings) -> Models:
    models: Models = {}
    for one in found:
        models.setdefault(model_folder(results, one, settings.spatial_dims), []).append(one)
    return models


def _refuse_other_results(models: Models, overwrite: bool) -> None:
    for folder, found in models.items():
        for fold in sorted({one.fold for one in found}):
            if (there := folder / f"fold_{fold}").exists() and not overwrite:
                remedy = "give another output=DIR, or add overwrite=true to replace them"
                raise ConfigError("output", "a folder without results of that name", str(there), remedy)


def _write_results(
    models: Models,
    name: str,
    raw: Path,
    preprocessed: Path,
    cases: dict[str, Case],
    settings: Settings,
    labels: NnunetLabels,
    ending: str,
) -> None:
    """Write the models' folders, their plans, and the references where nnU-Net looks for them."""
    references = preprocessed / "gt_segmentations"
    for path in sorted((raw / "labelsTr").glob(f"*{ending}")) if models else ():
        with atomic_path(references / path.name) as temporary:
            shutil.copyfile(path, temporary)
    described = (raw / NAME).read_text(encoding="utf-8-sig") if models else ""
    for folder, found in models.items():
        first = found[0]
        plans = write_plans(
            preprocessed / f"{first.plans}.json", name, first.plans, [configuration(settings.spatial_dims, first.n)]
        )
        write_text(folder / "plans.json", as_json(plans))
        write_text(folder / NAME, described)
        ordered = sorted(found, key=lambda one: one.fold)
        for fold, group in groupby(ordered, key=lambda one: one.fold):
            write_fold(folder / f"fold_{fold}", list(group), cases, settings.data, labels, ending, raw / "labelsTr")
