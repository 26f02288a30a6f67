"""Make the estimates that a joint STM is trained with as wrong as those of unseen scans.

The estimates of the training scans are by networks that were trained on these very scans: on the prostate they reach a Dice of
0.955, those of unseen scans 0.87. An STM that sees only the first learns to move labels onto the estimate, and little else.
Two things are done to estimates while it is trained, both drawn anew in every step: their logits are changed by a smooth field
(:func:`perturb_estimate`), which hardly moves a sure border, and they are bent (:func:`bend_estimate`) until their Dice is that
of unseen scans (:func:`reach_for_dice`). The other way to such estimates are networks that have not seen the scan
(:mod:`oasis_monai.workflows.cross_fit`).
"""

from __future__ import annotations

import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.transforms.augmentation import apply_motion, smooth_displacements
from oasis_monai.transforms.labels import split_ignored, with_ignored
from oasis_monai.utils.interpolation import enlarge
from oasis_monai.utils.transfer import upload

POINTS = 6
"""Control points a side of a bend: on a prostate's grid of 96 mm errors of some 20 mm along the border."""
SAMPLE = 8
"""Atlases on which the reach is found."""
HALVINGS = 8
"""Steps of the search for it, from a quarter of the field of view."""


def perturb_estimate(estimate: torch.Tensor, random: torch.Generator, strength: float = 2.0) -> torch.Tensor:
    """Perturb the logits of estimates (B, C-1, \\*S) with a smooth random field of up to ``strength``.

    Training then sees estimates as uncertain as those of unseen scans. Unperturbed estimates of training scans are better than
    any the STM will meet later, and it would learn to trust them too much.
    """
    shape = (*estimate.shape[:2], *[4] * (estimate.ndim - 2))
    size = strength * torch.rand(len(estimate), *[1] * (estimate.ndim - 1), generator=random)
    coarse = size * (2 * torch.rand(shape, generator=random) - 1)
    (coarse,) = upload(estimate.device, coarse)
    field = enlarge(coarse, estimate.shape[2:], corners=True)
    return torch.sigmoid(torch.logit(estimate.float(), eps=1e-3) + field)


def bend_estimate(estimate: torch.Tensor, reach_mm: float, spacing_mm: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Bend estimates (B, C-1, \\*S) by smooth random fields, each estimate by one of its own; all of its structures alike.

    Args:
        reach_mm: an estimate is bent by up to half to one and a half of it along each axis, since some scans are harder than
            others.
        spacing_mm: (B, D) voxel sizes.
    """
    batch, dims = len(estimate), estimate.ndim - 2
    reach = reach_mm * (0.5 + torch.rand(batch, generator=random))
    bend = smooth_displacements(reach, estimate.shape[2:], spacing_mm, POINTS, random, estimate.device)
    still = torch.eye(dims, dims + 1, device=estimate.device).expand(batch, dims, dims + 1)
    return apply_motion(estimate.float(), still, bend)


def reach_for_dice(library: AtlasLibrary, spacings_mm: torch.Tensor, dice: float, seed: int = 0) -> float:
    """The reach of :func:`bend_estimate` in mm that brings the mean Dice of a library's estimates down to ``dice``.

    Args:
        library: with estimates; some of its atlases, evenly taken, are looked at. Voxels that nobody labelled do not count.
        spacings_mm: (N, D) voxel sizes.
        dice: above 0; 1 or more leaves the estimates as they are.

    Returns:
        0 where they are no better than that, or where there is no structure.
    """
    if library.estimates is None:
        raise ValueError("expected a library with estimates")
    shown = ((library.labels > 0) & (library.labels < library.classes)).flatten(1).any(1).nonzero()[:, 0]
    rows = shown[:: max(1, -(-len(shown) // SAMPLE))]
    if not len(rows):
        return 0.0
    estimates = library.estimates[rows].float()
    truth, counts = split_ignored(with_ignored(library.labels[rows], library.classes), library.classes)

    def reached(reach_mm: float) -> float:
        random = torch.Generator().manual_seed(seed)  # the same bends, farther or less far
        bent = bend_estimate(estimates, reach_mm, spacings_mm[rows], random) if reach_mm else estimates
        return mean_dice(bent, truth, counts)

    extent = float((spacings_mm[rows] * torch.tensor(library.images.shape[2:])).max())
    low, high = 0.0, extent / 4
    if reached(low) <= dice:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > dice else (low, middle)
    return (low + high) / 2


def mean_dice(estimates: torch.Tensor, truth: torch.Tensor, counts: torch.Tensor | None = None) -> float:
    """Mean over the structures of estimates (B, C-1, \\*S), cut at 0.5, that ``truth`` shows; ``counts``: (B, 1, \\*S) voxels."""
    seen = torch.ones_like(truth[:, :1]) if counts is None else counts.float()
    found, real = (estimates > 0.5) * seen, truth.float() * seen
    common, both = (found * real).flatten(2).sum(2), (found + real).flatten(2).sum(2)
    shown = real.flatten(2).any(2)
    return float((2 * common / both.clamp_min(1))[shown].mean())
