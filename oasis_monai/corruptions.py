"""Ways a scan goes wrong, made on purpose: what the predicted DSC is calibrated on and tested with.

On good scans every result is good, and nothing can be learned of failures. Each corruption takes a scan as it was read, before
any preprocessing, and gives one of which the truth is still known: label and grid move with the anatomy. There are those that a
clinic meets (noise, ghosts of motion, thick slices, signal lost, a bias field, a wrong voxel size in the header), and those of a
patient or a file the wrong way round. No network is ever trained with them.

The idea of judging a segmentation by how it fares on changed data is that of benchmarks of robustness (Hendrycks and Dietterich,
ICLR 2019); the strengths here are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from oasis_monai.types import Geometry, Volume

UNTOUCHED = "untouched"
Corruption = Callable[[Volume, int], Volume]
"""A labelled scan and a seed -> another scan; the one given is not written to."""


def noise(volume: Volume, seed: int) -> Volume:
    """Rician noise of half the image's standard deviation."""
    from monai.transforms import RandRicianNoise

    spoil = RandRicianNoise(prob=1.0, std=0.5, relative=True, sample_std=False)
    spoil.set_random_state(seed)
    return _changed(volume, spoil)


def ghosts(volume: Volume, seed: int) -> Volume:
    """Every second line of k-space along y at two fifths: a copy of the image half a field of view away."""

    def spoil(image: torch.Tensor) -> torch.Tensor:
        lines = torch.fft.fft(image, dim=2)
        lines[:, :, 1::2] *= 0.4
        return torch.fft.ifft(lines, dim=2).abs()

    return _changed(volume, spoil)


def thick_slices(volume: Volume, seed: int) -> Volume:
    """The mean of every three neighbouring slices in the place of each of them."""
    return _changed(volume, lambda image: torch.cat([p.mean(-1, keepdim=True).expand_as(p) for p in image.split(3, -1)], -1))


def lost_slices(volume: Volume, seed: int) -> Volume:
    """Every third slice without signal."""

    def spoil(image: torch.Tensor) -> torch.Tensor:
        image[..., seed % 3 :: 3] = 0
        return image

    return _changed(volume, spoil)


def bias_field(volume: Volume, seed: int) -> Volume:
    """The exponential of a polynomial of third degree with coefficients up to 0.8."""
    from monai.transforms import RandBiasField

    spoil = RandBiasField(prob=1.0, degree=3, coeff_range=(-0.8, 0.8))
    spoil.set_random_state(seed)
    return _changed(volume, spoil)


def inverted(volume: Volume, seed: int) -> Volume:
    """Bright is dark: another contrast than any that was trained with."""
    return _changed(volume, lambda image: image.max() - image)


def turned_20(volume: Volume, seed: int) -> Volume:
    """The patient turned by 20 degrees about the third axis, to one side or the other."""
    from monai.transforms import Rotate

    angle = [0.0, 0.0, float(np.deg2rad(20 if seed % 2 else -20))]
    turned = _changed(volume, Rotate(angle, mode="bilinear", padding_mode="zeros"))
    # class indices need the nearest; float64 holds them all
    label = Rotate(angle, mode="nearest", padding_mode="zeros", dtype=np.float64)(_label(volume).double())
    return replace(turned, label=torch.as_tensor(np.asarray(label)).round().to(torch.uint8))


def turned_90(volume: Volume, seed: int) -> Volume:
    """The patient on the side, and the header does not know."""
    x, y, z = volume.geometry.shape
    mm = volume.geometry.spacing_mm
    affine = volume.geometry.affine.copy()
    affine[:3, :2] *= np.array([mm[1] / mm[0], mm[0] / mm[1]])
    image, label = (t.rot90(1, (1, 2)).contiguous() for t in (volume.image, _label(volume)))
    return replace(volume, image=image, label=label, geometry=Geometry((y, x, z), affine))


def upside_down(volume: Volume, seed: int) -> Volume:
    """The slices in reverse order: the apex where the base should be."""
    return replace(volume, image=volume.image.flip(-1), label=_label(volume).flip(-1))


def wrong_voxel_size(volume: Volume, seed: int) -> Volume:
    """The header says 1.5 times the voxel size in plane."""
    affine = volume.geometry.affine.copy()
    affine[:3, :2] *= 1.5
    return replace(volume, geometry=Geometry(volume.geometry.shape, affine))


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise,
    "ghosts": ghosts,
    "thick slices": thick_slices,
    "lost slices": lost_slices,
    "bias field": bias_field,
    "inverted": inverted,
    "turned by 20 degrees": turned_20,
    "turned by 90 degrees": turned_90,
    "upside down": upside_down,
    "wrong voxel size": wrong_voxel_size,
}


def drawn(case: str, count: int, seed: int) -> list[tuple[str, int]]:
    """``count`` different corruptions for a case, each a name of :data:`CORRUPTIONS` and a seed; always the same ones."""
    random = np.random.default_rng([seed, *case.encode()])
    names = [list(CORRUPTIONS)[i] for i in random.permutation(len(CORRUPTIONS))[:count]]
    return [(name, int(random.integers(2**31))) for name in names]


def left(volume: Volume) -> bool:
    """Whether a corruption has left anything to segment: an image that is not constant (a scan of one slice can lose it), and
    some of the label (which may turn out of a narrow field of view)."""
    return bool(volume.image.min() < volume.image.max()) and bool(_label(volume).any())


def _label(volume: Volume) -> torch.Tensor:
    if volume.label is None:
        raise ValueError(f"{volume.case}: only a labelled scan is corrupted, of which the truth is known")
    return volume.label


def _changed(volume: Volume, spoil: Callable[[torch.Tensor], torch.Tensor | np.ndarray]) -> Volume:
    """``spoil`` sees an image whose darkest voxel is 0, as of an MR; a CT's is put back to where it was."""
    floor = volume.image.min()
    image = torch.as_tensor(np.asarray(spoil(volume.image - floor)), dtype=torch.float32)
    return replace(volume, image=image + floor)
