"""The rules for voxel grids that all file formats share, and the comparison of two grids.

Every limit is stated here once. A header is checked before any library opens the file, because ITK silently accepts several of
these faults (missing spacing becomes 1 mm) and some abort the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oasis_monai.data.types import Geometry, NiftiForms
from oasis_monai.utils.errors import DataError, Fault

MAX_VOXELS = 2**29
"""Largest grid accepted, 512 x 512 x 2048: 2 GiB as float32. A header that claims more is damaged or hostile."""
TOLERANCE = 1e-4
"""Largest deviation of a direction matrix from orthonormal, and of two grids (mm, direction cosine) that count as the same."""
MAX_CHANNELS = 16
"""Most channels of one file. One with more volumes is a series in time or over directions of diffusion."""
SAME_VOXELS = 0.1
"""Largest distance of two grids' corners, in voxels, that rounding makes: a quaternion in float32 near half a turn."""
OTHER_VOXELS = 1.0
"""A label whose corners lie this far from the image's, in voxels, is on another grid."""
AGAIN = "export the scan again"
"""What to do about most faults of a header."""


@dataclass(frozen=True)
class Stored:
    """How the voxels of a MetaImage or NRRD file lie in their file.

    Args:
        file: the data file, or the header's own.
        start: offset of the first byte.
        dtype: numpy name of the stored element type.
        packing: ``zlib`` (or gzip), ``bzip2`` or ``text`` (written out as numbers); empty for the voxels themselves.
        big_endian: byte order of the voxels.
        channel_axis: where the channels stand among the file's axes, the fastest axis first: 0 (each voxel's together) to 3
            (one volume after the other).
        skip: bytes before the voxels once they are unpacked.
    """

    file: Path
    start: int
    dtype: str
    packing: str
    big_endian: bool
    channel_axis: int = 0
    skip: int = 0


@dataclass(frozen=True)
class Segment:
    """One structure of a label file that names them.

    Args:
        name: what it is called; not empty.
        value: of its voxels in its layer.
        layer: channel that holds it.
    """

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True, eq=False)
class Header:
    """What a file's header says, checked.

    Args:
        shape: voxels along x, y, z (the file's fastest axis first).
        affine: (4, 4) float64, voxel index -> RAS+ millimetres.
        dtype: numpy name of the stored element type, e.g. ``"int16"``.
        channels: values per voxel, or volumes.
        files: the header's own file first, then the data file if it is another one.
        stored: where the voxels of a MetaImage or NRRD file are; None for another format.
        forms: both transforms of a NIfTI header; None for another format.
        notes: warnings.
        segments: the structures of a label, where its file names them; several layers are its channels.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: str
    channels: int
    files: tuple[Path, ...]
    stored: Stored | None = None
    forms: NiftiForms | None = None
    notes: tuple[Fault, ...] = ()
    segments: tuple[Segment, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The grid alone."""
        return Geometry(self.shape, self.affine, self.forms)


class Faults:
    """The faults of one file, collected so that they can be raised at once."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.all: list[Fault] = []
        self.notes: list[Fault] = []

    def add(self, field: str, expected: str, found: object, remedy: str, limit: int = 80) -> None:
        """Note one fault; ``found`` is shown as ASCII and cut short, since it may be any bytes."""
        self.all.append(Fault(shown(self.name, 120), field, expected, shown(found, limit) or "nothing", remedy))

    def warn(self, field: str, expected: str, found: object, remedy: str) -> None:
        """Note what the file can be used with all the same."""
        self.notes.append(Fault(shown(self.name, 120), field, expected, shown(found, 160) or "nothing", remedy, "warning"))

    def raise_if_any(self) -> None:
        """Raise what was noted.

        Raises:
            DataError: something was.
        """
        if self.all:
            raise DataError(self.all)


def shown(value: object, limit: int = 80) -> str:
    """``value`` as printable ASCII of bounded length, for a message."""
    text = str(value).encode("ascii", "backslashreplace").decode()
    text = "".join(c if " " <= c <= "~" else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def plain(name: str) -> str:
    """A structure's name for comparison: case and the number of spaces do not count."""
    return " ".join(name.split()).casefold()


def check_shape(faults: Faults, field: str, shape: Sequence[int]) -> bool:
    """Note a fault unless all sizes are positive and their product is at most :data:`MAX_VOXELS`."""
    found = " x ".join(str(n) for n in shape)
    if min(shape) < 1:
        faults.add(field, "three sizes of at least 1", found, "export the scan again: this header is damaged")
        return False
    if math.prod(shape) > MAX_VOXELS:
        faults.add(field, f"at most {MAX_VOXELS} voxels", found, "crop or resample the scan, or export it again")
        return False
    return True


def check_channels(faults: Faults, field: str, shape: Sequence[int], channels: int) -> bool:
    """Note a fault unless there are 1 to :data:`MAX_CHANNELS` channels, with at most :data:`MAX_VOXELS` values together."""
    if not 1 <= channels <= MAX_CHANNELS:
        remedy = "extract those to use: a series in time or of diffusion is no set of channels"
        faults.add(field, f"1 to {MAX_CHANNELS} channels or volumes", channels, remedy)
        return False
    if math.prod(shape) * channels > MAX_VOXELS:
        found = " x ".join(map(str, (*shape, channels)))
        faults.add(field, f"at most {MAX_VOXELS} values", found, "crop or resample the scan, or give fewer channels")
        return False
    return True


def check_spacing(faults: Faults, field: str, spacing_mm: Sequence[float]) -> bool:
    """Note a fault unless all spacings are finite and positive."""
    if all(math.isfinite(s) and s > 0 for s in spacing_mm):
        return True
    found = " ".join(f"{s:g}" for s in spacing_mm)
    faults.add(
        field,
        "three finite spacings above 0 mm",
        found,
        "write the true voxel size into the header (a flip belongs in the direction)",
    )
    return False


def check_direction(faults: Faults, field: str, direction: np.ndarray) -> bool:
    """Note a fault unless the columns of the (3, 3) matrix are orthonormal to within :data:`TOLERANCE` (a flip is fine)."""
    if not np.isfinite(direction).all():
        faults.add(field, "nine finite numbers", " ".join(f"{v:g}" for v in direction.ravel()), "export the scan again")
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if not error <= TOLERANCE:
        remedy = "resample the scan to a grid without shear, or correct the direction"
        faults.add(
            field, f"orthonormal axes (deviation up to {TOLERANCE:g})", f"a deviation of {error:.3g} (shear or scale)", remedy
        )
        return False
    return True


def affine_from(direction: np.ndarray, spacing_mm: Sequence[float], origin_mm: Sequence[float]) -> np.ndarray:
    """(4, 4) affine from axis directions (columns), spacing and the centre of voxel 0, all in one frame."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, float) * np.asarray(spacing_mm, float)
    affine[:3, 3] = origin_mm
    return affine


def flip_lps_ras(affine: np.ndarray) -> np.ndarray:
    """Change the world frame of a (4, 4) affine between LPS (ITK, MetaImage) and RAS (NIfTI, MONAI); its own inverse."""
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, float))


def split_affine(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction (3, 3; columns are the axes), spacing (3,) in mm and origin (3,) in mm of a (4, 4) affine."""
    matrix = np.asarray(affine, float)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    return matrix / spacing, spacing, np.asarray(affine, float)[:3, 3].copy()


def geometry_difference(one: Geometry, other: Geometry) -> str | None:
    """Say by how much two grids differ, or None when they agree.

    Spacing and origin may differ by :data:`TOLERANCE` mm (plus 1e-6 of the value: NIfTI stores float32), direction cosines by
    :data:`TOLERANCE`.
    """
    if tuple(one.shape) != tuple(other.shape):
        return f"shape {' x '.join(map(str, one.shape))} against {' x '.join(map(str, other.shape))}"
    parts = zip(
        ("direction", "spacing", "origin"), ("", " mm", " mm"), split_affine(one.affine), split_affine(other.affine), strict=True
    )
    differences = [
        f"{name} off by {float(np.abs(a - b).max()):.4g}{unit}"
        for name, unit, a, b in parts
        if not np.allclose(a, b, rtol=1e-6, atol=TOLERANCE)
    ]
    return ", ".join(differences) or None


@dataclass(frozen=True)
class Distance:
    """How far the corners of two grids lie apart, at most: in voxels of the first grid and in mm."""

    voxels: float
    mm: float

    def __str__(self) -> str:
        return f"corners {self.mm:.3g} mm apart"


def corner_distance(one: Geometry, other: Geometry) -> Distance | None:
    """The distance of the outermost voxel centres of two grids of one shape; None where a grid cannot be inverted."""
    ends = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)], float)
    ends[:, :3] *= np.array(one.shape) - 1
    moved = (ends @ (np.asarray(other.affine, float) - np.asarray(one.affine, float)).T)[:, :3]
    try:
        voxels = np.linalg.solve(np.asarray(one.affine, float)[:3, :3], moved.T).T
    except np.linalg.LinAlgError:
        return None
    return Distance(float(np.linalg.norm(voxels, axis=1).max()), float(np.linalg.norm(moved, axis=1).max()))


@dataclass(frozen=True)
class Match:
    """A label's grid laid on an image's.

    Args:
        axes: ``axes[k]``: axis of the label that runs along axis k of the image.
        flips: reverse it after the transposition.
        distance: of the corners, afterwards.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    distance: Distance


def match_grids(image: Geometry, label: Geometry) -> Match | None:
    """Lay a label's grid on an image's: its axes in the image's order, by whichever transforms of the two files fit best.

    Returns:
        The closest fit; None where no order of the axes gives the image's shape.
    """
    fits = [_match(i, label.shape, j) for i in _places(image) for j in _places(label)]
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit.distance.voxels, default=None)


def _places(grid: Geometry) -> list[Geometry]:
    forms = grid.forms
    affines = [grid.affine] if forms is None else [grid.affine, forms.nibabel, forms.itk, *forms.others]
    return [Geometry(grid.shape, affine) for affine in affines]


def _match(image: Geometry, shape: tuple[int, int, int], label: Geometry) -> Match | None:
    try:
        step = np.linalg.solve(np.asarray(image.affine, float), np.asarray(label.affine, float))[:3, :3]
    except np.linalg.LinAlgError:
        return None
    along = np.abs(step).argmax(1)  # the label's axis along each of the image's
    axes = [int(a) for a in along] if len(set(along.tolist())) == 3 else [0, 1, 2]
    if tuple(shape[a] for a in axes) != tuple(image.shape):
        return None
    flips = [bool(step[k, a] < 0) for k, a in enumerate(axes)]
    moved = np.zeros((4, 4))
    moved[3, 3] = 1
    for k, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        moved[axis, k] = -1 if flip else 1
        moved[axis, 3] = shape[axis] - 1 if flip else 0
    distance = corner_distance(image, Geometry(image.shape, np.asarray(label.affine, float) @ moved))
    return None if distance is None else Match((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), distance)
