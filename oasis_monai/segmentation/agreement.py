"""Agreement of the parts of a result: overlaps of networks, atlases and their fusion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from oasis_monai.networks.structures import membership
from oasis_monai.transforms.labels import decide, ignored

SOURCES = ("networks", "atlases")


Structures = Sequence[Sequence[int]]
"""The classes of every structure; empty: each class is one."""


def agreement(network_probabilities: torch.Tensor, fused: torch.Tensor | None, structures: Structures = ()) -> torch.Tensor:
    """Overlap counts of the parts of a joint model's result: networks with each other, atlases with networks.

    Args:
        network_probabilities: (V, C, *S) probabilities, one per network (V is 1 or 2).
        fused: (C, *S) the atlases' vote, or None.
        structures: the classes of each of K structures, where structures share voxels; K is C - 1 without.

    Returns:
        (2, K, 2) float64 in the order of :data:`SOURCES`: twice the common voxels, and the voxels of both. They add up over
        slices. (0, 0) where there is nothing to compare.
    """
    classes = network_probabilities.shape[1]
    counts = torch.zeros(2, len(structures) or classes - 1, 2, dtype=torch.float64)
    if len(network_probabilities) > 1:
        one, other = (decide(probability).cpu() for probability in network_probabilities[:2])
        counts[0] = overlap_counts(one, other, classes, structures)
    if fused is not None:
        counts[1] = overlap_counts(decide(fused).cpu(), decide(network_probabilities.mean(0)).cpu(), classes, structures)
    return counts


def consensus(labels: torch.Tensor, fused: torch.Tensor, structures: Structures = ()) -> torch.Tensor:
    """The same (2, K, 2) counts where no network is beside the atlases: (n, *S) warped labels (with ignored voxels), each with
    (C, *S) ``fused``."""
    counts = torch.zeros(2, len(structures) or fused.shape[0] - 1, 2, dtype=torch.float64)
    whole = decide(fused).cpu()
    for label in labels:
        counts[1] += overlap_counts(label, whole, fused.shape[0], structures)
    return counts


def overlap_counts(a: torch.Tensor, b: torch.Tensor, classes: int, structures: Structures = ()) -> torch.Tensor:
    """Two label maps of one shape -> (K, 2) float64 (K as for :func:`agreement`): twice the common voxels and the voxels of both,
    per structure. What one of them leaves unlabelled counts in neither."""
    unknown = ignored(a) | ignored(b)
    if bool(unknown.any()):
        a, b = a[~unknown], b[~unknown]
    pairs = torch.bincount((a.int() * classes + b).flatten(), minlength=classes**2).view(classes, classes)
    if structures:
        of = membership(structures, classes).double()
        common, both = 2 * torch.einsum("kc,cd,kd->k", of, pairs.double(), of), of @ (pairs.sum(0) + pairs.sum(1)).double()
        return torch.stack([common, both], 1)
    return torch.stack([2 * pairs.diagonal(), pairs.sum(0) + pairs.sum(1)], 1)[1:].double()


def overlaps(counts: torch.Tensor) -> np.ndarray:
    """(2, K, 2) counts -> (K, 2) Dice per structure and source. A structure that neither part has found is no agreement to
    rely on: 0. A source that compares nothing at all is NaN."""
    common, both = counts[..., 0].numpy(), counts[..., 1].numpy()
    dice = np.where(both > 0, common / np.maximum(both, 1), 0.0)
    dice[both.sum(1) == 0] = math.nan
    return np.asarray(dice.T)


def known_sources(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(N, 2) overlaps of many results: where a source compares nothing in one of them but does in others, its parts found no
    structure at all, which is no agreement to rely on: 0. A source that no result has stays NaN."""
    array = np.array(values, dtype=float).reshape(-1, len(SOURCES))
    return np.where(np.isnan(array) & ~np.isnan(array).all(0), 0.0, array)
