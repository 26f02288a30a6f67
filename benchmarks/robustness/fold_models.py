"""What benchmarks of a cross-validation's fold models share: their settings, every fold's test cases, rows of the results."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.settings import Settings, build

ROOT = Path(__file__).resolve().parents[1]


def options(description: str | None) -> argparse.ArgumentParser:
    """``--output``, ``--n`` and the overrides."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "quality")
    parser.add_argument("--n", type=int, default=6, help="atlases to fuse")
    parser.add_argument("overrides", nargs="+", help="what the cross-validation was run with: experiment=accuracy data.root=PATH")
    return parser


def settings_of(overrides: list[str], n: int) -> Settings:
    """The top level of the composed configuration (of a study: what its arms start from), for OASIS-joint with n atlases."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert isinstance(config, dict)
    names = set(Settings.__dataclass_fields__)
    return build({**{str(k): v for k, v in config.items() if k in names}, "methods": ["OASIS-joint"], "n": n, "threads": 1})


def over_folds(settings: Settings, segment_fold: Callable[[Settings, int], list[dict[str, Any]]]) -> pd.DataFrame:
    """The rows of ``segment_fold(settings, fold)`` of every fold, as many at a time as there are cores."""
    folds = range(settings.k) if settings.fold is None else [settings.fold]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        parts = list(pool.map(segment_fold, [settings] * len(folds), folds))
    return pd.DataFrame([row for part in parts for row in part])
