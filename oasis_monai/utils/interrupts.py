"""Deliver every Ctrl-C: Python drops a ``KeyboardInterrupt`` raised in a callback or a destructor."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

AGAIN_S = 0.01  # long enough to have left the callback


@contextlib.contextmanager
def repeated() -> Iterator[None]:
    """Within it, the main thread is given again an interrupt that was dropped in a callback (of a weak reference, of C code) or a
    destructor, until it meets code that it can end. Other exceptions dropped there are told as before."""
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
        elif (main := threading.main_thread().ident) is not None:
            threading.Thread(target=_interrupt, args=(main,), daemon=True).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt(thread: int) -> None:
    time.sleep(AGAIN_S)
    signal.pthread_kill(thread, signal.SIGINT)
