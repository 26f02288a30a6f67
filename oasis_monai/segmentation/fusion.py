"""Label fusion: label overlapping accuracy (LOA), the weights made of it, and the vote (paper, section 2.2).

Every rule gives each atlas one weight; the fused probability is the weighted sum of the warped one-hot labels,
``P = sum_k w_k (y_k o phi_k)`` with ``sum_k w_k = 1``. STAPLE, which has no such weights, stands beside.
"""

from __future__ import annotations

import numpy as np
import torch

from oasis_monai.networks.losses import ncc, soft_dice
from oasis_monai.segmentation.sparse_labels import SparseLabels
from oasis_monai.transforms.components import connected
from oasis_monai.transforms.labels import decide, ignored, labelled

MISSING = 1e-3  # of all votes: sums of weights miss 1 by far less, and the vote of an atlas with less weight decides nothing
EMPTY = 1e-3  # voxels: what warping leaves of a label that lies outside; beside nothing it is nothing as well


def overlap(warped: torch.Tensor | SparseLabels, reference: torch.Tensor) -> torch.Tensor:
    """o_jk of one pair, for a batch of pairs: soft Dice (eq. 3, sign +), mean over the foreground classes.

    A class that neither label has does not count; two labels without any foreground agree (1).

    Args:
        warped, reference: (B, C, *S) one-hot labels, background in channel 0; what one leaves unlabelled counts in neither. Of
            many structures both may come without channels, the reference as (B, *S) class indices.

    Returns:
        (B,) in [0, 1].
    """
    if isinstance(warped, SparseLabels):
        return warped.overlap(reference)
    known = labelled(warped) & labelled(reference)
    if not bool(known.all()):
        warped, reference = warped * known, reference * known
    per_class = soft_dice(warped[:, 1:], reference[:, 1:])
    there = ((warped[:, 1:].flatten(2).sum(2) + reference[:, 1:].flatten(2).sum(2)) > EMPTY).float()
    count = there.sum(1)
    return torch.where(count > 0, (per_class * there).sum(1) / count.clamp_min(1), torch.ones_like(count))


def agreement_with_estimate(warped: torch.Tensor | SparseLabels, estimate: torch.Tensor) -> torch.Tensor:
    """o_k of reading R4: how far the warped label of each atlas agrees with the estimate, mean over the foreground classes.

    The soft Dice of a class; for an atlas without the class, how sure the estimate is that it is not there: a softmax is never
    0, and its Dice with an empty label would be, however rightly that is empty.

    Args:
        warped: (B, C, *S) labels, background in channel 0; what they leave unlabelled does not count.
        estimate: (C, *S) probabilities.

    Returns:
        (B,) in [0, 1].
    """
    if isinstance(warped, SparseLabels):
        return warped.agreement_with_estimate(estimate)
    labels, expected = warped[:, 1:], estimate[1:][None].expand_as(warped[:, 1:])
    known = labelled(warped)
    if not bool(known.all()):
        expected = expected * known
    absent = 1 - expected.flatten(2).amax(2)
    return torch.where(labels.flatten(2).sum(2) > EMPTY, soft_dice(labels, expected), absent).mean(1)


def normalise(weights: torch.Tensor) -> torch.Tensor:
    """Clip at 0 and scale to sum 1; equal weights when nothing is left (all atlases equally useless)."""
    weights = weights.double().clamp_min(0)
    total = weights.sum()
    if not total > 0:
        return torch.full_like(weights, 1 / len(weights)).float()
    return (weights / total).float()


def loa_weights(overlaps: torch.Tensor) -> torch.Tensor:
    """Readings R1 and R2: w_k proportional to the mean overlap of atlas k over the *other* atlases j.

    Args:
        overlaps: (n, n) matrix o[j, k] = Dice(warped label of atlas k, label of atlas j). R1 (``atlas``) fills it with the
            atlases as targets in turn, R2 (``consensus``) in the target's space:
            o[j, k] = Dice(y_k o phi_k, y_j o phi_j). The diagonal is not used, nor is what is NaN (two scans of one patient).

    Returns:
        (n,) weights of sum 1; n = 1 gives 1.
    """
    n = overlaps.shape[0]
    if n == 1:
        return torch.ones(1)
    off = _filled(overlaps)
    off.fill_diagonal_(0)
    return normalise(off.sum(0) / (n - 1))


def _filled(overlaps: torch.Tensor) -> torch.Tensor:
    """A copy in which what is NaN is the mean of the others of its column (the diagonal is none), so that it takes no side."""
    known = ~overlaps.isnan() & ~torch.eye(len(overlaps), dtype=torch.bool)
    means = torch.where(known, overlaps, 0).sum(0) / known.sum(0).clamp_min(1)
    means = torch.where(known.any(0), means, 1)
    return torch.where(overlaps.isnan(), means, overlaps)


def conditioned_weights(overlaps: torch.Tensor, distances: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Reading R3: w_k proportional to sum_j softmax(-d(t, j) / temperature) o_jk: overlap with near atlases counts more.

    Here the sum includes j = k with o_kk = 1 (an atlas aligned to itself), which is what makes a near atlas itself weigh more.

    Args:
        overlaps: (n, n) as in :func:`loa_weights`.
        distances: (n,) feature distances from the target to the atlases.
        temperature: in the unit of the distances; a small one counts only the nearest atlas; a large one gives the mean of the
            column, o_kk = 1 included (R1 leaves it out).
    """
    trust = torch.softmax(-distances.double() / temperature, 0)
    full = _filled(overlaps.double())
    full.fill_diagonal_(1)
    return normalise(trust @ full)


def image_weights(atlas_images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """FwoW (atlas images as they are) and FWAL (warped): w_k proportional to the global NCC with the target, clipped at 0.

    Args:
        atlas_images: (n, c, *S).
        target: (c, *S).
    """
    return normalise(ncc(atlas_images, target[None].expand_as(atlas_images)))


def equal_weights(n: int) -> torch.Tensor:
    """Majority voting; on linearly warped labels each atlas casts its partial-volume label, not a rounded one."""
    return torch.full((n,), 1 / n)


def fuse(labels: torch.Tensor | SparseLabels, weights: torch.Tensor) -> torch.Tensor:
    """P = sum_k w_k (y_k o phi_k): (n, C, *S) warped one-hot labels and (n,) weights -> (C, *S) probability.

    An atlas has no vote where nobody labelled it, and P sums to less than 1 there: see :func:`share_votes`.
    """
    if isinstance(labels, SparseLabels):
        return labels.fuse(weights)
    return torch.einsum("n...,n->...", labels.float(), weights.to(labels.device, torch.float32))


def share_votes(probability: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
    """The vote of the atlases that are labelled at a voxel, where others are not.

    Args:
        probability: (C, *S) of :func:`fuse`.
        otherwise: (C, *S), for voxels at which no atlas is labelled; None: background.

    Returns:
        ``probability``, scaled to sum 1 where votes are missing; the same tensor where none are.
    """
    votes = probability.sum(0, keepdim=True)
    if not bool((votes < 1 - MISSING).any()):
        return probability
    if otherwise is None:
        otherwise = torch.zeros_like(probability)
        otherwise[0] = 1
    shared = torch.where(votes > MISSING, probability / votes.clamp_min(MISSING), otherwise.to(probability.device))
    return torch.where(votes < 1 - MISSING, shared, probability)


def remove_unsupported_components(probability: torch.Tensor, atlases: torch.Tensor) -> torch.Tensor:
    """Set connected components of a result to background where no aligned atlas supports them.

    A network that labels voxels can find a structure twice. Aligned atlases cannot: each brings one anatomy. So a connected
    component of the foreground (all structures together) is removed if it has no voxel that the atlases' vote calls a structure.

    Args:
        probability: (C, x, y, z), the joint vote of atlases and estimate.
        atlases: (C, x, y, z), the atlases' vote alone.

    Returns:
        ``probability`` with background 1 in the removed components; unchanged where there are none.
    """
    removed = unsupported(decide(probability), decide(atlases))
    return probability if removed is None else clear_voxels(probability.clone(), removed)


def unsupported(label: torch.Tensor, atlases: torch.Tensor) -> torch.Tensor | None:
    """Where :func:`remove_unsupported_components` removes what (x, y, z) class indices of a result and of the atlases' vote
    say: (x, y, z) bool; None where nothing is removed."""
    components, count = connected((label > 0).cpu().numpy())
    supported = np.unique(components[(atlases > 0).cpu().numpy()])
    alone = np.setdiff1d(np.arange(1, count + 1), supported)
    if not len(alone) or len(alone) == count:  # atlases that support no component at all give no evidence
        return None
    return torch.from_numpy(np.isin(components, alone)).to(label.device)


def clear_voxels(probability: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """Make (x, y, z) ``removed`` voxels of (C, x, y, z) background, in place."""
    probability[:, removed] = 0
    probability[0, removed] = 1
    return probability


def staple(votes: torch.Tensor, classes: int, iterations: int = 50) -> torch.Tensor:
    """STAPLE (Warfield 2004), ITK's, on the same warped labels: one binary estimate per structure.

    Args:
        votes: (n, *S) class indices: each atlas is a rater whose hard label is :func:`.decide` of its warped label. A rater that
            is ignored at a voxel says what most others say.
        classes: C, background included.
        iterations: ITK's limit on expectation-maximisation rounds.

    Returns:
        (C, *S) probability: ITK's per structure; background is what the structures leave, and several claims on one voxel
        are scaled to sum 1.
    """
    unknown = ignored(votes)
    if bool(unknown.any()):
        counts = torch.stack([(votes == c).sum(0) for c in range(classes)])
        votes = torch.where(unknown, counts.argmax(0).to(votes.dtype), votes)
    foreground = torch.zeros(classes - 1, *votes.shape[1:], device=votes.device)
    for claim, box, c in zip(foreground, _boxes(votes, classes), range(1, classes), strict=True):
        if box is not None:
            claim[box] = _binary_staple(votes[(slice(None), *box)] == c, iterations)
    foreground = foreground / foreground.sum(0, keepdim=True).clamp_min(1)
    return torch.cat([(1 - foreground.sum(0, keepdim=True)).clamp_min(0), foreground])


def _binary_staple(raters: torch.Tensor, iterations: int) -> torch.Tensor:
    """(n, *S) bool raters -> (*S) float32 probability. Raters that all agree have nothing to estimate (ITK returns NaN)."""
    if bool((raters == raters[:1]).all()):
        return raters[0].float()
    import itk

    dims = raters.ndim - 1
    kind = itk.Image[itk.F, dims]  # the only pixel types ITK's wheels wrap this filter for are float and double
    staple_filter = itk.STAPLEImageFilter[kind, kind].New()
    staple_filter.SetForegroundValue(1)
    staple_filter.SetMaximumIterations(iterations)
    images = [itk.image_from_array(rater.float().contiguous().cpu().numpy()) for rater in raters]
    for number, image in enumerate(images):
        staple_filter.SetInput(number, image)
    staple_filter.Update()
    result = torch.from_numpy(itk.array_from_image(staple_filter.GetOutput())).float()
    return torch.nan_to_num(result).to(raters.device)


def _boxes(votes: torch.Tensor, classes: int, margin: int = 2) -> list[tuple[slice, ...] | None]:
    """The box round what all raters take for a structure, ``margin`` voxels wider, for each; None where nobody sees it.

    Voxels outside every vote carry no information, and over a field of view of mostly background the estimate drifts to "all
    background": so only the box is used.
    """
    from scipy import ndimage

    boxes: list[tuple[slice, ...] | None] = []
    found = [ndimage.find_objects(vote.cpu().numpy().astype(np.int32), classes - 1) for vote in votes]
    for each in zip(*found, strict=True):
        some = [box for box in each if box is not None]
        spans = [
            (min(part.start for part in parts) - margin, max(part.stop for part in parts) + margin)
            for parts in zip(*some, strict=True)
        ]
        grown = tuple(slice(max(0, a), min(b, size)) for (a, b), size in zip(spans, votes.shape[1:], strict=False))
        boxes.append(grown if some else None)
    return boxes
