"""Where a structure of a slice should lie, from labels alone: shape-based interpolation (Raya and Udupa 1990) between two slices.

The signed distance to the structure's edge (inside positive) is interpolated voxel by voxel; where it is positive is the shape
between. The two are the next labelled slices of the same scan, weighted by their distance along z; atlases of other scans, not
aligned yet, tell less (docs/results/accuracy.md). The image is never looked at, so it is also what a slice fold gives away: see
``interpolation`` of :data:`oasis_monai.segment.METHODS`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch

from oasis_monai.library import AtlasLibrary
from oasis_monai.networks.slice_unet import REACH


def signed_distance(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, x, y) class indices -> (B, C-1, x, y) float32 voxels from the edge of each structure, positive inside, at least
    ``-REACH``; ``-REACH`` everywhere where there is none."""
    from scipy.ndimage import distance_transform_edt

    found = torch.full((len(labels), classes - 1, *labels.shape[2:]), -REACH)
    for row, label in enumerate(labels[:, 0].cpu().numpy()):
        for index in np.unique(label[label > 0]).tolist():
            inside = label == index
            if inside.all():  # scipy would measure from beyond one corner
                found[row, index - 1] = max(inside.shape)
                continue
            edge = distance_transform_edt(inside) - distance_transform_edt(~inside)
            found[row, index - 1] = torch.from_numpy(edge.astype(np.float32)).clamp_min(-REACH)
    return found


def neighbours(library: AtlasLibrary, places: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The next labelled slices of the same scan below and above each place, never the place itself.

    Args:
        places: B pairs of case and slice number.

    Returns:
        (B, 2) rows of the library, -1 where there is none, and (B, 2) weights of sum 1, larger for the nearer one. A neighbour
        that is not there is taken to be one slice beyond the place.
    """
    wanted = {case for case, _ in places}
    known: dict[str, list[tuple[int, int]]] = {case: [] for case in wanted}
    for row, (case, z) in enumerate(zip(library.cases, library.slices.tolist(), strict=True)):
        if case in wanted:
            known[case].append((z, row))
    rows = torch.full((len(places), 2), -1)
    weights = torch.empty(len(places), 2)
    for mine in known.values():
        mine.sort()
    for number, (case, z) in enumerate(places):
        mine = known[case]
        at = bisect_left(mine, (z, -1))
        above = at + 1 if at < len(mine) and mine[at][0] == z else at
        low, high = z - 1, z + 1
        if at > 0:
            low, rows[number, 0] = mine[at - 1]
        if above < len(mine):
            high, rows[number, 1] = mine[above]
        weights[number] = torch.tensor([high - z, z - low]) / (high - low)
    return rows, weights


def shape_between(
    library: AtlasLibrary, places: Sequence[tuple[str, int]], otherwise: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, C-1, x, y) signed distance in voxels to the edge of the shape between the labelled :func:`neighbours` of each place;
    a neighbour that is not there counts as one without any structure.

    Args:
        otherwise: (B, 2) rows of the library, between which the shape is where a scan has no other labelled slice.
    """
    rows, weights = neighbours(library, places)
    if otherwise is not None:
        rows = torch.where((rows < 0).all(1, keepdim=True), otherwise, rows)
    used, where = rows.unique(return_inverse=True)
    maps = signed_distance(library.labels[used.clamp_min(0)], library.classes)
    maps[used < 0] = -REACH
    return torch.einsum("bk,bk...->b...", weights, maps[where])
