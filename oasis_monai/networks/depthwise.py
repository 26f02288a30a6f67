"""Faster training of EfficientNet-Lite blocks on a CPU, with fixed batch norm statistics (docs/results/speed.md).

The functions give the same values as the package's own blocks. A batch norm with fixed statistics is a scale and a shift, which
are multiplied into the weights of the convolution before it at every step. Convolutions of one voxel become matrix products.
oneDNN takes ten times as long for the weight gradient of a 5 x 5 depthwise convolution as for 3 x 3, so the gradient is
assembled from four 3 x 3 gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SIDE, PART = 5, 3
CORNERS = (0, SIDE - PART)  # offsets of the 3 x 3 parts in the 5 x 5 kernel; taps in two parts have the same gradient in both


def block(layers: Any, image: torch.Tensor, bfloat16: bool = False) -> torch.Tensor:
    """``layers(image)`` of an inverted residual block with gradients, its batch norms in evaluation mode.

    Args:
        layers: a block of EfficientNet-Lite: expansion (but in the first), depthwise convolution, projection.
        image: (B, C, x, y) float32, channels last.
        bfloat16: the convolutions of one voxel in bfloat16; depthwise ones would be slower.
    """
    output = image
    if hasattr(layers, "_expand_conv"):
        output = F.relu6(_pointwise(layers._expand_conv, layers._bn0, output, bfloat16))
    output = F.relu6(_depthwise(layers._depthwise_conv, layers._bn1, output))
    output = _pointwise(layers._project_conv, layers._bn2, output, bfloat16)
    return output + image if output.shape == image.shape and layers.id_skip else output


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a batch norm into the convolution (without bias) before it: (weights, bias), with gradients.

    torch's ``fuse_conv_bn_weights`` makes new parameters, through which no gradient flows back.
    """
    if norm.running_var is None or norm.running_mean is None:
        raise ValueError("a batch norm without statistics")
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _pointwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d, image: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    weight, bias = folded(convolution, norm)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = F.linear(image.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias)
    return output.float().permute(0, 3, 1, 2)


def _depthwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d, image: torch.Tensor) -> torch.Tensor:
    weight, bias = folded(convolution, norm)
    image = convolution.static_padding(image)  # type: ignore[operator]
    stride = (convolution.stride[0], convolution.stride[1])
    if weight.shape[2:] != (SIDE, SIDE):
        return F.conv2d(image, weight, bias, stride, groups=len(weight))
    output: torch.Tensor = _Depthwise.apply(image, weight, bias, stride)
    return output


class _Depthwise(torch.autograd.Function):
    """A 5 x 5 depthwise convolution without padding, whose weight gradient is assembled from four 3 x 3 gradients."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride = stride
        return F.conv2d(image, weight, bias, stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (image, weight) = grads, ctx.saved_tensors
        of_image = _gradient(grad, image, weight, ctx.stride, 0) if ctx.needs_input_grad[0] else None
        of_weight, part = torch.empty_like(weight), weight.new_empty(len(weight), 1, PART, PART)
        x, y = ((n - 1) * s + PART for n, s in zip(grad.shape[2:], ctx.stride, strict=True))  # what the taps of a part see
        for i in CORNERS:
            for j in CORNERS:
                seen = image[:, :, i : i + x, j : j + y].contiguous(memory_format=torch.channels_last)
                of_weight[:, :, i : i + PART, j : j + PART] = _gradient(grad, seen, part, ctx.stride, 1)
        return of_image, of_weight, grad.sum((0, 2, 3)), None


def _gradient(grad: torch.Tensor, image: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], which: int) -> torch.Tensor:
    """torch's gradient of the image (``which`` 0) or of the weights (1)."""
    wanted = [which == 0, which == 1, False]
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, (0, 0), (1, 1), False, (0, 0), len(weight), wanted
    )[which]
    return found
