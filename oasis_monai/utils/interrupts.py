"""Deliver every Ctrl-C: Python drops a ``KeyboardInterrupt`` raised in a callback or a destructor."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

AGAIN_S = 0.01  # delay of the repeated signal, so that the callback has ended by then


@contextlib.contextmanager
def repeated() -> Iterator[None]:
    """Repeat interrupts that Python drops in a callback (of a weak reference, of C code) or a destructor.

    The main thread receives the interrupt again until it reaches code that can be interrupted. Other exceptions dropped there are
    reported as usual.
    """
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
