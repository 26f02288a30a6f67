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

from oasis_monai.utils.errors import ConfigError, DataError, OasisError, system_fault
from oasis_monai.utils.memory import first_line, out_of_memory


def run_parallel(
    function: Callable[..., Any], jobs: Sequence[tuple[str, tuple[Any, ...]]], workers: int, ended: Callable[[str, float], None]
) -> None:
    """Call ``function(*arguments)`` for every (name, arguments), ``workers`` at a time, in new processes of one CPU thread
    each; ``ended(name, minutes)`` as each has done its work.

    Raises:
        OasisError: the first failure of a job, naming it; faults of input and settings as they were (those not started are
            dropped, those at work end first).
        KeyboardInterrupt: at once, with all processes ended.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch, half dead
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start, initargs=(os.getpid(),)) as pool:
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
    """Raise what a job ended in, with the job's name; ``unfinished`` are those a process that vanished may have been at."""
    if isinstance(error, ConfigError | DataError):
        raise error  # these name key or case, and are the same whatever worker meets them
    more = "; ".join(getattr(error, "__notes__", ()))
    if isinstance(error, BrokenProcessPool):
        raise OasisError(
            f"{' or '.join(unfinished)}: workers: expected a worker that ends by itself, found it killed (memory may have run "
            "out); lower workers and give the same command again: what was finished is kept"
        ) from error
    if isinstance(error, OasisError):
        text = str(error)
        raise OasisError(text if text.startswith(name) else f"{name}: {text}") from error
    if isinstance(error, OSError):
        raise OasisError(f"{name}: {system_fault(error)}") from error
    if error is not None:
        remedy = "lower workers, align_batch or training.batch" if out_of_memory(error) else "see where with workers=1"
        where = f"{name} ({more})" if more else name
        raise OasisError(f"{where}: expected its worker to finish, found {first_line(error, 300)}; {remedy}") from error


def _tell(name: str, done: Future[float], ended: Callable[[str, float], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        ended(name, done.result() / 60)


def _start(parent: int) -> None:
    """What every process does first: take one core, and see to it that it ends should its parent be killed."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tqdm.set_lock(threading.RLock())  # its own is one between processes, which Python misses aloud when this one is ended

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    started = time.monotonic()
    function(*arguments)
    return time.monotonic() - started
