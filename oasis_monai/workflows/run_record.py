"""The record of a run, ``run.json``: settings, versions and timings, so that it can be understood and repeated."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from oasis_monai import __version__
from oasis_monai.data.folds import Split
from oasis_monai.settings import Settings

PACKAGES = ("torch", "monai", "itk", "nibabel", "numpy", "scipy", "pandas", "hydra-core", "safetensors")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of everything a score could depend on, or of other ``packages``; always ours and Python's."""
    found = {"oasis-monai": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The source's git commit, with ``+`` when the working tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def run_record(task: str, settings: Settings, split: Split | None, cases: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of ``run.json``, plain JSON values."""
    from oasis_monai.utils.device import resolve_device

    data = settings.data
    device = resolve_device(settings.device)
    return {
        "task": task,
        "protocol": settings.folds,
        "folds": settings.k,
        "seed": settings.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": {"name": data.name, "root": data.root, "cases": cases, "citation": data.citation, "licence": data.licence},
        "settings": settings.to_json(),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "split_hash": split.key() if split else None,
        "timings_s": {stage: round(value, 2) for stage, value in seconds.items()},
    }


class Clock:
    """Seconds spent per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
