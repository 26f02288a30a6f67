"""Intensity normalisation: z-score, the window of CT, and local normalisation that corrects the bias field of MR receive coils.

A receive coil multiplies the image by a field that falls off with the distance from it. Beside an endorectal coil the gland is
therefore dark, while the coil's own bright spot fills the range of intensities. In the logarithm such a field is a smooth
summand: subtracting the local mean removes it (homomorphic filtering). Dividing by the local standard deviation gives tissue near
and far from the coil the same contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from oasis_monai.transforms.spatial import as_plain_tensor
from oasis_monai.utils.interpolation import along_axis

LOCAL_MM = 15.0
"""Default standard deviation of the Gaussian neighbourhood: wider than a gland's nodules, narrower than a coil's reach."""
OFFSET = 0.05
"""Added before the logarithm, as a fraction of the mean: noise in dark corners must not become contrast."""
SCALED = (-2.0, 2.0)
"""What the ends of a window become: about the range of the other settings, and of photographs as encoders see them."""
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
        image: (C, \\*S) float; each channel by itself.
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
    for channel, inside in enumerate(where):
        values = image[channel][inside].double()
        if not len(values):
            continue
        if lower > 0 or upper < 100:
            values = values.clamp(*np.percentile(values.numpy(force=True), (lower, upper)).tolist())
        deviation = values.std(correction=0)
        if not torch.isfinite(deviation):
            raise ValueError("image: expected finite values, found NaN or infinite ones; repair the scan or mark them as padding")
        if deviation > 1e-6 * values.abs().max():
            out[channel][inside] = ((values - values.mean()) / deviation).float()
    return out


Window = tuple[float, float]
Windows = Window | tuple[Window | None, ...]
"""One window for every channel, or one per channel: None for a channel without."""


def check_windows(window: Any) -> Windows:
    """``window`` as tuples of numbers.

    Raises:
        ValueError: it is neither ``[low, high]`` with low < high nor a list of such pairs and nulls.
    """

    def is_pair(one: Any) -> bool:
        listed = isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 2
        return listed and all(isinstance(v, int | float) and not isinstance(v, bool) for v in one) and one[0] < one[1]

    if is_pair(window):
        return float(window[0]), float(window[1])
    several = isinstance(window, Sequence) and not isinstance(window, str) and any(is_pair(one) for one in window)
    if not several or not all(one is None or is_pair(one) for one in window):
        raise ValueError("[low, high] with low below high, or a list of such pairs and nulls, one per channel")
    return tuple(None if one is None else (float(one[0]), float(one[1])) for one in window)


def windows_of(window: Windows | None, channels: int) -> list[Window | None]:
    """The window of every channel.

    Raises:
        ValueError: there are windows for another number of channels.
    """
    if window is None:
        return [None] * channels
    if not isinstance(window[0], tuple | None):  # one pair of numbers
        return [cast(Window, window)] * channels
    if len(window) != channels:
        raise ValueError(f"{channels}, one per channel")
    return list(cast(tuple[Window | None, ...], window))


def clip_windows(image: torch.Tensor, windows: Sequence[Window | None]) -> torch.Tensor:
    """(C, \\*S) clipped to the window of each channel; a channel without a window, and NaN, stay as they are."""
    if not any(windows):
        return image
    clipped = image.clone()
    for one, window in zip(clipped, windows, strict=True):
        if window is not None:
            one.clamp_(*window)
    return clipped


def scale_windows(
    image: torch.Tensor, where: torch.Tensor, windows: Sequence[Window | None], lower: float = 0.0, upper: float = 100.0
) -> torch.Tensor:
    """Each channel's window scaled to :data:`SCALED`, clipped beyond; 0, the middle of the window, outside ``where``.

    MONAI's ``ScaleIntensityRange(a_min=low, a_max=high, b_min=-2, b_max=2, clip=True)``. Nothing is measured on the scan, so a
    tissue of CT has the same value in every scan. A channel without a window (MR beside CT) gets its :func:`z_score`.

    Args:
        image: (C, \\*S) float, in the unit of the windows (CT: HU).
        where: (C, \\*S) or (\\*S) bool.
        windows: (low, high) or None of every channel.
        lower, upper: of the z-score.

    Returns:
        (C, \\*S) float32.

    Raises:
        ValueError: a voxel of ``where`` is NaN or infinite.
    """
    from monai.transforms.intensity.array import ScaleIntensityRange

    where = where.expand_as(image)
    made = []
    for one, inside, window in zip(image.split(1), where.split(1), windows, strict=True):
        if window is None:
            made.append(z_score(one, inside, lower, upper))
            continue
        if not bool(torch.isfinite(one[inside]).all()):
            raise ValueError("image: expected finite values, found NaN or infinite ones; repair the scan or mark them as padding")
        scaled: Any = ScaleIntensityRange(*window, *SCALED, clip=True)(one)
        made.append(torch.where(inside, as_plain_tensor(scaled).float(), 0.0))
    return torch.cat(made)
