"""Augment training images at random, batched in torch: affine motion, zoom, elastic bending, intensity and resolution, flips.

Each image of a pair gets its own motion, bending and intensity change. A left-right flip is drawn once per pair, so that a pair
never asks for a mirror image (and a structure of one side keeps meeting structures of that side).

Zoom is rare and large, unlike the size change of every image: a gland of seven times the usual volume exists, but most are of
usual size. The same holds for ``intensity_chance``. (nnU-Net draws scale, blur, noise and resolution in this way: Isensee et al.,
Nature Methods 2021, doi 10.1038/s41592-020-01008-z.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from oasis_monai.utils.config import absent_as, identity_of, require
from oasis_monai.utils.interpolation import enlarge, sample_volume
from oasis_monai.utils.transfer import constant, upload

LEAST_BLUR = 0.3  # standard deviations of a blur below this many voxels change nothing that can be seen


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; half-widths of uniform ranges around "no change". The fields are the keys of
    ``conf/augmentation``; 0 switches a change off (1 one that is a factor).

    Args:
        rotation_deg: rotation about each axis in degrees (2D: in plane); in 3D the axes through the slices get a third of it.
        scale: relative size change per axis, as a fraction.
        shear: shear per pair of axes, as a fraction.
        shift: translation as a fraction of the field of view.
        flip: probability, 0 to 1, of a left-right flip of the whole pair (array axis x of the working grid).
        elastic_mm: displacement in mm along each axis of control points (four a side, evenly over the field of view, linear
            between them): how patients differ in shape beyond an affine motion.
        zoom_chance: probability, 0 to 1, that an image is zoomed, beside its ``scale``.
        zoom: the largest factor by which it is then made larger or smaller, drawn log-uniformly and the same along all axes; 1 or
            more.
        zoom_axes: the largest further factor of every axis on its own (other proportions), likewise.
        gamma: exponent range of a monotonic contrast curve.
        contrast, bias, noise: intensity changes in units of the image's standard deviation: relative contrast, a smooth
            multiplicative bias field, Gaussian noise.
        blur_mm: largest standard deviation of a Gaussian blur in mm, 0 or more.
        coarsen: largest factor by which the voxels of an image are made larger along each axis, before it is brought back to the
            grid (a lower resolution, thicker slices); 1 or more.
        intensity_chance: probability, 0 to 1, of each change of intensity, blur and resolution, drawn for every image.

    Raises:
        ConfigError: naming ``augmentation.<key>``.
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
    zoom_chance: float = field(default=0.0, metadata=absent_as(0.0))
    zoom: float = field(default=1.6, metadata=absent_as(1.6))
    zoom_axes: float = field(default=1.25, metadata=absent_as(1.25))
    blur_mm: float = field(default=0.0, metadata=absent_as(0.0))
    coarsen: float = field(default=1.0, metadata=absent_as(1.0))
    intensity_chance: float = field(default=1.0, metadata=absent_as(1.0))

    def __post_init__(self) -> None:
        chances = ("flip", "zoom_chance", "intensity_chance")
        factors = ("zoom", "zoom_axes", "coarsen")
        require(
            self,
            "augmentation",
            *((key, 0 <= getattr(self, key) <= 1, "a probability, 0 to 1") for key in chances),
            *((key, getattr(self, key) >= 1, "a factor of 1 (off) or more") for key in factors),
            ("blur_mm", self.blur_mm >= 0, "0 (off) or more"),
        )

    def identity(self, network: str = "registration") -> dict[str, Any]:
        """What decides a trained network's weights, as plain JSON values: not the options of a change that never happens."""
        found = identity_of(self, network)
        idle = [] if self.zoom_chance else ["zoom", "zoom_axes"]
        looks = (self.gamma, self.contrast, self.bias, self.noise, self.blur_mm, self.coarsen - 1)
        idle += [] if any(looks) else ["intensity_chance"]
        return {key: value for key, value in found.items() if key not in idle}

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
        margin: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change image (B, c, *S) and structures (B, C-1, *S) alike in space; the image alone in intensity.

        ``channels`` of a scan are changed by a curve and a coil field each; where ``c`` is a multiple of it (a slice and its
        neighbours), so many of ``image`` in a row belong to one channel.
        ``spacing_mm`` is the voxel size along the D axes, of all images or (B, D) of each.
        ``random`` lives on the CPU whatever the device of the batch, so that a seed means the same everywhere.
        ``margin``: so many voxels on each side along the D axes are only there to be moved into view. What comes back is without
        them, and all strengths are of what comes back.
        """
        voxels_mm = torch.as_tensor(spacing_mm, dtype=torch.float64).expand(image.shape[0], image.ndim - 2)
        margin = (0,) * (image.ndim - 2) if margin is None else margin
        inside = [slice(m, n - m) for m, n in zip(margin, image.shape[2:], strict=True)]
        shown = image[(slice(None), slice(None), *inside)]
        transforms = self._transforms(shown, flip, voxels_mm, random)
        bend = None
        if self.elastic_mm:
            reach_mm = torch.full((image.shape[0],), self.elastic_mm)
            bend = smooth_displacements(reach_mm, shown.shape[2:], voxels_mm, 4, random, image.device)
        both = apply_motion(torch.cat([image, label], 1).float(), transforms, bend, margin)
        images, labels = both[:, : image.shape[1]], both[:, image.shape[1] :]
        looks = [self._resolution(self._intensity(one, random), voxels_mm, random) for one in images.chunk(channels, 1)]
        return torch.cat(looks, 1) if channels > 1 else looks[0], labels

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
        if self.zoom_chance:
            log_size = math.log(self.zoom) * uniform(1) + math.log(self.zoom_axes) * uniform(dims)
            zoomed = torch.rand(batch, 1, generator=random) < self.zoom_chance
            matrix = matrix * torch.where(zoomed, log_size, 0.0).exp()[:, None, :]
        (transforms,) = upload(image.device, torch.cat([matrix.flip(1, 2), shift.flip(1)], 2))
        return transforms

    def _intensity(self, image: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        batch, dims = image.shape[0], image.ndim - 2
        if not (self.bias or self.gamma or self.contrast or self.noise):
            return image
        drawn = self._draw_intensity(batch, dims, random)
        value = dict(zip(drawn, upload(image.device, *drawn.values()), strict=True))
        if self.bias:
            smooth = enlarge(value["field"], image.shape[2:], corners=True)
            low = image.amin(dim=tuple(range(1, dims + 2)), keepdim=True)
            image = (image - low) * (value["bias"] * smooth).exp() + low
        if self.gamma:
            # a monotonic curve through 0 that bends bright and dark apart: sign(x) |x|^g
            exponent = (value["gamma"] * value["curve"]).exp()
            image = image.sign() * (image.abs() + 1e-6).pow(exponent)
        if self.contrast:
            image = image * (1 + value["contrast"] * value["factor"]) + value["contrast"] * value["offset"]
        if self.noise:
            image = image + value["noise"] * value["weight"] * draw_noise(image, random)
        return image

    def _draw_intensity(self, batch: int, dims: int, random: torch.Generator) -> dict[str, torch.Tensor]:
        """The random numbers of :meth:`_intensity` but those of its noise, by what they are for."""
        column = (batch, *[1] * (dims + 1))
        found: dict[str, torch.Tensor] = {}

        def uniform(*shape: int) -> torch.Tensor:
            return 2 * torch.rand(*shape, generator=random) - 1

        def strength(key: str) -> None:
            """The strength; in images that this change is not drawn for, 0."""
            found[key] = torch.tensor(getattr(self, key))
            if self.intensity_chance != 1:
                found[key] = found[key] * self._chosen(batch, random).view(column).float()

        if self.bias:
            found["field"] = uniform(batch, 1, *[4] * dims)
            strength("bias")
        if self.gamma:
            strength("gamma")
            found["curve"] = uniform(*column)
        if self.contrast:
            strength("contrast")
            found |= {"factor": uniform(*column), "offset": uniform(*column)}
        if self.noise:
            strength("noise")
            found["weight"] = torch.rand(*column, generator=random)
        return found

    def _chosen(self, batch: int, random: torch.Generator) -> torch.Tensor:
        """(B,) bool: the images that a change of intensity or resolution is drawn for."""
        return torch.rand(batch, generator=random) < self.intensity_chance

    def _resolution(self, image: torch.Tensor, voxels_mm: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Blur images (B, c, *S) and make their voxels coarser, each image by amounts of its own."""
        batch, dims = image.shape[0], image.ndim - 2
        made = list(image.split(1))
        if self.blur_mm:
            width_mm = self.blur_mm * torch.rand(batch, generator=random)
            for row in self._chosen(batch, random).nonzero()[:, 0].tolist():
                made[row] = blur(made[row], (width_mm[row] / voxels_mm[row]).tolist())
        if self.coarsen > 1:
            factors = 1 + (self.coarsen - 1) * torch.rand(batch, dims, generator=random)
            for row in self._chosen(batch, random).nonzero()[:, 0].tolist():
                made[row] = coarsen(made[row], factors[row].tolist())
        return torch.cat(made) if self.blur_mm or self.coarsen > 1 else image


def draw_noise(image: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Normal noise for an image. On a GPU it is drawn there, by a seed that ``random`` gives: it has a number for every voxel."""
    if image.device.type == "cpu":
        return torch.randn(image.shape, generator=random)
    seed = int(torch.randint(2**31, (1,), generator=random))
    return torch.randn(image.shape, device=image.device, generator=torch.Generator(image.device).manual_seed(seed))


def smooth_displacements(
    reach_mm: torch.Tensor,
    size: Sequence[int],
    voxels_mm: torch.Tensor,
    points: int,
    random: torch.Generator,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """(B, D, *S) displacements in voxels: those of control points, drawn uniformly, with linear values between them.

    Args:
        reach_mm: (B,) the largest displacement along each axis.
        size: S, of the D axes.
        voxels_mm: (B, D) voxel sizes.
        points: control points a side, evenly over the field of view.
    """
    batch, dims = voxels_mm.shape
    column = (batch, 1, *[1] * dims)
    drawn = reach_mm.view(column) * (2 * torch.rand(batch, dims, *[points] * dims, generator=random) - 1)
    (coarse,) = upload(torch.device(device), drawn / voxels_mm.float().view(batch, dims, *[1] * dims))
    return enlarge(coarse, size, corners=True)


def blur(image: torch.Tensor, voxels: Sequence[float]) -> torch.Tensor:
    """A Gaussian blur of images (B, c, *S) with a standard deviation in voxels for each axis. At the border, what lies outside is
    the voxel at the border: a field of view has no dark frame."""
    from monai.networks.layers.convutils import gaussian_1d
    from monai.networks.layers.simplelayers import separable_filtering

    widths = [width if width >= LEAST_BLUR else 0.0 for width in voxels]
    if not any(widths):
        return image
    reach = [math.ceil(4 * width) for width in widths]
    framed = F.pad(image, [side for one in reversed(reach) for side in (one, one)], mode="replicate")
    kernels = upload(image.device, *(gaussian_1d(torch.tensor(max(width, 1e-3))) for width in widths))
    smooth = separable_filtering(framed, list(kernels))
    inner = tuple(slice(one, one + size) for one, size in zip(reach, image.shape[2:], strict=True))
    return smooth[(slice(None), slice(None), *inner)]


def coarsen(image: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """Images (B, c, *S) as if each voxel had been ``factors`` (one per axis) as large, on their own grid again.

    A scanner's larger voxel holds the mean of its volume; between the larger voxels values are interpolated linearly.
    """
    size = image.shape[2:]
    fewer = [max(1, round(n / factor)) for n, factor in zip(size, factors, strict=True)]
    return enlarge(F.interpolate(image, size=fewer, mode="area"), size)


def apply_motion(
    images: torch.Tensor, transforms: torch.Tensor, bend: torch.Tensor | None = None, margin: Sequence[int] | None = None
) -> torch.Tensor:
    """Resample images (B, C, *S) by affine ``transforms`` (B, D, D+1) in torch's normalised coordinates; 0 outside.

    Args:
        bend: (B, D, *S) displacements in voxels, added to the position each voxel is read from.
        margin: voxels on each side of the images that are read but not part of S, nor of the coordinates; None: 0.
    """
    margin = (0,) * (images.ndim - 2) if margin is None else margin
    size = tuple(n - 2 * m for n, m in zip(images.shape[2:], margin, strict=True))
    if len(size) == 2 or images.device.type != "cpu":
        grid = F.affine_grid(transforms, [*images.shape[:2], *size], align_corners=False)
        if bend is not None:
            halves = constant(tuple(n / 2 for n in size), images.device).view(-1, *[1] * len(size))
            grid = grid + (bend / halves).movedim(1, -1).flip(-1)
        if any(margin):  # both have the same centre
            shares = tuple(s / n for s, n in zip(size, images.shape[2:], strict=True))
            grid = grid * constant(shares[::-1], grid.device)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    axes = [((2 * torch.arange(s) + 1) / s - 1).view(-1, *[1] * (2 - i)) for i, s in enumerate(size)]
    where = []
    for row, s in zip(transforms.flip(1).unbind(1), size, strict=True):  # torch's coordinates start with the last axis
        z, y, x, shift = row.view(-1, 4, 1, 1, 1).unbind(1)
        where.append(((x * axes[0] + y * axes[1] + z * axes[2] + shift + 1) * s - 1) / 2)
    if bend is not None:
        where = [place + along for place, along in zip(where, bend.unbind(1), strict=True)]
    if any(margin):
        where = [place + m for place, m in zip(where, margin, strict=True)]
    return sample_volume(images, where, "zeros")
