"""The joint model's segmentation network: a first estimate of the target's label, before any atlas is aligned.

The ImageNet network that selects the atlases (EfficientNet-Lite0) also reads the target: its pre-trained stages are the encoder
of a U-Net that labels one axial slice, seen with the slice above and the slice below as the three colours of a photograph.
The estimate is a channel of the joint STM (Xu and Niethammer's DeepAtlas, arXiv 1904.08465, learns the two together for the same
reason: a segmentation tells the registration where the structure is), what the atlases' labels are measured against (LOA), and
one voice in their vote. With a handful of labelled scans a pre-trained encoder is worth more than any width of an untrained one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.errors import ConfigError
from oasis_monai.memory import Batched

STRIDE = 16  # of the lowest level that is normalised
ENCODER = (16, 24, 40, 112, 320)  # channels of EfficientNet-Lite0 at strides 2, 4, 8, 16, 32


@dataclass(frozen=True)
class EstimatorSettings:
    """The segmentation network of a joint model. The fields are the keys of ``conf/estimator``.

    Args:
        pretrained: start from ImageNet weights; false starts from random ones (the ablation).
        decoder: feature channels of the decoder at strides 16, 8, 4, 2 and 1.
        atlases: so many of a slice's nearest atlases are shown beside it, image and label, unaligned (2D only: volumes have
            one atlas for all of their slices).
        share: of the training budget for this network.
        volume_share: of the budget for a U-Net on the whole volume, whose estimate is averaged with that of the slices: it sees
            less detail and more of the third axis, and the two fail at different places. 0: none; in 2D there is none and its
            share goes to the slices. What is left of the budget is the STM's.
        volume_stride: voxels of the working grid per voxel of that U-Net, per axis.
        slices: slices per training step.
        lr: Adam's learning rate of the decoder; encoder_lr: of the pre-trained encoder, relative to it.
        mirror: average the estimate with that of the mirrored scan (left and right exchanged). Not for structures with a side.
        vote: the estimate's part in the vote of ``OASIS-joint``, 0 to 1; the atlases share the rest.
    """

    pretrained: bool = True
    decoder: tuple[int, ...] = (96, 48, 32, 16, 16)
    atlases: int = 0
    share: float = 0.5
    volume_share: float = 0.35
    volume_stride: tuple[int, ...] = (2, 2, 1)
    slices: int = 12
    lr: float = 1e-3
    encoder_lr: float = 0.3
    mirror: bool = True
    vote: float = 0.65

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", tuple(self.decoder))
        object.__setattr__(self, "volume_stride", tuple(self.volume_stride))

        def require(key: str, fine: bool, expected: str) -> None:
            if not fine:
                raise ConfigError(f"estimator.{key}", expected, getattr(self, key))

        require("decoder", len(self.decoder) == len(ENCODER) and min(self.decoder) > 0, f"{len(ENCODER)} positive numbers")
        require("atlases", self.atlases >= 0, "0 or more")
        require("share", 0 < self.share < 1, "above 0 and below 1")
        require("volume_share", 0 <= self.volume_share < 1 - self.share, "0 or more, and with estimator.share below 1")
        fine = len(self.volume_stride) == 3 and min(self.volume_stride) > 0
        require("volume_stride", fine, "3 whole numbers of 1 or more")
        require("slices", self.slices > 0, "1 or more slices")
        require("lr", self.lr > 0, "a positive learning rate")
        require("encoder_lr", self.encoder_lr >= 0, "0 (a fixed encoder) or more")
        require("vote", 0 <= self.vote <= 1, "0 to 1")

    def shares(self, spatial_dims: int) -> tuple[float, float, float]:
        """The parts of the budget: slice network, volume network, STM."""
        volume = self.volume_share if spatial_dims == 3 else 0.0
        slices = self.share + self.volume_share - volume
        return slices, volume, 1 - slices - volume

    def identity(self) -> dict[str, Any]:
        """What decides the networks' weights."""
        kept = ("pretrained", "atlases", "share", "volume_share", "slices", "lr", "encoder_lr")
        listed = {"decoder": list(self.decoder), "volume_stride": list(self.volume_stride)}
        return {k: getattr(self, k) for k in kept} | listed


def check_size(size: Sequence[int]) -> None:
    """Refuse working grids whose slices are too small for the encoder.

    Raises:
        ConfigError: a side of the slice is below 32 voxels.
    """
    if min(size[:2]) < 2 * STRIDE:
        raise ConfigError("preprocessing.size", f"slices of at least {2 * STRIDE} voxels a side for a joint model", tuple(size))


def with_neighbours(volume: torch.Tensor) -> torch.Tensor:
    """(1, x, y, z) -> (z, 3, x, y): every slice between the one below and the one above; the ends repeat themselves."""
    padded = torch.cat([volume[..., :1], volume, volume[..., -1:]], -1)
    return padded[0].unfold(2, 3, 1).permute(2, 3, 0, 1).contiguous()


class SliceNet(nn.Module):
    """U-Net with EfficientNet-Lite0 as its encoder.

    Args:
        classes: output channels, background included.
        extra: channels behind the three slices (atlases); they enter by a convolution that starts at zero, so that the
            pre-trained network first sees what it knows.
        decoder: see :class:`EstimatorSettings`.
        pretrained: load the ImageNet weights of the installed package.

    Shapes: ``forward((B, 3 + extra, x, y)) -> (B, classes, x, y)`` logits.

    The encoder's batch norms keep the statistics of ImageNet in training as well: a batch of neighbouring slices has no
    statistics worth learning.
    """

    def __init__(
        self, classes: int, extra: int = 0, decoder: Sequence[int] = (96, 48, 32, 16, 16), pretrained: bool = True
    ) -> None:
        super().__init__()
        from oasis_monai.features import imagenet_network

        self.encoder: Any = imagenet_network("efficientnet-lite0") if pretrained else _untrained()
        for unused in ("_conv_head", "_bn1", "_fc"):
            setattr(self.encoder, unused, nn.Identity())
        self.extra = nn.Conv2d(extra, 32, 3, 2, 1) if extra else None
        if self.extra is not None:
            nn.init.zeros_(self.extra.weight)
            nn.init.zeros_(self.extra.bias)  # type: ignore[arg-type]
        below = (ENCODER[-1], *decoder[:3])
        skips = ENCODER[-2::-1]
        self.up = nn.ModuleList(_twice(b + skip, out) for b, skip, out in zip(below, skips, decoder, strict=False))
        self.full = _once(3 + extra, decoder[-1])
        self.last = nn.Sequential(_once(decoder[-2] + decoder[-1], decoder[-1]), nn.Conv2d(decoder[-1], classes, 1))

    def train(self, mode: bool = True) -> SliceNet:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        net = self.encoder
        h = net._conv_stem(image[:, :3])
        if self.extra is not None:
            h = h + F.interpolate(self.extra(image[:, 3:]), size=h.shape[2:])
        h = net._swish(net._bn0(h))
        skips: list[torch.Tensor] = []
        for block in net._blocks:
            if block._depthwise_conv.stride[0] == 2:
                skips.append(h)
            h = block(h)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            h = up(torch.cat([F.interpolate(h, size=skip.shape[2:]), skip], 1))
        logits: torch.Tensor = self.last(torch.cat([F.interpolate(h, size=image.shape[2:]), self.full(image)], 1))
        return logits


def _untrained() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


def _once(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)
    )


def _twice(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(_once(inside, outside), _once(outside, outside))


class Estimator(Batched):
    """The trained segmentation networks of a joint model: a volume in, class probabilities out.

    Args:
        model: the slice network.
        mirror: see :class:`EstimatorSettings`.
        device: where it runs.
        batch: slices per forward pass.
        whole: the volume network, (B, 1, \\*s) -> (B, C, \\*s) probabilities on a grid coarser by ``stride``; None without.
    """

    knob = "preprocessing.size"

    def __init__(
        self,
        model: SliceNet,
        mirror: bool = True,
        device: str | torch.device = "cpu",
        batch: int = 32,
        whole: Callable[[torch.Tensor], torch.Tensor] | None = None,
        stride: Sequence[int] = (2, 2, 1),
    ) -> None:
        self.model, self.mirror = model.to(device).eval(), mirror
        self.device, self.batch = torch.device(device), batch
        self.whole, self.stride = whole, tuple(stride)

    @torch.inference_mode()
    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        """(B, 3 + extra, x, y) slices with their neighbours (and atlases) -> (B, C, x, y) float32 probabilities on the CPU."""

        def estimate(rows: slice) -> torch.Tensor:
            part = slices[rows].to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
            probability = torch.softmax(self.model(part).float(), 1)
            if self.mirror:  # array axis x runs from left to right on every working grid
                mirrored = self.model(part.flip(2).contiguous(memory_format=torch.channels_last))
                probability = (probability + torch.softmax(mirrored.float(), 1).flip(2)) / 2
            return probability.cpu()

        return torch.cat([made for _, made in self.in_batches(len(slices), estimate)])

    def volume(self, image: torch.Tensor) -> torch.Tensor:
        """(1, x, y, z) -> (C, x, y, z) float32: the mean of what the networks say."""
        by_slices = self(with_neighbours(image)).permute(1, 2, 3, 0).contiguous()
        if self.whole is None:
            return by_slices
        pooled = pool(image[None].float(), self.stride)
        coarse = self.whole(pooled)
        if self.mirror:
            coarse = (coarse + self.whole(pooled.flip(2)).flip(2)) / 2
        fine = F.interpolate(coarse, size=image.shape[1:], mode="trilinear", align_corners=False)[0]
        return (by_slices + fine) / 2


def pool(volumes: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """(B, c, x, y, z) on the grid coarser by ``stride``: the mean of every block."""
    return F.avg_pool3d(volumes, tuple(stride))
