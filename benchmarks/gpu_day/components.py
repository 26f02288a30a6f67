"""Connected pieces without scipy, which the lent machine need not have."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from oasis_monai.transforms.components import bounding_box


def connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """What :func:`oasis_monai.transforms.components.connected` gives, in ten times its time."""
    numbered = np.zeros(mask.shape, dtype=np.int32)
    around = bounding_box(mask)
    if around is None:
        return numbered, 0
    inside = torch.from_numpy(mask[around])
    outside = float(-inside.numel())
    first = torch.where(inside, -torch.arange(inside.numel(), dtype=torch.float64).reshape(inside.shape), outside)
    while True:  # every voxel takes the number of the first one among its neighbours, until all of a piece have that of its first
        spread = torch.where(inside, F.max_pool3d(first[None, None], 3, 1, 1)[0, 0], outside)
        if torch.equal(spread, first):
            break
        first = spread
    numbers, places = torch.unique(-first[inside], return_inverse=True)
    numbered[around][mask[around]] = places.numpy() + 1
    return numbered, len(numbers)


def without_scipy() -> AbstractContextManager[Any]:
    """Fusion with :func:`connected`, where there is no scipy."""
    return nullcontext() if find_spec("scipy") else mock.patch("oasis_monai.segmentation.fusion.connected", connected)
