"""Fast linear interpolation on voxel grids: sample, enlarge and pool volumes.

On a CPU torch samples and enlarges volumes voxel by voxel, which took most of the time of an alignment. Its sampling of images is
vectorised, and so are matrix products, so here volumes are reduced to these. On a GPU torch's own functions are faster:
:func:`enlarge` calls them there, and callers of :func:`sample_volume` have to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F


def sample_volume(volume: torch.Tensor, where: Sequence[torch.Tensor], padding: str = "border") -> torch.Tensor:
    """Values between the voxels of a volume, as ``F.grid_sample`` gives them: a third to a half of its time on a CPU, gradients
    included.

    A volume (x, y, z) lies in memory as an image of x rows and y * z columns. Linear interpolation along y is that between two of
    its samples, z columns apart, taken as one sample of two channels. Positions are float32 fractions of a row, good to some
    1e-7 * y * z voxels.

    Args:
        volume: (B, C, x, y, z) float32.
        where: three (B, \\*S) float32, the positions along x, y and z in voxels, counted from the first voxel's centre.
        padding: beyond the outermost voxel centres the nearest value continues (``border``), or falls to 0 (``zeros``).

    Returns:
        (B, C, \\*S) float32.
    """
    shift = 1 if padding == "zeros" else 0  # of a frame
    both = _framed_beside_next_slab(volume) if shift else _beside_next_slab(volume)
    x, y, z = (place + 1 for place in where) if shift else where
    size = [side + 2 * shift for side in volume.shape[2:]]
    batch, channels, shape, columns = *volume.shape[:2], x.shape[1:], size[1] * size[2]
    y = y.clamp(0, size[1] - 1)
    slab = y.floor()
    across = (slab * size[2]).add_(z.clamp(0, size[2] - 1)).sub_((columns - 1) / 2).mul_(2 / columns)
    down = (x - (size[0] - 1) / 2).mul_(2 / size[0])
    grid = torch.view_as_real(torch.complex(across, down)).view(batch, shape[0], -1, 2)  # a stack would take longer
    both = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    near, far = both.view(batch, 2 * channels, *shape).split(channels, 1)
    return torch.lerp(near, far, y.sub(slab)[:, None])


def _beside_next_slab(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, x, y, z) -> (B, 2 C, x, y * z): the volume as images, and behind them the same z columns on. Behind the last slab
    nothing counts."""
    rows, z = volume.flatten(3), volume.shape[-1]
    return torch.cat([rows, F.pad(rows[..., z:], (0, z))], 1)


def _framed_beside_next_slab(volume: torch.Tensor) -> torch.Tensor:
    """:func:`_beside_next_slab` of a volume in a frame of zeros, one voxel wide, written at once: two copies fewer."""
    batch, channels, *size = volume.shape
    x, y, z = (side + 2 for side in size)
    both = volume.new_zeros(batch, 2, channels, x, y, z)
    both[:, 0, :, 1:-1, 1:-1, 1:-1] = volume
    both[:, 1, :, 1:-1, :-2, 1:-1] = volume
    return both.view(batch, 2 * channels, x, y * z)


def enlarge(values: torch.Tensor, size: Sequence[int], corners: bool = False) -> torch.Tensor:
    """(B, C, \\*s) onto a grid of ``size``, linearly, as ``F.interpolate`` with ``align_corners=corners``: float32.

    ``corners``: the outermost voxel centres of both grids coincide; else their outer edges do (half-pixel convention).
    """
    if values.device.type != "cpu":
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[values.ndim]
        return F.interpolate(values.float(), size=tuple(size), mode=mode, align_corners=corners)
    values = values.float()
    with torch.autocast("cpu", enabled=False):
        for axis, (new, old) in enumerate(zip(size, values.shape[2:], strict=True), 2):
            if new == old:
                continue
            weights = _weights(old, new, corners)
            values = along_axis(weights, values, axis)
    return values


def enlarge_slab(values: torch.Tensor, size: Sequence[int], slab: slice) -> torch.Tensor:
    """The part ``[:, :, slab]`` of :func:`enlarge` (half-pixel convention), without the rest: float32."""
    values = values.float()
    with torch.autocast(values.device.type, enabled=False):
        values = along_axis(_weights(values.shape[2], size[0], False)[slab].to(values.device), values, 2)
        return enlarge(values, (values.shape[2], *size[1:]))


def rows_near(old: int, new: int, slab: slice) -> slice:
    """The voxels of an axis that :func:`enlarge` looks at for a part of the ``new`` ones."""
    low, high = ((end + 0.5) * (old / new) - 0.5 for end in (slab.start, slab.stop - 1))
    return slice(max(0, math.floor(low)), min(old, math.floor(high) + 2))


def enlarge_rows(values: torch.Tensor, old: int, rows: slice, size: Sequence[int], slab: slice) -> torch.Tensor:
    """:func:`enlarge_slab` of values that are known in :func:`rows_near` of ``old`` voxels along x: (B, C, \\*rows)."""
    weights = _weights(old, size[0], False)[slab, rows].to(values.device)
    values = along_axis(weights, values.float(), 2)
    return enlarge(values, (values.shape[2], *size[1:]))


def along_axis(matrix: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """(m, n) matrix times every line of n values along ``axis``, which becomes m long. Values that lie in order stay there."""
    if axis == values.ndim - 1:
        return values @ matrix.T
    before, n, after = values.shape[:axis], values.shape[axis], values.shape[axis + 1 :]
    lines = values.reshape(math.prod(before), n, math.prod(after))
    return torch.matmul(matrix, lines).view(*before, len(matrix), *after)


@lru_cache(maxsize=32)
def _weights(old: int, new: int, corners: bool) -> torch.Tensor:
    """(new, old): the part of every old voxel in every new one."""
    with torch.inference_mode(False):  # they are kept, and training may want them
        new_places = torch.arange(new, dtype=torch.float32)
        place = new_places * ((old - 1) / max(new - 1, 1)) if corners else ((new_places + 0.5) * (old / new) - 0.5)
        return (1 - (place.clamp(0, old - 1)[:, None] - torch.arange(old)).abs()).clamp_min(0)


def pool(volumes: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """(B, c, x, y, z) on the grid coarser by ``stride``: the mean of every block."""
    return F.avg_pool3d(volumes, tuple(stride))
