"""A field of view that follows the structures: where a scan has them elsewhere than every atlas, the working grid moves there.

The working grid lies round the image's centre, and so do the structures of most scans. A network sees less well what lies far
from where all training scans had it, and nothing beyond the grid's edge. The estimate of a joint model tells where the structures
are, at the edge as well: the scan is put on a grid that has them where atlases have them on average, and looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.types import Preprocessed

SLACK = 2.0  # voxels beyond the farthest atlas that are not far
PASSES = 2  # of a structure cut by the edge the first estimate shows a part: its centre is not yet the whole's
Move = tuple[int, int, int]
STAY: Move = (0, 0, 0)


@dataclass(frozen=True)
class Places:
    """Where atlases have their structures on the working grid, in voxels along x, y, z: the centres of their foregrounds, of all
    atlases the lowest, the highest and the mean."""

    lowest: np.ndarray
    highest: np.ndarray
    usual: np.ndarray

    @classmethod
    def of(cls, labels: torch.Tensor) -> Places | None:
        """Of (N, 1, x, y, z) labels; None where no atlas has any foreground."""
        centres = [centre for label in labels if (centre := _centre(label[0] > 0)) is not None]
        if not centres:
            return None
        return cls(np.min(centres, 0), np.max(centres, 0), np.mean(centres, 0))

    def move(self, estimate: torch.Tensor) -> Move:
        """By how many voxels the grid has to move for the structures of an estimate (C, x, y, z) to lie as usual; :data:`STAY`
        where some atlas has them as far out, and where there are none."""
        centre = _centre(estimate[0] < 0.5)
        if centre is None or ((centre > self.lowest - SLACK) & (centre < self.highest + SLACK)).all():
            return STAY
        x, y, z = np.round(centre - self.usual).astype(int).tolist()
        return x, y, z


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
        look: what the networks make of a target, (V, C, x, y, z); their mean is the estimate.
        again: the scan on a grid moved by so many voxels.

    Returns:
        The target, what the networks make of it, and by how much its grid was moved. Where a moved grid shows none of the
        structures, the one before it.
    """
    voices, moved = look(target), STAY
    for _ in range(PASSES):
        step = places.move(voices.mean(0))
        if step == STAY:
            break
        onward = (moved[0] + step[0], moved[1] + step[1], moved[2] + step[2])
        there = again(onward)
        heard = look(there)
        if not (heard.mean(0)[0] < 0.5).any():
            break
        target, voices, moved = there, heard, onward
    return target, voices, moved
