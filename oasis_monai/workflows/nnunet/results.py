"""The results of a cross-validation as those of a model of nnU-Net: label files by folds, ``summary.json`` and plans.

What is written, and where, is what ``nnUNetv2_evaluate_folder``, ``nnUNetv2_accumulate_crossval_results`` and
``nnUNetv2_find_best_configuration`` read (nnunetv2/evaluation of version 2.8).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.formats.header import geometry_difference
from oasis_monai.data.io import read_volume
from oasis_monai.data.labels import class_indices, read_whole
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Geometry
from oasis_monai.evaluation.scores import method_name, read_scores
from oasis_monai.utils.errors import ConfigError, DataError, Fault, with_case_in_errors
from oasis_monai.utils.files import atomic_folder, write_text
from oasis_monai.workflows.nnunet.dataset import OURS, NnunetLabels, as_json

TRAINER = "OasisMonai"
"""In the place of nnU-Net's trainer."""
SUMMARY = "summary.json"
READER = "SimpleITKIO"
ROUNDING = 1e-9  # of a Dice that is computed twice


@dataclass(frozen=True)
class Found:
    """A result of a cross-validation: a case by a method with a number of atlases, and its file."""

    case: str
    method: str
    n: int
    fold: int
    path: Path
    dsc: Mapping[str, float]

    @property
    def plans(self) -> str:
        """The name in the place of nnU-Net's plans: the method."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.method).strip("_")


def find_results(runs: Sequence[Path], methods: Sequence[str] | None = None, n: Sequence[int] | None = None) -> list[Found]:
    """The label files of a cross-validation, of one run or of the jobs of a sweep.

    Args:
        runs: folders with ``scores.csv``.
        methods, n: those to take; None for all.

    Raises:
        ConfigError: label files were not kept, two runs have results of the same name, or there are none.
    """
    found: dict[tuple[str, str, int], Found] = {}
    absent: list[Path] = []
    for run in runs:
        scores = read_scores(run / "scores.csv")
        whole = scores[scores["region"] == "whole"]
        for (case, method, number), rows in whole.groupby(["case", "method", "n"], sort=True):
            if (methods and method not in methods) or (n and number and number not in n):
                continue
            path = run / "segmentations" / f"{case}__{method_name(method, int(number))}.nii.gz"
            dsc = dict(zip(rows["label"], rows["dsc"], strict=True))
            one = Found(str(case), str(method), int(number), int(rows["fold"].iloc[0]), path, dsc)
            if found.setdefault((one.case, one.method, one.n), one) is not one:
                told = f"{one.case} by {method_name(one.method, one.n)} in {found[one.case, one.method, one.n].path} and {path}"
                raise ConfigError("results", "one result of each case and method", told, "give the folder of one of the jobs")
            absent += [] if path.is_file() else [path]
    if absent:
        told = f"{len(absent)} of {len(found)} label files are not there, such as {absent[0]}"
        remedy = "start the same cross-validation again with save_segmentations=true hydra.run.dir=RUN; what is trained is kept"
        raise ConfigError("results", "a run that kept its segmentations", told, remedy)
    if not found:
        raise ConfigError("results", "a run with results of these methods and n", ", ".join(map(str, runs)), "leave them out")
    return list(found.values())


def configuration(spatial_dims: int, n: int) -> str:
    """In the place of nnU-Net's configuration: ``3d_n6``, or ``3d`` of a method without atlases."""
    return f"{spatial_dims}d_n{n}" if n else f"{spatial_dims}d"


def model_folder(results: Path, found: Found, spatial_dims: int) -> Path:
    """``OasisMonai__METHOD__CONFIGURATION`` in ``nnUNet_results/DatasetXXX_NAME``."""
    return results / f"{TRAINER}__{found.plans}__{configuration(spatial_dims, found.n)}"


def plans_json(dataset: str, plans: str, configurations: Iterable[str]) -> dict[str, Any]:
    """What nnU-Net's evaluation reads of a model's plans: how files and labels are read, and the names.

    It is no plan that nnU-Net could train or predict by; its architecture says so.
    """
    architecture = {"network_class_name": "oasis_monai", "arch_kwargs": {}, "_kw_requires_import": []}
    return {
        "dataset_name": dataset,
        "plans_name": plans,
        "image_reader_writer": READER,
        "label_manager": "LabelManager",
        "experiment_planner_used": TRAINER,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: {"architecture": architecture} for name in sorted(set(configurations))},
        OURS: {"note": "for nnU-Net's evaluation; the model itself is oasis-monai's"},
    }


def write_plans(path: Path, dataset: str, plans: str, configurations: Iterable[str]) -> dict[str, Any]:
    """Write ``nnUNet_preprocessed/DatasetXXX_NAME/METHOD.json``, with the configurations that stand there already."""
    before: list[str] = []
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before = list(content["configurations"]) if OURS in content else []
        except (OSError, ValueError, KeyError, TypeError):
            before = []
    content = plans_json(dataset, plans, [*before, *configurations])
    write_text(path, as_json(content))
    return content


def counts(reference: np.ndarray, result: np.ndarray, values: Sequence[int], ignore: int | None) -> dict[str, Any]:
    """nnU-Net's metrics of one structure: voxels, Dice and IoU; both are NaN where it is in neither of the two.

    Args:
        reference, result: (x, y, z) values of the files.
        values: those of the structure.
        ignore: value in the reference of voxels that do not count.
    """
    counted = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    truth, made = (np.isin(label, list(values)) & counted for label in (reference, result))
    tp, n_ref, n_pred = int((truth & made).sum()), int(truth.sum()), int(made.sum())
    fp, fn = n_pred - tp, n_ref - tp
    shares = (
        {"Dice": 2 * tp / (n_ref + n_pred), "IoU": tp / (tp + fp + fn)}
        if tp + fp + fn
        else dict.fromkeys(("Dice", "IoU"), math.nan)
    )
    return shares | {"FP": fp, "TP": tp, "FN": fn, "TN": int(counted.sum()) - tp - fp - fn, "n_pred": n_pred, "n_ref": n_ref}


def summary_json(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``summary.json`` of a fold: every case, the mean of each structure over its cases, and their mean.

    Args:
        cases: ``metric_per_case``.
    """
    keys, names = list(cases[0]["metrics"]), list(next(iter(cases[0]["metrics"].values())))
    mean = {key: {name: _mean(case["metrics"][key][name] for case in cases) for name in names} for key in keys}
    foreground = {name: float(np.mean([mean[key][name] for key in keys])) for name in names}
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": list(cases)}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _key(values: Sequence[int]) -> str:
    """How nnU-Net writes a label or a region as a key."""
    return str(values[0]) if len(values) == 1 else str(tuple(values))


def write_fold(
    folder: Path,
    found: Sequence[Found],
    cases: Mapping[str, Case],
    data: DataSettings,
    labels: NnunetLabels,
    ending: str,
    gt: Path,
) -> None:
    """Write ``fold_K/validation``: the label of every case that the fold tests, on its scan's grid, and ``summary.json``.

    Args:
        folder: the fold's; its ``validation`` is written whole or not at all, and replaces an older one.
        found: the fold's results by one method.
        labels: the values of the files to be written.
        ending: that of the files.
        gt: the folder of the references, for the summary.

    Raises:
        DataError: a result is not of this scan, or has another Dice than in ``scores.csv``.
    """
    validation = folder / "validation"
    rows = []
    with atomic_folder(validation) as made:
        for one in sorted(found, key=lambda one: one.case):
            with with_case_in_errors(one.case):
                reference, indices, geometry = _pair(one, cases[one.case], data)
                truth, result = labels.in_file(reference), labels.in_file(indices)
                metrics = {name: counts(truth, result, own, labels.ignore) for name, own in labels.scored.items()}
                _check_dice(one, metrics)
            write_array(made / f"{one.case}{ending}", result, geometry)
            rows.append(
                {
                    "metrics": {_key(own): metrics[name] for name, own in labels.scored.items()},
                    "prediction_file": str(validation / f"{one.case}{ending}"),
                    "reference_file": str(gt / f"{one.case}{ending}"),
                }
            )
        write_text(made / SUMMARY, as_json(summary_json(rows)))


def _pair(one: Found, case: Case, data: DataSettings) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """(x, y, z) class indices of the reference (:data:`.IGNORE` too) and of a result, and the scan's grid."""
    volume = read_volume(case, data.label_values, data.ignore)
    assert volume.label is not None
    values, header = read_whole(one.path)
    if difference := geometry_difference(header.geometry, volume.geometry):
        remedy = "give the data set of this run by data.root"
        raise DataError(Fault(one.case, one.path.name, "the grid of the scan", difference, remedy))
    indices = class_indices(one.path, values, data.label_values)
    return volume.label[0].numpy(), indices, volume.geometry


def _check_dice(one: Found, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a result whose Dice is not that of the run's table: its scans, labels or files are others now."""
    for name, own in metrics.items():
        told, again = one.dsc.get(name, math.nan), own["Dice"]
        if not (math.isnan(told) and math.isnan(again)) and not abs(told - again) <= ROUNDING:
            remedy = "give the data set of this run by data.root, or repeat the run"
            raise DataError(
                Fault(one.case, f"{one.path.name} {name}", f"DSC {told:.4f} as in scores.csv", f"{again:.4f}", remedy)
            )
