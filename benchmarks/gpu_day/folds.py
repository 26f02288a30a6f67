"""The last part: the cross-validation of the packed data set, in the minutes that are left."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_day.components import without_scipy
from benchmarks.gpu_day.work import Part, wait
from oasis_monai.atlases.features import embedder
from oasis_monai.data.folds import Fold
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.segmentation.result import Key
from oasis_monai.settings import Settings
from oasis_monai.training.tracking import mean_dice
from oasis_monai.utils.tensor_files import load_if_whole
from oasis_monai.workflows.fold_models import REGISTRATION, SLICES, VOLUME, FoldModels

OVERHEAD = 0.25
"""Part of a fold's time that is taken to go by outside training, before one fold has shown it."""
SPARE = 0.9
"""Part of the time that is left which is planned."""
LEAST = 1.0
"""Seconds of training below which a fold is left out."""


def cross_validate(part: Part) -> None:
    """Train the joint model of every fold, segment its test cases and score them on the working grid. Nothing of a test case is
    used in training, and its label only to score it."""
    folds = part.packed.split.folds
    beside, scores = None, list[dict[str, Any]]()
    for number, fold in enumerate(folds):
        share = SPARE * part.left / (len(folds) - number)
        seconds = min(part.options.fold_seconds, share * (1 - OVERHEAD) if beside is None else share - beside)
        if seconds < LEAST:
            part.note(f"No time was left for: fold {fold.index} and those after it.")
            break
        began = time.monotonic()
        row, found = train_and_score_fold(part, fold, seconds)
        scores += found
        beside = time.monotonic() - began - seconds
        part.add(row)
    if not scores:
        return
    for (method, n), values in _by_method(scores).items():
        told = f"mean {100 * statistics.fmean(values):.1f} %, lowest case {100 * min(values):.1f} %"
        spread = f", sd {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        part.note(f"{method}{f', n = {n}' if n else ''}: {told}{spread} ({len(values)} cases).")
    part.told["scores"] = [{**one, "dice": {f"{m} {n}": value for (m, n), value in one["dice"].items()}} for one in scores]
    part.note(
        "Dice of the structures' mean, on the working grid; moving the grid and other views need the scans, and are left out."
    )


def train_and_score_fold(part: Part, fold: Fold, seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row of the table, and the Dice of each of the fold's test cases."""
    with tempfile.TemporaryDirectory() as cache:
        settings = _settings(part, seconds)
        models = FoldModels(settings, part.packed.dataset, part.packed.split, Path(cache), lambda _: None)
        began = time.monotonic()
        segmenter = models.segmenter(fold)
        wait(part.device)
        trained = time.monotonic()
        scores = []
        for case in sorted(fold.test):
            scores.append({"case": case, "fold": fold.index, "dice": _segmented(part, segmenter, settings, case)})
        ended = time.monotonic()
        steps = {name: _steps(models.folder(fold, name)) for name in (SLICES, VOLUME, REGISTRATION)}
    row: dict[str, Any] = {"fold": fold.index, "cases": len(scores), "s to a trained model": trained - began}
    row |= {f"steps, {name}": number for name, number in steps.items()}
    row["s a scan"] = (ended - trained) / len(scores)
    row |= {f"{method} {n or ''}".strip(): statistics.fmean(values) for (method, n), values in _by_method(scores).items()}
    return row, scores


def _settings(part: Part, seconds: float) -> Settings:
    settings = part.packed.settings
    training = replace(settings.training, minutes=seconds / 60, iterations=None, checkpoint_minutes=60.0)
    return replace(settings, training=training, device=part.device, workers=1)


def _segmented(part: Part, segmenter: Any, settings: Settings, case: str) -> dict[Key, float]:
    """The Dice of every method for a case."""
    dataset = part.packed.dataset
    (row,) = dataset.rows(case).tolist()
    scan = Scan(dataset.targets[case], None, dataset.library.features[row : row + 1])
    patient = dataset.cases[case].patient
    with without_scipy():
        made = segment_case(segmenter, scan, embedder("intensity"), settings.methods, settings.n, exclude_patient=patient)
    label, classes = dataset.library.labels[row, 0], settings.data.classes
    dice = {}
    for key, result in made.results.items():
        predicted = result.probability.argmax(0).to(torch.uint8).cpu()
        value = mean_dice([predicted], [label], classes, [case])
        if value is not None:
            dice[key] = value
    return dice


def _by_method(scores: list[dict[str, Any]]) -> dict[Key, list[float]]:
    keys = dict.fromkeys(key for one in scores for key in one["dice"])
    return {key: [one["dice"][key] for one in scores if key in one["dice"]] for key in keys}


def _steps(folder: Path) -> int | None:
    """The training steps of a network's checkpoint."""
    found = [stored[1] for file in folder.glob("*.safetensors") if (stored := load_if_whole(file)) and "step" in stored[1]]
    return int(found[0]["step"]) if found else None
