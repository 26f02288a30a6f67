"""What a run shows of its trainings: where they are recorded while they run, and their histories beside its results.

Networks are shared by all runs and lie in the cache under names that nobody reads. So a run has its own record of those that it
trains, and a copy of the history of every one that it uses, also of one that an earlier run has trained.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.folds import Fold
from oasis_monai.settings import Settings
from oasis_monai.training.tracking import HISTORIES, MLFLOW, NONE, Tracking, choose_kind
from oasis_monai.training.trainer import draw_rows, generator
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.run_record import flat

TRACKING = "tracking"
"""The folder of a run that has what is recorded of trainings while they run."""
HELD_OUT = 4
"""Most test cases of a fold that show how its training goes."""


def tracking_of(settings: Settings, folder: Path) -> Tracking | None:
    """How the trainings of a run or model in ``folder`` are recorded; None where they are not.

    Raises:
        ConfigError: the settings name a package that is not installed.
    """
    kind = choose_kind(settings.tracking)
    if kind == NONE:
        return None
    own = folder.resolve() / TRACKING
    if kind != MLFLOW:
        return Tracking(kind, own)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(settings.cache).resolve() / 'mlflow.db'}"
    params = {key: json.dumps(value) for key, value in flat(settings.to_json()).items()}
    return Tracking(kind, own, uri=uri, experiment=settings.data.name or "oasis-monai", params=params)


def tell_where(tracking: Tracking | None, log: Callable[[str], None]) -> None:
    """Say how to watch trainings that begin now.

    Raises:
        ConfigError: MLflow's store cannot be used.
    """
    if tracking is None:
        return
    tracking.prepare()
    if tracking.kind == MLFLOW:
        uri = tracking.uri
        log(f"watch: {uri}" if uri.startswith("http") else f"watch: mlflow ui --backend-store-uri {uri}")
    else:
        log(f"watch: tensorboard --logdir {tracking.folder}")


def fold_name(fold: Fold, folds: int, network: str) -> str:
    """The name of a network of a fold in a run's folder; where there is one fold, that of the network."""
    own = network.replace(" ", "_")
    return own if folds == 1 else f"fold{fold.index + 1}-{own}"


def held_out(library: AtlasLibrary, fold: Fold, seed: int, without: Collection[int] = ()) -> AtlasLibrary | None:
    """The images of up to :data:`HELD_OUT` test cases of a fold, the same for every network; None where a fold has none,
    or where structures share voxels: classes are then no structures, and the loss alone is shown.

    Args:
        library: of all cases.
        seed: says which cases.
        without: rows that have no label.
    """
    if library.structures:
        return None
    cases = sorted(fold.test)
    order = generator(seed, fold.index)
    chosen: dict[str, None] = {}
    while len(chosen) < min(HELD_OUT, len(cases)):
        chosen |= {cases[int(draw_rows(len(cases), 1, order))]: None}
    numbers = library.slices.clamp_min(0).tolist()  # a volume is image 0 of its case
    rows = [
        row
        for row, case in enumerate(library.cases)
        if case in chosen and row not in without and numbers[row] in set(fold.test[case])
    ]
    return library.subset(rows) if rows else None


def keep_histories(run: Path, found: Sequence[tuple[str, Path]]) -> None:
    """Copy the histories of networks into the folder of a run, in the place of those of an earlier one.

    Args:
        run: its folder; the copies are ``training/NAME.csv``.
        found: the name and the folder of each network. One of several parts has a history for each, in folders of their own.
    """
    shutil.rmtree(run / HISTORIES, ignore_errors=True)
    for name, folder in found:
        for path in sorted(folder.rglob("history.csv")):
            parts = path.parent.relative_to(folder).parts
            write_text(run / HISTORIES / f"{'-'.join(filter(None, [name, *parts]))}.csv", path.read_text(encoding="utf-8"))
