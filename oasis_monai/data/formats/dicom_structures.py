"""The structures of a DICOM label, each by its name, put into one label of whole numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.header import plain, shown
from oasis_monai.utils.errors import DataError, Fault

SHOWN_NAMES = 12


def unique_names(names: Sequence[tuple[int, str]]) -> dict[str, int]:
    """Name -> number, in order; an empty name becomes its number, one that is there twice gets it at its end."""
    often = Counter(plain(name) for _, name in names)
    return {
        f"{shown(name.strip(), 64)} {number}".strip() if often[plain(name)] > 1 or not name.strip() else name.strip(): number
        for number, name in names
    }


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    more = f" and {len(names) - SHOWN_NAMES} others" if len(names) > SHOWN_NAMES else ""
    return ", ".join(shown(name, 40) for name in list(names)[:SHOWN_NAMES]) + more


def wanted_numbers(path: Path, own: Mapping[str, int], wanted: Mapping[str, int] | None) -> dict[int, tuple[str, int]]:
    """Which of a file's structures are asked for.

    Args:
        path: the file, for messages.
        own: name -> number in the file.
        wanted: name -> value in the label; None for all, each with its own number.

    Returns:
        Number in the file -> name and value.
    """
    if wanted is None:
        return {number: (name, number) for name, number in own.items()}
    by_plain = {plain(name): (name, number) for name, number in own.items()}
    return {
        by_plain[plain(name)][1]: (by_plain[plain(name)][0], value) for name, value in wanted.items() if plain(name) in by_plain
    }


class Painted:
    """A label under way: structures are painted one after the other, and must not overlap.

    Args:
        path: the label's file, for messages.
        shape: voxels along x, y, z.
        overlapping: they may: the value of each is a bit, and a voxel has the sum of those of all its structures.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], overlapping: bool = False) -> None:
        self.path, self.overlapping = path, overlapping
        self.values = np.zeros(shape, np.int64)
        self.names: dict[int, str] = {}
        self.overlaps: Counter[tuple[str, str]] = Counter()
        self.notes: list[Fault] = []

    def paint(self, name: str, value: int, where: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Give a structure's voxels (three index arrays) its value."""
        if self.overlapping:
            self.values[where] |= value
            return
        self.names[value] = name
        before = self.values[where]
        for other in np.unique(before[(before != 0) & (before != value)]):
            self.overlaps[self.names[int(other)], name] += int((before == other).sum())
        self.values[where] = value

    def note(self, field: str, expected: str, found: str, remedy: str) -> None:
        """Tell of what the label can be used with all the same."""
        self.notes.append(Fault(shown(self.path.name, 120), field, expected, shown(found, 240), remedy, "warning"))

    def done(self) -> tuple[np.ndarray, tuple[Fault, ...]]:
        """The label, and what there is to tell.

        Raises:
            DataError: structures overlap.
        """
        if self.overlaps:
            (one, other), count = self.overlaps.most_common(1)[0]
            more = f", and {len(self.overlaps) - 1} other pairs" if len(self.overlaps) > 1 else ""
            found = f"{shown(one, 40)} and {shown(other, 40)} in {count} voxels{more}"
            remedy = "choose structures that do not overlap in data.labels, by their names, or add data.overlap=true if they may"
            raise DataError(Fault(shown(self.path.name, 120), "label", "structures that do not overlap", found, remedy))
        return self.values, tuple(self.notes)
