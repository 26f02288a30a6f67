"""Slices as atlases: shape-based interpolation between labelled slices (Raya and Udupa 1990), and context channels.

Shape-based interpolation predicts a structure's outline from labels alone. The signed distance to the structure's edge (positive
inside) is interpolated voxel by voxel between the next labelled slices of the same scan, weighted by their distance along z. The
interpolated shape is where it is positive. Unaligned atlases of other scans predict less well (docs/results/accuracy.md). The
image is never used, so this also measures how much slice folds leak: see ``interpolation`` of
:data:`oasis_monai.segmentation.methods.METHODS`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from oasis_monai.atlases.features import thumbnails
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.atlases.selection import Pair, nearest
from oasis_monai.data.types import IGNORE
from oasis_monai.networks.slice_unet import MAX_DISTANCE
from oasis_monai.transforms.labels import foreground, structures


def signed_distance(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, x, y) class indices -> (B, C-1, x, y) float32 voxels from the edge of each structure, positive inside, at least
    ``-MAX_DISTANCE``; ``-MAX_DISTANCE`` everywhere where there is none. Ignored voxels are in no structure."""
    from scipy.ndimage import distance_transform_edt

    found = torch.full((len(labels), classes - 1, *labels.shape[2:]), -MAX_DISTANCE)
    for row, label in enumerate(labels[:, 0].cpu().numpy()):
        for index in np.unique(label[(label > 0) & (label != IGNORE)]).tolist():
            inside = label == index
            if inside.all():  # scipy would measure from beyond one corner
                found[row, index - 1] = max(inside.shape)
                continue
            edge = distance_transform_edt(inside) - distance_transform_edt(~inside)
            found[row, index - 1] = torch.from_numpy(edge.astype(np.float32)).clamp_min(-MAX_DISTANCE)
    return found


def neighbours(library: AtlasLibrary, places: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the next labelled slices of the same scan below and above each place, never the place itself.

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


def interpolate_shape(
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
    maps[used < 0] = -MAX_DISTANCE
    return torch.einsum("bk,bk...->b...", weights, maps[where])


def adjacent_slice_atlases(slices: torch.Tensor, library: AtlasLibrary, exclude: Pair | None = None) -> torch.Tensor:
    """(Q, 3c, x, y) slices between their neighbours -> (Q, 2) rows of the library: the atlas most like the slice below, and that
    most like the slice above. Never the same: of the pairs of two, the one that is more like both.

    Args:
        exclude: as for :func:`oasis_monai.atlases.selection.nearest`.

    Raises:
        ConfigError: fewer than two atlases are available to some slice.
    """
    known = library.thumbnails if library.thumbnails is not None else thumbnails(library.images)
    sides = (slices[:, first::3] for first in (0, 2))
    (below, near), (above, far) = (nearest(thumbnails(side), known, 2, "l2", exclude) for side in sides)
    rows = torch.stack([below[:, 0], above[:, 0]], 1)
    # correlation = 1 - distance^2 / 2
    give_way = near[:, 0].square() + far[:, 1].square() > near[:, 1].square() + far[:, 0].square()
    second = torch.where(give_way, below[:, 1], above[:, 1])
    clash = rows[:, 0] == rows[:, 1]
    rows[clash & give_way, 0], rows[clash & ~give_way, 1] = second[clash & give_way], second[clash & ~give_way]
    return rows


def append_atlas_channels(
    slices: torch.Tensor, library: AtlasLibrary, rows: torch.Tensor, shape: torch.Tensor | None = None
) -> torch.Tensor:
    """Append atlases to slices as further input channels.

    Args:
        slices: (B, 3c, x, y), each between its neighbours (:func:`oasis_monai.networks.slice_unet.with_neighbours`).
        rows: (B, k) of the library: the atlases of each.
        shape: (B, C-1, x, y) signed distance to where each structure is expected (slice folds: :mod:`.slices`).

    Returns:
        (B, 3c + k * (c + C - 1), x, y): per atlas its image, then its structures, unaligned; with a shape C-1 channels more,
        ``1 + distance / MAX_DISTANCE``, so that 0, what lies beyond an image, means far outside.
    """
    parts = [slices]
    for column in rows.unbind(1):
        parts += [library.images[column].float(), foreground(library.labels[column], library.classes)]
    return torch.cat(parts if shape is None else [*parts, 1 + shape / MAX_DISTANCE], 1)


def context_slices(library: AtlasLibrary, rows: torch.Tensor) -> torch.Tensor:
    """(B, 3c, x, y) atlases of a library of slices between their neighbours, channel by channel."""
    if library.context is None:
        raise ValueError("a library of slices without their neighbours; build it again")
    below, above = library.context[rows].unflatten(1, (-1, 2)).split(1, 2)
    return torch.cat([below, library.images[rows][:, :, None], above], 2).flatten(1, 2).float()


def nearest_slice_atlases(library: AtlasLibrary, count: int, same_case: bool, rows: torch.Tensor) -> torch.Tensor:
    """(R, count) the atlases shown beside the atlases ``rows``: of other patients, but with ``same_case``."""
    if not count:
        return torch.empty((len(rows), 0), dtype=torch.int64)
    own = library.groups(same_case)
    parts = rows.split(1024)  # all slices with their neighbours take three times the memory of the library
    return torch.cat([adjacent_slice_atlases(context_slices(library, part), library, (own[part], own)) for part in parts])


def expected_shapes(library: AtlasLibrary, rows: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """(R, C-1, x, y) expected shape of the atlases ``rows``, without using their own label; ``near``: see
    :func:`nearest_slice_atlases`."""
    return interpolate_shape(library, [(library.cases[row], int(library.slices[row])) for row in rows.tolist()], near)


def slices_near_structure(library: AtlasLibrary, within_slices: int = 2) -> torch.Tensor:
    """Find the slices that have a structure at most ``within_slices`` slices away.

    Returns:
        (N, z) bool for volumes, of the finest grid there is; (N,) bool for slices, where only neighbours that are in the library
        count.
    """
    if library.spatial_dims == 3:
        has_structure = torch.stack([structures(one.label).flatten(0, 2).any(0) for one in library.detail])
        spread = F.max_pool1d(has_structure[:, None].float(), 2 * within_slices + 1, stride=1, padding=within_slices)
        return spread[:, 0] > 0
    has_structure = structures(library.labels).flatten(1).any(1)
    known = {(case, int(z)) for case, z, fg in zip(library.cases, library.slices, has_structure.tolist(), strict=True) if fg}
    around = range(-within_slices, within_slices + 1)
    near = [any((case, int(z) + d) in known for d in around) for case, z in zip(library.cases, library.slices, strict=True)]
    return torch.tensor(near)
