"""Warp images and labels by dense displacement fields, and resize, compose and integrate such fields.

A dense displacement field (``ddf``) is (B, D, *S) in **voxels** on the **fixed** (target) grid, channel i along spatial axis
i. It is a pull-back: ``out[p] = moving[p + ddf[p]]``. Outside the moving image its border value continues. This is the
convention of MONAI's ``Warp``. Volumes on a CPU are sampled by :mod:`oasis_monai.utils.interpolation`, which is faster there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from oasis_monai.utils.interpolation import enlarge, sample_volume
from oasis_monai.utils.transfer import constant


@lru_cache(maxsize=64)
def _axes(size: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Where the voxels lie along each axis, in voxels: what is added to a displacement. Made once, on the device."""
    with torch.inference_mode(False):  # they are kept, and training may want them
        return tuple(
            torch.arange(n, dtype=torch.float32, device=device).view(-1, *[1] * (len(size) - 1 - axis))
            for axis, n in enumerate(size)
        )


def sample_image(moving: torch.Tensor, ddf: torch.Tensor, padding: str) -> torch.Tensor:
    """MONAI's ``Warp`` to the last bit, which makes its grid of voxels on the CPU at every call and sends it to the device."""
    size = tuple(ddf.shape[2:])
    places = [
        (ddf[:, i] + axis) * 2 / max(n - 1, 1) - 1 for i, (axis, n) in enumerate(zip(_axes(size, ddf.device), size, strict=True))
    ]
    grid = torch.stack(places[::-1], -1)  # torch's coordinates start with the last axis
    return F.grid_sample(moving, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def warp(moving: torch.Tensor, ddf: torch.Tensor, padding: str = "border") -> torch.Tensor:
    """Pull ``moving`` back through ``ddf`` with linear interpolation.

    Args:
        moving: (B, C, *S) image, or one-hot label (never class indices: blending indices invents labels).
        ddf: (B, D, *S) displacement in voxels.
        padding: what lies outside the moving image: ``border`` or ``zeros``.

    Returns:
        (B, C, *S) float32. Runs in float32 also under autocast: half-precision grid sampling on the CPU gives garbage.
    """
    same = moving.ndim == ddf.ndim and len(moving) == len(ddf) and moving.shape[2:] == ddf.shape[2:]
    if not same or ddf.shape[1] != ddf.ndim - 2:
        raise ValueError(
            f"warp: expected moving (B, C, *S) and ddf (B, D, *S) of one grid, found {tuple(moving.shape)} and {tuple(ddf.shape)}"
        )
    with torch.autocast(moving.device.type, enabled=False):
        moving, ddf = moving.float(), ddf.float()
        if moving.ndim == 5 and moving.device.type == "cpu":
            axes = _axes(tuple(ddf.shape[2:]), ddf.device)
            return sample_volume(moving, [ddf[:, i] + axis for i, axis in enumerate(axes)], padding)
        return sample_image(moving, ddf, padding)


def warp_pair(image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp an image (B, 1, *S) and its label channels (B, C, *S) in one sampling pass."""
    both = warp(torch.cat([image.float(), label.float()], 1), ddf)
    return both[:, : image.shape[1]], both[:, image.shape[1] :]


def resize_ddf(ddf: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a field (B, D, *s) onto a grid of ``size`` covering the same extent, displacements rescaled to its voxels.

    Both grids share their outer edges (half-pixel convention), so a voxel of a grid coarser by ``k`` is ``k`` fine voxels.
    """
    if tuple(ddf.shape[2:]) == tuple(size):
        return ddf
    return enlarge(scale_ddf(ddf, size), size)


def scale_ddf(ddf: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A field (B, D, *s) on its own grid, its displacements in voxels of a grid of ``size`` covering the same extent."""
    factors = tuple(new / old for new, old in zip(size, ddf.shape[2:], strict=True))
    return ddf.float() * constant(factors, ddf.device).view(1, -1, *[1] * (ddf.ndim - 2))


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One field for two warps: ``warp(x, compose(first, second)) = warp(warp(x, first), second)``."""
    return second + warp(first, second)


def integrate(velocity: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Exponential of a stationary velocity field (B, D, *S), by ``steps`` squarings (as MONAI's DVF2DDF, border padding)."""
    with torch.autocast(velocity.device.type, enabled=False):
        ddf = velocity.float() / 2**steps
        for _ in range(steps):
            ddf = ddf + sample_image(ddf, ddf, "border")
    return ddf


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """|J| of ``p -> p + ddf[p]`` by central differences, (B, *S); values <= 0 are folds. One-sided at the border."""
    dims = ddf.ndim - 2
    gradients = [torch.gradient(ddf.float(), dim=2 + axis)[0] for axis in range(dims)]
    jacobian = torch.stack(gradients, dim=-1).movedim(1, -2)  # (B, *S, component, axis)
    return torch.linalg.det(jacobian + torch.eye(dims, device=ddf.device))


def folding_voxels(fields: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """How often each of the coarse fields (P, D, *s) folds on the grid of ``size``: (P,) int64 voxels with |J| <= 0."""
    one_by_one = (resize_ddf(field.float(), size) for field in fields.split(1))
    return torch.tensor([int((jacobian_determinant(ddf) <= 0).sum()) for ddf in one_by_one], dtype=torch.int64)
