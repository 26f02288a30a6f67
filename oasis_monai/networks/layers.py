"""Convolution layers: batch norm folding for inference, and a workaround for a CPU bug in bfloat16."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)
PAIRS = (  # a convolution and the batch norm after it, in EfficientNet-Lite and in its blocks
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


def without_batch_norms(network: Network) -> Network:
    """Copy a network for inference, with the batch norms of any EfficientNet-Lite in it folded into the preceding convolutions.

    The copy computes the same function up to rounding, but faster (docs/results/speed.md).
    """
    network = copy.deepcopy(network).eval()
    for part in list(network.modules()):
        for convolution, norm in PAIRS:
            before, behind = getattr(part, convolution, None), getattr(part, norm, None)
            if isinstance(before, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d):
                setattr(part, convolution, fuse_conv_bn_eval(before, behind))
                setattr(part, norm, nn.Identity())
    return network


Net = TypeVar("Net", bound=nn.Module)


def avoid_bfloat16_bug(model: Net) -> Net:
    """Make convolutions run in float32 on a CPU where its bfloat16 kernels read memory that nobody wrote; returns the network.

    Of oneDNN (torch 2.13) these are two, where the image is narrow; the result is NaN, garbage or a crash:

    - strided convolutions on CPUs with AMX, where the last axis has one or two voxels;
    - the gradient of the weights of volumes, also on other CPUs, where an axis is shorter than the kernel.

    Weights and their names do not change.
    """
    for module in model.modules():
        if type(module) in _CAREFUL and _may_be_flawed(cast(nn.Conv3d, module)):
            module.__class__ = _CAREFUL[type(module)]
    return model


def _may_be_flawed(layer: nn.Conv2d | nn.Conv3d) -> bool:
    return max(layer.stride) > 1 or (len(layer.stride) == 3 and max(layer.kernel_size) > 1)


def _is_flawed(layer: nn.Conv2d | nn.Conv3d, x: torch.Tensor) -> bool:
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if max(layer.stride) > 1 and x.shape[-1] <= 2:
        return True
    shorter = any(side < kernel for side, kernel in zip(x.shape[2:], layer.kernel_size, strict=True))
    return shorter and len(layer.stride) == 3 and torch.is_grad_enabled()


class _Careful(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        if not _is_flawed(cast(nn.Conv3d, self), x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class _Conv2d(_Careful, nn.Conv2d):
    pass


class CarefulConv3d(_Careful, nn.Conv3d):
    """What :func:`avoid_bfloat16_bug` makes of a convolution of volumes."""


_CAREFUL: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Conv2d, nn.Conv3d: CarefulConv3d}
