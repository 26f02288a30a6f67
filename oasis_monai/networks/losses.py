"""The loss of the label-constrained spatial transform model: eq. 1 to 4 of the paper, and the options beside them.

L = alpha * L_sim + beta * L_dice + gamma * L_smooth        (eq. 1; the paper: alpha = beta = 1, gamma = 0.01; here gamma = 0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from oasis_monai.networks.structures import membership
from oasis_monai.utils.config import require

EPSILON = 1e-5


def ncc(moved: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Global normalised cross correlation of each image pair, in [-1, 1] (the fraction of eq. 2, without its minus); of several
    channels the mean over them.

    Args:
        moved, fixed: (B, c, *S).

    Returns:
        (B,) correlations; a channel that is constant in one of the images counts 0.
    """
    a, b = moved.float().flatten(2).flatten(0, 1), fixed.float().flatten(2).flatten(0, 1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # eps joins each sum of squares rather than the product: a constant image gives 0, and a gradient that stays finite
    each = (a * b).sum(1) / ((a.square().sum(1) + EPSILON) * (b.square().sum(1) + EPSILON)).sqrt()
    return each.unflatten(0, (len(moved), -1)).mean(1)


def ncc_loss(moved: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Eq. 2: minus the global NCC, un-squared, one value per image, then the batch mean."""
    return -ncc(moved, fixed).mean()


def local_ncc_loss(moved: torch.Tensor, fixed: torch.Tensor, window: int = 9) -> torch.Tensor:
    """Option beside eq. 2: MONAI's squared local NCC in a sliding window (VoxelMorph's choice), the mean over the channels."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    return LocalNormalizedCrossCorrelationLoss(spatial_dims=moved.ndim - 2, kernel_size=window)(moved.float(), fixed.float())


def mse_loss(moved: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Option beside eq. 2: mean squared difference."""
    return torch.nn.functional.mse_loss(moved.float(), fixed.float())


def soft_dice(moved: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Eq. 3 with a plus sign, the overlap measure behind LOA: 2 |a n b| / (|a| + |b|) per class.

    Args:
        moved, fixed: (B, C, *S) one-hot (possibly soft, after a linear warp) labels of the *foreground* classes.

    Returns:
        (B, C) in [0, 1]; 1 where both are empty.
    """
    a, b = moved.float().flatten(2), fixed.float().flatten(2)
    return (2 * (a * b).sum(2) + EPSILON) / (a.sum(2) + b.sum(2) + EPSILON)


def dice_loss(moved: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Eq. 3: minus the soft Dice of warped atlas label and target label, mean over foreground classes and batch.

    Args:
        moved, fixed: (B, C-1, *S) labels of the structures alone. Background does not count: it would reward a large empty
            field of view.
    """
    return -soft_dice(moved, fixed).mean()


def smoothness(ddf: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Eq. 4: squared norm of the field's spatial gradient, by forward differences in voxels.

    Args:
        ddf: (B, D, *S).
        reduction: ``sum`` as eq. 4 prints it (over voxels, then batch mean), ``mean`` (default) as VoxelMorph takes it: the
            mean over voxels, components and axes. (MONAI's DiffusionLoss adds the D axes up instead, by central
            differences: D times as much for a field of constant gradient.)
    """
    if reduction == "mean":
        mean: torch.Tensor = _MeanSquaredSteps.apply(ddf.float())
        return mean
    return torch.stack([torch.diff(ddf.float(), dim=axis).square().sum() for axis in range(2, ddf.ndim)]).sum() / ddf.shape[0]


class _MeanSquaredSteps(torch.autograd.Function):
    """The mean over the spatial axes of the mean squared forward difference, with its gradient written into one tensor: a third
    of the time of torch's, which makes three as large as the field for every axis."""

    @staticmethod
    def forward(ctx: Any, field: torch.Tensor) -> torch.Tensor:
        steps = [torch.diff(field, dim=axis) for axis in range(2, field.ndim)]
        ctx.save_for_backward(*steps)
        ctx.shape = field.shape
        return torch.stack([(step * step).mean() for step in steps]).mean()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,), steps = grads, ctx.saved_tensors
        of_field = grad.new_zeros(ctx.shape)
        for axis, step in enumerate(steps, 2):
            scaled = step * (grad * (2 / (len(steps) * step.numel())))
            of_field.narrow(axis, 1, step.shape[axis]).add_(scaled)
            of_field.narrow(axis, 0, step.shape[axis]).sub_(scaled)
        return of_field


def bending_energy(ddf: torch.Tensor) -> torch.Tensor:
    """Option beside eq. 4: MONAI's bending energy (second derivatives), which leaves affine motion free."""
    from monai.losses import BendingEnergyLoss

    return BendingEnergyLoss()(ddf.float())


SIMILARITIES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ncc": ncc_loss,
    "local_ncc": local_ncc_loss,
    "mse": mse_loss,
}
SMOOTHNESS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": smoothness,
    "sum": partial(smoothness, reduction="sum"),
    "bending": bending_energy,
}


class SegmentationLoss:
    """Dice and cross-entropy of segmentation networks: MONAI's ``DiceCELoss`` of softmax and structures, background left out of
    the Dice; with a mask its ``MaskedDiceLoss`` and the mean cross-entropy over the voxels that count.

    Args:
        batch: one Dice over all images of a batch, not one each.
    """

    def __init__(self, batch: bool = False) -> None:
        from monai.losses import DiceCELoss, MaskedDiceLoss

        self._whole = DiceCELoss(softmax=True, include_background=False, batch=batch)
        self._dice = MaskedDiceLoss(softmax=True, include_background=False, batch=batch)

    def __call__(self, logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar loss of (B, C, *S) logits and one-hot labels.

        Args:
            counts: (B, 1, *S) bool, the voxels that count; None for all. What the others hold changes neither loss nor gradient.
        """
        if counts is None:
            whole: torch.Tensor = self._whole(logits, target)
            return whole
        mask = counts.to(logits.dtype)
        each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        dice: torch.Tensor = self._dice(logits, target, mask)
        return dice + (each * mask[:, 0]).sum() / mask.sum().clamp_min(1)


class StructureLoss:
    """Dice and binary cross-entropy of structures that share voxels, as nnU-Net trains its regions: a sigmoid for each.

    Args:
        structures: (K) the classes of each.
        classes: background included.
        batch: one Dice over all images of a batch, not one each.
    """

    def __init__(self, structures: Sequence[Sequence[int]], classes: int, batch: bool = False) -> None:
        from monai.losses import MaskedDiceLoss

        self._dice = MaskedDiceLoss(sigmoid=True, batch=batch)
        self._of = membership(structures, classes)

    def __call__(self, logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar loss of (B, K, *S) logits of the structures and (B, C, *S) one-hot labels of the classes.

        Args:
            counts: as for :class:`SegmentationLoss`.
        """
        self._of = self._of.to(target)  # once
        true = torch.einsum("kc,bc...->bk...", self._of, target).clamp(0, 1)
        mask = torch.ones_like(logits[:, :1]) if counts is None else counts.to(logits.dtype)
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, true, reduction="none").mean(1, keepdim=True)
        dice: torch.Tensor = self._dice(logits, true, mask)
        return dice + (each * mask).sum() / mask.sum().clamp_min(1)


def make_segmentation_loss(
    structures: Sequence[Sequence[int]], classes: int, batch: bool = False
) -> SegmentationLoss | StructureLoss:
    """The loss of a segmentation network: of classes, or of structures that share voxels."""
    return StructureLoss(structures, classes, batch) if structures else SegmentationLoss(batch)


class LossTerms(NamedTuple):
    """Scalar losses of one batch: the weighted total and its three unweighted parts."""

    total: torch.Tensor
    similarity: torch.Tensor
    dice: torch.Tensor
    smooth: torch.Tensor


@dataclass(frozen=True)
class RegistrationLoss:
    """Loss of the registration network, eq. 1 of the paper. ``beta = 0`` is plain VoxelMorph, the paper's ablation.

    The fields are the keys of ``conf/loss``. A call takes what :meth:`__call__` lists and gives four scalars: ``total``,
    ``similarity``, ``dice`` and ``smooth``.

    Args:
        alpha, beta, gamma: weights of image similarity, label Dice and smoothness; 0 or more. The paper's gamma is 0.01.
        similarity: ``ncc`` (eq. 2), ``local_ncc`` or ``mse``.
        smooth: ``mean`` or ``sum`` (eq. 4), or ``bending``.

    Raises:
        ConfigError: naming ``loss.<key>``.

    Examples:
        >>> import torch
        >>> from oasis_monai import RegistrationLoss
        >>> loss = RegistrationLoss(gamma=0.01)
        >>> image, label = torch.rand(2, 1, 32, 32, 8), torch.ones(2, 1, 32, 32, 8)
        >>> terms = loss(image, image, label, label, ddf=torch.zeros(2, 3, 32, 32, 8))  # a perfect alignment
        >>> round(float(terms.total), 3), round(float(terms.dice), 3)
        (-2.0, -1.0)
    """

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.1
    similarity: str = "ncc"
    smooth: str = "mean"

    def __post_init__(self) -> None:
        require(
            self,
            "loss",
            ("similarity", self.similarity in SIMILARITIES, f"one of {sorted(SIMILARITIES)}"),
            ("smooth", self.smooth in SMOOTHNESS, f"one of {sorted(SMOOTHNESS)}"),
            *((key, getattr(self, key) >= 0, "a weight of 0 or more") for key in ("alpha", "beta", "gamma")),
        )

    def __call__(
        self,
        moved_image: torch.Tensor,
        fixed_image: torch.Tensor,
        moved_label: torch.Tensor,
        fixed_label: torch.Tensor,
        ddf: torch.Tensor,
        counts: torch.Tensor | None = None,
    ) -> LossTerms:
        """Images (B, c, *S), structures (B, C-1, *S) and field (B, D, *S) of one batch, computed outside autocast.

        Args:
            counts: (B, 1, *S) bool, the voxels whose labels count; None for all.
        """
        if counts is not None:
            moved_label, fixed_label = moved_label * counts, fixed_label * counts
        similarity, smooth = SIMILARITIES[self.similarity], SMOOTHNESS[self.smooth]
        with torch.autocast(ddf.device.type, enabled=False):
            sim, dice, roughness = similarity(moved_image, fixed_image), dice_loss(moved_label, fixed_label), smooth(ddf)
        return LossTerms(self.alpha * sim + self.beta * dice + self.gamma * roughness, sim, dice, roughness)
