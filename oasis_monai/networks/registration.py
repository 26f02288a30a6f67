"""The spatial transform model (STM) of the paper: one forward pass from an (atlas, target) pair to a displacement field.

    pair -> strided stem -> body (MONAI UNet, VoxelMorphUNet or LocalNet) -> flow (zero at start) -> [integrate] -> upsample

An optional affine network (MONAI GlobalNet) goes first, and its transform is composed with the local field. The field is
predicted on a grid coarser by ``field_stride`` and upsampled: gland-sized motion needs no full-resolution field, and the
coarse grid makes training on a CPU possible. Every part starts at the identity transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oasis_monai.networks import warp as warping
from oasis_monai.networks.layers import avoid_bfloat16_bug
from oasis_monai.utils.config import make_tuples, require
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.transfer import constant

BODIES = ("unet", "voxelmorph", "localnet")


@dataclass(frozen=True)
class RegistrationSettings:
    """The architecture of the registration network (the paper's STM). The fields are the keys of ``conf/registration``.

    Args:
        body: ``unet`` (MONAI UNet with instance norm), ``voxelmorph`` (VoxelMorphUNet) or ``localnet`` (LocalNet).
        channels: feature channels per level, finest first; two or more levels, each of 1 or more. Each level halves the grid.
        field_stride: voxels of the working grid per voxel of the predicted field, along x, y (, z); a single number stands for
            all axes. Whole numbers of 1 or more.
        affine: put an affine network before the local one.
        diffeomorphic: take the predicted field as a stationary velocity field and integrate it.
        squarings: number of squarings of that integration, 0 or more.
        joint: show the network labels as well: the atlas's own, and for the target the estimate of the joint model's segmentation
            networks (:mod:`oasis_monai.segmentation.estimate`).

    Raises:
        ConfigError: naming ``registration.<key>``.
    """

    body: str = "unet"
    channels: tuple[int, ...] = (16, 32, 32, 64)
    field_stride: tuple[int, ...] = (4, 4, 1)
    affine: bool = False
    diffeomorphic: bool = False
    squarings: int = 5
    joint: bool = True

    def __post_init__(self) -> None:
        make_tuples(self, "channels", "field_stride")
        require(
            self,
            "registration",
            ("body", self.body in BODIES, f"one of {list(BODIES)}"),
            ("channels", len(self.channels) > 1 and min(self.channels) > 0, "two or more positive numbers"),
            ("field_stride", all(s > 0 for s in self.field_stride), "whole numbers of 1 or more"),
            ("squarings", self.squarings >= 0, "0 or more"),
        )

    def stride(self, spatial_dims: int) -> tuple[int, ...]:
        """``field_stride`` for a grid of ``spatial_dims`` axes (one number stands for all axes)."""
        stride = self.field_stride * spatial_dims if len(self.field_stride) == 1 else self.field_stride
        if len(stride) != spatial_dims:
            expected = f"one number, or one per axis of spatial_dims={spatial_dims}"
            remedy = f"change it, or choose a group for these: registration=joint{spatial_dims}d"
            raise ConfigError("registration.field_stride", expected, self.field_stride, remedy)
        return stride

    def divisor(self, spatial_dims: int) -> tuple[int, ...]:
        """What each axis of the working grid must be divisible by."""
        return tuple(s * 2 ** (len(self.channels) - 1) for s in self.stride(spatial_dims))


def _zero(layer: nn.Module) -> None:
    """Make a flow layer predict the identity transform at the start of training."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Flow(nn.Module):
    """A layer that predicts displacements: in float32 on a GPU, also under autocast, as bfloat16 has eight bits for a voxel's
    place. (On a CPU it is as it has always been, and results stay what they were.)"""

    def forward(self, x: torch.Tensor) -> Any:
        if x.device.type == "cpu":
            return super().forward(x)  # type: ignore[misc]
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())  # type: ignore[misc]


class _Flow2d(_Flow, nn.Conv2d):
    pass


class _Flow3d(_Flow, nn.Conv3d):
    pass


def _make_body(settings: RegistrationSettings, spatial_dims: int, in_channels: int) -> nn.Module:
    """(B, in_channels, *s) features of the pair -> (B, D, *s) local field or velocity, zero at start."""
    channels = settings.channels
    if settings.body == "localnet":
        from monai.networks.nets import LocalNet

        levels = len(channels) - 1
        return LocalNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_channel_initial=channels[0],
            extract_levels=tuple(range(levels + 1)),  # type: ignore[arg-type]
            out_kernel_initializer="zeros",  # else it starts about two voxels off the identity
            out_activation=None,
            out_channels=spatial_dims,
            mode="trilinear" if spatial_dims == 3 else "bilinear",  # MONAI's default, nearest, gives blocky fields
            align_corners=False,
        )
    if settings.body == "voxelmorph":
        from monai.networks.nets import VoxelMorphUNet

        voxelmorph = VoxelMorphUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            unet_out_channels=channels[0],
            channels=[c for c in channels[1:] for _ in ("down", "up")],
            final_conv_channels=(channels[0],),
        )
        last = voxelmorph.net.get_submodule("1.final_conv_out.conv")
        _zero(last)
        last.__class__ = _Flow3d if spatial_dims == 3 else _Flow2d
        return voxelmorph
    from monai.networks.nets import UNet

    net = UNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=channels[0],
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=1,
        norm="instance",
    )
    # the UNet's last layers normalise their output, which would fix the size of every displacement: the flow is a
    # plain convolution behind them
    flow = (_Flow3d if spatial_dims == 3 else _Flow2d)(channels[0], spatial_dims, 3, padding=1)
    _zero(flow)
    return _BodyWithFlow(net, flow)


class _BodyWithFlow(nn.Sequential):
    """A body, and the flow layer behind it, which is trained in float32 also where autocast computes the body in bfloat16: a
    displacement of a hundredth of a voxel decides whether it gets better."""

    def forward(self, x: torch.Tensor) -> Any:
        net, flow = self
        x = net(x)
        if not self.training:  # as models were judged
            return flow(x)
        with torch.autocast(x.device.type, enabled=False):
            return flow(x.float())


class SpatialTransformModel(nn.Module):
    """Predicts the field that pulls an atlas onto a target (paper, section 2.1 and Fig. 1).

    Args:
        size: working grid *S*; checked against :meth:`RegistrationSettings.divisor`.
        settings: see :class:`RegistrationSettings`.
        structures: label channels behind each image, for a joint STM: the number of foreground classes.
        channels: of an image.

    Shapes: ``forward((B, channels + structures, *S) atlas, (B, channels + structures, *S) target) -> (B, D, *S)`` field in voxels
    (see :mod:`oasis_monai.networks.warp`).

    Raises:
        ConfigError: a size that the network cannot halve often enough.

    Examples:
        >>> import torch
        >>> from oasis_monai import SpatialTransformModel
        >>> network = SpatialTransformModel(size=(64, 64, 16))
        >>> atlas, target = torch.rand(2, 1, 64, 64, 16), torch.rand(2, 1, 64, 64, 16)
        >>> field = network(atlas, target)
        >>> field.shape, field.abs().max().item()  # before training: the identity
        (torch.Size([2, 3, 64, 64, 16]), 0.0)
    """

    def __init__(
        self, size: Sequence[int], settings: RegistrationSettings | None = None, structures: int = 0, channels: int = 1
    ) -> None:
        super().__init__()
        from monai.networks.blocks import Convolution

        self.settings = settings = settings or RegistrationSettings()
        self.size, self.channels = tuple(int(s) for s in size), channels
        dims = len(self.size)
        stride, divisor = settings.stride(dims), settings.divisor(dims)
        for axis, (length, by) in enumerate(zip(self.size, divisor, strict=True)):
            if length % by:
                lower, upper = length // by * by, math.ceil(length / by) * by
                nearest = f"{lower} or {upper}" if lower else f"{upper}"
                raise ConfigError(
                    "preprocessing.size", f"axis {axis} divisible by {by} for this network", self.size, f"take {nearest} there"
                )
        if settings.body == "unet" and self.size == divisor:
            raise ConfigError(
                "preprocessing.size",
                f"more than {divisor} along some axis (the lowest level would be a single voxel, which has no spread)",
                self.size,
                "take a larger size or fewer registration.channels",
            )
        self.field_size = tuple(length // s for length, s in zip(self.size, stride, strict=True))
        width = settings.channels[0]
        # kernel covers the stride with one voxel of overlap on each side
        kernel = tuple(s + 2 if s % 2 else s + 1 for s in stride)
        in_channels = 2 * (channels + structures)
        self.stem = Convolution(dims, in_channels, width, strides=stride, kernel_size=kernel, norm="instance", act="leakyrelu")
        self.body = _make_body(settings, dims, width)
        self.affine = _AffineNet(self.size, width, len(settings.channels) - 1, channels) if settings.affine else None
        avoid_bfloat16_bug(self)

    def field(self, atlas: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The coarse field (B, D, *field_size), in voxels of the coarse grid: all there is to keep of an alignment."""
        moved, start = atlas, None
        if self.affine is not None:
            start = self.affine(atlas[:, : self.channels], target[:, : self.channels])
            moved = warping.warp(atlas, start)
        field = self.body(self.stem(torch.cat([moved, target], 1))).float()
        if self.settings.diffeomorphic:
            field = warping.integrate(field, self.settings.squarings)
        return field if start is None else warping.compose(warping.resize_ddf(start, self.field_size), field)

    def forward(self, atlas: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return warping.resize_ddf(self.field(atlas, target), self.size)


class _AffineNet(nn.Module):
    """MONAI's GlobalNet on a pooled pair: (B, c, *S) twice -> the affine transform as a field (B, D, *S).

    GlobalNet's matrix acts on voxel indices counted from the corner, through a dense layer with thousands of inputs: one Adam
    step of 1e-3 moves the far corner by tens of voxels and training never recovers (seen). We give its head centred
    coordinates in units of the field of view and scale its departure from the identity down by the number of inputs.
    """

    def __init__(self, size: Sequence[int], width: int, depth: int, channels: int) -> None:
        super().__init__()
        from monai.networks.nets import GlobalNet

        self.size = tuple(size)
        # an affine transform has few parameters: half resolution shows all it needs, where the size allows it
        self.pool = tuple(2 if s % 2 ** (depth + 1) == 0 else 1 for s in self.size)
        pooled = [s // p for s, p in zip(self.size, self.pool, strict=True)]
        self.net = GlobalNet(
            image_size=pooled, spatial_dims=len(pooled), in_channels=2 * channels, num_channel_initial=width, depth=depth
        )
        head: Any = self.net.output_block
        self.extent = tuple(float(s) for s in self.size)
        axes = [(torch.arange(length) + 0.5) / length - 0.5 for length in pooled]
        head.grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        self.gain = 10.0 / head.fc.in_features

    def forward(self, atlas: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        pool = nn.functional.avg_pool3d if len(self.size) == 3 else nn.functional.avg_pool2d
        mode = "trilinear" if len(self.size) == 3 else "bilinear"
        with torch.autocast(atlas.device.type, enabled=False):
            relative = self.gain * self.net(pool(torch.cat([atlas, target], 1).float(), self.pool))
            fine = nn.functional.interpolate(relative, size=self.size, mode=mode, align_corners=False)
        return fine * constant(self.extent, fine.device).view(1, -1, *[1] * len(self.size))


def append_structures(images: torch.Tensor, structures: torch.Tensor | None) -> torch.Tensor:
    """What an STM sees of an image: (B, c, *S), or with the (B, C-1, *S) structures behind it where the STM is a joint one."""
    return images.float() if structures is None else torch.cat([images.float(), structures.float()], 1)
