"""What a measured method is (it aligns a pair or segments a case), and the list of those that are measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.speed.data import World


class Aligned(NamedTuple):
    """One aligned pair: the warped atlas label (*S), float in 0..1, and a function that gives the field (*S, D) in voxels."""

    label: np.ndarray
    field: Callable[[], np.ndarray | None]


@dataclass(frozen=True)
class Method:
    """A method that is loaded and ready to run.

    Args:
        settings: how it was run, in words for the table.
        align: (B, *S) fixed, moving and moving label -> B aligned pairs; None for a method that only segments.
        segment: number of a case of the world -> (*S) label; None for a method that only aligns.
        batch: pairs it takes at once.
        repeats: how often each pair or case is run; fast methods run more often.
    """

    settings: str
    align: Callable[[np.ndarray, np.ndarray, np.ndarray], list[Aligned]] | None = None
    segment: Callable[[int], np.ndarray] | None = None
    batch: int = 1
    repeats: int = 1


Maker = Callable[[World], Method]


def one_by_one(align: Callable[[np.ndarray, np.ndarray, np.ndarray], Aligned]) -> Callable[..., list[Aligned]]:
    """Turn a function that aligns one pair into one that aligns a batch."""
    return lambda fixed, moving, label: [align(*pair) for pair in zip(fixed, moving, label, strict=True)]


def majority(world: World, number: int, align: Callable[[np.ndarray, np.ndarray, np.ndarray], Aligned]) -> np.ndarray:
    """The label (*S) of a case that at least half of its aligned atlases agree on."""
    target = world.targets[number]
    votes = [align(target, a, y).label for a, y in zip(world.atlases[number], world.atlas_labels[number], strict=True)]
    return np.asarray(np.mean([v >= 0.5 for v in votes], axis=0) >= 0.5, np.uint8)


class Entry(NamedTuple):
    """One line of the list of measured methods.

    Args:
        kind: ``pair`` or ``case``.
        dims: spatial dimensions of the grids it runs on.
        network: what has to be trained: ``plain`` or ``joint`` (OASIS), ``monai`` or ``voxelmorph`` (networks as shipped).
        batch: pairs it takes at once.
    """

    kind: str
    dims: tuple[int, ...]
    network: str = ""
    batch: int = 1


ENTRIES = {  # in the order of the tables; ours.py and peers.py make them
    "OASIS STM": Entry("pair", (3, 2), "plain"),
    "OASIS STM, batch of 6": Entry("pair", (3, 2), "plain", 6),
    "OASIS joint STM, batch of 6": Entry("pair", (3,), "joint", 6),
    "MONAI VoxelMorph": Entry("pair", (3, 2), "monai"),
    "voxelmorph": Entry("pair", (3,), "voxelmorph"),
    "ANTs SyN": Entry("pair", (3, 2)),
    "ANTs SyNQuick": Entry("pair", (3, 2)),
    "elastix": Entry("pair", (3, 2)),
    "Demons": Entry("pair", (3, 2)),
    "OASIS": Entry("case", (3,), "plain"),
    "OASIS-joint": Entry("case", (3,), "joint"),
    "ANTs SyN + voting": Entry("case", (3,)),
    "ANTs SyN + joint label fusion": Entry("case", (3,)),
    "platipy": Entry("case", (3,)),
}


def select_methods(dims: int, model: Path | None, only: list[str] | None) -> dict[str, Entry]:
    """The methods of one grid. A given model replaces the one of its kind (plain or joint) and excludes the other kind."""
    other = "" if model is None else "plain" if is_joint(model) else "joint"
    wanted = {name: entry for name, entry in ENTRIES.items() if dims in entry.dims and (not only or name in only)}
    return {name: entry for name, entry in wanted.items() if not other or entry.network != other}


def is_joint(model: Path) -> bool:
    """Whether a model folder contains a joint model."""
    return bool(json.loads((model / "model.json").read_text(encoding="utf-8"))["settings"]["registration"]["joint"])
