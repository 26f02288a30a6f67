"""Make one synthetic scan from two integers: the case and the seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oasis_monai.data.phantom.anatomy import draw_picture
from oasis_monai.data.phantom.patient import draw_patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, Centre, make_grid, place_patient, scan
from oasis_monai.utils.errors import ConfigError


class Phantom(NamedTuple):
    """One synthetic scan.

    Args:
        image: (x, y, z) int16, scanner units.
        label: (x, y, z) uint8. ``labels=1``: 0 background, 1 prostate. ``labels=2``: 1 central gland, 2 peripheral zone.
        spacing_mm: voxel size along each array axis.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres; array axes may be flipped or oblique.
        centre: name of the centre it comes from.
    """

    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    centre: str


def make_phantom(case_index: int, seed: int = 0, centre: str | None = None, size: str = "demo", labels: int = 1) -> Phantom:
    """Make case ``case_index`` of the data set ``seed``.

    The same arguments give the same voxels. ``size`` changes the grid alone: the patient, the centre and the field of
    view stay, so a ``tiny`` case is a coarse copy of its ``demo`` case. The label is one connected component, 20 to 90 ml.

    Args:
        case_index: 0, 1, 2, ...
        seed: 0, 1, 2, ...
        centre: name of a centre of :data:`CENTRES`; None deals the cases out to the centres in turn.
        size: key of :data:`SIZES`: ``tiny`` (36-48 voxels in plane, for unit tests), ``small``, ``demo`` or ``native``.
        labels: 1 (whole gland) or 2 (central gland, peripheral zone).

    Raises:
        ConfigError: an argument out of range.
    """
    site = _find_centre(case_index, centre)
    check_arguments(case_index, seed, size, labels)
    # separate streams: a change to one stage leaves the draws of the others alone
    patient_rng, grid_rng, shape_rng, scan_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence([seed, case_index]).spawn(5)
    )
    patient = draw_patient(patient_rng, site.coil)
    shape, affine = make_grid(site, size, grid_rng)
    frame = place_patient(patient, shape, affine)
    picture = draw_picture(patient, frame, shape_rng)
    image = scan(site, picture, frame, scan_rng, noise_rng)
    gland = _largest_piece(picture.gland)
    label = gland.astype(np.uint8)
    if labels == 2:
        label[gland & ~picture.central] = 2
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Phantom(image, label, (float(spacing[0]), float(spacing[1]), float(spacing[2])), affine, site.name)


def check_arguments(case_index: int, seed: int, size: str, labels: int) -> None:
    """Raise ConfigError for the first argument that is out of range."""
    if case_index < 0:
        raise ConfigError("phantom.case_index", "0 or more", case_index)
    if seed < 0:
        raise ConfigError("phantom.seed", "0 or more", seed)
    if size not in SIZES:
        raise ConfigError("phantom.size", f"one of {', '.join(SIZES)}", size)
    if labels not in (1, 2):
        raise ConfigError("phantom.labels", "1 (whole gland) or 2 (central gland, peripheral zone)", labels)


def _find_centre(case_index: int, name: str | None) -> Centre:
    if name is None:
        return CENTRES[case_index % len(CENTRES)]
    for site in CENTRES:
        if site.name == name:
            return site
    raise ConfigError("phantom.centre", f"one of {', '.join(c.name for c in CENTRES)}", name)


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """A bump next to the gland's surface may float free on a coarse grid; a gland is one piece."""
    from scipy.ndimage import label

    pieces, count = label(mask)
    if count <= 1:
        return mask
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
