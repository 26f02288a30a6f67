"""Run trainings and whole cross-validations in parallel, each in a process of its own.

Small networks use one CPU core well and two badly. So two trainings at once, on one core each, take far less time than one after
the other on both. Jobs receive only settings; their results go to the cache, under locks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from oasis_monai.utils.errors import ConfigError, DataError, OasisError, system_error_message
from oasis_monai.utils.memory import first_line, out_of_memory

PRELOADED = ["torch", "tqdm"]
"""What all workers have imported when they start."""
_number: int | None = None


def run_parallel(
    function: Callable[..., Any],
    jobs: Sequence[tuple[str, tuple[Any, ...]]],
    workers: int,
    ended: Callable[[str, float], None],
    needs: Sequence[str] = (),
) -> None:
    """Call ``function(*arguments)`` for every job, ``workers`` at a time, in new processes of one CPU thread each.

    Args:
        jobs: (name, arguments) each.
        ended: called with the name and the minutes of every finished job.
        needs: modules that take long to import and that the function imports only when it runs.

    Raises:
        OasisError: the first failure of a job, naming it; faults of input and settings unchanged. Running jobs finish first,
            jobs that have not started are dropped.
        KeyboardInterrupt: at once; all processes are terminated.
    """
    if not jobs:
        return
    context = _context([function.__module__, *needs])
    given = (dict(os.environ), context.Value("i", 0))
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start, given) as pool:
        with _interrupts_ignored():  # inherited: Ctrl-C in a terminal goes to every process, and the parent alone shall answer
            futures = {pool.submit(_timed, function, arguments): name for name, arguments in jobs}
        for future in futures:
            future.add_done_callback(lambda done: _tell(futures[done], done, ended))
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        failed = [future for future in futures if future in done and future.exception() is not None]
        if failed:
            pool.shutdown(wait=True, cancel_futures=True)
            unfinished = [futures[future] for future in failed][:workers]
            _raise_named(futures[failed[0]], unfinished, failed[0].exception())


def _context(needs: Sequence[str]) -> multiprocessing.context.BaseContext:
    """How workers start: as forks of a server that has imported, once for all of them, what they need.

    A fork of this process would inherit the threads of torch, half dead; a new interpreter imports torch and MONAI for seconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *needs])  # a server that runs already stays as it is
    return context


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that may change this, and that is interrupted
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _raise_named(name: str, unfinished: Sequence[str], error: BaseException | None) -> None:
    """Raise the error of a job with the job's name; ``unfinished`` are the jobs that a killed process may have been running."""
    if isinstance(error, ConfigError | DataError):
        raise error  # these name key or case, and are the same whatever worker meets them
    more = "; ".join(getattr(error, "__notes__", ()))
    if isinstance(error, BrokenProcessPool):
        raise OasisError(
            f"{' or '.join(unfinished)}: a worker was killed, probably out of memory. Lower workers and run the same command "
            "again; finished work is kept."
        ) from error
    if isinstance(error, OasisError):
        text = str(error)
        raise OasisError(text if text.startswith(name) else f"{name}: {text}") from error
    if isinstance(error, OSError):
        raise OasisError(f"{name}: {system_error_message(error)}") from error
    if error is not None:
        remedy = "Lower workers, align_batch or training.batch." if out_of_memory(error) else "Run with workers=1 to see where."
        where = f"{name} ({more})" if more else name
        raise OasisError(f"{where}: the worker failed ({first_line(error, 300)}). {remedy}") from error


def _tell(name: str, done: Future[float], ended: Callable[[str, float], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        ended(name, done.result() / 60)


def worker_number() -> int | None:
    """The number of this process among the workers of :func:`run_parallel`, from 0; None in any other process."""
    return _number


def _start(environment: dict[str, str], started: Any) -> None:
    """Set up a worker: use one core, leave Ctrl-C to the parent, and exit if that is killed. ``started`` is shared: the workers
    so far."""
    global _number
    with started.get_lock():
        _number = started.value
        started.value += 1
    os.environ.update(environment)  # the server has that of its own start
    import torch
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not inherited from a server that ran already
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tqdm.set_lock(
        threading.RLock()
    )  # tqdm's own lock is shared between processes; Python warns of it when this process is terminated
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    started = time.monotonic()
    function(*arguments)
    return time.monotonic() - started
