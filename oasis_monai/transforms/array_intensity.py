"""Array transforms of intensities: z-scores, and windows of CT. See :mod:`.array`, which has the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type

from oasis_monai.transforms import spatial as grids
from oasis_monai.transforms.intensity import (
    LOCAL_MM,
    check_windows,
    clip_windows,
    local_z_score,
    scale_windows,
    windows_of,
    z_score,
)
from oasis_monai.transforms.metadata import grid_of, own_copy, to_tensor


class RobustZScore(Transform):
    """Clip to two percentiles, then mean 0 and standard deviation 1, all from the voxels that are not padding; padding
    becomes 0. An image without contrast becomes 0. (``NormalizeIntensity(nonzero=True)`` neither clips nor can tell padding
    from a dark voxel; ``ClipIntensityPercentiles`` counts padding.)

    Args:
        lower: lower percentile, 0 <= lower < upper.
        upper: upper percentile, <= 100.
        padding: value that marks padding: a number, NaN (see :class:`PhysicalFieldOfView`), or None: there is none.

    Call: (C, \\*S) -> (C, \\*S) float32; each channel by itself.

    Raises:
        ValueError: percentiles out of order; NaN or infinite voxels that are not padding.

    Examples:
        >>> import torch
        >>> from oasis_monai.transforms import RobustZScore
        >>> scored = RobustZScore(padding=0.0)(100 + 20 * torch.randn(1, 32, 32, 8))
        >>> round(float(scored.std()), 2)
        1.0
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, lower: float = 0.5, upper: float = 99.5, padding: float | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles: expected 0 <= lower < upper <= 100, found lower={lower}, upper={upper}")
        self.lower, self.upper, self.padding = lower, upper, padding

    def __call__(self, img: np.ndarray | torch.Tensor) -> torch.Tensor:
        tensor = to_tensor(img)
        values = grids.as_plain_tensor(tensor)
        scored = z_score(values, _not_padding(values, self.padding), self.lower, self.upper)
        out: Any = convert_to_dst_type(scored, tensor, dtype=torch.float32)[0]
        return own_copy(out)


class LocalZScore(Transform):
    """Correct the bias field of an MR image (coil-induced intensity inhomogeneity): subtract the local mean of the logarithm,
    divide by the local deviation (:func:`oasis_monai.transforms.intensity.local_z_score`); padding becomes 0.

    Args:
        sigma_mm: standard deviation of the Gaussian neighbourhood.
        lower, upper: percentiles to clip to, 0 <= lower < upper <= 100.
        padding: as of :class:`RobustZScore`.

    Call: ``MetaTensor`` (C, x, y, z) with its affine -> the same in float32; each channel by itself.

    Raises:
        ValueError: sigma not positive; percentiles out of order; NaN or infinite voxels that are not padding; the input is no
            ``MetaTensor`` with three spatial dimensions.

    Examples:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from oasis_monai.transforms import LocalZScore
        >>> image = MetaTensor(100 + 20 * torch.randn(1, 32, 32, 8), affine=torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0])))
        >>> scored = LocalZScore(sigma_mm=15.0)(image)
        >>> scored.shape
        torch.Size([1, 32, 32, 8])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, sigma_mm: float = LOCAL_MM, lower: float = 0.5, upper: float = 99.5, padding: float | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles: expected 0 <= lower < upper <= 100, found lower={lower}, upper={upper}")
        if not 0 < sigma_mm < math.inf:
            raise ValueError(f"sigma_mm: expected a number of mm above 0, found {sigma_mm}")
        self.sigma_mm, self.lower, self.upper, self.padding = sigma_mm, lower, upper, padding

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        grid, values = grid_of(img), grids.as_plain_tensor(img)
        sigma = [self.sigma_mm / mm for mm in grid.spacing_mm]
        scored = local_z_score(values, _not_padding(values, self.padding), sigma, self.lower, self.upper)
        out: Any = convert_to_dst_type(scored, img, dtype=torch.float32)[0]
        return own_copy(out)


class ClipWindow(Transform):
    """Clip the intensities of each channel to its window, as those of CT before :class:`RobustZScore`. (``ThresholdIntensity``
    has one threshold for all channels.)

    Args:
        window: (low, high), or a list of them, one per channel, None for a channel that stays as it is.

    Call: (C, \\*S) -> the same, NaN kept (padding, see :class:`PhysicalFieldOfView`).

    Raises:
        ValueError: no window; windows for another number of channels.

    Examples:
        >>> import torch
        >>> from oasis_monai.transforms import ClipWindow
        >>> ClipWindow((-160, 240))(torch.tensor([[-1000.0, 40.0, 3000.0]])).tolist()
        [[-160.0, 40.0, 240.0]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, window: Sequence[Any]) -> None:
        self.window = check_windows(window)

    def __call__(self, img: np.ndarray | torch.Tensor) -> torch.Tensor:
        tensor = to_tensor(img)
        values = grids.as_plain_tensor(tensor).float()
        clipped = clip_windows(values, windows_of(self.window, len(values)))
        out: Any = convert_to_dst_type(clipped, tensor, dtype=torch.float32)[0]
        return own_copy(out)


class ScaleWindow(Transform):
    """Scale the window of each channel to -2 ... 2, clipped beyond; padding becomes 0, the middle of the window. A channel
    without a window gets its :class:`RobustZScore`. (``ScaleIntensityRange`` has one range for all channels and no padding.)

    Args:
        window: (low, high), for CT in HU; or a list of them, one per channel, None for a channel without.
        lower, upper, padding: as of :class:`RobustZScore`.

    Call: (C, \\*S) -> (C, \\*S) float32.

    Raises:
        ValueError: no window; windows for another number of channels; NaN or infinite voxels that are not padding.

    Examples:
        >>> import torch
        >>> from oasis_monai.transforms import ScaleWindow
        >>> ScaleWindow((-160, 240))(torch.tensor([[-1000.0, 40.0, 140.0]])).tolist()
        [[-2.0, 0.0, 1.0]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, window: Sequence[Any], lower: float = 0.5, upper: float = 99.5, padding: float | None = None) -> None:
        self.window, self.lower, self.upper, self.padding = check_windows(window), lower, upper, padding

    def __call__(self, img: np.ndarray | torch.Tensor) -> torch.Tensor:
        tensor = to_tensor(img)
        values = grids.as_plain_tensor(tensor).float()
        where, windows = _not_padding(values, self.padding), windows_of(self.window, len(values))
        out: Any = convert_to_dst_type(
            scale_windows(values, where, windows, self.lower, self.upper), tensor, dtype=torch.float32
        )[0]
        return own_copy(out)


def _not_padding(values: torch.Tensor, padding: float | None) -> torch.Tensor:
    if padding is None:
        return torch.ones_like(values, dtype=torch.bool)
    return ~torch.isnan(values) if math.isnan(padding) else values != padding
