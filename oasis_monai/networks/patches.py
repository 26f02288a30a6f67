"""The rule for what a comparison network sees of a fine grid at once: the same patch for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from oasis_monai.networks.segmentation import KINDS, NetworkSettings
from oasis_monai.utils.errors import ConfigError

VOXELS_A_STEP = 2**20
"""Most voxels of all patches of a training step. A DynU-Net, which keeps most maps, takes 2 to 3 GB for them; on one core a U-Net
takes about a second and a DynU-Net four (:data:`oasis_monai.workflows.plan_time.SECONDS`)."""
LEAST_VOXELS = 2**15
"""Of a patch, however many there are in a step: a network must see some of what is round a voxel."""


def choose_patch(size: Sequence[int], spacing_mm: Sequence[float], by: int, voxels: int) -> tuple[int, ...]:
    """The patch of a grid, with sides as equal in mm as can be.

    It begins as the whole grid. While it has too many voxels, its longest side (in mm) is made shorter. What room the last such
    step leaves goes to the shortest side that fits. (nnU-Net also begins with the whole and shortens the side that is longest in
    proportion; Isensee et al., Nature Methods 2021, doi 10.1038/s41592-020-01008-z.)

    Args:
        size: voxels of the grid along x, y (, z).
        spacing_mm: of its voxels.
        by: what every side is a multiple of.
        voxels: most of them in a patch.

    Raises:
        ConfigError: a side of the grid is shorter than ``by``.

    Examples:
        >>> choose_patch((160, 160, 128), (1.0, 1.0, 1.5), 16, 2**19)  # the plan of IBSR18: 96 x 80 x 96 mm
        (80, 96, 64)
        >>> choose_patch((48, 64, 40), (1.0, 1.0, 1.0), 16, 2**19)
        (48, 64, 32)
    """
    if min(size) < by:
        remedy = "take a larger grid, fewer levels in network.unet, network.dynunet and network.convnet, or give network.patch"
        raise ConfigError("preprocessing.size", f"a fine grid of {by} voxels or more along each axis", list(size), remedy)
    whole = [n // by * by for n in size]
    sides = list(whole)
    while math.prod(sides) > voxels and max(sides) > by:
        longest = max((axis for axis, n in enumerate(sides) if n > by), key=lambda axis: sides[axis] * spacing_mm[axis])
        sides[longest] -= by

    def grown(axis: int) -> list[int]:
        return [n + by * (axis == other) for other, n in enumerate(sides)]

    while room := [a for a, n in enumerate(sides) if n < whole[a] and math.prod(grown(a)) <= voxels]:
        sides = grown(min(room, key=lambda axis: sides[axis] * spacing_mm[axis]))
    return tuple(sides)


def on_fine_grid(settings: NetworkSettings, size: Sequence[int], spacing_mm: Sequence[float], batch: int) -> NetworkSettings:
    """The settings of comparison networks on a fine grid: with the patch of :func:`choose_patch`, unless one is given.

    Every kind of network gets the same patch, whichever of them are compared: its sides can be halved as often as the deepest of
    them does.

    Args:
        settings: those of the experiment.
        size, spacing_mm: the fine grid.
        batch: patches in a training step.

    Raises:
        ConfigError: see :func:`choose_patch`.
    """
    if settings.patch is not None:
        return settings
    by = math.lcm(*(settings.divisor(kind) for kind in KINDS))
    return replace(settings, patch=choose_patch(size, spacing_mm, by, max(VOXELS_A_STEP // batch, LEAST_VOXELS)))
