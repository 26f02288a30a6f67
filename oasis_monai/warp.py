"""Warping: one convention, written once.

A dense displacement field (``ddf``) is (B, D, *S) in **voxels** on the **fixed** (target) grid, channel i along spatial axis
i, and is a pull-back: ``out[p] = moving[p + ddf[p]]``. Outside the moving image its border value continues. This is the
convention of MONAI's ``Warp``, which does the sampling.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

SLACK = 1e-2  # voxels: rounding of a field's interpolation


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
        return _warp(padding, moving.device)(moving.float(), ddf.float())


def warp_pair(image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp an image (B, 1, *S) and its label channels (B, C, *S) in one sampling pass."""
    both = warp(torch.cat([image.float(), label.float()], 1), ddf)
    return both[:, : image.shape[1]], both[:, image.shape[1] :]


def warp_structures(structures: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """``warp(structures, resize_ddf(coarse, S))``, worked out only where a structure can arrive; elsewhere it is 0.

    An atlas's structures fill a small part of its grid, and most of the time of a warp goes into the rest.

    Args:
        structures: (B, C, \\*S) maps that are 0 in the background.
        coarse: (B, D, \\*s) displacement in voxels of a grid that is coarser by whole numbers, or the same.

    Returns:
        (B, C, \\*S) float32.
    """
    size, dims = structures.shape[2:], structures.ndim - 2
    strides = [n // m for n, m in zip(size, coarse.shape[2:], strict=True)]
    if any(m * k != n for n, m, k in zip(size, coarse.shape[2:], strides, strict=True)) or min(size) < 2:
        return warp(structures, resize_ddf(coarse, size))
    out = torch.zeros(structures.shape, device=structures.device)
    blocks = _reached(structures, coarse.float(), strides)
    if blocks is None:
        return out
    around = [slice(max(b.start - 1, 0), min(b.stop + 1, m)) for b, m in zip(blocks, coarse.shape[2:], strict=True)]
    part = coarse[(slice(None), slice(None), *around)]
    ddf = resize_ddf(part, [n * k for n, k in zip(part.shape[2:], strides, strict=True)])
    inner = [slice((b.start - a.start) * k, (b.stop - a.start) * k) for a, b, k in zip(around, blocks, strides, strict=True)]
    ddf = ddf[(slice(None), slice(None), *inner)]
    where = [slice(b.start * k, b.stop * k) for b, k in zip(blocks, strides, strict=True)]
    axes = [torch.arange(w.start, w.stop, device=ddf.device, dtype=torch.float32) for w in where]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")) + ddf
    scale = torch.tensor([2 / (n - 1) for n in size], device=ddf.device).view(1, dims, *[1] * dims)
    grid = (places * scale - 1).flip(1).movedim(1, -1)  # torch wants the last axis first, and corners at -1 and 1
    moved = F.grid_sample(structures.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    out[(slice(None), slice(None), *where)] = moved
    return out


def _reached(structures: torch.Tensor, coarse: torch.Tensor, strides: Sequence[int]) -> list[slice] | None:
    """The box of coarse voxels in which the field may fetch a structure of any of the batch; None where there is no structure.

    Between the centres of coarse voxels the place that is fetched lies among theirs, and half a voxel beside them at the border.
    """
    dims, there = len(strides), (structures != 0).flatten(0, 1).any(0)
    hits = torch.ones(coarse.shape[0], *coarse.shape[2:], dtype=torch.bool, device=coarse.device)
    for axis, k in enumerate(strides):
        along = there.any(dim=tuple(a for a in range(dims) if a != axis)).nonzero()
        if not len(along):
            return None
        low, high = int(along[0]) - 1.0, int(along[-1]) + 1.0  # linear interpolation reaches the next voxel
        low = -torch.inf if low < 0 else low  # the border's value continues
        high = torch.inf if high > len(there.movedim(axis, 0)) - 1 else high
        centres = (torch.arange(coarse.shape[2 + axis], device=coarse.device) + 0.5) * k - 0.5
        fetched = centres.view([-1 if a == axis else 1 for a in range(dims)]) + k * coarse[:, axis]
        most = _highest(fetched) + k / 2 + SLACK
        least = -_highest(-fetched) - k / 2 - SLACK
        hits &= (least <= high) & (most >= low)
    union, boxes = hits.any(0), []
    for axis in range(dims):
        along = union.any(dim=tuple(a for a in range(dims) if a != axis)).nonzero()
        if not len(along):
            return None
        boxes.append(slice(int(along[0]), int(along[-1]) + 1))
    return boxes


def _highest(values: torch.Tensor) -> torch.Tensor:
    """The maximum over each voxel of (B, \\*s) and its neighbours; torch's pooling in 3D is far slower on a CPU."""
    for axis in range(1, values.ndim):
        wider, last = values.clone(), values.shape[axis] - 1
        wider.narrow(axis, 1, last).copy_(torch.maximum(wider.narrow(axis, 1, last), values.narrow(axis, 0, last)))
        wider.narrow(axis, 0, last).copy_(torch.maximum(wider.narrow(axis, 0, last), values.narrow(axis, 1, last)))
        values = wider
    return values


def resize_ddf(ddf: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a field (B, D, *s) onto a grid of ``size`` covering the same extent, displacements rescaled to its voxels.

    Both grids share their outer edges (half-pixel convention), so a voxel of a grid coarser by ``k`` is ``k`` fine voxels.
    """
    if tuple(ddf.shape[2:]) == tuple(size):
        return ddf
    factors = [new / old for new, old in zip(size, ddf.shape[2:], strict=True)]
    mode = "trilinear" if ddf.ndim == 5 else "bilinear"
    fine = F.interpolate(ddf.float(), size=tuple(size), mode=mode, align_corners=False)
    return fine * torch.tensor(factors, device=ddf.device).view(1, -1, *[1] * (ddf.ndim - 2))


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
