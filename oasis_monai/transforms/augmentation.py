"""Augment training images at random, batched in torch: affine motion, elastic bending, intensity changes, flips.

Each image of a pair gets its own motion, bending and intensity change. A left-right flip is drawn once per pair, so that a pair
never asks for a mirror image (and a structure of one side keeps meeting structures of that side).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from oasis_monai.utils.interpolation import enlarge, sample_volume


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; half-widths of uniform ranges around "no change". The fields are the keys of
    ``conf/augmentation``; 0 switches a change off.

    Args:
        rotation_deg: rotation about each axis in degrees (2D: in plane); in 3D the axes through the slices get a third of it.
        scale: relative size change per axis, as a fraction.
        shear: shear per pair of axes, as a fraction.
        shift: translation as a fraction of the field of view.
        flip: probability, 0 to 1, of a left-right flip of the whole pair (array axis x of the working grid).
        elastic_mm: displacement in mm along each axis of control points (four a side, evenly over the field of view, linear
            between them): how patients differ in shape beyond an affine motion.
        gamma: exponent range of a monotonic contrast curve.
        contrast, bias, noise: intensity changes in units of the image's standard deviation: relative contrast, a smooth
            multiplicative bias field, Gaussian noise.
    """

    rotation_deg: float = 12.0
    scale: float = 0.15
    shear: float = 0.08
    shift: float = 0.06
    flip: float = 0.5
    elastic_mm: float = 0.0
    gamma: float = 0.0
    contrast: float = 0.0
    bias: float = 0.0
    noise: float = 0.0

    def flips(self, count: int, random: torch.Generator) -> torch.Tensor:
        """(count,) bool: which pairs are mirrored."""
        return torch.rand(count, generator=random) < self.flip

    def __call__(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        flip: torch.Tensor,
        spacing_mm: Sequence[float] | torch.Tensor,
        random: torch.Generator,
        channels: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change image (B, c, *S) and structures (B, C-1, *S) alike in space; the image alone in intensity.

        ``channels`` of a scan are changed by a curve and a coil field each; where ``c`` is a multiple of it (a slice and its
        neighbours), so many of ``image`` in a row belong to one channel.
        ``spacing_mm`` is the voxel size along the D axes, of all images or (B, D) of each.
        ``random`` lives on the CPU whatever the device of the batch, so that a seed means the same everywhere.
        """
        voxels_mm = torch.as_tensor(spacing_mm, dtype=torch.float64).expand(image.shape[0], image.ndim - 2)
        transforms = self._transforms(image, flip, voxels_mm, random)
        bend = self._bend(image, voxels_mm, random) if self.elastic_mm else None
        both = apply_motion(torch.cat([image, label], 1).float(), transforms, bend)
        images, labels = both[:, : image.shape[1]], both[:, image.shape[1] :]
        if channels == 1:
            return self._intensity(images, random), labels
        return torch.cat([self._intensity(one, random) for one in images.chunk(channels, 1)], 1), labels

    def _transforms(
        self, image: torch.Tensor, flip: torch.Tensor, voxels_mm: torch.Tensor, random: torch.Generator
    ) -> torch.Tensor:
        """(B, D, D+1) sampling transforms in torch's normalised (reversed-axis) coordinates."""
        batch, dims = image.shape[0], image.ndim - 2

        def uniform(*shape: int) -> torch.Tensor:
            return 2 * torch.rand(batch, *shape, generator=random) - 1

        matrix = torch.eye(dims).expand(batch, dims, dims)
        planes = [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]
        for number, (i, j) in enumerate(planes):
            angle = uniform() * math.radians(self.rotation_deg) / (1 if number == 0 else 3)
            turn = torch.eye(dims).repeat(batch, 1, 1)
            turn[:, i, i] = turn[:, j, j] = angle.cos()
            turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
            matrix = matrix @ turn
        stretch = torch.diag_embed(1 + self.scale * uniform(dims))
        shear = torch.eye(dims) + self.shear * torch.triu(uniform(dims, dims), 1)
        matrix = matrix @ shear @ stretch
        matrix[:, :, 0] *= torch.where(flip, -1.0, 1.0)[:, None]
        # millimetres -> normalised coordinates, so that a rotation stays one on an anisotropic grid
        extent = (torch.tensor(image.shape[2:]) * voxels_mm).float()
        matrix = matrix * extent[:, None, :] / extent[:, :, None]
        shift = 2 * self.shift * uniform(dims, 1)
        return torch.cat([matrix.flip(1, 2), shift.flip(1)], 2).to(image.device)

    def _bend(self, image: torch.Tensor, voxels_mm: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """(B, D, *S) displacements in voxels."""
        batch, dims = image.shape[0], image.ndim - 2
        points = self.elastic_mm * (2 * torch.rand(batch, dims, *[4] * dims, generator=random) - 1)
        voxel = voxels_mm.float().view(batch, dims, *[1] * dims)
        return enlarge((points / voxel).to(image.device), image.shape[2:], corners=True)

    def _intensity(self, image: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        batch, dims = image.shape[0], image.ndim - 2
        column = (batch, *[1] * (dims + 1))

        def uniform(*shape: int) -> torch.Tensor:
            return (2 * torch.rand(*shape, generator=random) - 1).to(image.device)

        if self.bias:
            coarse = uniform(batch, 1, *[4] * dims)
            field = enlarge(coarse, image.shape[2:], corners=True)
            low = image.amin(dim=tuple(range(1, dims + 2)), keepdim=True)
            image = (image - low) * (self.bias * field).exp() + low
        if self.gamma:
            # a monotonic curve through 0 that bends bright and dark apart: sign(x) |x|^g
            exponent = (self.gamma * uniform(*column)).exp()
            image = image.sign() * (image.abs() + 1e-6).pow(exponent)
        if self.contrast:
            image = image * (1 + self.contrast * uniform(*column)) + self.contrast * uniform(*column)
        if self.noise:
            strength = (self.noise * torch.rand(*column, generator=random)).to(image.device)
            image = image + strength * torch.randn(image.shape, generator=random).to(image.device)
        return image


def apply_motion(images: torch.Tensor, transforms: torch.Tensor, bend: torch.Tensor | None = None) -> torch.Tensor:
    """Resample images (B, C, *S) by affine ``transforms`` (B, D, D+1) in torch's normalised coordinates; 0 outside.

    Args:
        bend: (B, D, *S) displacements in voxels, added to the position each voxel is read from.
    """
    size = images.shape[2:]
    if len(size) == 2 or images.device.type != "cpu":
        grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
        if bend is not None:
            halves = torch.tensor(size, device=images.device).view(-1, *[1] * len(size)) / 2
            grid = grid + (bend / halves).movedim(1, -1).flip(-1)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    axes = [((2 * torch.arange(s) + 1) / s - 1).view(-1, *[1] * (2 - i)) for i, s in enumerate(size)]
    where = []
    for row, s in zip(transforms.flip(1).unbind(1), size, strict=True):  # torch's coordinates start with the last axis
        z, y, x, shift = row.view(-1, 4, 1, 1, 1).unbind(1)
        where.append(((x * axes[0] + y * axes[1] + z * axes[2] + shift + 1) * s - 1) / 2)
    if bend is not None:
        where = [place + along for place, along in zip(where, bend.unbind(1), strict=True)]
    return sample_volume(images, where, "zeros")
