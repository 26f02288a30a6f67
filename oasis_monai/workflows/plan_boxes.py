"""Whole view, windows or boxes: how the plan shows thin structures at the scans' own resolution.

- The *whole view*: a working grid that shows enough, or a fine grid over all of it (:mod:`.plan_fine`).
- *Windows* (patches) of it, where slices of the fine grid are larger than what the slice network sees at once.
- *Boxes*: where the scans' own voxels over the whole view are many, and the structures lie in a small part of them. A fine grid
  would spend most of the minutes and of the memory on what nobody asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oasis_monai.segmentation.boxes import MARGIN_MM
from oasis_monai.utils.planned import UNPLANNED
from oasis_monai.workflows.fingerprint import Fingerprint, ScanMeasures
from oasis_monai.workflows.plan_choice import GRID, Asked, Choice, mm_text
from oasis_monai.workflows.plan_fine import Networks, own_factor
from oasis_monai.workflows.plan_grid import own_spacing, working_grid

WHOLE_VOXELS = 2**23
"""Up to so many fine voxels the whole view is seen: a slice network takes 10 to 15 s for them, on one core."""
SMALL = 0.35
"""Boxes that show more of the view than this gain little against the coarse pass that they need."""
CELL_MM = 6.0  # of the lattice on which the room that boxes take is counted
BUDGETS = {"slice_budget": 0.3, "volume_budget": 0.2, "box_budget": 0.4, "even_draws": True, "estimate_weight": 1.0}
"""Of the joint model: the slice network of the coarse pass has few voxels to learn from, the box network has the detail. What the
coarse pass does not see gets no box, so structures of a few slices are drawn as often as the others."""


def with_boxes(
    fingerprint: Fingerprint, asked: Asked, coarse: Choice, fine: Choice, networks: Networks
) -> tuple[Choice, Networks]:
    """The grid and the networks of the plan, with boxes in the place of a fine grid where these show a small part of many voxels.

    Args:
        coarse: of :func:`.working_grid`.
        fine, networks: of :func:`.with_fine_grid`; the same grid where no fine one is laid.
    """
    if asked.value("preprocessing.box_factor") is not None:
        return fine, {**networks, "joint": {**networks["joint"], **BUDGETS}}
    key = "preprocessing.fine_factor"
    joint = asked.value("registration.joint") is not False and asked.value("joint.box_budget") is None
    if key not in fine.values or key in fine.given or not joint:
        return fine, networks
    own = own_spacing(fingerprint)
    factor, spacing = own_factor(own, coarse, math.inf)
    voxels = math.prod(coarse.values[GRID[0]]) * math.prod(np.divide(coarse.values[GRID[1]], np.divide(spacing, factor)))
    view_mm = np.multiply(fine.values[GRID[0]], fine.values[GRID[1]])
    share = float(np.median([room(scan, view_mm) for scan in fingerprint.labelled]))
    if voxels <= WHOLE_VOXELS:
        return fine, networks
    counted = f"{voxels / 1e6:.0f} million voxels of {mm_text(np.divide(spacing, factor))}"
    if share > SMALL:
        told = f"the whole view in windows: it has {counted}, of which boxes round the structures would show {share:.0%}"
        return replace(fine, reason=f"{fine.reason}; {told}"), networks
    spaced = {**asked.config["preprocessing"], "spacing_mm": list(spacing)}
    made, networks = working_grid(fingerprint, replace(asked, config={**asked.config, "preprocessing": spaced}))
    reason = fine.reason.partition(", so slices are seen")[0]
    reason += f". The whole view has {counted}, and boxes with {MARGIN_MM:g} mm round the structures show {share:.0%} of it: a "
    reason += "coarse pass finds the structures, and another network labels them in boxes of such voxels"
    values = {"size": list(made.values[GRID[0]]), "spacing_mm": list(spacing), "box_factor": list(factor)}
    choice = asked.choice(reason, **{f"preprocessing__{key}": value for key, value in values.items()})
    usual = UNPLANNED[3]["joint"]
    return choice, {**networks, "joint": {**usual, **networks["joint"], **BUDGETS}}


def room(scan: ScanMeasures, view_mm: Sequence[float] | np.ndarray) -> float:
    """The part of the view that boxes round the structures of a scan take up, 0 to 1.

    The extent of each structure with :data:`.MARGIN_MM` counts; what lies in several counts once.

    Args:
        view_mm: (3,) of the working grid, round the centre of the scan.
    """
    cells = [max(1, math.ceil(mm / CELL_MM)) for mm in view_mm]
    taken = np.zeros(cells, bool)
    for one in scan.structures.values():
        sides = zip(one.centre_mm, one.width_mm, view_mm, cells, strict=True)
        taken[tuple(_cells(centre, width / 2 + MARGIN_MM, size, n) for centre, width, size, n in sides)] = True
    return float(taken.mean())


def _cells(centre: float, half: float, size: float, cells: int) -> slice:
    """``centre``: from the middle of the view."""
    first, last = ((centre + sign * half) / size + 0.5 for sign in (-1, 1))
    return slice(max(0, math.floor(first * cells)), max(0, math.ceil(last * cells)))
