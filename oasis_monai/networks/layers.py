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


def avoid_amx_bug(model: Net) -> Net:
    """Make strided convolutions run in float32 on a CPU where the last axis has one or two voxels; returns the network.

    There, oneDNN's bfloat16 kernels for CPUs with AMX (torch 2.13) read uninitialised memory: the result is NaN, garbage or a
    crash. Weights and their names do not change.
    """
    for module in model.modules():
        if type(module) in _CAREFUL and max(cast(nn.Conv3d, module).stride) > 1:
            module.__class__ = _CAREFUL[type(module)]
    return model


def _flawed(x: torch.Tensor) -> bool:
    return x.shape[-1] <= 2 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _Careful(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        if not _flawed(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class _Conv2d(_Careful, nn.Conv2d):
    pass


class _Conv3d(_Careful, nn.Conv3d):
    pass


_CAREFUL: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Conv2d, nn.Conv3d: _Conv3d}
