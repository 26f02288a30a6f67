"""Work in the background, one job at a time: segmenting and teaching take minutes, the page is answered at once."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oasis_monai.utils.errors import OasisError, system_error_message

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
KEPT = 20
"""Finished jobs that are still told of."""
Work = Callable[["Job"], str]
_LOGGER = logging.getLogger("oasis_monai")


@dataclass
class Job:
    """One piece of work.

    Args:
        id: counts up.
        kind: ``segment``, ``upload``, ``atlases`` or ``adapt``.
        title: what the page calls it.
        work: gets the job, returns the last line to tell.
        total: how many scans it has.
    """

    id: int
    kind: str
    title: str
    work: Work
    total: int = 0
    done: int = 0
    status: str = WAITING
    text: str = ""
    started: float | None = None
    ended: float | None = None
    lines: list[str] = field(default_factory=list)

    def log(self, line: str) -> None:
        """Tell what happens."""
        self.lines = [*self.lines[-50:], line]
        self.text = line

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``seconds`` since it began."""
        end = self.ended or time.monotonic()
        seconds = None if self.started is None else round(end - self.started, 1)
        shown = ("id", "kind", "title", "status", "text", "total", "done")
        return {**{key: getattr(self, key) for key in shown}, "seconds": seconds}


class Jobs:
    """A queue with one thread that works it off. The thread ends with the process: what a job writes is whole or not there."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Job] = queue.Queue()
        self._jobs: list[Job] = []
        self._numbers = itertools.count(1)
        threading.Thread(target=self._run, name="review jobs", daemon=True).start()

    def add(self, kind: str, title: str, work: Work, total: int = 0) -> Job:
        """Queue a job; it is told of at once."""
        job = Job(next(self._numbers), kind, title, work, total)
        ended = [one for one in self._jobs if one.status in (DONE, FAILED)]
        dropped = {one.id for one in ended[:-KEPT]}
        self._jobs = [*(one for one in self._jobs if one.id not in dropped), job]
        self._queue.put(job)
        return job

    def to_json(self) -> list[dict[str, Any]]:
        """All jobs that are told of, the oldest first."""
        return [job.to_json() for job in self._jobs]

    def busy(self, kind: str) -> bool:
        """Whether a job of this kind waits or runs."""
        return any(job.kind == kind and job.status in (WAITING, RUNNING) for job in self._jobs)

    def join(self) -> None:
        """Wait until all jobs have ended."""
        self._queue.join()

    def _run(self) -> None:
        while True:
            job = self._queue.get()
            job.status, job.started = RUNNING, time.monotonic()
            try:
                job.text = job.work(job)
                job.status = DONE
            except Exception as error:
                job.text, job.status = explained(error), FAILED
            finally:
                job.ended = time.monotonic()
                self._queue.task_done()


def explained(error: Exception) -> str:
    """An error in words for the page; one that is the program's own is logged with all its lines too."""
    if isinstance(error, OasisError):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return system_error_message(error)
    _LOGGER.exception("the review page met an error of the program", exc_info=error)
    return f"an error of the program: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
