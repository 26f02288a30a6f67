"""The joint model's segmentation network: a first estimate of the target's label, before any atlas is aligned.

The ImageNet network that selects the atlases (EfficientNet-Lite0) also reads the target: its pre-trained stages are the encoder
of a U-Net that labels one axial slice, seen with the slice above and the slice below as the three colours of a photograph.
The estimate is a channel of the joint STM (Xu and Niethammer's DeepAtlas, arXiv 1904.08465, learns the two together for the same
reason: a segmentation tells the registration where the structure is), what the atlases' labels are measured against (LOA), and
one voice in their vote. With a handful of labelled scans a pre-trained encoder is worth more than any width of an untrained one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai import lite_training
from oasis_monai.batch_norms import without_batch_norms
from oasis_monai.errors import ConfigError
from oasis_monai.memory import Batched
from oasis_monai.precision import careful, halved
from oasis_monai.sampling import enlarge

DESIGN = 2  # part of the identity of every joint model; raise it when the same settings would train other networks
BESIDE = 4  # of those that are shown atlases: raise it when others would be chosen, or shown in another way
REACH = 5.0  # voxels: no place is further outside a structure than that, as if a slice without it had its edge so far away
STRIDE = 16  # of the lowest level that is normalised
LEAST = 2 * STRIDE  # voxels a side that a slice must have
ENCODER = (16, 24, 40, 112, 320)  # channels of EfficientNet-Lite0 at strides 2, 4, 8, 16, 32
FAINT = 0.05  # probability of any structure below which a slice is background, whatever a second look says
VOLUME_NETWORKS = ("U-Net3D", "DynU-Net3D")
VIEWS = ((0.1, 1.1), (-0.1, 0.9), (0.1, 0.9), (-0.1, 1.1))  # angle in radians, size of the field of view


@dataclass(frozen=True)
class EstimatorSettings:
    """The segmentation network of a joint model. The fields are the keys of ``conf/estimator``.

    Args:
        pretrained: start from ImageNet weights; false starts from random ones (the ablation).
        decoder: feature channels of the decoder at strides 16, 8, 4 and 2; the finest gives the four voxels under each of its own
            at once (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158): a decoder at stride 1 would cost half of a step.
        atlases: 2: beside a slice two atlases are shown, image and label, unaligned: those most like the slice below and above it
            (:mod:`oasis_monai.beside`), under slice folds with the shape between the scan's own labelled slices
            (:mod:`oasis_monai.between`); 0: none. 2D only: volumes have one atlas for all of their slices.
        members: slice networks of different random starts that share the budget equally; their mean is the estimate.
        share: of the training budget for this network.
        volume_share: of the budget for a U-Net on the whole volume, whose estimate is averaged with that of the slices: it sees
            less detail and more of the third axis, and the two fail at different places. 0: none; in 2D there is none and its
            share goes to the slices. What is left of the budget is the STM's.
        volume_network: ``U-Net3D`` or ``DynU-Net3D`` (:mod:`oasis_monai.segnets`). In minutes the first finds a prostate in
            its surroundings more surely, the second follows a hippocampus closer (docs/results/accuracy.md).
        volume_stride: voxels of the working grid per voxel of that U-Net, per axis.
        slices: slices per training step.
        lr: Adam's learning rate of the decoder; encoder_lr: of the pre-trained encoder, relative to it.
        empty: how often a training slice far from any structure (none within two slices) is drawn, relative to the others: it
            has little to teach. 1: as often.
        views: average the estimate with that of so many turned and scaled copies of every slice (0 to 4).
        mirror: average the estimate with that of the mirrored scan (left and right exchanged). Not for structures with a side.
        recentre: move the working grid to where the estimate finds the structures, if that is farther out than in every atlas
            (:mod:`oasis_monai.place`; 3D, and with a volume network).
        vote: the estimate's part in the vote of ``OASIS-joint``, 0 to 1; the atlases share the rest.
    """

    pretrained: bool = True
    decoder: tuple[int, ...] = (96, 48, 32, 16)
    atlases: int = 0
    members: int = 1
    share: float = 0.5
    volume_share: float = 0.35
    volume_network: str = VOLUME_NETWORKS[0]
    volume_stride: tuple[int, ...] = (2, 2, 1)
    slices: int = 12
    lr: float = 1e-3
    encoder_lr: float = 0.3
    empty: float = 0.25
    views: int = 4
    mirror: bool = True
    recentre: bool = True
    vote: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", tuple(self.decoder))
        object.__setattr__(self, "volume_stride", tuple(self.volume_stride))

        def require(key: str, fine: bool, expected: str) -> None:
            if not fine:
                raise ConfigError(f"estimator.{key}", expected, getattr(self, key))

        require(
            "decoder", len(self.decoder) == len(ENCODER) - 1 and min(self.decoder) > 0, f"{len(ENCODER) - 1} positive numbers"
        )
        require("atlases", self.atlases in (0, 2), "0 or 2")
        require("members", self.members > 0, "1 or more networks")
        require("share", 0 < self.share < 1, "above 0 and below 1")
        require("volume_share", 0 <= self.volume_share < 1 - self.share, "0 or more, and with estimator.share below 1")
        require("volume_network", self.volume_network in VOLUME_NETWORKS, f"one of {list(VOLUME_NETWORKS)}")
        fine = len(self.volume_stride) == 3 and min(self.volume_stride) > 0
        require("volume_stride", fine, "3 whole numbers of 1 or more")
        require("slices", self.slices > 0, "1 or more slices")
        require("lr", self.lr > 0, "a positive learning rate")
        require("encoder_lr", self.encoder_lr >= 0, "0 (a fixed encoder) or more")
        require("empty", 0 < self.empty <= 1, "above 0, at most 1")
        require("views", 0 <= self.views <= len(VIEWS), f"0 to {len(VIEWS)}")
        require("vote", 0 <= self.vote <= 1, "0 to 1")

    def shares(self, spatial_dims: int) -> tuple[float, float, float]:
        """The parts of the budget: slice network, volume network, STM."""
        volume = self.volume_share if spatial_dims == 3 else 0.0
        slices = self.share + self.volume_share - volume
        return slices, volume, 1 - slices - volume

    def identity(self) -> dict[str, Any]:
        """What decides the networks' weights."""
        networks = ("pretrained", "atlases", "members", "volume_network", "share", "volume_share")
        kept = (*networks, "slices", "lr", "encoder_lr", "empty")
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


class SliceNet(nn.Module):
    """U-Net with EfficientNet-Lite0 as its encoder.

    Args:
        classes: output channels, background included.
        atlases: atlases behind the three slices, ``classes`` channels each: image, structures
            (:func:`oasis_monai.beside.beside_atlases`). They enter the encoder by a convolution that starts at zero, so that
            the pre-trained network first sees what it knows; and the mean of their labels is added to the logits, so that
            what is learnt is where the slice differs from its atlases.
        shape: behind the atlases is the shape expected of each structure, ``classes - 1`` channels; it takes the place of the
            mean label.
        decoder: see :class:`EstimatorSettings`.
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
        from oasis_monai.features import imagenet_network, untrained_network

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
        careful(self)

    def train(self, mode: bool = True) -> SliceNet:
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


class SliceNets(nn.Module):
    """Slice networks of one kind whose mean is the estimate; trained one by one, kept and loaded as one."""

    def __init__(self, members: Sequence[SliceNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)


def _once(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)
    )


def _twice(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(_once(inside, outside), _once(outside, outside))


def turned(images: torch.Tensor, angle: float, scale: float, back: bool = False) -> torch.Tensor:
    """Slices (B, c, x, y) seen through a field of view turned by ``angle`` radians and ``scale`` times as large; ``back`` undoes
    it. Voxels are taken to be square."""
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin], [sin, cos]]) * scale
    matrix = torch.linalg.inv(matrix) if back else matrix
    size = torch.tensor(
        [float(images.shape[3]), float(images.shape[2])]
    )  # torch's normalised coordinates start with the last axis
    matrix = matrix * size[None, :] / size[:, None]
    theta = torch.cat([matrix, torch.zeros(2, 1)], 1).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros" if back else "border", align_corners=False)


class Estimator(Batched):
    """The trained segmentation networks of a joint model: a volume in, class probabilities out.

    Args:
        model: the slice network, or several whose probabilities are averaged.
        mirror, views: see :class:`EstimatorSettings`.
        device: where it runs.
        batch: slices per forward pass.
        half: run the networks in bfloat16, see :func:`oasis_monai.precision.halved`.
        whole: the volume network, (B, 1, \\*s) -> (B, C, \\*s) probabilities on a grid coarser by ``stride``; None without.
    """

    knob = "preprocessing.size"

    def __init__(
        self,
        model: SliceNet | SliceNets,
        mirror: bool = True,
        device: str | torch.device = "cpu",
        batch: int = 32,
        whole: Callable[[torch.Tensor], torch.Tensor] | None = None,
        stride: Sequence[int] = (2, 2, 1),
        views: int = 0,
        half: bool | None = None,
    ) -> None:
        self.model, self.mirror, self.views = model.to(device).eval(), mirror, views
        members = model.members if isinstance(model, SliceNets) else [model]
        self._fused = [without_batch_norms(member) for member in members]  # what runs; the model is what is kept
        self.device, self.batch = torch.device(device), batch
        self.half = halved(self.device, half)
        self.whole, self.stride = whole, tuple(stride)

    def plain(self) -> Estimator:
        """The same without turned and scaled copies: a fifth of the time."""
        how = (self.model, self.mirror, self.device, self.batch, self.whole, self.stride)
        return Estimator(*how, half=self.half) if self.views else self

    @torch.inference_mode()
    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        """(B, 3 + extra, x, y) slices with their neighbours (and atlases) -> (B, C, x, y) float32 probabilities on the CPU."""

        def estimate(rows: slice) -> torch.Tensor:
            part = slices[rows].to(self.device, torch.float32)
            probability = self._one(part)
            seen = (1 - probability[:, 0]).flatten(1).amax(1) > FAINT  # in many slices of a scan there is nothing to turn
            if self.views and seen.any():
                several = [probability[seen], *(self._there_and_back(part[seen], *view) for view in VIEWS[: self.views])]
                probability[seen] = torch.stack(several).mean(0)
            return probability.cpu()

        return torch.cat([made for _, made in self.in_batches(len(slices), estimate)])

    def _one(self, slices: torch.Tensor) -> torch.Tensor:
        probability = self._seen(slices)
        if self.mirror:  # array axis x runs from left to right on every working grid
            probability = (probability + self._seen(slices.flip(2)).flip(2)) / 2
        return probability

    def _seen(self, slices: torch.Tensor) -> torch.Tensor:
        slices = slices.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = [network(slices) for network in self._fused]
        return torch.stack([torch.softmax(one.float(), 1) for one in logits]).mean(0)

    def _there_and_back(self, slices: torch.Tensor, angle: float, scale: float) -> torch.Tensor:
        """The estimate of one turned and scaled copy; what a smaller field of view does not show is background."""
        seen = turned(self._one(turned(slices, angle, scale))[:, 1:], angle, scale, back=True)
        return torch.cat([(1 - seen.sum(1, keepdim=True)).clamp_min(0), seen], 1)

    def volume(self, image: torch.Tensor) -> torch.Tensor:
        """(1, x, y, z) -> (C, x, y, z) float32: the mean of what the networks say."""
        return self.voices(image).mean(0)

    @torch.inference_mode()
    def voices(self, image: torch.Tensor) -> torch.Tensor:
        """(1, x, y, z) -> (V, C, x, y, z) float32: what each network says, the slice network first."""
        by_slices = self(with_neighbours(image)).permute(1, 2, 3, 0).contiguous()
        if self.whole is None:
            return by_slices[None]
        pooled = pool(image[None].float(), self.stride)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            coarse = self.whole(pooled)
            if self.mirror:
                coarse = (coarse + self.whole(pooled.flip(2)).flip(2)) / 2
        fine = enlarge(coarse, image.shape[1:])[0]
        return torch.stack([by_slices, fine])


def pool(volumes: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """(B, c, x, y, z) on the grid coarser by ``stride``: the mean of every block."""
    return F.avg_pool3d(volumes, tuple(stride))
