"""Local intensity normalisation: what an endorectal or surface coil does to the grey values of an MR scan, taken out.

A receive coil multiplies the image by a field that falls off with the distance from it; beside an endorectal coil the gland is
then a dark shade in a range that the coil's own hot spot fills. In the logarithm such a field is a smooth summand, so that
subtracting the local mean removes it (homomorphic filtering), and dividing by the local standard deviation gives tissue near and
far from the coil the same contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

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
        weight = _blurred(inside.float(), sigma_voxels)

        def local(x: torch.Tensor, inside: torch.Tensor = inside, weight: torch.Tensor = weight) -> torch.Tensor:
            return _blurred(torch.where(inside, x, 0.0), sigma_voxels) / weight.clamp_min(1e-12)

        centred = logarithm - local(logarithm)
        deviation = local(centred.square()).sqrt()
        out[channel] = torch.where(inside, centred / (deviation + FLOOR), 0.0).float()
    return out


def _blurred(values: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian blur of (\\*S), axis by axis, nothing beyond the edge. Each axis is one small matrix product: a neighbourhood
    that spans half the image makes a kernel as long as the image."""
    for axis, width in enumerate(sigma):
        if width <= 0:
            continue
        length = values.shape[axis]
        place = torch.arange(length, dtype=values.dtype, device=values.device)
        kernel = torch.exp(-((place[:, None] - place[None]) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
        values = torch.tensordot(values, kernel, dims=([axis], [0])).movedim(-1, axis)
    return values
