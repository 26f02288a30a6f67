"""The working grid of the plan: what shows all labels, in voxels like the scans' own, as fine as the budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oasis_monai.settings import Settings, build
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.planned import UNPLANNED, fill
from oasis_monai.workflows.fingerprint import Fingerprint
from oasis_monai.workflows.plan_choice import GRID, Asked, Choice, mm_text

MARGIN = 0.1  # surroundings the networks should see beyond the labels, as a fraction of the labels' extent
MARGIN_MM = 5.0  # the smallest such margin
VOXELS = {2: 96 * 96, 3: 96 * 96 * 32}  # most voxels of a grid: the default training minutes were chosen for these
THIN_VOXELS = 4  # so many times more where structures are thin
THIN = 1.0  # a structure is thin if it has less than so many voxels of the usual grid across (2 volume / surface)
ROUND_MM = (0.1, 0.125, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""Voxel sizes a plan takes: round ones, so that one scan more does not change the grid."""
SAME = 1.15  # voxels at most so much longer count as the same: an axis near the finest gets its size, which is a round one
ANISOTROPIC = 3.0  # slices are at most so many times thicker than pixels: nnU-Net's limit, Isensee et al. 2021
NEARLY_ISOTROPIC = 2.0  # below this ratio of the longest to the shortest side of a voxel all axes are halved alike


def working_grid(fingerprint: Fingerprint, asked: Asked) -> tuple[Choice, Mapping[str, Mapping[str, Any]]]:
    """The grid, and the values of the networks that go with it.

    It holds every label with a margin, but nothing that no scan shows. Its voxels are the scans' own: of the finest quarter of
    them in plane, of the median scan through the slices, which are at most :data:`ANISOTROPIC` times thicker. They are made
    coarser from the finest axis on, in steps of :data:`ROUND_MM`, until there are no more than :data:`VOXELS`, or
    :data:`THIN_VOXELS` times as many where a structure would have less than :data:`THIN` of them across.
    """
    dims, scans = asked.dims, fingerprint.labelled
    extent = np.max([scan.label_extent_mm for scan in scans], 0)[:dims]
    largest = np.max([scan.size_mm for scan in scans], 0)[:dims]
    wanted = np.minimum(2 * (extent + np.maximum(MARGIN * extent, MARGIN_MM)), largest)
    least = np.minimum(2 * extent, largest)
    own = own_spacing(fingerprint)[:dims]
    spacing, size, networks = _finest(own, wanted, least, asked, VOXELS[dims])
    thin = thinnest(fingerprint)
    usual = size
    if thin is not None and thin[1] < THIN * min(spacing):
        spacing, size, networks = _finest(own, wanted, least, asked, THIN_VOXELS * VOXELS[dims])
    reach = " x ".join(f"{v:.0f}" for v in extent)
    reason = f"labels reach {reach} mm from the images' centres; the scans' voxels are {mm_text(own)}"
    is_thin = size != usual
    if max(spacing) > 1.01 * max(own) or min(spacing) > 1.3 * min(own):
        limit = VOXELS[dims] * (THIN_VOXELS if is_thin else 1)
        reason += f", made coarser for at most {limit:,} voxels"
    if is_thin and thin is not None:
        reason += f" ({THIN_VOXELS} times the usual: {thin[0]} is {thin[1]:.1f} mm thin)"
    return asked.choice(reason, preprocessing__size=size, preprocessing__spacing_mm=spacing), networks


def own_spacing(fingerprint: Fingerprint) -> np.ndarray:
    """Voxels of the data set along x, y, z: the lower quartile, along the coarsest axis the median."""
    every = np.array([scan.spacing_mm for scan in fingerprint.labelled])
    found, median = np.quantile(every, 0.25, axis=0), np.median(every, 0)
    coarsest = int(np.argmax(median))
    found[coarsest] = median[coarsest]
    return found


def thinnest(fingerprint: Fingerprint) -> tuple[str, float] | None:
    """The thinnest structure and its thickness in mm in the median scan."""
    medians = {
        index: float(np.median([s.structures[index].thickness_mm for s in fingerprint.labelled if index in s.structures]))
        for index in fingerprint.present
    }
    if not medians:
        return None
    index = min(medians, key=medians.__getitem__)
    return fingerprint.name_of(index), medians[index]


def _finest(
    own: np.ndarray, wanted: np.ndarray, least: np.ndarray, asked: Asked, voxels: int
) -> tuple[list[float], list[int], Mapping[str, Mapping[str, Any]]]:
    """The finest grid of at most ``voxels``, or of the size or voxels that the user has given."""
    given_size, given_spacing = asked.value(GRID[0]), asked.value(GRID[1])
    first = next((mm for mm in ROUND_MM if SAME * mm >= own.min()), ROUND_MM[-1])
    for mm in ROUND_MM[ROUND_MM.index(first) :]:
        spacing = list(given_spacing) if given_spacing is not None else _spacing(own, mm)
        networks = family(asked, is_fine(spacing))
        plain = plain_settings(asked, networks)
        if given_size is not None and not takes(plain, given_size, spacing):
            other = family(asked, not is_fine(spacing))
            if takes(plain_settings(asked, other), given_size, spacing):
                networks = other
        size = list(given_size) if given_size is not None else _size(wanted, least, spacing, plain.divisor)
        if given_spacing is not None or mm == ROUND_MM[-1]:
            break
        if given_size is not None:
            if (np.multiply(size, spacing) >= 0.97 * wanted).all():
                break
        elif math.prod(size) <= voxels or size == list(plain.divisor):
            break
    while given_size is None and not takes(plain, size, spacing) and math.prod(size) <= voxels:
        shortest = int(np.argmin(np.divide(size, plain.divisor)))
        size[shortest] += plain.divisor[shortest]
    return spacing, size, networks


def _spacing(own: np.ndarray, finest: float) -> list[float]:
    """Voxels whose shortest side is ``finest``: the others are the scans' own, within the limits."""
    found = []
    for mm in own:
        if mm < SAME * finest:
            found.append(finest)
        else:
            found.append(round(float(min(math.ceil(round(100 * mm, 6)) / 100, ANISOTROPIC * finest)), 6))
    return found


def _size(wanted: np.ndarray, least: np.ndarray, spacing: Sequence[float], divisor: Sequence[int]) -> list[int]:
    """Voxels that hold all labels; the margin round them is rounded to what the networks can halve."""
    found = []
    for field, labels, mm, by in zip(wanted, least, spacing, divisor, strict=True):
        blocks = max(math.floor(field / (mm * by) + 0.5), math.ceil(round(labels / (mm * by), 6)), 1)
        found.append(blocks * by)
    return found


def is_fine(spacing: Sequence[float] | np.ndarray) -> bool:
    """Whether networks should halve all axes of such voxels alike."""
    return len(spacing) == 3 and max(spacing) < NEARLY_ISOTROPIC * min(spacing)


def family(asked: Asked, fine: bool) -> Mapping[str, Mapping[str, Any]]:
    """Values of the groups ``registration`` and ``joint``: those for nearly isotropic voxels, or the usual ones."""
    usual = {group: UNPLANNED[asked.dims][group] for group in ("registration", "joint")}
    if not fine or asked.dims == 2:
        return usual
    joint = {**usual["joint"], "volume_network": "DynU-Net3D", "volume_stride": [1, 1, 1]}
    return {"registration": {"field_stride": [2, 2, 2]}, "joint": joint}


def plain_settings(asked: Asked, networks: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings with these networks, whatever their grid."""
    config = fill(asked.config, {**networks, "preprocessing": {"intensity": "zscore"}})
    error: ConfigError | None = None
    for side in (256, 288, 480):  # most networks can halve these
        try:
            own = {"size": [side] * asked.dims, "spacing_mm": [1.0] * asked.dims, "fine_factor": None, "box_factor": None}
            config["preprocessing"] = {**config["preprocessing"], **own}
            config["joint"] = {**config["joint"], "box_budget": 0.0}
            return build(config)
        except ConfigError as found:
            error = error or found
    assert error is not None
    raise error


def takes(settings: Settings, size: Sequence[int], spacing: Sequence[float]) -> bool:
    try:
        return settings.takes(Preprocessing("physical", settings.spatial_dims, tuple(size), tuple(spacing)))
    except ConfigError:
        return False
