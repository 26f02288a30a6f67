"""Measure the seconds of each stage of a run by wrapping functions from outside, without changes to the program."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Seconds on the clock, and seconds of computing by all threads. On a busy machine only the latter are comparable."""

    clock: float = 0.0
    computing: float = 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(self.clock + other.clock, self.computing + other.computing)


class Stages:
    """The time spent in named stages. The time of an inner stage does not count for the outer one."""

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = {}
        self._open: list[str] = []
        self._since = _now()

    def enter(self, stage: str) -> None:
        self._book()
        self._open.append(stage)

    def leave(self) -> None:
        self._book()
        self._open.pop()

    def add(self, stage: str, more: Spent) -> None:
        self.spent[stage] = self.spent.get(stage, Spent()).plus(more)

    def _book(self) -> None:
        now = _now()
        if self._open:
            self.add(self._open[-1], Spent(now.clock - self._since.clock, now.computing - self._since.computing))
        self._since = now

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count the time of ``owner.name`` (a function of a module or a method of a class) as ``stage``."""
        stored = vars(owner).get(name) if isinstance(owner, type) else None
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(stage)
            try:
                return inner(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, name, staticmethod(timed) if isinstance(stored, classmethod) else timed)


def _now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


def text(spent: Mapping[str, Spent], runs: int = 1) -> str:
    """A Markdown table of the mean over ``runs``, in the order in which the stages began."""
    whole = Spent(*map(sum, zip(*spent.values(), strict=True)))
    lines = ["| stage | seconds | computing | share of computing |", "|---|---|---|---|"]
    for name, (clock, computing) in spent.items():
        lines.append(f"| {name} | {clock / runs:.3f} | {computing / runs:.3f} | {100 * computing / whole.computing:.0f} % |")
    return "\n".join([*lines, f"| total | {whole.clock / runs:.3f} | {whole.computing / runs:.3f} | |"])
