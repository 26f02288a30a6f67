"""What the benchmarks with the fold models of a cross-validation share: options, settings, open folds, files of results."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command_line import command_parser
from oasis_monai.atlases.features import Embedder, embedder
from oasis_monai.data.folds import Fold, Split
from oasis_monai.data.io import read_volume
from oasis_monai.segmentation.agreement import overlaps
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.corrupted_copies import segment_labelled
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.plan import plan_settings
from oasis_monai.workflows.prepare import Dataset, find_and_check, prepare, split_of
from oasis_monai.workflows.self_trained_folds import models_for

ROOT = Path(__file__).resolve().parents[2]


def fold_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--output``, ``--n`` and the options of the cross-validation."""
    parser = command_parser(module, description)
    parser.add_argument("--output", type=Path, default=Path("docs/results/quality"), help="folder for the results")
    parser.add_argument("--n", type=int, default=6, help="atlases to fuse")
    words = "options of the cross-validation, such as experiment=accuracy data.root=PATH"
    parser.add_argument("overrides", nargs="+", metavar="OPTION", help=words)
    return parser


def settings_of(overrides: list[str], n: int) -> Settings:
    """The settings that the options give (of a study: those its arms start from), for OASIS-joint with n atlases."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert isinstance(config, dict)
    names = set(Settings.__dataclass_fields__)
    own = {**{str(k): v for k, v in config.items() if k in names}, "methods": ["OASIS-joint"], "n": n, "threads": 1}
    return plan_settings(own).settings


@dataclass(frozen=True)
class OpenFold:
    """A fold with all that is needed to segment its test cases.

    Args:
        models: trains or loads the networks of every fold.
        embed: gives the features of a scan.
    """

    dataset: Dataset
    split: Split
    fold: Fold
    models: FoldModels
    embed: Embedder

    @cached_property
    def segmenter(self) -> Segmenter:
        """The fold's networks with its atlases; trained where they are not in the cache."""
        return self.models.segmenter(self.fold)


def open_fold(settings: Settings, index: int) -> OpenFold:
    """Open a fold in a process of its own, which uses one core."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dataset, split = dealt(settings)
    models = models_for(settings, dataset, split, Path(settings.cache), print)
    embed = embedder(settings.features.name, settings.features.weights)
    return OpenFold(dataset, split, split.folds[index], models, embed)


def dealt(settings: Settings) -> tuple[Dataset, Split]:
    """The data set and its folds."""
    cache = Path(settings.cache)
    dataset = prepare(settings, find_and_check(settings, cache, print), cache, print)
    return dataset, split_of(settings, dataset)


def score_cases(one: OpenFold, segmenter: Segmenter, settings: Settings, cases: Sequence[str]) -> list[dict[str, Any]]:
    """Segment cases by the one method and n of the settings, each without atlases of its own patient; -> a row per structure:
    case, patient, label, Dice and agreement."""
    dataset, rows = one.dataset, list[dict[str, Any]]()
    for case in cases:
        volume = read_volume(dataset.cases[case], settings.data.label_values, settings.data.ignore)
        found, _, dice = segment_labelled(segmenter, volume, settings, one.embed, settings.methods)
        ((key, values),) = dice.items()
        agreement = found.results[key].agreement
        assert agreement is not None
        told = zip(settings.data.labels, values, overlaps(agreement).mean(1).tolist(), strict=True)
        about = {"case": case, "patient": dataset.patients[case]}
        rows += [{**about, "label": label, "dsc": dsc, "agreement": agrees} for label, dsc, agrees in told]
    return rows


def over_folds(
    settings: Settings, segment_fold: Callable[[Settings, int], list[dict[str, Any]]], folds: Sequence[int] = ()
) -> pd.DataFrame:
    """Run ``segment_fold(settings, fold)`` for every fold asked for, one process per core, and collect the rows.

    Args:
        folds: which; none: those of the settings.
    """
    # of centres there may be any number
    folds = folds or [fold.index for fold in dealt(settings)[1].choose(settings.fold)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        parts = list(pool.map(segment_fold, [settings] * len(folds), folds))
    return pd.DataFrame([row for part in parts for row in part])


def write_results(output: Path, name: str, rows: pd.DataFrame, table: str) -> None:
    """Write ``NAME.csv`` and ``NAME.md``, and print the table."""
    write_text(output / f"{name}.csv", rows.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    write_text(output / f"{name}.md", table)
    print(table)
