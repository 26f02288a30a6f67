"""The record of a run, ``run.json``: what it takes to understand, repeat and recognise the run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
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
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import digest, write_json

NO_RESULT = (
    *("device", "threads", "workers", "align_batch", "cache", "progress", "tracking"),
    *("overlays", "browser", "save_segmentations", "save_probability", "save_uncertainty"),
    *("data.root", "data.name", "data.citation", "data.licence", "data.source"),  # the data counts by its content
)
"""Settings that may change when a run is started again: no score depends on them."""
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


def run_record(
    task: str,
    settings: Settings,
    split: Split | None,
    cases: int,
    seconds: Mapping[str, float],
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``run.json``, plain JSON values.

    Args:
        content: :meth:`oasis_monai.workflows.prepare.Dataset.identity`; None where a run looks at no data.
    """
    from oasis_monai.utils.device import resolve_device

    data = settings.data
    device = resolve_device(settings.device)
    return {
        "task": task,
        "protocol": settings.folds,
        "folds": len(split.folds) if split else settings.k,
        "seed": settings.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": {
            "name": data.name,
            "root": data.root,
            "cases": cases,
            **_dealt(split),
            "citation": data.citation,
            "licence": data.licence,
        },
        "data_digest": None if content is None else digest(dict(content)),
        "settings": settings.to_json(),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "split_hash": split.key() if split else None,
        "timings_s": {stage: round(value, 2) for stage, value in seconds.items()},
    }


def _dealt(split: Split | None) -> dict[str, int]:
    """How many persons and centres the cases are of, and how many cases are tested, where that is not all."""
    if split is None:
        return {}
    tested, centres = len(split.testing()), len(set(split.centres.values()))
    found = {"patients": len(set(split.patients.values())), **({"centres": centres} if centres else {})}
    return found | ({"tested": tested} if tested < len(split.patients) else {})


def flat(settings: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Nested settings by their names on the command line: ``{"training": {"lr": 1}}`` as ``{"training.lr": 1}``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{group}{key}.") if isinstance(value, Mapping) else {f"{group}{key}": value}
    return found


def refuse_other_results(
    folder: Path, settings: Mapping[str, Any], key: str, data_digest: str | None = None, result: str = "scores.csv"
) -> None:
    """Refuse to put results in the place of those of other data or settings; the same run may go on.

    Args:
        folder: where ``result`` of an earlier run may lie, and its record.
        settings: of the new run, plain JSON values.
        key: the option that names ``folder``.
        data_digest: of the new run; None while the data is not read: it is not compared.
        result: ``scores.csv``, whose record is ``run.json``, or ``model.json``, which is its own.

    Raises:
        ConfigError: naming what is different.
    """
    if not (folder / result).exists():
        return
    record = folder / ("run.json" if result == "scores.csv" else result)
    if different := _different(record, settings, data_digest):
        found = f"{folder} with those of {different}"
        remedy = f"give another {key}=DIR, or add overwrite=true to replace them"
        raise ConfigError(key, "a folder without the results of another run", found, remedy)


def claim_results(folder: Path, record: Mapping[str, Any], key: str, overwrite: bool) -> None:
    """Write the record of a run into its folder before its results, so that they are never taken for those of another run.

    Args:
        record: see :func:`run_record`.
        overwrite: remove the results of other data or settings.

    Raises:
        ConfigError: see :func:`refuse_other_results`.
    """
    try:
        refuse_other_results(folder, record["settings"], key, record["data_digest"])
    except ConfigError:
        if not overwrite:
            raise
        for name in RESULTS:
            for path in folder.glob(name):
                path.unlink()
    write_json(folder / "run.json", record)


RESULTS = (
    "scores.csv",
    "summary.csv",
    "centres.csv",
    "learning.csv",
    "quality.csv",
    "calibration.json",
    "reliability.csv",
    "postprocessing.json",
    "fusion.json",
    "suspects.csv",
    "suspects/*.png",
    "training/*.csv",
    "report.html",
    "segmentations/*__*",
)


def _different(record: Path, settings: Mapping[str, Any], data_digest: str | None) -> str:
    """What the results with this record have otherwise, in words; empty where they are this run's."""
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        old, new = (
            {k: v for k, v in flat(values).items() if k not in NO_RESULT}
            for values in (before["settings"], json.loads(json.dumps(settings)))
        )
        old_data = before.get("data_digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"a run that has no readable {record.name}"
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    told = [f"{key}={json.dumps(old.get(key))} (now {json.dumps(new.get(key))})" for key in keys[:3]]
    told += [f"{len(keys) - 3} more settings"] if len(keys) > 3 else []
    if not keys and data_digest is not None and old_data not in (None, data_digest):
        told.append("other scans or labels")
    return ", ".join(told)


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
