"""Intensity normalisation: z-score, and local normalisation that corrects the bias field of MR receive coils.

A receive coil multiplies the image by a field that falls off with the distance from it. Beside an endorectal coil the gland is
therefore dark, while the coil's own bright spot fills the range of intensities. In the logarithm such a field is a smooth
summand: subtracting the local mean removes it (homomorphic filtering). Dividing by the local standard deviation gives tissue near
and far from the coil the same contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from oasis_monai.utils.interpolation import along_axis

LOCAL_MM = 15.0
"""Default standard deviation of the Gaussian neighbourhood: wider than a gland's nodules, narrower than a coil's reach."""
OFFSET = 0.05
"""Added before the logarithm, as a fraction of the mean: noise in dark corners must not become contrast."""
FLOOR = 0.1
"""Added to the local standard deviation of the logarithm: where there is less contrast than 10 %, it is left low."""


def local_z_score(
    image: torch.Tensor, where: torch.Tensor, sigma_voxels: Sequence[float], lower: float = 0.5, upper: float = 99.5
) -> torch.Tensor:
    """(log I - local mean) / (local standard deviation + 0.1) over the voxels ``where``; 0 elsewhere.

    The intensities are clipped to percentiles, counted from the lower one and shifted by 5 % of their mean before the logarithm.
    Scaling an image, or adding a constant to it, changes nothing.

    Args:
        image: (C, \\*S) float; each channel by itself.
        where: (C, \\*S) or (\\*S) bool.
        sigma_voxels: of the Gaussian neighbourhood along each axis, in voxels.
        lower, upper: percentiles (0..100) of the voxels ``where``.

    Returns:
        (C, \\*S) float32; an image without contrast becomes 0.

    Raises:
        ValueError: a voxel of ``where`` is NaN or infinite.
    """
    where = where.expand_as(image)
    kernels = [None if s <= 0 else _gaussian(n, s).to(image) for n, s in zip(image.shape[1:], sigma_voxels, strict=True)]
    out = torch.zeros(image.shape, device=image.device)
    for channel, (values, inside) in enumerate(zip(image, where, strict=True)):
        seen = values[inside].double()
        if not len(seen):
            continue
        if not bool(torch.isfinite(seen).all()):
            raise ValueError("image: expected finite values, found NaN or infinite ones; repair the scan or mark them as padding")
        low, high = np.percentile(seen.numpy(force=True), (lower, upper)).tolist()  # torch would sort them all
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            continue
        lifted = torch.where(inside, values.nan_to_num().clamp(low, high) - low, 0.0)
        logarithm = (lifted + OFFSET * lifted[inside].mean()).log()
        mask = inside.to(image.dtype)
        weight = _blurred(mask, kernels).clamp_min(1e-12)
        centred = logarithm - _blurred(logarithm * mask, kernels) / weight
        deviation = (_blurred(centred.square() * mask, kernels) / weight).sqrt()
        out[channel] = torch.where(inside, centred / (deviation + FLOOR), 0.0).float()
    return out


def _gaussian(n: int, sigma: float) -> torch.Tensor:
    """(n, n) the weight of every voxel of an axis for every other. As long as the axis: the neighbourhood spans half of it."""
    place = torch.arange(n, dtype=torch.float32)
    return torch.exp(-((place[:, None] - place).square()) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def _blurred(values: torch.Tensor, kernels: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Gaussian blur of (\\*S), axis by axis, nothing beyond the edge."""
    for axis, kernel in enumerate(kernels):
        if kernel is not None:
            values = along_axis(kernel, values, axis)
    return values


def z_score(image: torch.Tensor, where: torch.Tensor, lower: float = 0.0, upper: float = 100.0) -> torch.Tensor:
    """Mean 0, standard deviation 1 over the voxels ``where``, after clipping to percentiles of the same voxels; 0 elsewhere.

    An image without contrast (deviation below float32's resolution of its values) becomes 0, not noise and not NaN.

    Args:
        image: (C, \\*S) float; all channels share one mean and deviation.
        where: (C, \\*S) or (\\*S) bool.
        lower: percentile (0..100) to clip to from below.
        upper: percentile (0..100) to clip to from above.

    Returns:
        (C, \\*S) float32.

    Raises:
        ValueError: a voxel of ``where`` is NaN or infinite.
    """
    where = where.expand_as(image)
    out = torch.zeros(image.shape, device=image.device)
    values = image[where].double()
    if not len(values):
        return out
    if lower > 0 or upper < 100:
        values = values.clamp(*np.percentile(values.numpy(force=True), (lower, upper)).tolist())
    deviation = values.std(correction=0)
    if not torch.isfinite(deviation):
        raise ValueError("image: expected finite values, found NaN or infinite ones; repair the scan or mark them as padding")
    if deviation > 1e-6 * values.abs().max():
        out[where] = ((values - values.mean()) / deviation).float()
    return out
