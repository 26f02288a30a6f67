"""What a method of the benchmark is: something that aligns a pair, or segments a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from world import World


class Aligned(NamedTuple):
    """One aligned pair: the atlas's label on the target, (*S) float in 0..1, and on demand the field (*S, D) in voxels."""

    label: np.ndarray
    field: Callable[[], np.ndarray | None]


@dataclass(frozen=True)
class Method:
    """A method, loaded and ready.

    Args:
        settings: how it was run, for the table.
        align: (B, *S) fixed, moving and moving label -> B aligned pairs; None for a method that only segments.
        segment: number of a case of the world -> (*S) label; None for a method that only aligns.
        batch: pairs it takes at once.
        repeats: how often a pair or case is run; quick methods are measured more often.
    """

    settings: str
    align: Callable[[np.ndarray, np.ndarray, np.ndarray], list[Aligned]] | None = None
    segment: Callable[[int], np.ndarray] | None = None
    batch: int = 1
    repeats: int = 1


Maker = Callable[[World], Method]


def one_by_one(align: Callable[[np.ndarray, np.ndarray, np.ndarray], Aligned]) -> Callable[..., list[Aligned]]:
    """A method for single pairs as one for batches."""
    return lambda fixed, moving, label: [align(*pair) for pair in zip(fixed, moving, label, strict=True)]


def majority(world: World, number: int, align: Callable[[np.ndarray, np.ndarray, np.ndarray], Aligned]) -> np.ndarray:
    """The label that half or more of the aligned atlases of a case agree on."""
    target = world.targets[number]
    votes = [align(target, a, y).label for a, y in zip(world.atlases[number], world.atlas_labels[number], strict=True)]
    return np.asarray(np.mean([v >= 0.5 for v in votes], axis=0) >= 0.5, np.uint8)
