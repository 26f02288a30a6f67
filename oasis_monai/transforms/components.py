"""Connected pieces of a structure and the holes in it, in volumes.

Voxels of a structure are neighbours if they share a face, an edge or a corner; those of a hole if they share a face. So no path
leads out of a hole between two neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

Box = tuple[slice, ...]


class Part(NamedTuple):
    """A piece or a hole.

    Args:
        box: where it lies in the array.
        mask: bool, its voxels within the box.
        voxels: how many these are.
    """

    box: Box
    mask: np.ndarray
    voxels: int


def box_around(boxes: Iterable[Box | None]) -> Box | None:
    """The box round boxes of an array; None and empty ones do not count. None where none is left.

    Examples:
        >>> box_around([(slice(1, 3), slice(0, 2)), None, (slice(4, 5), slice(1, 4))])
        (slice(1, 5, None), slice(0, 4, None))
    """
    there = [box for box in boxes if box is not None and all(side.stop > side.start for side in box)]
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*there, strict=True)) or None


def connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(x, y, z) bool -> its pieces as numbers 1, 2, ... (0 elsewhere), and how many there are."""
    from scipy import ndimage

    numbered, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return numbered, int(count)


def pieces(mask: np.ndarray) -> list[Part]:
    """The connected pieces of an (x, y, z) bool array, largest first; of equal ones the first in the array."""
    around = bounding_box(mask)
    if around is None:
        return []
    numbered, _ = connected(mask[around])
    return sorted(_parts(numbered, around), key=lambda part: -part.voxels)


def holes(label: np.ndarray) -> Iterator[tuple[int, Part]]:
    """Background that one structure encloses on all sides: (its class, the hole). What several structures enclose together, or
    the border of the array with them, is no hole.

    Args:
        label: (x, y, z) class indices, 0 = background.
    """
    from scipy import ndimage

    around = bounding_box(label != 0)
    if around is None:
        return
    inner = label[around]
    background, _ = ndimage.label(np.pad(inner == 0, 1, constant_values=True))  # the frame joins what is open to the outside
    numbered = background[1:-1, 1:-1, 1:-1]
    numbered = np.where(numbered == background[0, 0, 0], 0, numbered)
    for part in _parts(numbered, tuple(slice(0, n) for n in inner.shape)):
        box, mask = widened(part, inner.shape)
        around_it = np.unique(inner[box][ndimage.binary_dilation(mask) & ~mask])
        if len(around_it) == 1:
            moved = tuple(slice(b.start + a.start, b.stop + a.start) for a, b in zip(around, part.box, strict=True))
            yield int(around_it[0]), Part(moved, part.mask, part.voxels)


def widened(part: Part, shape: tuple[int, ...]) -> tuple[Box, np.ndarray]:
    """The box of a part one voxel wider, as far as the array of this shape goes, and the part's mask in it."""
    wider = grown(part.box, shape)
    room = [(b.start - w.start, w.stop - b.stop) for b, w in zip(part.box, wider, strict=True)]
    return wider, np.pad(part.mask, room)


def grown(box: Box, shape: tuple[int, ...]) -> Box:
    """A box one voxel wider on every side, as far as the array of this shape goes."""
    return tuple(slice(max(0, b.start - 1), min(n, b.stop + 1)) for b, n in zip(box, shape, strict=True))


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box round the true voxels; None where there are none."""
    spans = [np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans) if len(spans[0]) else None


def _parts(numbered: np.ndarray, around: Box) -> list[Part]:
    """The numbered parts of an array that is the box ``around`` of a larger one, placed in that one."""
    from scipy import ndimage

    found = []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        if box is not None:
            mask = numbered[box] == number
            moved = tuple(slice(b.start + a.start, b.stop + a.start) for a, b in zip(around, box, strict=True))
            found.append(Part(moved, mask, int(mask.sum())))
    return found
