"""Image a patient of the CT phantom: grid, table and noise of one of four protocols, slab by slab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oasis_monai.data.phantom.abdomen import draw_abdomen
from oasis_monai.data.phantom.abdomen_slab import paint_slab
from oasis_monai.data.phantom.scanner import make_grid, place_patient


@dataclass(frozen=True)
class Protocol:
    """How abdomens are scanned in one hospital.

    Args:
        name: its name.
        matrix, slices, spacing_mm: the grid of size ``native``.
        noise_hu: standard deviation of the noise there.
        grain_mm: standard deviation of the Gaussian that the reconstruction smooths it with, in plane.
        stored: direction of the array axes relative to left-posterior-head: signs per axis.
        oblique_deg: mean tilt of the slices about the left-right axis (varies by 3 degrees between patients).
    """

    name: str
    matrix: int
    slices: int
    spacing_mm: tuple[float, float, float]
    noise_hu: float
    grain_mm: float
    stored: tuple[int, int, int] = (1, 1, 1)
    oblique_deg: float = 0.0


PROTOCOLS = (
    Protocol("thin", 512, 400, (0.8, 0.8, 1.0), 30, 0.7),
    Protocol("thick", 512, 134, (0.82, 0.82, 3.0), 17, 0.8, stored=(-1, 1, -1)),
    Protocol("tilted", 512, 200, (0.8, 0.8, 2.0), 22, 0.5, oblique_deg=10.0),
    Protocol("sharp", 512, 320, (0.78, 0.78, 1.25), 38, 0.4, stored=(1, -1, -1)),
)
# in-plane and through-plane number of voxels relative to ``native``; the field of view stays
CT_SIZES = {"tiny": (0.125, 0.25), "small": (0.25, 0.25), "demo": (0.5, 0.5), "native": (1.0, 1.0)}
SLAB_VOXELS = 2**21  # that are painted at once, in about forty maps of 8 MiB
LEAST_NOISE = 8.0  # HU: voxels of a coarse grid are means of many, but no scan is smooth
LOWEST, HIGHEST = -1024, 3071  # HU that a scanner stores


def make_ct(case_index: int, seed: int, protocol: Protocol, size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (x, y, z) int16 in HU, label (x, y, z) uint8 and affine (4, 4) of one case; see :func:`.make_phantom`.

    Beside the two arrays a slab is held, whatever the size.
    """
    patient_rng, grid_rng, shape_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence([seed, case_index, 1]).spawn(4)
    )
    patient = draw_abdomen(patient_rng, shape_rng)
    shape, affine = make_grid(protocol, CT_SIZES[size], grid_rng)
    image, label = np.empty(shape, np.int16, order="F"), np.empty(shape, np.uint8, order="F")
    thick = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    noise_hu = _noise_hu(protocol, CT_SIZES[size]) * float(np.exp(0.15 * noise_rng.standard_normal()))
    for first in range(0, shape[2], thick):
        part = slice(first, min(first + thick, shape[2]))
        frame = place_patient(patient, shape, affine, part)
        hu, label[..., part] = paint_slab(patient, frame)
        for number in range(hu.shape[2]):  # slice by slice: the same draws, however thick the slab
            hu[..., number] += noise_hu * _grain(shape[:2], protocol.grain_mm / frame.pixel_mm, noise_rng)
        image[..., part] = np.clip(np.rint(hu), LOWEST, HIGHEST)
    return image, label, affine


def _noise_hu(protocol: Protocol, scale: tuple[float, float]) -> float:
    """Of voxels that are larger than the protocol's: the mean of so many smaller ones."""
    return float(max(LEAST_NOISE, protocol.noise_hu * np.sqrt(scale[0] ** 2 * scale[1])))


def _grain(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """(x, y) noise of standard deviation 1, smoothed with a Gaussian of ``sigma`` pixels."""
    from scipy.ndimage import gaussian_filter, gaussian_filter1d

    white = rng.standard_normal(shape, dtype=np.float32)
    if sigma < 0.3:
        return white
    kernel = gaussian_filter1d(np.eye(1, 33, 16, dtype=np.float64)[0], sigma)
    return np.asarray(gaussian_filter(white, sigma, mode="wrap") / np.float32(np.square(kernel).sum()))
