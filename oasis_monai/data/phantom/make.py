"""Make one synthetic scan from two integers: the case and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from oasis_monai.data.phantom.abdomen_slab import LABELS
from oasis_monai.data.phantom.anatomy import draw_picture
from oasis_monai.data.phantom.ct import CT_SIZES, PROTOCOLS, Protocol, make_ct
from oasis_monai.data.phantom.patient import draw_patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, Centre, make_grid, place_patient, scan
from oasis_monai.utils.errors import ConfigError

KINDS: dict[str, tuple[tuple[Centre | Protocol, ...], Mapping[str, tuple[float, float]], tuple[int, ...]]] = {
    "prostate": (CENTRES, SIZES, (1, 2)),
    "ct": (PROTOCOLS, CT_SIZES, (len(LABELS),)),
}
"""Kind of phantom -> its centres or protocols, its sizes, and the numbers of labels it can have; the first is the default."""


class Phantom(NamedTuple):
    """One synthetic scan.

    Args:
        image: (x, y, z) int16, scanner units; of CT HU.
        label: (x, y, z) uint8. ``labels=1``: 0 background, 1 prostate. ``labels=2``: 1 central gland, 2 peripheral zone. CT: see
            :data:`.LABELS`.
        spacing_mm: voxel size along each array axis.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres; array axes may be flipped or oblique.
        centre: name of the centre it comes from.
    """

    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    centre: str


def make_phantom(
    case_index: int,
    seed: int = 0,
    centre: str | None = None,
    size: str = "demo",
    labels: int | None = None,
    kind: str = "prostate",
) -> Phantom:
    """Make case ``case_index`` of the data set ``seed``.

    The same arguments give the same voxels. ``size`` changes the grid alone: the patient, the centre and the field of
    view stay, so a ``tiny`` case is a coarse copy of its ``demo`` case.

    - ``kind="prostate"``: T2-weighted MR. The label is one connected component, 20 to 90 ml.
    - ``kind="ct"``: CT of the abdomen in HU. Two kidneys, the aorta's lumen and its wall of 3 mm, and a lesion of 15 mm in a
      kidney or the liver, 20 to 40 HU apart from what touches them, under noise of that size. ``size="native"`` is 512 x 512 x
      134 to 400 voxels and takes minutes, and 1 GB of memory.

    Args:
        case_index: 0, 1, 2, ...
        seed: 0, 1, 2, ...
        centre: name of a centre of :data:`CENTRES`, of CT of :data:`PROTOCOLS`; None deals the cases out to them in turn.
        size: key of :data:`SIZES` or :data:`CT_SIZES`: ``tiny`` (36-48 voxels in plane, of CT 64, for unit tests), ``small``,
            ``demo`` or ``native``.
        labels: 1 (whole gland, default) or 2 (central gland, peripheral zone); of CT 5.
        kind: of :data:`KINDS`.

    Raises:
        ConfigError: an argument out of range.
    """
    site = _find_centre(case_index, centre, kind)
    labels = check_arguments(case_index, seed, size, labels, kind)
    if isinstance(site, Protocol):
        image, label, affine = make_ct(case_index, seed, site, size)
    else:
        image, label, affine = _make_prostate(case_index, seed, site, size, labels)
    x, y, z = (float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))
    return Phantom(image, label, (x, y, z), affine, site.name)


def _make_prostate(case_index: int, seed: int, site: Centre, size: str, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and affine of one case."""
    # separate streams: a change to one stage leaves the draws of the others alone
    patient_rng, grid_rng, shape_rng, scan_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence([seed, case_index]).spawn(5)
    )
    patient = draw_patient(patient_rng, site.coil)
    shape, affine = make_grid(site, SIZES[size], grid_rng)
    frame = place_patient(patient, shape, affine)
    picture = draw_picture(patient, frame, shape_rng)
    image = scan(site, picture, frame, scan_rng, noise_rng)
    gland = _largest_piece(picture.gland)
    label = gland.astype(np.uint8)
    if labels == 2:
        label[gland & ~picture.central] = 2
    return image, label, affine


def check_arguments(case_index: int, seed: int, size: str, labels: int | None, kind: str = "prostate") -> int:
    """Raise ConfigError for the first argument that is out of range; -> the number of labels, where None the kind's own."""
    if kind not in KINDS:
        raise ConfigError("phantom.kind", f"one of {', '.join(KINDS)}", kind)
    _, sizes, numbers = KINDS[kind]
    if case_index < 0:
        raise ConfigError("phantom.case_index", "0 or more", case_index)
    if seed < 0:
        raise ConfigError("phantom.seed", "0 or more", seed)
    if size not in sizes:
        raise ConfigError("phantom.size", f"one of {', '.join(sizes)}", size)
    if labels is not None and labels not in numbers:
        expected = "1 (whole gland) or 2 (central gland, peripheral zone)" if kind == "prostate" else f"{numbers[0]} for {kind}"
        raise ConfigError("phantom.labels", expected, labels)
    return numbers[0] if labels is None else labels


def _find_centre(case_index: int, name: str | None, kind: str) -> Centre | Protocol:
    sites = KINDS[kind][0] if kind in KINDS else CENTRES
    if name is None:
        return sites[case_index % len(sites)]
    for site in sites:
        if site.name == name:
            return site
    raise ConfigError("phantom.centre", f"one of {', '.join(c.name for c in sites)}", name)


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """A bump next to the gland's surface may float free on a coarse grid; a gland is one piece."""
    from scipy.ndimage import label

    pieces, count = label(mask)
    if count <= 1:
        return mask
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
