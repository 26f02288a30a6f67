"""Places of boxes that the training labels make likely or unlikely (:mod:`.expected`): of structures that the coarse pass misses,
and of what the box network says far away from where a structure is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oasis_monai.segmentation.expected import Expected, joined
from oasis_monai.transforms.boxes import Box

FOUND = 0.5  # a structure with this probability somewhere, for any of the networks, is found by the coarse pass
FAINTEST = 0.01  # below it a place is no better than others
CANDIDATES = 3
"""Places of a structure in one place that is not found: of these the one where the box network sees most of it counts."""


def missed_places(networks: torch.Tensor, expected: Expected) -> list[Box]:
    """Where structures that are usually there may be, although the coarse pass does not find them.

    Args:
        networks: (V, C, x, y, z) what its networks say.
        expected: of the training labels.

    Returns:
        Round the most probable voxels of each of these structures, as large as it usually is, in working voxels: up to
        :data:`CANDIDATES` of a structure that lies in one place, of others one. The surest first.
    """
    made = list[tuple[float, Box]]()
    for number, extent in expected.extents.items():
        own = networks[:, number].amax(0)
        if float(own.max()) >= FOUND:
            continue
        own = own.clone()
        for _ in range(CANDIDATES if number in expected.one_place else 1):
            peak = float(own.max())
            if peak < FAINTEST:
                break
            at = np.unravel_index(int(own.argmax()), tuple(own.shape))
            x, y, z = (
                slice(max(0, int(a) - n // 2), min(side, int(a) - n // 2 + n))
                for a, n, side in zip(at, extent, own.shape, strict=True)
            )
            made.append((peak, (x, y, z)))
            around = tuple(
                slice(max(0, int(a) - n), min(side, int(a) + n + 1)) for a, n, side in zip(at, extent, own.shape, strict=True)
            )
            own[around] = 0
    return [box for _, box in sorted(made, key=lambda one: -one[0])]


def keep_one_place(
    probabilities: Sequence[torch.Tensor], boxes: Sequence[Box], factor: Sequence[int], shape: Sequence[int], expected: Expected
) -> list[torch.Tensor]:
    """What the box network says, without far pieces of structures that lie in one place in every training label.

    The place with most voxels of a structure stays, and everything at most two working voxels from it. Elsewhere that structure
    has no probability, and what else is probable there takes its place.

    Args:
        probabilities: (C, \\*B) of each box; where boxes overlap the same.
        boxes: in working voxels.
        factor: voxels of a box for each of these.
        shape: of the working grid.
        expected: of the training labels.
    """
    said = list(probabilities)
    chosen = [one.argmax(0) for one in said]
    for number in sorted(expected.one_place):
        counts = np.zeros(tuple(shape), np.int32)
        for one, box in zip(chosen, boxes, strict=True):
            cells = one.eq(number).unflatten(2, (-1, factor[2])).unflatten(1, (-1, factor[1])).unflatten(0, (-1, factor[0]))
            np.maximum(counts[box], cells.sum((1, 3, 5)).numpy(), out=counts[box])
        places, count = joined(counts > 0)
        if count < 2:
            continue
        voxels = np.bincount(places.ravel(), counts.ravel(), count + 1)
        voxels[0] = 0
        far = (places > 0) & (places != voxels.argmax())
        for index, box in enumerate(boxes):
            if far[box].any():
                gone = torch.from_numpy(far[box])
                for axis, f in enumerate(factor):
                    gone = gone.repeat_interleave(f, axis)
                said[index] = _without(said[index], number, gone)
    return said


def _without(probability: torch.Tensor, number: int, gone: torch.Tensor) -> torch.Tensor:
    """(C, \\*B) probabilities without a class where (\\*B) says so; background where nothing else is left."""
    made = probability.clone()
    made[number][gone] = 0
    left = made[:, gone]
    total = left.sum(0)
    left[0][total == 0] = 1
    made[:, gone] = left / total.where(total > 0, torch.ones_like(total))
    return made
