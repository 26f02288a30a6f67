"""What a wrong reference looks like beside a result: shifted, mirrored, swapped structures, slices without a label.

Each change is undone on the reference and compared with the result again. Where one simple change makes two independent labels
agree, it is the likely fault. Which cases are suspects at all is decided in :mod:`.suspects`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from oasis_monai.data.types import IGNORE

SURE = 0.9  # probability from which a result is sure of a class: networks and atlases give it the same one
UNSURE = 254  # class index where it is not
AXES = ("left-right", "front-back", "head-foot")  # of arrays in RAS order
_CHANGES = ("left and right", "front and back", "head and foot")
_SIMPLER = 0.02  # Dice that a further mirrored axis has to gain
_SHARE = 0.2  # of the structure's largest slice: what a slice must hold to be missed


@dataclass(frozen=True)
class Explanation:
    """One way in which a reference may be wrong.

    Args:
        kind: ``shifted``, ``mirrored``, ``swapped``, ``missing slices``, ``extra slices``.
        text: what it looks like, for people.
        dsc: Dice of the result with the reference once this is undone, 0 to 1.
    """

    kind: str
    text: str
    dsc: float


@dataclass(frozen=True)
class Compared:
    """A result beside its reference. Arrays are (x, y, z) in RAS order.

    Args:
        result: class indices.
        reference: class indices, and :data:`.IGNORE`.
        sure: class indices where the result is sure (see :func:`sure_classes`), else :data:`UNSURE`.
        spacing_mm: voxel size.
        labels: names of the classes 1, 2, ...
    """

    result: np.ndarray
    reference: np.ndarray
    sure: np.ndarray
    spacing_mm: tuple[float, float, float]
    labels: tuple[str, ...]

    @property
    def classes(self) -> int:
        """How many there are, with the background."""
        return len(self.labels) + 1

    @property
    def slice_axis(self) -> int:
        """The axis across the slices: that of the largest spacing, the last of equal ones."""
        return max(range(3), key=lambda axis: (round(self.spacing_mm[axis], 3), axis))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000

    @cached_property
    def counts(self) -> np.ndarray:
        """(C, C) voxels by the result's class and the reference's, without ignored ones."""
        return confusion(self.result, self.reference, self.classes)

    def dice(self, index: int) -> float:
        """Dice of a class; NaN where neither has it."""
        return float(dice_table(self.counts)[index, index])

    def masks(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Result and reference of a class, cut to the box round both and without what nobody labelled."""
        result, reference = ((array == index) & self.known for array in (self.result, self.reference))
        box = _box(result | reference)
        return result[box], reference[box]

    @cached_property
    def known(self) -> np.ndarray:
        """(x, y, z) bool: what somebody labelled."""
        return self.reference != IGNORE

    def differing(self, index: int) -> np.ndarray:
        """(x, y, z) bool: only one of result and reference has the class."""
        return ((self.result == index) ^ (self.reference == index)) & self.known

    def unseen(self, index: int) -> np.ndarray:
        """(x, y, z) bool: the result is sure of a class that the reference has not got there."""
        return (self.sure == index) & (self.reference != index) & self.known

    def denied(self, index: int) -> np.ndarray:
        """(x, y, z) bool: the reference has a class where the result is sure of another, or of the background."""
        return (self.reference == index) & (self.sure != index) & (self.sure != UNSURE)


def sure_classes(probability: np.ndarray, limit: float = SURE) -> np.ndarray:
    """(C, x, y, z) probability -> (x, y, z) uint8: the class where its probability reaches the limit, else :data:`UNSURE`."""
    highest = probability.max(axis=0)
    return np.where(highest >= limit, probability.argmax(axis=0), UNSURE).astype(np.uint8)


def confusion(result: np.ndarray, reference: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64 voxels by the result's class (row) and the reference's (column), without ignored ones."""
    known = reference != IGNORE
    pairs = result[known].astype(np.int64) * classes + reference[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def dice_table(counts: np.ndarray) -> np.ndarray:
    """(C, C) of :func:`confusion` -> (C, C) Dice of each class of the result with each of the reference; NaN where both are
    empty."""
    both = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True)
    return np.where(both > 0, 2 * counts / np.maximum(both, 1), np.nan)


def explanations(case: Compared) -> dict[str, list[Explanation]]:
    """What may be wrong with the reference of every structure that both labels have, the best explanation first."""
    found: dict[str, list[Explanation]] = {name: [] for name in case.labels}
    mirrored, swapped = _mirrored(case), _swapped(case)
    for index, name in enumerate(case.labels, 1):
        result, reference = case.masks(index)
        own = [*mirrored[name], *swapped[name]]
        if result.any() and reference.any():
            own += _shifted(case, result, reference)
        if result.any() or reference.any():
            own += _slices(case, index)
        found[name] = sorted(own, key=lambda one: -one.dsc)
    return found


def _mirrored(case: Compared) -> dict[str, list[Explanation]]:
    """The reference mirrored about the middle of the image, as a wrong header or array order does. Of nearly equal ones the
    simplest counts."""
    sizes = case.counts.sum(1) + case.counts.sum(0)
    box = _box((case.reference != 0) & (case.reference != IGNORE))
    part = case.reference[box]
    found: dict[str, list[Explanation]] = {name: [] for name in case.labels}
    for axes in (axes for count in (1, 2, 3) for axes in itertools.combinations(range(3), count)):
        there = tuple(
            slice(size - side.stop, size - side.start) if axis in axes else side
            for axis, (side, size) in enumerate(zip(box, case.reference.shape, strict=True))
        )
        result, mirrored = case.result[there], np.flip(part, axes)
        what = " and ".join(_CHANGES[axis] for axis in axes)
        for index, name in enumerate(case.labels, 1):
            common = np.count_nonzero((result == index) & (mirrored == index))
            dsc = 2 * common / int(sizes[index]) if sizes[index] else 0.0
            if not found[name] or dsc > found[name][0].dsc + _SIMPLER:
                found[name] = [Explanation("mirrored", f"the reference looks mirrored ({what})", min(1.0, dsc))]
    return found


def _swapped(case: Compared) -> dict[str, list[Explanation]]:
    """Structures whose names are exchanged in the reference."""
    table = np.nan_to_num(dice_table(case.counts))[1:, 1:]
    best = table.argmax(axis=1)  # of each structure of the result, the reference's structure that fits it best
    found: dict[str, list[Explanation]] = {name: [] for name in case.labels}
    for index, name in enumerate(case.labels):
        other = int(best[index])
        if other == index or not table[index, other] > 0:
            continue
        text = f"the reference seems to call {case.labels[other]} what is {name}"
        if best[other] == index and table[other, index] > 0:
            first, second = sorted((index, other))
            text = f"{case.labels[first]} and {case.labels[second]} look swapped in the reference"
        found[name] = [Explanation("swapped", text, float(table[index, other]))]
    return found


def _shifted(case: Compared, result: np.ndarray, reference: np.ndarray) -> list[Explanation]:
    """The reference moved along one axis after the other, each time along the one that gains most."""
    both = int(result.sum()) + int(reference.sum())
    moved, left, steps = reference, [0, 1, 2], dict.fromkeys(range(3), 0)
    overlap = int((result & reference).sum())
    while left:
        tried = {axis: _best_shift(result, moved, axis) for axis in left}
        axis = max(left, key=lambda axis: tried[axis][1])
        step, common = tried[axis]
        if 2 * (common - overlap) < 0.01 * both:  # less than a point
            break
        left.remove(axis)
        steps[axis], overlap = step, common
        moved = _move(moved, axis, step)
    told = [_told(case, axis, step) for axis, step in steps.items() if step]
    return [Explanation("shifted", f"the reference looks shifted by {' and '.join(told)}", 2 * overlap / both)] if told else []


def _best_shift(result: np.ndarray, reference: np.ndarray, axis: int) -> tuple[int, int]:
    """By how many voxels along an axis the reference has to move to overlap most, and the voxels in common then."""
    one, other = (np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1).astype(np.float32) for mask in (result, reference))
    products = one @ other.T  # slice of the result x slice of the reference -> voxels in common
    length = len(products)
    sums = [(round(float(np.trace(products, -step))), -abs(step), step) for step in range(1 - length, length)]
    common, _, step = max(sums)
    return step, common


def _move(mask: np.ndarray, axis: int, step: int) -> np.ndarray:
    """A mask moved by voxels along an axis; what leaves the array is lost."""
    moved = np.zeros_like(mask)
    length = mask.shape[axis]
    there = [slice(None)] * 3
    here = [slice(None)] * 3
    there[axis] = slice(max(step, 0), length + min(step, 0))
    here[axis] = slice(max(-step, 0), length - max(step, 0))
    moved[tuple(there)] = mask[tuple(here)]
    return moved


def _told(case: Compared, axis: int, step: int) -> str:
    """A shift in words: the way the reference lies off, which is against the way it has to move."""
    way = (("right", "left"), ("front", "back"), ("head", "feet"))[axis][step > 0]
    if axis == case.slice_axis and case.spacing_mm[axis] > 1.5 * min(case.spacing_mm):
        return f"{abs(step)} slice{'s' if abs(step) > 1 else ''} towards the {way}"
    return f"{abs(step) * case.spacing_mm[axis]:.0f} mm towards the {way}"


def _slices(case: Compared, index: int) -> list[Explanation]:
    """Slices in which the reference lacks a structure that the result is sure of, or has one that it is sure not to see."""
    axis = case.slice_axis
    others = tuple(a for a in range(3) if a != axis)

    def per_slice(mask: np.ndarray) -> np.ndarray:
        return np.count_nonzero(mask & case.known, axis=others)

    result, reference = per_slice(case.result == index), per_slice(case.reference == index)
    common = per_slice((case.result == index) & (case.reference == index))
    seen = per_slice(case.sure == index)
    denied = per_slice(case.denied(index))
    name, found = case.labels[index - 1], []
    missing = (reference == 0) & (seen > _SHARE * max(1, result.max()))
    extra = (result == 0) & (denied > _SHARE * max(1, reference.max()))
    for kind, where, words in (
        ("missing slices", missing, f"no {name} in the reference, though the result is sure of it"),
        ("extra slices", extra, f"{name} in the reference, though the result is sure that there is none"),
    ):
        if not where.any():
            continue
        both = int(result[~where].sum() + reference[~where].sum())
        dsc = 2 * int(common[~where].sum()) / both if both else 0.0
        verb = "has" if where.sum() == 1 else "have"
        found.append(Explanation(kind, f"{named_slices(np.flatnonzero(where))} {verb} {words}", dsc))
    return found


def named_slices(numbers: np.ndarray | Sequence[int]) -> str:
    """Ascending slice indices as people count them: ``slice 3``, ``slices 3-9 and 12``; the first slice is 1."""
    runs: list[list[int]] = []
    for number in map(int, numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(a + 1) if a == b else f"{a + 1}-{b + 1}" for a, b in runs]
    listed = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"slice{'' if len(numbers) == 1 else 's'} {listed}"


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box round a mask; all of an empty one."""
    if not mask.any():
        return tuple(slice(0, size) for size in mask.shape)
    sides = (np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)
