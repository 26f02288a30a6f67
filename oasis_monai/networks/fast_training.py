"""Faster training of instance norms, PReLUs and narrow convolutions on a CPU (docs/results/speed.md).

torch computes an instance norm as a batch norm, with sums in float64, value by value. Its group norm with one channel in each
group is the same function, vectorised: a half to a quarter of the time. Its gradient of a PReLU takes seven times as long as that
of the leaky ReLU that a PReLU of one slope is. oneDNN's gradient of a convolution to two or three channels takes three to six
times as long with channels first as with channels last. Values and gradients are equal to rounding, and without gradients the
layers compute what they always did, to the bit.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from oasis_monai.networks.layers import CarefulConv3d

Net = TypeVar("Net", bound=nn.Module)
NARROW = 4
"""Most output channels of a narrow convolution."""
SMALL = 2**15
"""Values below which a function of Python's takes longer than torch's gradient of a PReLU."""


def speed_up_training(model: Net) -> Net:
    """Let the instance norms, PReLUs and narrow convolutions of a network train faster on a CPU; returns the network.

    Weights and their names do not change.
    """
    for module in model.modules():
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]
        elif isinstance(module, nn.Conv3d) and type(module) in (nn.Conv3d, CarefulConv3d) and _is_narrow(module):
            module.__class__ = _NarrowConv3d
    return model


def _trains_on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


class _FastInstanceNorm(_InstanceNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _trains_on_cpu(x) or self.track_running_stats or x[0, 0].numel() < 2:
            return super().forward(x)
        # with channels last group norms are slow
        return F.group_norm(x.contiguous(), x.shape[1], self.weight, self.bias, self.eps)


class _InstanceNorm2d(_FastInstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_FastInstanceNorm, nn.InstanceNorm3d):
    pass


class _PReLU(nn.PReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _trains_on_cpu(x) or self.num_parameters > 1 or x.numel() < SMALL:
            return super().forward(x)
        output: torch.Tensor = _LearnedSlope.apply(x, self.weight)
        return output


class _LearnedSlope(torch.autograd.Function):
    """``F.prelu`` with one slope."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.slope = float(slope)
        return F.leaky_relu(x, ctx.slope)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (grad,), (x,) = grads, ctx.saved_tensors
        of_x: torch.Tensor = torch.ops.aten.leaky_relu_backward(grad, x, ctx.slope, False)
        of_slope = (grad * x.clamp_max(0)).sum(dtype=torch.float32)
        return of_x, of_slope.view(1)


class _NarrowConv3d(CarefulConv3d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _trains_on_cpu(x):
            return super().forward(x)
        return super().forward(x.contiguous(memory_format=torch.channels_last_3d)).contiguous()


def _is_narrow(layer: nn.Conv3d) -> bool:
    """Whether oneDNN is slow with channels first: few output channels, a kernel of three voxels a side, no stride."""
    return layer.out_channels <= NARROW and max(layer.stride) == 1 and min(layer.kernel_size) > 1


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
    nn.PReLU: _PReLU,
}
