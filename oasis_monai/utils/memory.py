"""Handle a full memory: recognise the error, halve the batch, and name the setting that lowers memory use."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from oasis_monai.utils.errors import OasisError

T = TypeVar("T")
LARGEST_BLOCK = 32 * 2**20  # bytes that glibc keeps at most; what mallopt(3) allows on 64 bits
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of malloc.h
NAMES = ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc", "bad allocation", "ALLOC_FAILED")
"""Texts of a RuntimeError by which torch, cuDNN, cuBLAS and the C++ library report a full memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the machine or of the GPU is full."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in NAMES)


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let a process keep the memory that tensors free, for the next ones, until the block is left.

    The C library gives large blocks back to the system at once, and every page that it then gets anew costs a page fault: a tenth
    of a training step on volumes. Does nothing where the C library is not glibc.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is glibc."""
    import ctypes
    import platform

    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


class Batched:
    """Base of classes that process rows in batches, with smaller batches after memory has run out.

    Attributes:
        batch: the most rows at once; results must not depend on it.
        memory_setting: the setting that lowers memory use, for messages.
    """

    batch: int
    memory_setting = "align_batch"

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
                    f"Out of memory, even for one image at a time ({first_line(error)}). Lower preprocessing.size, close other "
                    "programs, or use a machine with more memory (device=cpu, a larger GPU)."
                ) from error
        self.batch = (size if size > 1 else self.batch) // 2  # a single image may itself be seen in windows, ``batch`` at once
        logging.getLogger(__name__).warning(
            "warning: %s: out of memory with %d at once; continuing with %d", self.memory_setting, size, self.batch
        )
        return None


def first_line(error: BaseException, limit: int = 120) -> str:
    """The error's type and the beginning of its text, for a message of one line."""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__
