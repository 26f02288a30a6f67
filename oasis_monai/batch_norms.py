"""Batch norms taken into the convolutions before them: what a network that is no longer trained can do without."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)
PAIRS = (  # convolution, and the batch norm behind it, in EfficientNet-Lite and in its blocks
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


def without_batch_norms(network: Network) -> Network:
    """A copy of ``network`` for inference, every batch norm of an EfficientNet-Lite in it (and of none other) taken into its
    convolution: the same function but for rounding, and faster (docs/speed.md). Where there is none, the copy only.
    """
    network = copy.deepcopy(network).eval()
    for part in list(network.modules()):
        for convolution, norm in PAIRS:
            before, behind = getattr(part, convolution, None), getattr(part, norm, None)
            if isinstance(before, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d):
                setattr(part, convolution, fuse_conv_bn_eval(before, behind))
                setattr(part, norm, nn.Identity())
    return network
