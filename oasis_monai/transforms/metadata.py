"""Tensors with MONAI's metadata and grids: what the array transforms share."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.utils.type_conversion import convert_to_tensor

from oasis_monai.data.types import Geometry

NO_CHANNEL = float("nan")
"""``original_channel_dim`` of a file without channels. Without this key ``SaveImage`` takes (x, y, z) for two spatial dimensions
and a channel."""


def to_tensor(img: Any) -> torch.Tensor:
    """``img`` as a tensor, with its metadata where it has some."""
    out: Any = convert_to_tensor(img, track_meta=get_track_meta())
    return out


def own_copy(out: Any) -> torch.Tensor:
    """What a transform gives back: MONAI's conversions leave what is nested in ``meta`` shared with the input."""
    tensor = to_tensor(out)
    if isinstance(tensor, MetaTensor):
        tensor.meta = copy.deepcopy(tensor.meta)
    return tensor


def grid_of(img: torch.Tensor) -> Geometry:
    """The grid of a ``MetaTensor`` (C, x, y, z).

    Raises:
        ValueError: it is none.
    """
    if not isinstance(img, MetaTensor) or img.ndim != 4:
        found = f"{type(img).__name__} of shape {tuple(getattr(img, 'shape', ()))}"
        raise ValueError(f"image: expected a MetaTensor (C, x, y, z), whose affine says where it lies, found {found}")
    x, y, z = (int(n) for n in img.shape[1:])
    return Geometry((x, y, z), img.affine.cpu().numpy().astype(float))


def on_grid(values: torch.Tensor, grid: Geometry, like: torch.Tensor) -> MetaTensor:
    """``values`` on ``grid`` with the metadata of ``like``, which also learns where it came from if it did not know."""
    assert isinstance(like, MetaTensor)
    meta = copy.deepcopy({k: v for k, v in like.meta.items() if k != "affine"})
    meta.setdefault("original_affine", like.affine.clone())
    meta.setdefault("spatial_shape", np.array(like.shape[1:]))  # as MONAI: others compare it by NumPy
    meta.setdefault("original_channel_dim", NO_CHANNEL)
    affine = torch.as_tensor(grid.affine, dtype=torch.float64)
    return MetaTensor(values, affine=affine, meta=meta, applied_operations=copy.deepcopy(like.applied_operations))
