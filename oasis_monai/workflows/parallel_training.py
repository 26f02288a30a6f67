"""Train the networks of folds side by side, each in a process of its own. What they make goes to the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oasis_monai.settings import Settings
from oasis_monai.training.tracking import Tracking
from oasis_monai.utils.cluster import Cluster, run_jobs
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.prepare import Dataset, Log, find_and_check, prepare, split_of
from oasis_monai.workflows.self_trained_folds import models_for
from oasis_monai.workflows.unlabelled_scans import with_unlabelled

NEEDED = ("monai.networks.nets", "pandas", "oasis_monai.workflows.crossval")
"""What trainings and cross-validations import while they run; it takes seconds."""


def train_in_parallel(
    jobs: Sequence[tuple[Settings, int, str, Tracking | None]], workers: int, log: Log, cluster: Cluster | None = None
) -> None:
    """Train networks in parallel: (settings, fold, network, where to record it) each. The trained networks go to the cache."""
    from tqdm import tqdm

    named = [
        (f"{_named(settings, fold)}, {network}", (quiet(settings), fold, network, tracking))
        for settings, fold, network, tracking in jobs
    ]
    look = "{desc}: {n_fmt} of {total_fmt} networks |{bar}| {elapsed} gone, {remaining} left"
    progress = any(settings.progress for settings, *_ in jobs)
    with tqdm(total=len(named), desc="train", disable=not progress, leave=False, bar_format=look) as bar:

        def ended(name: str, minutes: float) -> None:
            bar.clear()
            log(f"trained {name}: {minutes:.1f} min")
            bar.update()

        run_jobs(_train, named, workers, ended, NEEDED, cluster)


def _named(settings: Settings, fold: int) -> str:
    """A fold for people; how many there are only folds drawn at random know without the data."""
    return f"fold {fold + 1}" + (f" of {settings.k}" if settings.folds in ("patient", "slice") else "")


def quiet(settings: Settings) -> dict[str, Any]:
    """Plain settings of a process beside others: without a progress bar, and without processes of its own."""
    return settings.to_json() | {"progress": False, "workers": 1}


def _train(values: dict[str, Any], fold: int, network: str, tracking: Tracking | None) -> None:
    _, models = folds_of(values, tracking)
    models.train(models.split.folds[fold], network)


def folds_of(values: Mapping[str, Any], tracking: Tracking | None = None) -> tuple[Dataset, FoldModels]:
    """What a worker trains folds with, or segments with: the data set and the models of the folds.

    Args:
        values: plain settings.
        tracking: where trainings are recorded.
    """
    from oasis_monai.settings import build

    settings = build(values)
    cache = Path(settings.cache)
    dataset = with_unlabelled(settings, prepare(settings, find_and_check(settings, cache, silent), cache, silent), cache, silent)
    return dataset, models_for(settings, dataset, split_of(settings, dataset), cache, silent, tracking)


def silent(_: str) -> None:
    """Discard a message: only the parent process logs."""
