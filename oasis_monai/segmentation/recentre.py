"""Recentre the working grid on the structures, where a scan has them farther out than every atlas.

The working grid lies around the image's centre, and so do the structures of most scans. A network recognises less far from where
all training scans had the structure, and nothing beyond the grid's edge. The estimate of a joint model shows where the structures
are, even at the edge. The grid is moved so that they lie where the atlases have them on average, and the scan is estimated again.
If the estimate has less than half the foreground of the smallest atlas, grids half a field of view to every side are tried first.

On a kind of scan that they were not trained on, networks find structures anywhere. Two networks that fail differently then find
them at different places. So a moved grid is kept only if both networks agree on it, and no less than around the image's centre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.data.types import Preprocessed
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.transforms.labels import structures

SLACK = 2.0  # voxels by which a structure may lie beyond the farthest atlas before the grid moves
PART = 0.5  # an estimate with less than this fraction of the smallest atlas's foreground has not found the structures
AGREED = 0.75  # least Dice of the two networks: most unchanged scans exceed it, false findings hardly ever do
PASSES = 2  # the first estimate of a structure at the grid's edge shows only a part of it, so its centre needs a second pass
Offset = tuple[int, int, int]
NO_OFFSET: Offset = (0, 0, 0)


@dataclass(frozen=True)
class AtlasPositions:
    """Where the atlases have their structures on the working grid.

    Args:
        lowest, highest, usual: (3,) minimum, maximum and mean over the atlases of the foreground's centre, in voxels.
        smallest: foreground voxels of the smallest atlas.
    """

    lowest: np.ndarray
    highest: np.ndarray
    usual: np.ndarray
    smallest: int

    @classmethod
    def of(cls, labels: torch.Tensor) -> AtlasPositions | None:
        """Of (N, 1, x, y, z) labels; None where no atlas has any foreground."""
        masks = (structures(label[0]) for label in labels)
        found = [(centre, int(mask.sum())) for mask in masks if (centre := _centre(mask)) is not None]
        if not found:
            return None
        centres, voxels = zip(*found, strict=True)
        return cls(np.min(centres, 0), np.max(centres, 0), np.mean(centres, 0), min(voxels))

    def lost(self, estimate: torch.Tensor) -> bool:
        """Whether an estimate (C, x, y, z) shows less than :data:`PART` of what the smallest atlas has."""
        return _voxels(estimate) < PART * self.smallest

    def offset(self, estimate: torch.Tensor) -> Offset:
        """By how many voxels the grid has to move for the structures of an estimate (C, x, y, z) to lie as usual.

        :data:`NO_OFFSET` where some atlas has them as far out, and where there are none."""
        centre = _centre(estimate[0] < 0.5)
        if centre is None or ((centre > self.lowest - SLACK) & (centre < self.highest + SLACK)).all():
            return NO_OFFSET
        x, y, z = np.round(centre - self.usual).astype(int).tolist()
        return x, y, z


def _voxels(estimate: torch.Tensor) -> int:
    return int((estimate[0] < 0.5).sum())


def _centre(mask: torch.Tensor) -> np.ndarray | None:
    """(x, y, z) bool -> the mean index of its voxels along each axis; None where there are none."""
    if not mask.any():
        return None
    total = float(mask.sum())
    along = [mask.sum(tuple(a for a in range(3) if a != axis)).double().numpy() for axis in range(3)]
    return np.array([float(counts @ np.arange(len(counts))) / total for counts in along])


def recentre(
    positions: AtlasPositions,
    target: Preprocessed,
    look: Callable[[Preprocessed], torch.Tensor],
    preprocess_at: Callable[[Offset], Preprocessed],
) -> tuple[Preprocessed, torch.Tensor, Offset]:
    """Move the working grid of a scan so that its structures lie where the atlases have theirs.

    Args:
        positions: of the atlases.
        target: the scan on the grid round its centre.
        look: what the two networks make of a target, (2, C, x, y, z); their mean is the estimate.
        preprocess_at: the scan on a grid moved by so many voxels.

    Returns:
        The target, what the networks make of it, and by how many voxels its grid moved. Where a moved grid shows less than
        :data:`PART` of what was seen before, the one before it; where the networks do not agree on the last one, the first.
    """
    probabilities, offset = look(target), NO_OFFSET
    first = target, probabilities, offset
    if positions.lost(probabilities.mean(0)):
        target, probabilities, offset = _searched(positions, target, probabilities, look, preprocess_at)
    for _ in range(PASSES):
        step = positions.offset(probabilities.mean(0))
        if step == NO_OFFSET:
            break
        onward = (offset[0] + step[0], offset[1] + step[1], offset[2] + step[2])
        there = preprocess_at(onward)
        found = look(there)
        if _voxels(found.mean(0)) < PART * _voxels(
            probabilities.mean(0)
        ):  # the structures are not where the estimate placed them
            break
        target, probabilities, offset = there, found, onward
    return (target, probabilities, offset) if _dice(probabilities) >= max(AGREED, _dice(first[1])) else first


def _searched(
    positions: AtlasPositions,
    target: Preprocessed,
    probabilities: torch.Tensor,
    look: Callable[[Preprocessed], torch.Tensor],
    preprocess_at: Callable[[Offset], Preprocessed],
) -> tuple[Preprocessed, torch.Tensor, Offset]:
    """Of the grid and those half a field of view aside of it that have their centre in the scan and show enough of the
    structures, the one where all networks call the most voxels foreground."""
    best = target, probabilities, NO_OFFSET
    size = target.geometry.shape
    for axis in range(3):
        for way in (-1, 1):
            x, y, z = (way * size[a] // 2 if a == axis else 0 for a in range(3))
            if not _shows(target, (x, y, z)):
                continue
            there = preprocess_at((x, y, z))
            found = look(there)
            if not positions.lost(found.mean(0)) and _agreed(found) > _agreed(best[1]):
                best = there, found, (x, y, z)
    return best


def _agreed(probabilities: torch.Tensor) -> int:
    return int((probabilities[:, 0] < 0.5).all(0).sum())


def _dice(probabilities: torch.Tensor) -> float:
    """Of the two networks' foregrounds; 0 where neither has any."""
    one, other = (probabilities[:, 0] < 0.5).to(torch.uint8)
    common, both = overlap_counts(one, other, 2)[0].tolist()
    return float(common / max(both, 1))


def _shows(target: Preprocessed, offset: Offset) -> bool:
    """Whether the centre of a moved grid lies in the scan."""
    middle = (np.array(target.geometry.shape) - 1) / 2 + np.array(offset)
    world = target.geometry.affine @ np.append(middle, 1)
    at = (np.linalg.inv(target.native.affine) @ world)[:3]
    return bool(((at >= -0.5) & (at <= np.array(target.native.shape) - 0.5)).all())
