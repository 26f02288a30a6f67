"""Warp images and labels by dense displacement fields, and resize, compose and integrate such fields.

A dense displacement field (``ddf``) is (B, D, *S) in **voxels** on the **fixed** (target) grid, channel i along spatial axis
i. It is a pull-back: ``out[p] = moving[p + ddf[p]]``. Outside the moving image its border value continues. This is the
convention of MONAI's ``Warp``, which does the sampling except for volumes on a CPU (:mod:`oasis_monai.utils.interpolation`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

from oasis_monai.utils.interpolation import enlarge, sample_volume


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without MONAI's word that its warp samples with torch's own function, which is what we want."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="monai.networks.blocks.Warp")
        yield


@lru_cache(maxsize=8)
def _warp(padding: str, device: torch.device) -> torch.nn.Module:
    from monai.networks.blocks import Warp  # keeps a grid of the last shape it saw, hence one per device

    with _silent():
        return Warp(mode="bilinear", padding_mode=padding)


def warp(moving: torch.Tensor, ddf: torch.Tensor, padding: str = "border") -> torch.Tensor:
    """Pull ``moving`` back through ``ddf`` with linear interpolation.

    Args:
        moving: (B, C, *S) image, or one-hot label (never class indices: blending indices invents labels).
        ddf: (B, D, *S) displacement in voxels.
        padding: what lies outside the moving image: ``border`` or ``zeros``.

    Returns:
        (B, C, *S) float32. Runs in float32 also under autocast: half-precision grid sampling on the CPU gives garbage.
    """
    if moving.ndim != ddf.ndim or moving.shape[2:] != ddf.shape[2:] or ddf.shape[1] != ddf.ndim - 2:
        raise ValueError(
            f"warp: expected moving (B, C, *S) and ddf (B, D, *S) of one grid, found {tuple(moving.shape)} and {tuple(ddf.shape)}"
        )
    with torch.autocast(moving.device.type, enabled=False):
        moving, ddf = moving.float(), ddf.float()
        if moving.ndim == 5 and moving.device.type == "cpu":
            axes = [torch.arange(s).view(-1, *[1] * (2 - i)) for i, s in enumerate(moving.shape[2:])]
            return sample_volume(moving, [ddf[:, i] + axis for i, axis in enumerate(axes)], padding)
        return _warp(padding, moving.device)(moving, ddf)


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
    factors = [new / old for new, old in zip(size, ddf.shape[2:], strict=True)]
    return ddf.float() * torch.tensor(factors, device=ddf.device).view(1, -1, *[1] * (ddf.ndim - 2))


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One field for two warps: ``warp(x, compose(first, second)) = warp(warp(x, first), second)``."""
    return second + warp(first, second)


def integrate(velocity: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Exponential of a stationary velocity field (B, D, *S), by ``steps`` squarings (MONAI's DVF2DDF, border padding)."""
    from monai.networks.blocks import DVF2DDF

    with torch.autocast(velocity.device.type, enabled=False), _silent():
        return DVF2DDF(num_steps=steps, mode="bilinear", padding_mode="border")(velocity.float())


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
