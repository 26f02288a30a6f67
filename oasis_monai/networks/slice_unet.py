"""The slice network of the joint model: a U-Net on axial slices with an ImageNet encoder (EfficientNet-Lite0)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.networks import depthwise
from oasis_monai.networks.layers import avoid_bfloat16_bug
from oasis_monai.networks.structures import class_logits, membership
from oasis_monai.utils.config import INFERENCE_ONLY, absent_as, identity_of, make_tuples, not_used_by, require
from oasis_monai.utils.errors import ConfigError


def make_slice_network(
    classes: int,
    settings: JointSettings,
    pretrained: bool | None = None,
    shape: bool = False,
    channels: int = 1,
    structures: Sequence[Sequence[int]] = (),
) -> SliceUNet | SliceUNetEnsemble:
    """The slice network or networks of the settings.

    Args:
        classes: background included.
        pretrained: in the place of the settings'; False where weights are loaded over them anyway.
        shape: whether the expected shape is shown beside the atlases, as under slice folds.
        channels: of a scan.
        structures: see :class:`SliceUNet`.
    """
    start = settings.pretrained if pretrained is None else pretrained
    networks = [
        SliceUNet(classes, settings.atlases, settings.decoder, start, shape, channels, structures)
        for _ in range(settings.members)
    ]
    return networks[0] if len(networks) == 1 else SliceUNetEnsemble(networks)


def make_box_network(
    classes: int, settings: JointSettings, channels: int = 1, structures: Sequence[Sequence[int]] = ()
) -> SliceUNet:
    """The network that looks again in boxes, of random weights: it begins as a trained slice network
    (:mod:`oasis_monai.training.boxes`). Arguments as of :func:`make_slice_network`."""
    return SliceUNet(classes, 0, settings.decoder, False, channels=channels, structures=structures, places=3)


DESIGN = 2  # in the cache name of every joint model; raise it when the same settings would train other networks
BESIDE = 4  # in that of networks with atlas channels; raise it when other atlases would be shown, or in another form
MAX_DISTANCE = 5.0  # voxels; signed distances outside a structure are cut to this, also in slices without the structure
STRIDE = 16  # stride of the lowest decoder level with instance norm
LEAST = 2 * STRIDE  # least voxels a side of a slice
WINDOW = 192
"""Most voxels a side of what a slice network sees of the fine grid at once, in training and in use: a multiple of :data:`STRIDE`.
Twelve such windows take 1 GB of memory in a step, however large slices are."""
BOX_WINDOW = 96
"""The same of the network that looks again in boxes. Its voxels are small, so a window shows a structure and what lies round it;
four times as many are seen in the same time."""
ENCODER = (16, 24, 40, 112, 320)  # channels of EfficientNet-Lite0 at strides 2, 4, 8, 16, 32
FUSIONS = ("learned", "fixed")
VOLUME_NETWORKS = ("U-Net3D", "DynU-Net3D")
VIEWS = ((0.1, 1.1), (-0.1, 0.9), (0.1, 0.9), (-0.1, 1.1))
"""Angle in radians and size of the field of view of the copies. Every copy has one that is turned the other way."""


@dataclass(frozen=True)
class JointSettings:
    """The segmentation networks of a joint model. The fields are the keys of ``conf/joint``.

    A joint model has a slice network (a U-Net on axial slices, with a pre-trained encoder) and, in 3D, a volume network (a U-Net
    on the whole volume). Their mean is the *estimate*, which guides registration and fusion.

    Args:
        pretrained: start the encoder from ImageNet weights; false starts from random ones (the ablation).
        decoder: feature channels of the decoder at strides 16, 8, 4 and 2, each 1 or more. The finest level predicts its four
            voxels at once (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158): a decoder at stride 1 would cost half of
            a step.
        atlases: 0 or 2; 2 shows two atlases beside a slice, image and label, unaligned: those most like the slice below and above
            it (:mod:`oasis_monai.atlases.slices`). Under slice folds the shape interpolated between the scan's own labelled
            slices is shown too. 2D only: a volume has one atlas for all of its slices.
        members: slice networks with different random starts, 1 or more. They share the budget equally; their mean counts.
        slice_budget: fraction of the training budget for the slice network, above 0 and below 1.
        volume_budget: fraction of the training budget for the volume network; 0 for none. It sees less detail and more of the
            third axis than the slice network, and the two fail at different places. In 2D its fraction goes to the slice network.
            What is left of the budget trains the registration network.
        cross_fit_budget: fraction of the training budget for slice networks that have seen one half of the patients each. They
            estimate the other half, and the registration network is trained with these estimates
            (:mod:`oasis_monai.workflows.cross_fit`; 3D). 0: it is trained with those of the networks above, which have seen all.
        box_budget: fraction of the training budget for the network that looks again in boxes (``preprocessing.box_factor``,
            :mod:`oasis_monai.segmentation.boxes`); 0 without them.
        even_draws: draw training slices so that each structure is shown as often as the others, however few slices it is in
            (:func:`oasis_monai.training.small_structures.even_chances`). The box network always learns so.
        anywhere: names of structures that may lie anywhere, such as lesions: slice and box network also learn from copies of them
            at other places (:class:`oasis_monai.training.small_structures.Copies`; 3D).
        estimate_dice: mean Dice, above 0, that the estimates are brought down to by smooth bends while the registration network
            is trained (:mod:`oasis_monai.training.estimate_errors`); 1: they stay as they are.
        volume_network: ``U-Net3D`` or ``DynU-Net3D`` (:mod:`oasis_monai.networks.segmentation`). Within minutes the first finds a
            prostate in its surroundings more reliably; the second follows a hippocampus more closely (docs/results/accuracy.md).
        volume_stride: voxels of the working grid per voxel of the volume network along x, y, z; whole numbers of 1 or more.
        slices_per_step: slices per training step, 1 or more.
        lr: Adam's learning rate of the decoder, above 0; encoder_lr: that of the pre-trained encoder relative to ``lr``, 0 or
            more (0: a fixed encoder).
        empty_slice_weight: how often a training slice more than two slices away from every structure is drawn, relative to the
            others; above 0, at most 1. Such slices have little to teach.
        tta_views: average what each network says with what it says of this many rotated and scaled copies, 0 to 4.
            A volume network that sees every voxel (``volume_stride`` of 1, 1, 1) sees none.
        tta_flip: average the estimate with that of the mirrored scan (left and right exchanged). Set it to false for structures
            that lie on one side of the body.
        recentre: move the working grid to where the estimate finds the structures, if that is farther from the centre than in
            every atlas (:mod:`oasis_monai.segmentation.recentre`; 3D, with a volume network).
        fusion: how ``OASIS-joint`` fuses networks and atlases: ``learned``, with the weights that a cross-validation has fitted
            (:mod:`oasis_monai.segmentation.learned_fusion`), where there are some; or ``fixed``, by ``estimate_weight``.
        estimate_weight: weight of the estimate in the fixed vote of ``OASIS-joint``, 0 to 1; the atlases share the rest.

    Raises:
        ConfigError: naming ``joint.<key>``.
    """

    pretrained: bool = field(default=True, metadata=not_used_by("volume"))
    decoder: tuple[int, ...] = field(default=(96, 48, 32, 16), metadata=not_used_by("volume"))
    atlases: int = field(default=0, metadata=not_used_by("volume"))
    members: int = field(default=1, metadata=not_used_by("volume"))
    slice_budget: float = 0.5
    volume_budget: float = 0.35
    volume_network: str = VOLUME_NETWORKS[0]
    volume_stride: tuple[int, ...] = (2, 2, 1)
    slices_per_step: int = field(default=12, metadata=not_used_by("volume"))
    lr: float = field(default=1e-3, metadata=not_used_by("volume"))
    encoder_lr: float = field(default=0.3, metadata=not_used_by("volume"))
    empty_slice_weight: float = field(default=0.25, metadata=not_used_by("volume"))
    tta_views: int = field(default=4, metadata=INFERENCE_ONLY)
    tta_flip: bool = field(default=True, metadata=not_used_by("slices", "volume"))  # registration is trained on the estimates
    recentre: bool = field(default=True, metadata=INFERENCE_ONLY)
    fusion: str = field(default="learned", metadata=INFERENCE_ONLY)
    estimate_weight: float = field(default=0.75, metadata=INFERENCE_ONLY)
    cross_fit_budget: float = field(default=0.0, metadata=absent_as(0.0) | not_used_by("slices", "volume"))
    estimate_dice: float = field(default=1.0, metadata=absent_as(1.0) | not_used_by("slices", "volume"))
    box_budget: float = field(default=0.0, metadata=absent_as(0.0) | not_used_by("slices", "volume"))
    even_draws: bool = field(default=False, metadata=absent_as(False) | not_used_by("volume"))
    anywhere: tuple[str, ...] = field(default=(), metadata=absent_as(()) | not_used_by("volume"))

    def __post_init__(self) -> None:
        make_tuples(self, "decoder", "volume_stride", "anywhere")
        levels, stride = len(ENCODER) - 1, self.volume_stride
        left = "0 or more, and with joint.slice_budget and joint.volume_budget below 1"
        require(
            self,
            "joint",
            ("decoder", len(self.decoder) == levels and min(self.decoder) > 0, f"{levels} positive numbers"),
            ("atlases", self.atlases in (0, 2), "0 or 2"),
            ("members", self.members > 0, "1 or more networks"),
            ("slice_budget", 0 < self.slice_budget < 1, "above 0 and below 1"),
            ("volume_budget", 0 <= self.volume_budget < 1 - self.slice_budget, "0 or more, and with joint.slice_budget below 1"),
            ("cross_fit_budget", 0 <= self.cross_fit_budget < 1 - self.slice_budget - self.volume_budget, left),
            ("box_budget", 0 <= self.box_budget < 1 - self.slice_budget - self.volume_budget - self.cross_fit_budget, left),
            ("estimate_dice", 0 < self.estimate_dice <= 1, "above 0, at most 1 (as they are)"),
            ("volume_network", self.volume_network in VOLUME_NETWORKS, f"one of {list(VOLUME_NETWORKS)}"),
            ("volume_stride", len(stride) == 3 and min(stride) > 0, "3 whole numbers of 1 or more"),
            ("slices_per_step", self.slices_per_step > 0, "1 or more slices"),
            ("lr", self.lr > 0, "a positive learning rate"),
            ("encoder_lr", self.encoder_lr >= 0, "0 (a fixed encoder) or more"),
            ("empty_slice_weight", 0 < self.empty_slice_weight <= 1, "above 0, at most 1"),
            ("tta_views", 0 <= self.tta_views <= len(VIEWS), f"0 to {len(VIEWS)}"),
            ("fusion", self.fusion in FUSIONS, f"one of {list(FUSIONS)}"),
            ("estimate_weight", 0 <= self.estimate_weight <= 1, "0 to 1"),
        )

    def budgets(self, spatial_dims: int) -> tuple[float, float, float]:
        """The parts of the budget: slice network, volume network, STM."""
        volume = self.volume_budget if spatial_dims == 3 else 0.0
        slices = self.slice_budget + self.volume_budget - volume
        return slices, volume, 1 - slices - volume - self.cross_fit_budget - self.box_budget

    def identity(self, network: str = "slices") -> dict[str, Any]:
        """What decides the weights of one of the networks, as plain JSON values.

        Args:
            network: ``slices``, ``volume``, or ``registration``, which learns from the estimates of the other two.
        """
        design = {} if network == "volume" else {"design": DESIGN, **({"beside": BESIDE} if self.atlases else {})}
        return identity_of(self, network) | design


def check_size(size: Sequence[int]) -> None:
    """Refuse working grids whose slices are too small for the encoder.

    Raises:
        ConfigError: a side of the slice is below 32 voxels.
    """
    if min(size[:2]) < LEAST:
        raise ConfigError("preprocessing.size", f"slices of at least {LEAST} voxels a side for a joint model", tuple(size))


def with_neighbours(volume: torch.Tensor) -> torch.Tensor:
    """(c, x, y, z) -> (z, 3c, x, y): every slice with the ones below and above as channels, those of one channel of the scan
    together; the end slices are repeated."""
    padded = torch.cat([volume[..., :1], volume, volume[..., -1:]], -1)
    return padded.unfold(3, 3, 1).permute(3, 0, 4, 1, 2).flatten(1, 2).contiguous()


class SliceUNet(nn.Module):
    """U-Net with EfficientNet-Lite0 as its encoder.

    Args:
        classes: output channels, background included.
        atlases: number of atlases after the three slices, ``channels + classes - 1`` channels each: image, structures
            (:func:`.append_atlas_channels`). They enter the encoder by a convolution that starts at zero, so that the
            pre-trained network first sees familiar input. The mean of their labels is added to the logits, so that the network
            learns where the slice differs from its atlases.
        shape: after the atlases follows the expected shape of each structure, ``classes - 1`` channels, which replaces the
            mean label.
        decoder: see :class:`JointSettings`.
        pretrained: load the ImageNet weights of the installed package.
        channels: of a scan. The first convolution of an encoder for several starts as that of one does on their mean.
        structures: where structures share voxels, the classes of each: the network has an output for each structure, which it
            gives in training, and makes logits of classes of them (:mod:`.structures`).
        places: further channels behind the slices, without atlases: where every voxel lies. A linear function of them, 0 at
            first, is added to the logits. It could not come in earlier: the decoder's instance norms take away what is the same
            all over a window.

    Shapes: ``forward((B, 3 * channels + extra, x, y)) -> (B, classes, x, y)`` logits, ``extra`` those of atlases and shape.
    ``bfloat16`` runs the decoder in bfloat16 and, while training on a CPU, also the encoder's convolutions of one voxel.

    The encoder's batch norms keep the statistics of ImageNet in training as well: a batch of neighbouring slices has no
    statistics worth learning.
    """

    of: torch.Tensor | None

    def __init__(
        self,
        classes: int,
        atlases: int = 0,
        decoder: Sequence[int] = (96, 48, 32, 16),
        pretrained: bool = True,
        shape: bool = False,
        channels: int = 1,
        structures: Sequence[Sequence[int]] = (),
        places: int = 0,
    ) -> None:
        super().__init__()
        from oasis_monai.networks.encoders import imagenet_network, untrained_network

        self.encoder: Any = (imagenet_network if pretrained else untrained_network)("efficientnet-lite0")
        for unused in ("_conv_head", "_bn1", "_fc"):
            setattr(self.encoder, unused, nn.Identity())
        self.classes, self.atlases, self.shape, self.channels = classes, atlases, shape, channels
        if channels > 1:
            _widen(self.encoder._conv_stem, channels)
        beside = atlases * (channels + classes - 1) + shape * (classes - 1)
        self.extra = nn.Conv2d(beside, 32, 3, 2, 1) if atlases else None
        outputs = len(structures) or classes
        self.place = nn.Conv2d(places, outputs, 1) if places else None
        self.trust = nn.Parameter(torch.ones(())) if atlases else None
        if self.extra is not None:
            nn.init.zeros_(self.extra.weight)
            nn.init.zeros_(self.extra.bias)  # type: ignore[arg-type]
        if self.place is not None:
            nn.init.zeros_(self.place.weight)
            nn.init.zeros_(self.place.bias)  # type: ignore[arg-type]
        below = (ENCODER[-1], *decoder[:3])
        skips = ENCODER[-2::-1]
        self.up = nn.ModuleList(_twice(b + skip, out) for b, skip, out in zip(below, skips, decoder, strict=True))
        self.register_buffer("of", membership(structures, classes) if structures else None, persistent=False)
        self.last = nn.Sequential(nn.Conv2d(decoder[-1], 4 * outputs, 3, padding=1), nn.PixelShuffle(2))
        avoid_bfloat16_bug(self)

    def train(self, mode: bool = True) -> SliceUNet:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: torch.Tensor, bfloat16: bool = False) -> torch.Tensor:
        net, (height, width), own = self.encoder, image.shape[2:], 3 * self.channels
        image = F.pad(image, (0, width % 2, 0, height % 2))
        h = net._conv_stem(image[:, :own])
        if self.extra is not None:
            h = h + F.interpolate(self.extra(image[:, own:]), size=h.shape[2:])
        h = net._swish(net._bn0(h))
        skips: list[torch.Tensor] = []
        fits = torch.is_grad_enabled() and h.device.type == "cpu" and isinstance(net._bn0, nn.BatchNorm2d)
        for block in net._blocks:
            if block._depthwise_conv.stride[0] == 2:
                skips.append(h)
            h = depthwise.block(block, h, bfloat16) if fits else block(h)
        # on a CPU the encoder's depthwise convolutions are slower in bfloat16 than in float32, the decoder's convolutions faster;
        # and instance norms, which come with channels first only, are faster where nothing has to be rearranged for them
        with torch.autocast(image.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            for up, skip in zip(self.up, reversed(skips), strict=True):
                h = up(torch.cat([F.interpolate(h.contiguous(), size=skip.shape[2:]), skip.contiguous()], 1))
            logits: torch.Tensor = self.last(h)
        if self.trust is not None:
            logits = logits.float() + self.prior_logits(image[:, own:], self.trust)
        if self.place is not None:
            logits = logits.float() + self.place(image[:, own:].float())
        if self.of is not None and not self.training:
            logits = class_logits(logits, self.of)
        return logits[..., :height, :width]

    def prior_logits(self, beside: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """(B, classes, x, y) logits from the atlases' labels or the expected shape, before the image is used; of structures that
        share voxels one for each."""
        if self.shape:  # bounded, so that the image can always overrule it
            inside = 2 * torch.tanh(trust * MAX_DISTANCE / 2 * (beside[:, 1 - self.classes :] - 1))
            if self.of is not None:  # a structure is where any of its classes is
                return torch.stack([inside[:, own[1:].bool()].amax(1) for own in self.of], 1)
            return torch.cat([-inside.amax(1, keepdim=True), inside], 1)
        labels = beside.unflatten(1, (self.atlases, -1))[:, :, self.channels :].mean(1)
        if self.of is not None:
            return trust * (2 * torch.einsum("kc,bcxy->bkxy", self.of[:, 1:].to(labels), labels) - 1)
        return trust * (2 * torch.cat([1 - labels.sum(1, keepdim=True), labels], 1) - 1)


class SliceUNetEnsemble(nn.Module):
    """Slice networks whose mean is the estimate; trained one by one, saved and loaded together."""

    def __init__(self, members: Sequence[SliceUNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)


def _widen(stem: Any, channels: int) -> None:
    """Let a convolution of three channels take three of every channel of a scan, with the response it has to their mean."""
    stem.weight = nn.Parameter(stem.weight.detach().repeat(1, channels, 1, 1) / channels)
    stem.in_channels = stem.weight.shape[1]


def _once(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)
    )


def _twice(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(_once(inside, outside), _once(outside, outside))
