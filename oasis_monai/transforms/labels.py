"""Label maps: class indices, one-hot channels, and the rule for ties between classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def foreground(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, *S) class indices -> (B, C-1, *S) float32, one channel per structure, no background."""
    return torch.cat([label == c for c in range(1, classes)], 1).float()


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, 1, *S) class indices -> (B, C, *S) float32."""
    return torch.cat([label == c for c in range(classes)], 1).float()


TIE = 1e-6  # probabilities this close count as equal: sums of equal weights miss 1/2 by rounding, which depends on the order


def decide(probability: torch.Tensor) -> torch.Tensor:
    """(C, *S) probability of sum 1 -> (*S) uint8 class index, by the tie rule of :func:`decide_streamed`.

    The most probable class; a tie with the background goes to the structure (binary: P >= 1/2), a tie among structures to the
    lower class, so no tie depends on the number of atlases being even, and no extra label appears.
    """
    return decide_streamed(enumerate(probability[1:], 1), torch.zeros_like(probability[0]))


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
        better = probability > best + TIE
        best = torch.where(better, probability, best)
        winner = torch.where(better, torch.tensor(index, dtype=torch.uint8, device=winner.device), winner)
    return winner * ~(best < 1 - total - TIE)  # indexing by masks takes half as long again
