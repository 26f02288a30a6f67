"""Whole view, windows or boxes: how the plan shows thin structures at the scans' own resolution.

- The *whole view*: a working grid that shows enough, or a fine grid with the scans' own voxels over all of it.
- *Windows* (patches): the same where slices are larger than the slice network's window; :mod:`.plan_fine` lays the grid.
- *Boxes*: where the scans' own voxels over the whole view would be more than a fine grid can have, so that it would lose thin
  structures all the same, and the structures take up a small part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oasis_monai.segmentation.boxes import MARGIN_MM
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.workflows.fingerprint import Fingerprint, ScanMeasures
from oasis_monai.workflows.plan_choice import GRID, Asked, Choice, mm_text
from oasis_monai.workflows.plan_fine import FINE_VOXELS, LOST, Kept, Networks, own_factor
from oasis_monai.workflows.plan_grid import own_spacing, working_grid

SMALL = 0.35
"""Boxes that show more of the field of view than this cost as much as the whole."""
COARSER = 1.3  # fine voxels at most so many times longer than the scans' own show what the scans show
CELL_MM = 6.0  # of the lattice on which the room that boxes take is counted
BUDGETS = {"slice_budget": 0.35, "volume_budget": 0.2, "box_budget": 0.35, "estimate_weight": 1.0}
"""Of the joint model: the slice network of the coarse pass has few voxels to learn from, the box network has the rest."""


def with_boxes(
    fingerprint: Fingerprint, asked: Asked, coarse: Choice, fine: Choice, networks: Networks, lying: str, kept: Kept | None
) -> tuple[Choice, Networks]:
    """The grid and the networks of the plan, with boxes in the place of a fine grid where that loses too much all the same.

    Args:
        coarse: of :func:`.working_grid`.
        fine, networks: of :func:`.with_fine_grid`; the same grid where no fine one is laid.
        lying: how the slices lie.
        kept: measures what a grid keeps of true labels; None: nothing is measured, nothing is laid.
    """
    if asked.value("preprocessing.box_factor") is not None:
        return fine, {**networks, "joint": {**networks["joint"], **BUDGETS}}
    factor = fine.values.get("preprocessing.fine_factor")
    if kept is None or factor is None or "preprocessing.fine_factor" in fine.given or asked.value("registration.joint") is False:
        return fine, networks
    own = own_spacing(fingerprint)
    spacing_mm = np.divide(fine.values[GRID[1]], factor)
    share = float(np.median([room(scan) for scan in fingerprint.labelled]))
    if (spacing_mm <= COARSER * own).all():
        return fine, networks
    dice = kept(_on(fine, lying))
    name, least = min(dice.items(), key=lambda one: one[1], default=("", 1.0))
    if not least < 1 - LOST:
        return _because(fine, f"there {name} keeps {least:.1%}"), networks
    if share > SMALL:
        told = f"there {name} keeps {least:.1%}, but boxes round the structures would show {share:.0%} of the view"
        return _because(fine, told), networks
    box_factor, spacing = own_factor(own, coarse, math.inf)
    spaced = {**asked.config["preprocessing"], "spacing_mm": list(spacing)}
    made, networks = working_grid(fingerprint, replace(asked, config={**asked.config, "preprocessing": spaced}))
    reason = (
        f"{coarse.reason}. On the finest grid that fits the whole view ({FINE_VOXELS:,} voxels of {mm_text(spacing_mm)}) the "
    )
    reason += (
        f"true label {name} keeps a Dice of {least:.1%}. The structures with {MARGIN_MM:g} mm round them take up {share:.0%} "
    )
    reason += (
        f"of the view, so a coarse pass finds them, and boxes show them in voxels of {mm_text(np.divide(spacing, box_factor))}"
    )
    values = {"size": list(made.values[GRID[0]]), "spacing_mm": list(spacing), "box_factor": list(box_factor)}
    choice = asked.choice(reason, **{f"preprocessing__{key}": value for key, value in values.items()})
    return choice, {**networks, "joint": {**networks["joint"], **BUDGETS}}


def room(scan: ScanMeasures) -> float:
    """The part of a scan's field of view that boxes round its structures take up, 0 to 1.

    Each structure's extent with :data:`.MARGIN_MM` counts; what lies in several counts once.
    """
    cells = [max(1, math.ceil(mm / CELL_MM)) for mm in scan.size_mm]
    taken = np.zeros(cells, bool)
    for one in scan.structures.values():
        sides = zip(one.centre_mm, one.width_mm, scan.size_mm, cells, strict=True)
        taken[tuple(_cells(centre, width / 2 + MARGIN_MM, size, n) for centre, width, size, n in sides)] = True
    return float(taken.mean())


def _cells(centre: float, half: float, size: float, cells: int) -> slice:
    """``centre``: from the middle of the view."""
    first, last = ((centre + sign * half) / size + 0.5 for sign in (-1, 1))
    return slice(max(0, math.floor(first * cells)), max(0, math.ceil(last * cells)))


def _on(fine: Choice, lying: str) -> Preprocessing:
    """The fine grid as if it were a working grid."""
    factor: Sequence[int] = fine.values["preprocessing.fine_factor"]
    size = tuple(int(n * f) for n, f in zip(fine.values[GRID[0]], factor, strict=True))
    spacing = tuple(float(mm / f) for mm, f in zip(fine.values[GRID[1]], factor, strict=True))
    return Preprocessing("physical", 3, size, spacing, "zscore", slice_axis=lying)


def _because(choice: Choice, told: str) -> Choice:
    return replace(choice, reason=f"{choice.reason}; {told}")
