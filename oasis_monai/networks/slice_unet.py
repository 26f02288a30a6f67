"""The slice network of the joint model: a U-Net on axial slices with an ImageNet encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.networks import depthwise as lite_training
from oasis_monai.networks.layers import avoid_amx_bug
from oasis_monai.utils.errors import ConfigError


def make_slice_network(
    classes: int, settings: JointSettings, pretrained: bool | None = None, shape: bool = False
) -> SliceUNet | SliceUNetEnsemble:
    """The slice network or networks of the settings.

    Args:
        classes: background included.
        pretrained: in the place of the settings'; False where weights are loaded over them anyway.
        shape: whether beside atlases the expected shape is shown, as under slice folds.
    """
    start = settings.pretrained if pretrained is None else pretrained
    made = [SliceUNet(classes, settings.atlases, settings.decoder, start, shape) for _ in range(settings.members)]
    return made[0] if len(made) == 1 else SliceUNetEnsemble(made)


DESIGN = 2  # part of the identity of every joint model; raise it when the same settings would train other networks
BESIDE = 4  # of those that are shown atlases: raise it when others would be chosen, or shown in another way
REACH = 5.0  # voxels: no place is further outside a structure than that, as if a slice without it had its edge so far away
STRIDE = 16  # of the lowest level that is normalised
LEAST = 2 * STRIDE  # voxels a side that a slice must have
ENCODER = (16, 24, 40, 112, 320)  # channels of EfficientNet-Lite0 at strides 2, 4, 8, 16, 32
VOLUME_NETWORKS = ("U-Net3D", "DynU-Net3D")
VIEWS = ((0.1, 1.1), (-0.1, 0.9), (0.1, 0.9), (-0.1, 1.1))  # angle in radians, size of the field of view


@dataclass(frozen=True)
class JointSettings:
    """The segmentation network of a joint model. The fields are the keys of ``conf/joint``.

    Args:
        pretrained: start from ImageNet weights; false starts from random ones (the ablation).
        decoder: feature channels of the decoder at strides 16, 8, 4 and 2; the finest gives the four voxels under each of its own
            at once (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158): a decoder at stride 1 would cost half of a step.
        atlases: 2: beside a slice two atlases are shown, image and label, unaligned: those most like the slice below and above it
            (:mod:`oasis_monai.atlases.slices`), under slice folds with the shape between the scan's own labelled slices
            (:mod:`oasis_monai.atlases.slices`); 0: none. 2D only: volumes have one atlas for all of their slices.
        members: slice networks of different random starts that share the budget equally; their mean is the estimate.
        slice_budget: of the training budget for this network.
        volume_budget: of the budget for a U-Net on the whole volume, whose estimate is averaged with that of the slices: it sees
            less detail and more of the third axis, and the two fail at different places. 0: none; in 2D there is none and its
            share goes to the slices. What is left of the budget is the STM's.
        volume_network: ``U-Net3D`` or ``DynU-Net3D`` (:mod:`.segmentation`). In minutes the first finds a prostate in
            its surroundings more surely, the second follows a hippocampus closer (docs/results/accuracy.md).
        volume_stride: voxels of the working grid per voxel of that U-Net, per axis.
        slices_per_step: slices per training step.
        lr: Adam's learning rate of the decoder; encoder_lr: of the pre-trained encoder, relative to it.
        empty_slice_weight: how often a training slice far from any structure (none within two slices) is drawn, relative to the
            others: it has little to teach. 1: as often.
        tta_views: average the estimate with that of so many turned and scaled copies of every slice (0 to 4).
        tta_flip: average the estimate with that of the mirrored scan (left and right exchanged). Not for structures with a side.
        recentre: move the working grid to where the estimate finds the structures, if that is farther out than in every atlas
            (:mod:`oasis_monai.segmentation.recentre`; 3D, and with a volume network).
        estimate_weight: the estimate's part in the vote of ``OASIS-joint``, 0 to 1; the atlases share the rest.
    """

    pretrained: bool = True
    decoder: tuple[int, ...] = (96, 48, 32, 16)
    atlases: int = 0
    members: int = 1
    slice_budget: float = 0.5
    volume_budget: float = 0.35
    volume_network: str = VOLUME_NETWORKS[0]
    volume_stride: tuple[int, ...] = (2, 2, 1)
    slices_per_step: int = 12
    lr: float = 1e-3
    encoder_lr: float = 0.3
    empty_slice_weight: float = 0.25
    tta_views: int = 4
    tta_flip: bool = True
    recentre: bool = True
    estimate_weight: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", tuple(self.decoder))
        object.__setattr__(self, "volume_stride", tuple(self.volume_stride))

        def require(key: str, fine: bool, expected: str) -> None:
            if not fine:
                raise ConfigError(f"joint.{key}", expected, getattr(self, key))

        require(
            "decoder", len(self.decoder) == len(ENCODER) - 1 and min(self.decoder) > 0, f"{len(ENCODER) - 1} positive numbers"
        )
        require("atlases", self.atlases in (0, 2), "0 or 2")
        require("members", self.members > 0, "1 or more networks")
        require("slice_budget", 0 < self.slice_budget < 1, "above 0 and below 1")
        require(
            "volume_budget", 0 <= self.volume_budget < 1 - self.slice_budget, "0 or more, and with joint.slice_budget below 1"
        )
        require("volume_network", self.volume_network in VOLUME_NETWORKS, f"one of {list(VOLUME_NETWORKS)}")
        fine = len(self.volume_stride) == 3 and min(self.volume_stride) > 0
        require("volume_stride", fine, "3 whole numbers of 1 or more")
        require("slices_per_step", self.slices_per_step > 0, "1 or more slices")
        require("lr", self.lr > 0, "a positive learning rate")
        require("encoder_lr", self.encoder_lr >= 0, "0 (a fixed encoder) or more")
        require("empty_slice_weight", 0 < self.empty_slice_weight <= 1, "above 0, at most 1")
        require("tta_views", 0 <= self.tta_views <= len(VIEWS), f"0 to {len(VIEWS)}")
        require("estimate_weight", 0 <= self.estimate_weight <= 1, "0 to 1")

    def budgets(self, spatial_dims: int) -> tuple[float, float, float]:
        """The parts of the budget: slice network, volume network, STM."""
        volume = self.volume_budget if spatial_dims == 3 else 0.0
        slices = self.slice_budget + self.volume_budget - volume
        return slices, volume, 1 - slices - volume

    def identity(self) -> dict[str, Any]:
        """What decides the networks' weights."""
        networks = ("pretrained", "atlases", "members", "volume_network", "slice_budget", "volume_budget")
        kept = (*networks, "slices_per_step", "lr", "encoder_lr", "empty_slice_weight")
        listed = {"decoder": list(self.decoder), "volume_stride": list(self.volume_stride)}
        beside = {"beside": BESIDE} if self.atlases else {}
        return {k: getattr(self, k) for k in kept} | listed | {"design": DESIGN, **beside}


def check_size(size: Sequence[int]) -> None:
    """Refuse working grids whose slices are too small for the encoder.

    Raises:
        ConfigError: a side of the slice is below 32 voxels.
    """
    if min(size[:2]) < LEAST:
        raise ConfigError("preprocessing.size", f"slices of at least {LEAST} voxels a side for a joint model", tuple(size))


def with_neighbours(volume: torch.Tensor) -> torch.Tensor:
    """(1, x, y, z) -> (z, 3, x, y): every slice between the one below and the one above; the ends repeat themselves."""
    padded = torch.cat([volume[..., :1], volume, volume[..., -1:]], -1)
    return padded[0].unfold(2, 3, 1).permute(2, 3, 0, 1).contiguous()


class SliceUNet(nn.Module):
    """U-Net with EfficientNet-Lite0 as its encoder.

    Args:
        classes: output channels, background included.
        atlases: atlases behind the three slices, ``classes`` channels each: image, structures
            (:func:`.append_atlas_channels`). They enter the encoder by a convolution that starts at zero, so that
            the pre-trained network first sees what it knows; and the mean of their labels is added to the logits, so that
            what is learnt is where the slice differs from its atlases.
        shape: behind the atlases is the shape expected of each structure, ``classes - 1`` channels; it takes the place of the
            mean label.
        decoder: see :class:`JointSettings`.
        pretrained: load the ImageNet weights of the installed package.

    Shapes: ``forward((B, 3 + extra, x, y)) -> (B, classes, x, y)`` logits, ``extra`` the channels of atlases and shape;
    ``half`` runs the decoder and, while
    training on a CPU, the encoder's convolutions of one voxel in bfloat16.

    The encoder's batch norms keep the statistics of ImageNet in training as well: a batch of neighbouring slices has no
    statistics worth learning.
    """

    def __init__(
        self,
        classes: int,
        atlases: int = 0,
        decoder: Sequence[int] = (96, 48, 32, 16),
        pretrained: bool = True,
        shape: bool = False,
    ) -> None:
        super().__init__()
        from oasis_monai.networks.encoders import imagenet_network, untrained_network

        self.encoder: Any = (imagenet_network if pretrained else untrained_network)("efficientnet-lite0")
        for unused in ("_conv_head", "_bn1", "_fc"):
            setattr(self.encoder, unused, nn.Identity())
        self.classes, self.atlases, self.shape = classes, atlases, shape
        self.extra = nn.Conv2d(atlases * classes + shape * (classes - 1), 32, 3, 2, 1) if atlases else None
        self.trust = nn.Parameter(torch.ones(())) if atlases else None
        if self.extra is not None:
            nn.init.zeros_(self.extra.weight)
            nn.init.zeros_(self.extra.bias)  # type: ignore[arg-type]
        below = (ENCODER[-1], *decoder[:3])
        skips = ENCODER[-2::-1]
        self.up = nn.ModuleList(_twice(b + skip, out) for b, skip, out in zip(below, skips, decoder, strict=True))
        self.last = nn.Sequential(nn.Conv2d(decoder[-1], 4 * classes, 3, padding=1), nn.PixelShuffle(2))
        avoid_amx_bug(self)

    def train(self, mode: bool = True) -> SliceUNet:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: torch.Tensor, half: bool = False) -> torch.Tensor:
        net, (height, width) = self.encoder, image.shape[2:]
        image = F.pad(image, (0, width % 2, 0, height % 2))
        h = net._conv_stem(image[:, :3])
        if self.extra is not None:
            h = h + F.interpolate(self.extra(image[:, 3:]), size=h.shape[2:])
        h = net._swish(net._bn0(h))
        skips: list[torch.Tensor] = []
        fits = torch.is_grad_enabled() and h.device.type == "cpu" and isinstance(net._bn0, nn.BatchNorm2d)
        for block in net._blocks:
            if block._depthwise_conv.stride[0] == 2:
                skips.append(h)
            h = lite_training.block(block, h, half) if fits else block(h)
        # on a CPU the encoder's depthwise convolutions are slower in bfloat16 than in float32, the decoder's convolutions faster;
        # and instance norms, which come with channels first only, are faster where nothing has to be rearranged for them
        with torch.autocast(image.device.type, torch.bfloat16) if half else nullcontext():
            for up, skip in zip(self.up, reversed(skips), strict=True):
                h = up(torch.cat([F.interpolate(h.contiguous(), size=skip.shape[2:]), skip.contiguous()], 1))
            logits: torch.Tensor = self.last(h)
        if self.trust is not None:
            logits = logits.float() + self._before_looking(image[:, 3:], self.trust)
        return logits[..., :height, :width]

    def _before_looking(self, beside: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """(B, classes, x, y) logits that the atlases, or the expected shape, speak for."""
        if self.shape:  # bounded: however far inside, the image may still say no
            inside = 2 * torch.tanh(trust * REACH / 2 * (beside[:, 1 - self.classes :] - 1))
            return torch.cat([-inside.amax(1, keepdim=True), inside], 1)
        labels = beside.unflatten(1, (self.atlases, self.classes))[:, :, 1:].mean(1)
        return trust * (2 * torch.cat([1 - labels.sum(1, keepdim=True), labels], 1) - 1)


class SliceUNetEnsemble(nn.Module):
    """Slice networks of one kind whose mean is the estimate; trained one by one, kept and loaded as one."""

    def __init__(self, members: Sequence[SliceUNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)


def _once(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)
    )


def _twice(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(_once(inside, outside), _once(outside, outside))
