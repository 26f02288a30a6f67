"""Anatomy as training labels show it: pieces, holes, volume, extent and neighbours of every structure.

A label is measured on the working grid. A result is put there like a training label, so that both are measured alike. All sizes
are in ml and mm, so that the limits hold on any grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from oasis_monai.transforms.components import bounding_box, holes, pieces
from oasis_monai.transforms.labels import belongs_to, ignored

NOTEWORTHY = 0.01
"""Part of a structure's volume below which a piece or a hole does not count: removing it changes Dice by half a point at most,
and labels drawn by hand have such crumbs."""
FEWEST = 3
"""Training labels with a structure from which on something is learned of it."""
COVERAGE = 0.99
"""Of :attr:`StructureStatistics.likely_ml`."""


@dataclass(frozen=True)
class StructureShape:
    """What one label shows of one structure.

    Args:
        volume_ml: 0 where the structure is absent.
        pieces_ml: volumes of its connected pieces, largest first, without those below :data:`NOTEWORTHY`.
        holes_ml: volumes of the holes in it, likewise.
        extent_mm: of its bounding box, along x, y, z.
        touches: the structures next to it: a voxel shares a face, an edge or a corner.
    """

    volume_ml: float
    pieces_ml: tuple[float, ...] = ()
    holes_ml: tuple[float, ...] = ()
    extent_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    touches: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to a thousandth."""
        return {key: _rounded(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StructureShape:
        """What :meth:`to_json` gave."""
        x, y, z = map(float, values["extent_mm"])
        parts, empty = (tuple(map(float, values[key])) for key in ("pieces_ml", "holes_ml"))
        return cls(float(values["volume_ml"]), parts, empty, (x, y, z), tuple(map(str, values["touches"])))


def measure_anatomy(
    label: torch.Tensor, spacing_mm: Sequence[float], names: Sequence[str], structures: Sequence[Sequence[int]] = ()
) -> dict[str, StructureShape]:
    """What a label shows of every structure.

    Args:
        label: (x, y, z) class indices; ``names[i]`` is class i + 1.
        spacing_mm: voxel size along x, y, z.
        structures: where structures share voxels, the classes of each of ``names``. None then touches another: which
            shares voxels with which is no matter of neighbours.

    Returns:
        By name. Empty for a label with voxels that nobody labelled: what is in pieces there may be one.

    Examples:
        >>> import torch
        >>> label = torch.zeros(20, 20, 10, dtype=torch.uint8)
        >>> label[2:12, 2:12, 2:8] = 1
        >>> label[15:18, 15:18, 2:8] = 1
        >>> measure_anatomy(label, (1.0, 1.0, 5.0), ["prostate"])["prostate"].pieces_ml
        (3.0, 0.27)
    """
    if bool(ignored(label).any()):
        return {}
    if structures:
        parts = zip(names, (belongs_to(label, own).to(torch.uint8) for own in structures), strict=True)
        return {name: measure_anatomy(part, spacing_mm, [name])[name] for name, part in parts}
    array, spacing = label.detach().cpu().numpy(), np.asarray(spacing_mm, float)
    voxel_ml = float(spacing.prod()) / 1000
    counts = np.bincount(array.ravel(), minlength=len(names) + 1)
    enclosed: dict[int, list[int]] = {}
    for owner, hole in holes(array):
        enclosed.setdefault(owner, []).append(hole.voxels)
    touching = _touching(array)
    found = {}
    for number, name in enumerate(names, 1):
        least, mask = NOTEWORTHY * counts[number], array == number
        box = bounding_box(mask)
        if box is None:
            found[name] = StructureShape(0.0)
            continue
        x, y, z = ((b.stop - b.start) * float(mm) for b, mm in zip(box, spacing, strict=True))
        found[name] = StructureShape(
            int(counts[number]) * voxel_ml,
            tuple(part.voxels * voxel_ml for part in pieces(mask) if part.voxels >= least),
            tuple(n * voxel_ml for n in sorted(enclosed.get(number, []), reverse=True) if n >= least),
            (x, y, z),
            tuple(other for i, other in enumerate(names, 1) if (min(i, number), max(i, number)) in touching),
        )
    return found


def _touching(label: np.ndarray) -> set[tuple[int, int]]:
    """The pairs (lower class, higher class) of structures that have neighbouring voxels."""
    around = bounding_box(label != 0)
    if around is None or len(np.unique(label[around])) < 3:
        return set()
    inner = label[around].astype(np.int32)
    base = int(inner.max()) + 1
    found: set[int] = set()
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):  # the other half gives the same pairs
            here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, inner.shape, strict=True))
            there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, inner.shape, strict=True))
            one, other = inner[here], inner[there]
            differ = (one != other) & (one > 0) & (other > 0)
            low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
            found |= set(np.unique(low * base + high).tolist())
    return {divmod(code, base) for code in found}


@dataclass(frozen=True)
class StructureStatistics:
    """What the training labels with a structure have in common.

    Args:
        labels: how many these are, :data:`FEWEST` or more.
        volume_ml: the smallest and the largest volume.
        likely_ml: where 99 of 100 further volumes lie if their logarithms are normally distributed (a prediction interval by
            Student's t, Hahn and Meeker 1991), and never less than ``volume_ml``. The fewer labels, the wider it is.
        extent_mm: the smallest and the largest extent along x, y, z.
        most_pieces: in how many pieces it is at most.
        smallest_piece_ml: of the labels in several pieces, the smallest one; infinite where each is in one piece.
        most_holes: how many holes it has at most.
        smallest_hole_ml: the smallest one; infinite where no label has a hole.
        neighbours: the structures that it touches in every label.
    """

    labels: int
    volume_ml: tuple[float, float]
    likely_ml: tuple[float, float]
    extent_mm: tuple[tuple[float, ...], tuple[float, ...]]
    most_pieces: int
    smallest_piece_ml: float
    most_holes: int
    smallest_hole_ml: float
    neighbours: tuple[str, ...]

    @classmethod
    def of(cls, shapes: Sequence[StructureShape]) -> StructureStatistics:
        """Of one structure in several labels, each of which has it."""
        volumes = [shape.volume_ml for shape in shapes]
        extents = np.array([shape.extent_mm for shape in shapes])
        neighbours = [other for other in shapes[0].touches if all(other in shape.touches for shape in shapes)]
        return cls(
            len(shapes),
            (min(volumes), max(volumes)),
            likely_range(volumes),
            (tuple(extents.min(0).tolist()), tuple(extents.max(0).tolist())),
            max(len(shape.pieces_ml) for shape in shapes),
            min((shape.pieces_ml[-1] for shape in shapes if len(shape.pieces_ml) > 1), default=math.inf),
            max(len(shape.holes_ml) for shape in shapes),
            min((shape.holes_ml[-1] for shape in shapes if shape.holes_ml), default=math.inf),
            tuple(neighbours),
        )


def likely_range(volumes: Sequence[float], coverage: float = COVERAGE) -> tuple[float, float]:
    """See :attr:`StructureStatistics.likely_ml`; ``volumes`` are two or more, above 0."""
    from scipy.stats import t

    logs = np.log(volumes)
    reach = t.ppf((1 + coverage) / 2, len(logs) - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / len(logs))
    low, high = (math.exp(min(700.0, float(logs.mean() + sign * reach))) for sign in (-1, 1))  # 700: what a float can hold
    return min(low, *volumes), max(high, *volumes)


@dataclass(frozen=True)
class AnatomyStatistics:
    """What training labels show of their structures.

    Args:
        structures: by name; without those that fewer than :data:`FEWEST` labels have.

    Examples:
        >>> import torch
        >>> labels = []
        >>> for size in (8, 10, 12):
        ...     label = torch.zeros(20, 20, 20, dtype=torch.uint8)
        ...     label[2 : 2 + size, 2:12, 2:12] = 1
        ...     labels.append(label)
        >>> anatomy = AnatomyStatistics.of(labels, [(1.0, 1.0, 3.0)] * 3, ["prostate"])
        >>> anatomy.structures["prostate"].volume_ml, anatomy.structures["prostate"].most_pieces
        ((2.4, 3.6), 1)
        >>> anatomy.volume_range("gland") is None
        True
    """

    structures: Mapping[str, StructureStatistics]

    @classmethod
    def of(
        cls, labels: Iterable[torch.Tensor], spacings_mm: Iterable[Sequence[float]], names: Sequence[str]
    ) -> AnatomyStatistics:
        """Of labels, as :func:`measure_anatomy` takes them, each with its voxel size."""
        return cls.of_shapes(measure_anatomy(label, mm, names) for label, mm in zip(labels, spacings_mm, strict=True))

    @classmethod
    def of_shapes(cls, measured: Iterable[Mapping[str, StructureShape]]) -> AnatomyStatistics:
        """Of what :func:`measure_anatomy` gave for each label."""
        by_name: dict[str, list[StructureShape]] = {}
        for one in measured:
            for name, shape in one.items():
                if shape.volume_ml > 0:
                    by_name.setdefault(name, []).append(shape)
        return cls({name: StructureStatistics.of(shapes) for name, shapes in by_name.items() if len(shapes) >= FEWEST})

    def volume_range(self, name: str) -> tuple[float, float] | None:
        """The volumes in ml to expect of a structure (:attr:`StructureStatistics.likely_ml`); None where nothing is known."""
        known = self.structures.get(name)
        return None if known is None else known.likely_ml


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value
