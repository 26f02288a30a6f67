"""The fine grid of the plan: laid where the true labels, taken to the working grid and back, are no longer the true labels."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.io import read_volume
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case, Volume
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.transforms.labels import one_hot
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.transforms.spatial import resample_label, restore
from oasis_monai.utils.errors import DataError
from oasis_monai.utils.files import digest, write_json
from oasis_monai.workflows.fingerprint import Fingerprint
from oasis_monai.workflows.plan_choice import GRID, Asked, Choice, mm_text
from oasis_monai.workflows.plan_grid import ROUND_MM, SAME, own_spacing, thinnest, working_grid

LOST = 0.015
"""So much Dice a working grid may cost the worst structure. The prostate loses 0.002 by it, the CSF of IBSR18 0.1."""
THICK = 4.0  # a structure of so many voxels across loses less than that, and is not measured
SCANS = 3  # that are measured
FINE_VOXELS = 2**24  # most voxels of a fine grid: 64 MiB for every class
NEARER = 0.25  # by how much of a fine voxel the working voxels may be finer than planned
JOINT = {"slice_budget": 0.65, "volume_budget": 0.2, "estimate_weight": 1.0}
"""Of the joint model: the slice network has ten times as many voxels to learn from, and is slower by that. Structures so thin are
not to be aligned by a coarse field: the atlases' tissues of IBSR18 have 51 to 73 %, the estimate's 90. So atlases only tell how
sure a result is, unless a cross-validation learns otherwise."""
Networks = Mapping[str, Mapping[str, Any]]
Kept = Callable[[Preprocessing], Mapping[str, float]]
"""Structure -> Dice of true labels that were taken to a working grid and back."""


def with_fine_grid(
    fingerprint: Fingerprint, asked: Asked, grid: Choice, networks: Networks, lying: str, kept: Kept | None
) -> tuple[Choice, Networks]:
    """The grid and the networks of the plan, with a fine grid where the working grid loses too much.

    The fine voxels are the scans' own (of the next of :data:`.ROUND_MM`), larger where there would be more than
    :data:`FINE_VOXELS`. The working voxels are multiples of them, about as large as they were.

    Args:
        grid, networks: of :func:`.working_grid`.
        lying: how the slices lie.
        kept: measures what a grid keeps; None: nothing is measured, nothing is laid.
    """
    is_given = any(asked.value(option) is not None for option in (*GRID, "preprocessing.fine_factor"))
    thin = thinnest(fingerprint)
    if kept is None or asked.dims != 3 or is_given or thin is None or thin[1] >= THICK * _side(grid):
        return grid, networks
    size, planned_mm = (tuple(grid.values[option]) for option in GRID)
    dice = kept(Preprocessing("physical", 3, size, planned_mm, "zscore", slice_axis=lying))
    name, least = min(dice.items(), key=lambda one: one[1], default=("", 1.0))
    if not least < 1 - LOST:
        return grid, networks
    factor, spacing = own_factor(own_spacing(fingerprint), grid, FINE_VOXELS)
    if factor == (1, 1, 1):
        return grid, networks
    spaced = {**asked.config["preprocessing"], "spacing_mm": list(spacing)}
    coarse, networks = working_grid(fingerprint, replace(asked, config={**asked.config, "preprocessing": spaced}))
    reason = f"{grid.reason}. In voxels of {mm_text(planned_mm)} and back the true label {name} keeps a Dice of {least:.1%}, so "
    reason += f"slices are seen and labels fused in voxels of {mm_text(np.divide(spacing, factor))}"
    values = {"size": list(coarse.values[GRID[0]]), "spacing_mm": list(spacing), "fine_factor": list(factor)}
    made = asked.choice(reason, **{f"preprocessing__{key}": value for key, value in values.items()})
    return made, {**networks, "joint": {**networks["joint"], **JOINT}}


def own_factor(own: np.ndarray, grid: Choice, most: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """How many voxels of the scans' own are in a working one, and the size of that in mm; of larger ones, where there would be
    more than ``most`` on the whole grid."""
    planned = np.array(grid.values[GRID[1]])
    reach = np.multiply(planned, grid.values[GRID[0]])
    fine = [_round(mm) for mm in own]
    while math.prod(reach / fine) > most:
        finest = int(np.argmin(fine))
        fine[finest] = next((mm for mm in ROUND_MM if mm > fine[finest]), 2 * fine[finest])
    factor = tuple(max(1, math.ceil(mm / part - NEARER)) for mm, part in zip(planned, fine, strict=True))
    return factor, tuple(round(f * mm, 6) for f, mm in zip(factor, fine, strict=True))


def _side(grid: Choice) -> float:
    """Of a cube as large as a working voxel, in mm."""
    return math.prod(grid.values[GRID[1]]) ** (1 / 3)


def _round(mm: float) -> float:
    return next((one for one in ROUND_MM if SAME * one >= mm), float(mm))


def kept_by(cases: Sequence[Case], data: DataSettings, cache: Path | None, stamp: Callable[[Case], Any]) -> Kept:
    """What measures the labels of a data set: means over a few of its cases, evenly spread over their order.

    Args:
        cache: folder of what was measured before; None keeps nothing.
        stamp: what tells whether the files of a case have changed.
    """
    labelled = [case for case in cases if case.label is not None]
    some = [labelled[i] for i in sorted({round(i) for i in np.linspace(0, len(labelled) - 1, SCANS)})] if labelled else []

    @functools.cache
    def kept(preprocessing: Preprocessing) -> Mapping[str, float]:
        found: dict[str, list[float]] = {}
        for case in some:
            for name, dice in _of_case(case, data, preprocessing, cache, stamp).items():
                found.setdefault(name, []).append(dice)
        return {name: float(np.mean(each)) for name, each in found.items()}

    return kept


def _of_case(
    case: Case, data: DataSettings, preprocessing: Preprocessing, cache: Path | None, stamp: Callable[[Case], Any]
) -> dict[str, float]:
    """By structure; empty for a scan that cannot be read: the check says so."""
    grid = [list(preprocessing.size), list(preprocessing.spacing_mm or ()), preprocessing.slice_axis]
    key = [stamp(case), grid, list(data.label_values), list(data.labels), data.ignore]
    path = None if cache is None else cache / f"kept-{digest(key, 24)}.json"
    if path is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): float(value) for name, value in known.items()}
    try:
        volume = read_volume(case, data.label_values, data.ignore)
    except DataError:
        return {}
    dice = dict(zip(data.labels, there_and_back(volume, preprocessing, data.classes), strict=True))
    found = {name: value for name, value in dice.items() if not math.isnan(value)}
    if path is not None:
        write_json(path, found)
    return found


def there_and_back(volume: Volume, preprocessing: Preprocessing, classes: int) -> list[float]:
    """Dice of every structure of a label that is taken to the working grid and back; NaN where there is none."""
    assert volume.label is not None
    working = preprocessing.working_geometry(volume.geometry)
    label = resample_label(volume.label, volume.geometry, working)
    back, _ = restore(one_hot(label[None], classes)[0], working, volume.geometry)
    counts: list[list[float]] = overlap_counts(back, volume.label[0], classes).tolist()
    return [common / both if both else math.nan for common, both in counts]
