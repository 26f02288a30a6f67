"""Seconds and memory of a process, measured by the process itself."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Spread(NamedTuple):
    """Median, minimum and maximum of several values."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median, minimum and maximum of one or more values."""
    return Spread(statistics.median(values), min(values), max(values))


def seconds(run: Callable[[], object], repeats: int, warm_up: int = 1) -> Spread:
    """Seconds of ``run()`` over ``repeats`` runs, after ``warm_up`` runs that do not count."""
    for _ in range(warm_up):
        run()
    return spread([timed(run)[1] for _ in range(repeats)])


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """The result of ``run()``, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


class Memory(NamedTuple):
    """Memory of a process in MiB: resident ``now``, the ``peak`` of that, and its ``own`` now (without pages of mapped files)."""

    now: float
    peak: float
    own: float


def memory_mb() -> Memory:
    """Memory of this process.

    Linux counts it per program, so a process does not inherit the peak of its parent. Elsewhere only the peak is known and
    stands for all three.
    """
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return Memory(*(int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM", "RssAnon")))
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
        return Memory(peak, peak, peak)
