"""A field of view that follows the structures: where a scan has them elsewhere than every atlas, the working grid moves there.

The working grid lies round the image's centre, and so do the structures of most scans. A network sees less well what lies far
from where all training scans had it, and nothing beyond the grid's edge. The estimate of a joint model tells where the structures
are, at the edge as well: the scan is put on a grid that has them where atlases have them on average, and looked at again. Where
there is less than half of what the smallest atlas has, grids half a field of view to every side are looked at first.

On a scan that they were not made for networks see structures anywhere. Two that fail differently then see them at different
places: a grid that was moved is kept only if they agree on it, and no less than round the image's centre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.data.types import Preprocessed
from oasis_monai.segmentation.agreement import overlap_counts

SLACK = 2.0  # voxels beyond the farthest atlas that are not far
PART = 0.5  # of the smallest atlas's foreground: less is not found
AGREED = 0.75  # Dice of the networks: most untouched scans have it, of structures that are none hardly any
PASSES = 2  # of a structure cut by the edge the first estimate shows a part: its centre is not yet the whole's
Move = tuple[int, int, int]
STAY: Move = (0, 0, 0)


@dataclass(frozen=True)
class Places:
    """Where atlases have their structures on the working grid, in voxels along x, y, z: the centres of their foregrounds, of all
    atlases the lowest, the highest and the mean; and the foreground voxels of the smallest."""

    lowest: np.ndarray
    highest: np.ndarray
    usual: np.ndarray
    smallest: int

    @classmethod
    def of(cls, labels: torch.Tensor) -> Places | None:
        """Of (N, 1, x, y, z) labels; None where no atlas has any foreground."""
        masks = (label[0] > 0 for label in labels)
        found = [(centre, int(mask.sum())) for mask in masks if (centre := _centre(mask)) is not None]
        if not found:
            return None
        centres, voxels = zip(*found, strict=True)
        return cls(np.min(centres, 0), np.max(centres, 0), np.mean(centres, 0), min(voxels))

    def lost(self, estimate: torch.Tensor) -> bool:
        """Whether an estimate (C, x, y, z) shows less than :data:`PART` of what the smallest atlas has."""
        return _voxels(estimate) < PART * self.smallest

    def move(self, estimate: torch.Tensor) -> Move:
        """By how many voxels the grid has to move for the structures of an estimate (C, x, y, z) to lie as usual; :data:`STAY`
        where some atlas has them as far out, and where there are none."""
        centre = _centre(estimate[0] < 0.5)
        if centre is None or ((centre > self.lowest - SLACK) & (centre < self.highest + SLACK)).all():
            return STAY
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


def followed(
    places: Places,
    target: Preprocessed,
    look: Callable[[Preprocessed], torch.Tensor],
    again: Callable[[Move], Preprocessed],
) -> tuple[Preprocessed, torch.Tensor, Move]:
    """A scan on the grid that shows its structures where atlases have theirs.

    Args:
        places: of the atlases.
        target: the scan on the grid round its centre.
        look: what the two networks make of a target, (2, C, x, y, z); their mean is the estimate.
        again: the scan on a grid moved by so many voxels.

    Returns:
        The target, what the networks make of it, and by how much its grid was moved. Where a moved grid shows less than
        :data:`PART` of what was seen before, the one before it; where the networks do not agree on the last one, the first.
    """
    voices, moved = look(target), STAY
    first = target, voices, moved
    if places.lost(voices.mean(0)):
        target, voices, moved = _searched(places, target, voices, look, again)
    for _ in range(PASSES):
        step = places.move(voices.mean(0))
        if step == STAY:
            break
        onward = (moved[0] + step[0], moved[1] + step[1], moved[2] + step[2])
        there = again(onward)
        heard = look(there)
        if _voxels(heard.mean(0)) < PART * _voxels(voices.mean(0)):  # what was seen there is not where it seemed to be
            break
        target, voices, moved = there, heard, onward
    return (target, voices, moved) if _dice(voices) >= max(AGREED, _dice(first[1])) else first


def _searched(
    places: Places,
    target: Preprocessed,
    voices: torch.Tensor,
    look: Callable[[Preprocessed], torch.Tensor],
    again: Callable[[Move], Preprocessed],
) -> tuple[Preprocessed, torch.Tensor, Move]:
    """Of the grid and those half a field of view aside of it that have their centre in the scan and show enough of the
    structures, the one where all networks call the most voxels foreground."""
    best = target, voices, STAY
    size = target.geometry.shape
    for axis in range(3):
        for way in (-1, 1):
            x, y, z = (way * size[a] // 2 if a == axis else 0 for a in range(3))
            if not _shows(target, (x, y, z)):
                continue
            there = again((x, y, z))
            heard = look(there)
            if not places.lost(heard.mean(0)) and _agreed(heard) > _agreed(best[1]):
                best = there, heard, (x, y, z)
    return best


def _agreed(voices: torch.Tensor) -> int:
    return int((voices[:, 0] < 0.5).all(0).sum())


def _dice(voices: torch.Tensor) -> float:
    """Of the two networks' foregrounds; 0 where neither has any."""
    one, other = (voices[:, 0] < 0.5).to(torch.uint8)
    common, both = overlap_counts(one, other, 2)[0].tolist()
    return float(common / max(both, 1))


def _shows(target: Preprocessed, move: Move) -> bool:
    """Whether the centre of a moved grid lies in the scan."""
    middle = (np.array(target.geometry.shape) - 1) / 2 + np.array(move)
    world = target.geometry.affine @ np.append(middle, 1)
    at = (np.linalg.inv(target.native.affine) @ world)[:3]
    return bool(((at >= -0.5) & (at <= np.array(target.native.shape) - 0.5)).all())
