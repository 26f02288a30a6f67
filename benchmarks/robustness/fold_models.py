"""What the benchmarks with the fold models of a cross-validation share: options, settings, and a loop over the folds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.command_line import command_parser
from oasis_monai.settings import Settings
from oasis_monai.workflows.plan import plan_settings

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


def over_folds(settings: Settings, segment_fold: Callable[[Settings, int], list[dict[str, Any]]]) -> pd.DataFrame:
    """Run ``segment_fold(settings, fold)`` for every fold, one process per core, and collect the rows."""
    folds = range(settings.k) if settings.fold is None else [settings.fold]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        parts = list(pool.map(segment_fold, [settings] * len(folds), folds))
    return pd.DataFrame([row for part in parts for row in part])
