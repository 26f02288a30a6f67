"""Where a result is uncertain: the entropy of the mean of the opinions it is made of, voxel by voxel.

Opinions are the probability of each network and the vote of the aligned atlases, each counting once. The entropy of their mean is
high where opinions contradict one another, and where all of them are undecided. Those two parts can be told apart (mutual
information, and the mean of the entropies), but a map to look at should show where the result is wrong, and for that their sum
serves best: docs/explanation/predicted_dice.md has the comparison. (Ensembles: Lakshminarayanan et al., NeurIPS 2017, arXiv
1612.01474; entropy of their mean for segmentation: Mehrtash et al., IEEE TMI 2020, arXiv 1911.13273; such measures compared: Kahl
et al., ICLR 2024, arXiv 2401.08501.)
"""

from __future__ import annotations

import math

import torch

from oasis_monai.data.types import Geometry
from oasis_monai.transforms.spatial import inside, resample

AT_ONCE = 2**24  # values of the opinions that are worked on at once


def uncertainty(opinions: torch.Tensor) -> torch.Tensor:
    """Entropy of the mean opinion, in units of the largest possible one.

    Args:
        opinions: (V, C, *S) probabilities of V opinions; they need not sum to 1 exactly.

    Returns:
        (*S) float32 from 0, all opinions are certain of one class, to 1, every class is as likely.

    Examples:
        >>> sure, opposite = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> uncertainty(torch.stack([sure, opposite])), uncertainty(torch.stack([sure, sure]))
        (tensor(1.), tensor(0.))
    """
    if opinions.numel() > AT_ONCE and opinions.ndim > 2:
        parts = -(-opinions.numel() // AT_ONCE)
        return torch.cat([_entropy(part) for part in opinions.chunk(parts, 2)])
    return _entropy(opinions)


def _entropy(opinions: torch.Tensor) -> torch.Tensor:
    mean = opinions.float().mean(0).clamp_min(0)
    mean = mean / mean.sum(0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (torch.special.entr(mean).sum(0) / math.log(len(mean))).clamp(0, 1)


def restore_uncertainty(values: torch.Tensor, working: Geometry, native: Geometry) -> torch.Tensor:
    """A map on the grid of the scan, resampled linearly; 0 outside the working field of view, where the result is background
    without a look.

    Args:
        values: (\\*working.shape) of :func:`uncertainty`.

    Returns:
        (\\*native.shape) float32, 0 to 1.
    """
    made = resample(values[None], working, native, anti_alias=False)[0]
    return made.mul_(inside(working, native, made.device)).clamp_(0, 1).cpu()
