"""Corrupt scans on purpose (noise, motion, wrong orientation, ...), to calibrate and test the predicted Dice.

On good scans every result is good, and nothing can be learned about failures. Each corruption takes a scan as it was read, before
any preprocessing, and returns one whose reference is still known: label and grid move with the anatomy. Some corruptions occur in
a clinic (noise, ghosts of motion, thick slices, lost signal, a bias field, a wrong voxel size in the header); others turn the
patient or the file the wrong way round. No network is ever trained on corrupted scans.

Benchmarks of robustness (Hendrycks and Dietterich, ICLR 2019) judge a classifier on changed data in the same way; the strengths
here are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from oasis_monai.data.io import canonical_axes
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.transforms.labels import structures

CORRUPTIONS_VERSION = 1
"""Raise it with every change that alters a corrupted voxel, so that cached fields of other versions are not used."""
UNTOUCHED = "untouched"
Corruption = Callable[[Volume, int], Volume]
"""(labelled scan, seed) -> corrupted scan; the input is not changed."""


def noise(volume: Volume, seed: int) -> Volume:
    """Rician noise of half the image's standard deviation."""
    from monai.transforms import RandRicianNoise

    spoil = RandRicianNoise(prob=1.0, std=0.5, relative=True, sample_std=False)
    spoil.set_random_state(seed)
    return _changed(volume, spoil)


def ghosts(volume: Volume, seed: int) -> Volume:
    """Every second line of k-space along y scaled by 0.4: a ghost of the image half a field of view away."""

    def spoil(image: torch.Tensor) -> torch.Tensor:
        lines = torch.fft.fft(image, dim=2)
        lines[:, :, 1::2] *= 0.4
        return torch.fft.ifft(lines, dim=2).abs()

    return _changed(volume, spoil)


def thick_slices(volume: Volume, seed: int) -> Volume:
    """Each of every three neighbouring slices replaced by their mean."""
    axis = 1 + _through_plane(volume)

    def spoil(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.mean(axis, keepdim=True).expand_as(part) for part in image.split(3, axis)], axis)

    return _changed(volume, spoil)


def lost_slices(volume: Volume, seed: int) -> Volume:
    """Every third slice without signal."""

    def spoil(image: torch.Tensor) -> torch.Tensor:
        image.movedim(1 + _through_plane(volume), 0)[seed % 3 :: 3] = 0
        return image

    return _changed(volume, spoil)


def bias_field(volume: Volume, seed: int) -> Volume:
    """The exponential of a polynomial of third degree with coefficients up to 0.8."""
    from monai.transforms import RandBiasField

    spoil = RandBiasField(prob=1.0, degree=3, coeff_range=(-0.8, 0.8))
    spoil.set_random_state(seed)
    return _changed(volume, spoil)


def inverted(volume: Volume, seed: int) -> Volume:
    """Inverted intensities: a contrast that no training scan has."""
    return _changed(volume, lambda image: image.max() - image)


def turned_20(volume: Volume, seed: int) -> Volume:
    """The patient rotated by 20 degrees about the long axis, to one side or the other."""
    degrees = 20 if seed % 2 else -20
    label = _turned(_label(volume).float(), volume.geometry, degrees, "nearest").to(torch.uint8)  # 255, ignored, as well
    return replace(_changed(volume, lambda image: _turned(image, volume.geometry, degrees, "bilinear")), label=label)


def turned_90(volume: Volume, seed: int) -> Volume:
    """The patient rotated by 90 degrees, with a header that does not say so."""
    x, y = _across(volume.geometry)
    mm = list(volume.geometry.spacing_mm)
    mm[x], mm[y] = mm[y], mm[x]
    affine = volume.geometry.affine.copy()
    affine[:3, :3] *= np.array(mm) / volume.geometry.spacing_mm
    image, label = (t.rot90(1, (1 + x, 1 + y)).contiguous() for t in (volume.image, _label(volume)))
    i, j, k = label.shape[1:]
    return replace(volume, image=image, label=label, geometry=Geometry((i, j, k), affine))


def upside_down(volume: Volume, seed: int) -> Volume:
    """A feet-first scan taken for head first: the apex where the base should be."""
    axis = 1 + _upward(volume.geometry)
    return replace(volume, image=volume.image.flip(axis), label=_label(volume).flip(axis))


def wrong_voxel_size(volume: Volume, seed: int) -> Volume:
    """A header with 1.5 times the true in-plane voxel size."""
    affine = volume.geometry.affine.copy()
    affine[:3, [axis for axis in range(3) if axis != _through_plane(volume)]] *= 1.5
    return replace(volume, geometry=Geometry(volume.geometry.shape, affine))


def _upward(geometry: Geometry) -> int:
    """The array axis closest to the patient's long axis."""
    return canonical_axes(geometry.affine)[0][2]


def _across(geometry: Geometry) -> tuple[int, int]:
    """The other two, in the array's order."""
    x, y = (axis for axis in range(3) if axis != _upward(geometry))
    return x, y


def _through_plane(volume: Volume) -> int:
    """The array axis the slices follow each other along: that of the largest spacing, of equal ones the patient's long axis."""
    mm, up = volume.geometry.spacing_mm, _upward(volume.geometry)
    return up if mm[up] > 0.99 * max(mm) else int(np.argmax(mm))


def _turned(values: torch.Tensor, geometry: Geometry, degrees: float, mode: str) -> torch.Tensor:
    """(1, \\*shape) turned about the patient's long axis through the centre, slice by slice; 0 comes in from outside."""
    from torch.nn.functional import affine_grid, grid_sample

    x, y = _across(geometry)
    stack = values[0].movedim(_upward(geometry), 0)  # (slices, x, y); grid_sample's first coordinate is the last axis, y
    angle, half = np.deg2rad(degrees), np.array([geometry.shape[a] * geometry.spacing_mm[a] / 2 for a in (y, x)])
    rotation = (
        np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * half / half[:, None]
    )  # in units of half the field of view
    theta = torch.tensor(np.hstack([rotation, np.zeros((2, 1))]), dtype=torch.float32)[None]
    grid = affine_grid(theta, [1, 1, *stack.shape[1:]], align_corners=False)
    slices = [grid_sample(part[None, None], grid, mode, "zeros", align_corners=False)[0, 0] for part in stack]
    return torch.stack(slices).movedim(0, _upward(geometry))[None].contiguous()


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


def draw_corruptions(case: str, count: int, seed: int) -> list[tuple[str, int]]:
    """Draw ``count`` different corruptions for a case, each a name of :data:`CORRUPTIONS` and a seed.

    The same case, count and seed always give the same corruptions.
    """
    random = np.random.default_rng([seed, *case.encode()])
    names = [list(CORRUPTIONS)[i] for i in random.permutation(len(CORRUPTIONS))[:count]]
    return [(name, int(random.integers(2**31))) for name in names]


def shows_anything(volume: Volume) -> bool:
    """Whether a corrupted scan still shows anything to segment.

    Its image must not be constant (a scan of one slice can lose its only slice), and some of the label must be left (a rotation
    can move it out of a narrow field of view).
    """
    return bool(volume.image.min() < volume.image.max()) and bool(structures(_label(volume)).any())


def _label(volume: Volume) -> torch.Tensor:
    if volume.label is None:
        raise ValueError(f"{volume.case}: only a labelled scan can be corrupted, because its reference is needed")
    return volume.label


def _changed(volume: Volume, spoil: Callable[[torch.Tensor], torch.Tensor | np.ndarray]) -> Volume:
    """Apply ``spoil`` to each channel (1, \\*shape), shifted so that its darkest voxel is 0, as in MR, and shift it back (CT)."""

    def one(channel: torch.Tensor) -> torch.Tensor:
        floor = channel.min()
        return torch.as_tensor(np.asarray(spoil(channel - floor)), dtype=torch.float32) + floor

    spoilt = [one(channel) for channel in volume.image.split(1)]
    return replace(volume, image=torch.cat(spoilt) if len(spoilt) > 1 else spoilt[0])  # one keeps its layout in memory
