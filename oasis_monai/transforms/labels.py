"""Label maps: class indices, one-hot channels, and the rule for ties between classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from oasis_monai.data.types import IGNORE


def ignored(label: torch.Tensor) -> torch.Tensor:
    """Class indices -> bool of the same shape: the voxels that nobody labelled (:data:`.IGNORE`)."""
    return label == IGNORE


def structures(label: torch.Tensor) -> torch.Tensor:
    """Class indices -> bool of the same shape: the voxels of any structure, neither background nor ignored."""
    return (label > 0) & ~ignored(label)


def belongs_to(label: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Class indices -> bool of the same shape: the voxels of a structure of these classes."""
    found = label == classes[0]
    for index in classes[1:]:
        found |= label == index
    return found


def labelled(one_hot: torch.Tensor) -> torch.Tensor:
    """(B, C, *S) one-hot labels, soft after a warp -> (B, 1, *S) bool: where they say something. An ignored voxel is in no class:
    its channels are all 0."""
    return one_hot.sum(1, keepdim=True) > 0.5


def foreground(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, *S) class indices -> (B, C-1, *S) float32, one channel per structure, no background. Ignored voxels are 0, as
    background is: see :func:`with_ignored`."""
    return torch.cat([label == c for c in range(1, classes)], 1).float()


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, *S) class indices -> (B, C, *S) float32. An ignored voxel is in no class."""
    return torch.cat([label == c for c in range(classes)], 1).float()


def with_ignored(label: torch.Tensor, classes: int, some: bool | None = None) -> torch.Tensor:
    """(B, 1, *S) class indices -> (B, C-1, *S) structures as :func:`foreground`, and where any voxel is ignored (B, C, *S):
    behind them a channel that is 1 there. It goes through augmentation and warp with them; :func:`split_ignored` takes it off.

    ``some``: whether the channel is there, where that is known before; None: the labels are looked at, for which a GPU must wait.
    """
    parts, unknown = foreground(label, classes), ignored(label)
    some = bool(unknown.any()) if some is None else some
    return torch.cat([parts, unknown.float()], 1) if some else parts


def split_ignored(maps: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What interpolation made of :func:`with_ignored`: (B, C-1, *S) structures, and (B, 1, *S) bool, the voxels that count; None
    where all do.

    A voxel counts where less than half of it comes from ignored ones. Its structures are the shares among what is labelled of
    it, so that slices labelled one by one stay labels after a rotation, and what lies in an ignored voxel changes nothing.
    """
    parts, unknown = maps[:, : classes - 1], maps[:, classes - 1 :]
    if not unknown.shape[1]:
        return parts, None
    counts = unknown < 0.5
    return torch.where(counts, parts / (1 - unknown).clamp_min(0.5), 0.0), counts


TIE = 1e-6  # probabilities this close count as equal: sums of equal weights miss 1/2 by rounding, which depends on the order


def decide(probability: torch.Tensor) -> torch.Tensor:
    """(C, *S) probability of sum 1 -> (*S) uint8 class index, by the tie rule of :func:`decide_streamed`.

    The most probable class; a tie with the background goes to the structure (binary: P >= 1/2), a tie among structures to the
    lower class, so no tie depends on the number of atlases being even, and no extra label appears.
    """
    return decide_streamed(enumerate(probability[1:], 1), torch.zeros_like(probability[0]))


MANY = 8
"""Classes, background included, above which work is done by voxel and by structure in place of channels for all of them."""


def decide_streamed(foreground: Iterable[tuple[int, torch.Tensor]], background_only: torch.Tensor) -> torch.Tensor:
    """The tie rule, for maps that come one at a time.

    With f the strongest foreground class (the lowest index among those equal within 1e-6), a voxel is f
    where P_f >= P_background - 1e-6 and P_f > 1e-6, else background. With two classes: P >= 1/2. Never a class in between.

    P_background is 1 less the sum of the foreground maps.

    Args:
        foreground: pairs (class index, (\\*S) float map) in ascending order; each map is looked at once, so a generator
            keeps one in memory.
        background_only: (\\*S) float zeros: shape, dtype and device of the result where there is no foreground class.

    Returns:
        (\\*S) uint8.
    """
    total, best = background_only.clone(), background_only.clone()
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for index, probability in foreground:
        total += probability
        _challenge(best, winner, index, probability)
    return winner * ~(best < 1 - total - TIE)  # indexing by masks takes half as long again


def decide_within(foreground: Iterable[tuple[int, torch.Tensor, tuple[slice, ...]]], total: torch.Tensor) -> torch.Tensor:
    """:func:`decide_streamed` of maps that are known in a box each: elsewhere they are too small to win (:func:`least_to_win`).

    Args:
        foreground: (class index, map of the box, box) in ascending order.
        total: (\\*S) float: the sum of all foreground maps, beyond their boxes too.

    Returns:
        (\\*S) uint8.
    """
    best, winner = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.uint8)
    for index, probability, box in foreground:
        _challenge(best[box], winner[box], index, probability)
    return winner * ~(best < 1 - total - TIE)


def least_to_win(classes: int) -> float:
    """A probability below which no class wins among so many: the winner is as probable as all others, and they have sum 1."""
    return 1 / classes - 100 * TIE


def _challenge(best: torch.Tensor, winner: torch.Tensor, index: int, probability: torch.Tensor) -> None:
    """Write a class where it is more probable than the best so far."""
    better = probability > best + TIE
    best.copy_(torch.where(better, probability, best))
    winner.masked_fill_(better, index)
