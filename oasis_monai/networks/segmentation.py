"""Segmentation networks built of MONAI's blocks: the comparison methods, and the joint model's volume network.

``ConvNet``: the volumetric ConvNet with mixed long and short residual connections and deep supervision of Yu, Yang, Chen, Qin
and Heng, "Volumetric ConvNets with mixed residual connections for automated prostate segmentation from 3D MR images", AAAI 2017
(ConvNet3D in arXiv 1912.02417, Table 1; the same layers in 2D are its ConvNet2D). ``U-Net``: MONAI's residual U-Net; its first
layer halves the grid. ``DynU-Net``: the layout of MONAI's DynUNet (Isensee et al., "nnU-Net", Nature Methods 2021), which
convolves on the full grid: fewer steps in the same minutes, but finer outlines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from oasis_monai.networks.layers import avoid_bfloat16_bug
from oasis_monai.networks.structures import StructureNetwork
from oasis_monai.utils.config import INFERENCE_ONLY, identity_of, make_tuples, require
from oasis_monai.utils.device import infer_in_bfloat16
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.memory import Batched

NETWORKS = {"ConvNet2D": 2, "ConvNet3D": 3, "U-Net2D": 2, "U-Net3D": 3, "DynU-Net2D": 2, "DynU-Net3D": 3}
"""Method name -> spatial dimensions."""
KINDS = ("convnet", "unet", "dynunet")
"""Keys of :class:`NetworkSettings` that hold a network's channels."""


def _only_of(kind: str) -> dict[str, str]:
    """Metadata of a field that networks of one kind read."""
    return {"only_of": kind}


@dataclass(frozen=True)
class NetworkSettings:
    """The size of the segmentation networks and how they see an image. The fields are the keys of ``conf/network``.

    Args:
        convnet, unet, dynunet: feature channels per level of the networks of that kind, finest first; two or more levels, each of
            1 or more. Every level halves the grid.
        deep_supervision: weights of the ConvNet's auxiliary losses, 0 or more, from its second finest decoder level downwards.
        patch: voxels along x, y (, z) that a network sees at once, in training and in sliding-window inference; None for the
            whole working grid, or on a fine grid what :func:`oasis_monai.networks.patches.on_fine_grid` chooses.
        overlap: overlap of neighbouring windows as a fraction of the patch, 0 or more and below 1.

    Raises:
        ConfigError: naming ``network.<key>``.
    """

    convnet: tuple[int, ...] = field(default=(8, 16, 32, 64), metadata=_only_of("convnet"))
    unet: tuple[int, ...] = field(default=(16, 32, 64, 128, 256), metadata=_only_of("unet"))
    dynunet: tuple[int, ...] = field(default=(16, 32, 64, 128), metadata=_only_of("dynunet"))
    deep_supervision: tuple[float, ...] = field(default=(0.5, 0.25), metadata=_only_of("convnet"))
    patch: tuple[int, ...] | None = None
    overlap: float = field(default=0.5, metadata=INFERENCE_ONLY)

    def __post_init__(self) -> None:
        make_tuples(self, *KINDS, "deep_supervision", *(() if self.patch is None else ("patch",)))
        require(
            self,
            "network",
            *(
                (kind, len(getattr(self, kind)) > 1 and min(getattr(self, kind)) > 0, "two or more positive numbers")
                for kind in KINDS
            ),
            ("deep_supervision", all(w >= 0 for w in self.deep_supervision), "weights of 0 or more"),
            (
                "patch",
                self.patch is None or (len(self.patch) > 0 and min(self.patch) > 0),
                "positive numbers of voxels, or null",
            ),
            ("overlap", 0 <= self.overlap < 1, "0 or more and below 1"),
        )

    def window(self, size: Sequence[int], name: str) -> tuple[int, ...]:
        """The patch on a grid of ``size``, checked against what the network ``name`` can take.

        Raises:
            ConfigError: the patch is larger than the grid, has the wrong number of axes, or cannot be halved often enough.
        """
        patch = self.patch or tuple(size)
        key = "preprocessing.size" if self.patch is None else "network.patch"
        if len(patch) != len(size) or any(p > s for p, s in zip(patch, size, strict=True)):
            raise ConfigError(key, f"{len(size)} numbers, none above the grid {tuple(size)}", list(patch))
        by = self.divisor(name)
        if any(p % by for p in patch) or all(p == by for p in patch):
            expected = f"multiples of {by}, not all of them {by}, for {name}"
            raise ConfigError(key, expected, list(patch), f"change it or take fewer levels in network.{self.kind(name)}")
        return patch

    def divisor(self, name: str) -> int:
        """What every side must be a multiple of for the network ``name``: it halves that often."""
        return int(2 ** (len(self.channels(name)) - 1))

    @staticmethod
    def kind(name: str) -> str:
        """The key of the network's channels."""
        return re.sub(r"-|[23]D$", "", name).lower()

    def channels(self, name: str) -> tuple[int, ...]:
        """The channels of the network ``name``."""
        channels: tuple[int, ...] = getattr(self, self.kind(name))
        return channels

    def identity(self, name: str) -> dict[str, Any]:
        """What decides the weights of the network ``name``, as plain JSON values: all but what other kinds of network read."""
        of_others = {f.name for f in fields(self) if f.metadata.get("only_of", self.kind(name)) != self.kind(name)}
        return {"name": name, **{k: v for k, v in identity_of(self, "segmentation").items() if k not in of_others}}


def make_network(
    name: str, classes: int, settings: NetworkSettings, channels: int = 1, structures: Sequence[Sequence[int]] = ()
) -> nn.Module:
    """The network of one of :data:`NETWORKS`: ``(B, channels, *S) -> (B, classes, *S)`` logits; a :class:`ConvNet` in training
    mode gives a list, its auxiliary outputs behind the main one.

    Args:
        structures: where structures share voxels, the classes of each; in training mode the network then gives their K outputs
            (:class:`.StructureNetwork`).
    """
    if structures:
        return StructureNetwork(make_network(name, len(structures), settings, channels), structures, classes)
    dims = NETWORKS[name]
    if settings.kind(name) == "convnet":
        return avoid_bfloat16_bug(ConvNet(dims, classes, settings.convnet, len(settings.deep_supervision), channels))
    if settings.kind(name) == "dynunet":
        return avoid_bfloat16_bug(DynUNet(dims, classes, settings.dynunet, channels))
    from monai.networks.nets import UNet

    levels = settings.unet
    return avoid_bfloat16_bug(UNet(dims, channels, classes, levels, (2,) * (len(levels) - 1), num_res_units=2, norm="instance"))


class DynUNet(nn.Module):
    """MONAI's DynUNet without residual blocks and deep supervision, of MONAI's own blocks: that class registers each of its
    layers twice, which a safetensors file refuses.

    Args:
        spatial_dims: 2 or 3.
        classes: output channels, background included.
        channels: per level, finest first.
        in_channels: of an image.
    """

    def __init__(self, spatial_dims: int, classes: int, channels: Sequence[int], in_channels: int = 1) -> None:
        from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock

        super().__init__()
        norm = ("INSTANCE", {"affine": True})
        levels = list(itertools.pairwise(channels))
        self.encoder = nn.ModuleList([UnetBasicBlock(spatial_dims, in_channels, channels[0], 3, 1, norm)])
        self.encoder.extend(UnetBasicBlock(spatial_dims, fine, coarse, 3, 2, norm) for fine, coarse in levels)
        self.decoder = nn.ModuleList(
            [UnetUpBlock(spatial_dims, coarse, fine, 3, 2, 2, norm) for fine, coarse in reversed(levels)]
        )
        self.head = UnetOutBlock(spatial_dims, channels[0], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, *S) -> (B, classes, *S) logits; every S a multiple of ``2 ** (levels - 1)``."""
        features = []
        for block in self.encoder:
            image = block(image)
            features.append(image)
        image = features.pop()
        for block in self.decoder:
            image = block(image, features.pop())
        logits: torch.Tensor = self.head(image)
        return logits


class ConvNet(nn.Module):
    """Residual encoder and decoder; skips are sums ("long" residual connections), as are those within a level ("short" ones).

    Args:
        spatial_dims: 2 or 3.
        classes: output channels, background included.
        channels: per level, finest first.
        auxiliary: how many decoder levels beside the finest have an output of their own in training; levels that are not
            there are left out.
        in_channels: of an image.

    Normalisation is per instance, not per batch as in the paper: our batches are too small for batch statistics.
    """

    def __init__(
        self, spatial_dims: int, classes: int, channels: Sequence[int], auxiliary: int = 2, in_channels: int = 1
    ) -> None:
        super().__init__()
        from monai.networks.blocks import Convolution, ResidualUnit

        def residual(inside: int, outside: int) -> nn.Module:
            return ResidualUnit(spatial_dims, inside, outside, kernel_size=3, subunits=2, norm="instance")

        def change(inside: int, outside: int, up: bool) -> nn.Module:
            return Convolution(spatial_dims, inside, outside, strides=2, norm="instance", is_transposed=up)

        pairs = list(itertools.pairwise(channels))
        self.first = residual(in_channels, channels[0])
        self.down = nn.ModuleList(nn.Sequential(change(a, b, False), residual(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(change(b, a, True) for a, b in pairs)
        self.decode = nn.ModuleList(residual(a, a) for a, _ in pairs)
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.heads = nn.ModuleList(conv(a, classes, 1) for a, _ in pairs[: auxiliary + 1])
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        encoded = [self.first(image)]
        for down in self.down:
            encoded.append(down(encoded[-1]))
        features, outputs = encoded[-1], []
        for level in reversed(range(len(self.up))):
            features = self.decode[level](self.up[level](features) + encoded[level])
            if level == 0 or (self.training and level < len(self.heads)):
                outputs.append(self.heads[level](features))
        if not self.training:
            return outputs[-1]
        size = image.shape[2:]
        coarse = [F.interpolate(o, size=size, mode=self.mode, align_corners=False) for o in outputs[-2::-1]]
        return [outputs[-1], *coarse]


class Predictor(Batched):
    """A trained segmentation network: images in, class probabilities out.

    Args:
        model: ``(B, c, *S) -> (B, C, *S)`` logits.
        name: of the network, see :data:`oasis_monai.networks.segmentation.NETWORKS`.
        settings: its patch and overlap.
        device: where it runs.
        batch: windows per forward pass; fewer once memory has run out.
    """

    def __init__(
        self, model: nn.Module, name: str, settings: NetworkSettings, device: str | torch.device = "cpu", batch: int = 8
    ) -> None:
        self.model, self.name, self.settings = model.to(device).eval(), name, settings
        self.device, self.batch = torch.device(device), batch
        self.bfloat16 = self.device.type == "cuda" and infer_in_bfloat16(self.device, None)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(T, c, *S) -> (T, C, *S) float32 probabilities on the CPU, by a sliding window with Gaussian weights where the
        patch is smaller than the image."""
        from monai.inferers import sliding_window_inference

        patch = self.settings.window(images.shape[2:], self.name)

        def predict(rows: slice) -> torch.Tensor:
            part = images[rows].to(self.device, torch.float32)
            with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
                if patch == tuple(part.shape[2:]):
                    logits = self.model(part)
                else:
                    logits = sliding_window_inference(
                        part, patch, self.batch, self.model, overlap=self.settings.overlap, mode="gaussian"
                    )
            return torch.softmax(logits.float(), 1).cpu()  # type: ignore[union-attr]

        return torch.cat([made for _, made in self.in_batches(len(images), predict)])
