"""Keep what was found in all label files of a data set, so that they are read once as long as they stay the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from oasis_monai.utils.files import digest, write_json


def find_once(
    files: Sequence[Path], find: Callable[[], Iterable[int]], cache: Path | None, asked: Sequence[Any] = ()
) -> list[int]:
    """Numbers found in files, in rising order, each once.

    Args:
        files: what is read; size and time of each tell whether it has changed.
        find: reads them.
        cache: folder in which the numbers are kept; None keeps nothing.
        asked: what else decides the numbers, as plain values.
    """
    stamps = [[str(path), *_stamp(path)] for path in files]
    kept = None if cache is None else cache / "labels" / f"{digest([*asked, stamps] if asked else stamps)}.json"
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or another version's: found anew
            return [int(value) for value in json.loads(kept.read_text())["values"]]
    found = sorted(set(find()))
    if kept is not None:
        write_json(kept, {"values": found})
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns
