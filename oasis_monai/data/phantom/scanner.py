"""Image a phantom patient as one of four centres does: matrix, spacing, direction, coil, contrast, noise, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from oasis_monai.data.phantom.anatomy import Picture
from oasis_monai.data.phantom.patient import Coil
from oasis_monai.data.phantom.shapes import Frame

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Centre:
    """One hospital's protocol.

    Args:
        name: its name.
        matrix, slices, spacing_mm: the grid of size ``demo``.
        coil: kind of endorectal coil, empty for a surface array.
        maximum: lowest and highest typical image maximum (arbitrary units; log-uniform between patients).
        gamma: exponent applied to the relative signal (contrast).
        noise: Rician noise, relative to the signal of fat before the coil's profile.
        stored: direction of the array axes relative to left-posterior-head: signs per axis.
        oblique_deg: mean tilt of the slices about the left-right axis (varies by 3 degrees between patients).
        saturated: a saturation band darkens the front of the body and values are clipped at ``maximum[1]``.
    """

    name: str
    matrix: int
    slices: int
    spacing_mm: tuple[float, float, float]
    coil: Coil
    maximum: tuple[float, float]
    gamma: float
    noise: float
    stored: tuple[int, int, int] = (1, 1, 1)
    oblique_deg: float = 0.0
    saturated: bool = False


CENTRES = (
    Centre("balloon", 144, 34, (1.0, 1.0, 2.4), "balloon", (4000, 30000), 1.0, 0.035),
    Centre("array", 160, 28, (1.1, 1.1, 3.0), "", (1200, 2400), 1.25, 0.025, stored=(-1, 1, -1)),
    Centre("oblique", 120, 24, (1.5, 1.5, 3.6), "", (400, 800), 0.75, 0.06, oblique_deg=9.0),
    Centre("gel", 128, 26, (1.5, 1.5, 3.3), "gel", (4095, 4095), 1.1, 0.03, saturated=True),
)
# in-plane and through-plane number of voxels relative to ``demo``; the field of view stays
SIZES = {"tiny": (0.30, 0.45), "small": (0.5, 0.65), "demo": (1.0, 1.0), "native": (2.0, 1.2)}


class Site(Protocol):
    """What a grid depends on, of MR and CT: see :class:`Centre`."""

    @property
    def matrix(self) -> int: ...
    @property
    def slices(self) -> int: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...
    @property
    def stored(self) -> tuple[int, int, int]: ...
    @property
    def oblique_deg(self) -> float: ...


class Placed(Protocol):
    """How a patient lies, of MR and CT: see :class:`.Patient`."""

    @property
    def shift_mm(self) -> tuple[float, float, float]: ...
    @property
    def angles_deg(self) -> tuple[float, float, float]: ...


def make_grid(centre: Site, scale: tuple[float, float], rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine (4, 4; voxel -> RAS+ mm) of one scan of ``centre``; ``scale``: of :data:`SIZES`."""
    in_plane, through = scale
    full = np.array([centre.matrix, centre.matrix, centre.slices])
    shape = np.maximum(np.round(full * [in_plane, in_plane, through]), 8).astype(int)
    spacing = np.array(centre.spacing_mm) * full / shape
    tilt = np.deg2rad(centre.oblique_deg + 3 * rng.standard_normal()) if centre.oblique_deg else 0.0
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    linear = LPS_TO_RAS @ turn @ np.diag(centre.stored) @ np.diag(spacing)
    isocentre = rng.normal([0, 15, -30], [6, 12, 25])  # where the technician put the patient
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = isocentre - linear @ ((shape - 1) / 2)
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def place_patient(patient: Placed, shape: tuple[int, int, int], affine: np.ndarray, slab: slice = slice(None)) -> Frame:
    """The grid's voxels in the patient's own frame (see :class:`Frame`); of a ``slab`` of its slices these alone."""
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    steps = [(np.arange(n) - (n - 1) / 2) for n in shape]
    steps[2] = steps[2][slab]
    turn = _rotation(patient.angles_deg)
    matrix, offset = turn @ linear, turn @ np.array(patient.shift_mm)
    i, j, k = np.meshgrid(*(s.astype(np.float32) for s in steps), indexing="ij", sparse=True)
    x, y, z = (
        np.float32(r[0]) * i + np.float32(r[1]) * j + np.float32(r[2]) * k - np.float32(o)
        for r, o in zip(matrix, offset, strict=True)
    )
    a, b, c = (s * d * np.sign(linear[n, n]) for n, (s, d) in enumerate(zip(steps, spacing, strict=True)))
    return Frame((x, y, z), (a, b, c), float(spacing[0]), float(np.prod(spacing)) / 1000)


def _rotation(angles_deg: tuple[float, float, float]) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(angles_deg)), np.sin(np.deg2rad(angles_deg))
    return np.array(
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]
        @ [[1, 0, 0], [0, cx, -sx], [0, sx, cx]]
    )


def scan(centre: Centre, picture: Picture, frame: Frame, rng: np.random.Generator, noise_rng: np.random.Generator) -> np.ndarray:
    """The stored image (x, y, z) int16: contrast, point spread, coil profile, Rician noise, intensity scale."""
    from scipy.ndimage import gaussian_filter

    signal = np.clip(picture.signal, 0.005, None) ** np.float32(centre.gamma * np.exp(0.08 * rng.standard_normal()))
    signal = gaussian_filter(signal, (0.5, 0.5, 0.4))  # neighbouring slices mix a little: thick slices
    signal *= _profile(centre, picture, frame, rng)
    sigma = np.float32(centre.noise * np.exp(0.2 * rng.standard_normal()))
    draw = noise_rng.standard_normal((2, *signal.shape), dtype=np.float32) * sigma
    signal = np.hypot(signal + draw[0], draw[1])
    low, high = np.log(centre.maximum)
    maximum = np.exp(rng.uniform(low, high))
    # a clipped centre loses its brightest half per mille; the others are scaled by their very maximum
    top = np.quantile(signal, 0.9995) if centre.saturated else signal.max()
    return np.clip(np.rint(signal * (maximum / top)), 0, min(centre.maximum[1], 32767)).astype(np.int16)


def _profile(centre: Centre, picture: Picture, frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Sensitivity of the receiving coils (bias field), about 1 in the middle of the body for a surface array."""
    _, y, z = frame.points
    drift = np.exp(np.float32(0.10) * frame.field(rng, 60))
    if not centre.coil:
        front, back = rng.uniform(0.3, 1.0, 2)
        return drift * (0.9 + front * np.exp((y - 75) / 22) + back * np.exp((-95 - y) / 22))
    near = 1 / (1 + (picture.coil_mm / np.float32(15)) ** 2)
    if centre.coil == "balloon":
        strength = rng.uniform(2.5, 7)
        return drift * (0.45 + strength * near**1.7) * np.exp(-((z / 60) ** 2))
    profile = drift * (0.6 + rng.uniform(0.8, 1.6) * near)
    return profile / (1 + np.exp((y - rng.uniform(40, 52)) / 4)) + 0.02
