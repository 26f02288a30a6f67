"""When memory runs out: known by its many names, met by smaller batches, told by the setting that lowers it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from oasis_monai.utils.errors import OasisError

T = TypeVar("T")
NAMES = ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc", "bad allocation", "ALLOC_FAILED")
"""What torch, cuDNN, cuBLAS and the C++ library call it in the text of a RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the machine's or the GPU's, has run out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in NAMES)


class Batched:
    """What works on several rows at once, and on fewer from when memory runs out.

    Attributes:
        batch: the most rows at once; results must not depend on it.
        knob: the setting it comes from.
    """

    batch: int
    knob = "align_batch"

    def in_batches(self, count: int, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """``work(part)`` for one part of ``range(count)`` after the other, each of at most ``batch`` rows.

        Yields:
            (part, what ``work`` made of it).

        Raises:
            OasisError: there is no memory for a single row.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.batch, count))
            done = self._tried(part, work)
            if done is not None:
                yield part, done[0]
                start = part.stop

    def _tried(self, part: slice, work: Callable[[slice], T]) -> tuple[T] | None:
        """The result; None, with the batch halved, where memory ran out. By then the error, which holds on to all that the
        attempt had allocated, is gone."""
        size = part.stop - part.start
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.batch == 1:
                raise OasisError(
                    f"{self.knob}: expected memory for 1 at a time, found none left ({first_line(error)}); lower "
                    "preprocessing.size, end other programs, or take a machine (device=cpu, a larger GPU) with more"
                ) from error
        self.batch = (size if size > 1 else self.batch) // 2  # a single image may itself be seen in windows, ``batch`` at once
        logging.getLogger(__name__).warning(
            "warning: %s: no memory for %d at once; going on with %d", self.knob, size, self.batch
        )
        return None


def first_line(error: BaseException, limit: int = 120) -> str:
    """The error's type and the beginning of its text, for a message of one line."""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__
