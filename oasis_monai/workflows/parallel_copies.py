"""Segment the corrupted copies of several folds side by side, each fold in a process of its own.

Copies take most of the time of a cross-validation whose networks are trained: doubtful ones are looked at in many views.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from oasis_monai.data.folds import Fold
from oasis_monai.segmentation.learned_fusion import LearnedFusion
from oasis_monai.segmentation.postprocessing import Choice
from oasis_monai.segmentation.result import Key
from oasis_monai.settings import Settings
from oasis_monai.utils.processes import run_parallel
from oasis_monai.utils.tensor_files import load_tensors, save_tensors
from oasis_monai.workflows.corrupted_copies import (
    Rows,
    corrupted_rows,
    methods_with_predicted_dice,
    num_corrupted_copies,
)
from oasis_monai.workflows.cross_fusion import CrossFusion
from oasis_monai.workflows.fold_models import OpenModels
from oasis_monai.workflows.parallel_training import NEEDED, folds_of, quiet
from oasis_monai.workflows.postprocessing import CrossPostprocessing

Choices = Mapping[Key, Choice]


def corrupted_rows_in_parallel(
    settings: Settings, folds: Sequence[Fold], fusion: CrossFusion, postprocessing: CrossPostprocessing
) -> Rows:
    """What :func:`oasis_monai.workflows.corrupted_copies.corrupted_rows` gives, ``settings.workers`` folds at a time.

    Args:
        folds: those that are scored; their models are in the cache.
        fusion, postprocessing: what the results of the other folds decided for each fold.

    Raises:
        OasisError: see :func:`oasis_monai.utils.processes.run_parallel`.
    """
    from tqdm import tqdm

    if not num_corrupted_copies(settings):
        return []
    keys = [(method, n) for method in methods_with_predicted_dice(settings) for n in (*settings.n, 0)]
    rows: Rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(folds), desc="corrupted copies", unit="fold", disable=not settings.progress, leave=False) as bar,
    ):
        files = {fold.index: Path(folder) / f"{fold.index}.safetensors" for fold in folds}
        jobs = [
            (
                f"corrupted copies of fold {fold.index + 1}",
                (
                    quiet(settings),
                    fold.index,
                    fusion.fusions(fold),
                    {key: postprocessing.choice(fold, key) for key in keys},
                    files[fold.index],
                ),
            )
            for fold in folds
        ]
        run_parallel(_write_rows, jobs, settings.workers, lambda name, minutes: bar.update(), NEEDED)
        for file in files.values():
            rows += _read_rows(file)
    return sorted(rows, key=lambda row: str(row[0]["case"]))


def _write_rows(values: dict[str, Any], index: int, fusions: dict[int, LearnedFusion], choices: Choices, file: Path) -> None:
    """The rows of one fold, into a file: a worker gives nothing back."""
    dataset, models = folds_of(values)
    settings, fold = models.settings, models.split.folds[index]
    decided = {(index, key): choice for key, choice in choices.items()}
    postprocessing = CrossPostprocessing(settings, dataset, models.split, [fold], _choices=decided)
    with closing(OpenModels(models)) as trained:
        trained.fusions = lambda _: fusions
        rows = corrupted_rows(settings, dataset, [fold], trained, models, postprocessing)
    told = [{key: value for key, value in row.items() if key != "dsc"} for row, _ in rows]
    dice = torch.tensor([row["dsc"] for row, _ in rows], dtype=torch.float64)  # JSON has no NaN
    save_tensors(file, {"dsc": dice} | {f"counts.{number}": counts for number, (_, counts) in enumerate(rows)}, {"rows": told})


def _read_rows(file: Path) -> Rows:
    tensors, meta = load_tensors(file)
    dice = tensors["dsc"].tolist()
    return [
        ({**row, "dsc": one}, tensors[f"counts.{number}"])
        for number, (row, one) in enumerate(zip(meta["rows"], dice, strict=True))
    ]
