"""Seconds and memory of a process, measured by itself: what every benchmark here is made of."""

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
    """Median, least and most of several values."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Of one value or more."""
    return Spread(statistics.median(values), min(values), max(values))


def seconds(run: Callable[[], object], repeats: int, warm_up: int = 1) -> Spread:
    """Seconds of ``run()``, ``repeats`` times after ``warm_up`` runs that do not count."""
    for _ in range(warm_up):
        run()
    return spread([timed(run)[1] for _ in range(repeats)])


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What ``run()`` gives, and how long it took."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def memory_mb() -> tuple[float, float]:
    """(now, most ever): resident memory of this process in MiB.

    Linux counts them per program, so that a process does not inherit its parent's. Elsewhere only the most is known.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        found = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith(("VmRSS", "VmHWM"))}
        return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
        return most, most
