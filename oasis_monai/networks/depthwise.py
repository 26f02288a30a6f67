"""Faster training of EfficientNet-Lite blocks on a CPU, with fixed batch norm statistics (docs/results/speed.md).

The functions give the same values as the package's own blocks. A batch norm with fixed statistics is a scale and a shift, which
are multiplied into the weights of the convolution before it at every step. Convolutions of one voxel become matrix products.
oneDNN takes ten times as long for the weight gradient of a 5 x 5 depthwise convolution as for 3 x 3, so the gradient is
assembled from four 3 x 3 gradients. Convolution, norm and ReLU6 are one step each way, so that what goes from one to the other is
kept once, in bfloat16 where it is computed so, and not as often as there are operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

SIDE, PART = 5, 3
CORNERS = (0, SIDE - PART)  # offsets of the 3 x 3 parts in the 5 x 5 kernel; taps in two parts have the same gradient in both
TOP = 6.0  # of ReLU6


def block(layers: Any, image: torch.Tensor, bfloat16: bool = False) -> torch.Tensor:
    """``layers(image)`` of an inverted residual block with gradients, its batch norms in evaluation mode.

    Args:
        layers: a block of EfficientNet-Lite: expansion (but in the first), depthwise convolution, projection.
        image: (B, C, x, y) float32, channels last.
        bfloat16: the convolutions of one voxel in bfloat16; depthwise ones would be slower.
    """
    output = image
    if hasattr(layers, "_expand_conv"):
        output = _pointwise(layers._expand_conv, layers._bn0, output, bfloat16, True)
    output = _depthwise(layers._depthwise_conv, layers._bn1, output)
    output = _pointwise(layers._project_conv, layers._bn2, output, bfloat16, False)
    return output + image if output.shape == image.shape and layers.id_skip else output


def _pointwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d, image: torch.Tensor, bfloat16: bool, relu6: bool) -> torch.Tensor:
    output: torch.Tensor = _Pointwise.apply(image, convolution.weight, *_affine(norm), bfloat16, relu6)
    return output


def _depthwise(convolution: nn.Conv2d, norm: nn.BatchNorm2d, image: torch.Tensor) -> torch.Tensor:
    """With the ReLU6 behind it."""
    left, right, top, bottom = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    padding = (top, left)
    if left != right or top != bottom:
        image, padding = F.pad(image, (left, right, top, bottom)), (0, 0)
    stride = (convolution.stride[0], convolution.stride[1])
    output: torch.Tensor = _Depthwise.apply(image, convolution.weight, *_affine(norm), stride, padding)
    return output


def _affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight and bias of a batch norm, and the fixed mean and inverse standard deviation."""
    if norm.running_var is None or norm.running_mean is None:
        raise ValueError("a batch norm without statistics")
    return norm.weight, norm.bias, norm.running_mean, torch.rsqrt(norm.running_var + norm.eps)


class _Folded(NamedTuple):
    """A batch norm multiplied into the convolution (without bias) before it. torch's ``fuse_conv_bn_weights`` makes new
    parameters, through which no gradient flows back.

    Args:
        weight: (O, I, x, y) of the convolution.
        scale: (O,) that the norm multiplies with.
        mean, inverse: (O,) fixed statistics.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    inverse: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, norm_weight: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor) -> _Folded:
        return cls(weight, norm_weight * inverse, mean, inverse)

    def weights(self, norm_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of a convolution that does what both do, and its bias."""
        return self.weight * self.scale[:, None, None, None], torch.addcmul(norm_bias, self.mean, self.scale, value=-1)

    def gradients(self, of_weight: torch.Tensor, of_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of the convolution's weight and the norm's weight and bias, from those of :meth:`weights`."""
        of_scale = torch.addcmul((of_weight * self.weight).sum((1, 2, 3)), of_bias, self.mean, value=-1)
        return of_weight * self.scale[:, None, None, None], of_scale * self.inverse, of_bias


class _Pointwise(torch.autograd.Function):
    """A convolution of one voxel with its batch norm, and ReLU6 where asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        weight: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        mean: torch.Tensor,
        inverse: torch.Tensor,
        bfloat16: bool,
        relu6: bool,
    ) -> torch.Tensor:
        fold = _Folded.of(weight, norm_weight, mean, inverse)
        matrix, bias = fold.weights(norm_bias)
        rows, matrix = _rows(image), matrix.flatten(1)
        if bfloat16:
            rows, matrix, bias = rows.bfloat16(), matrix.bfloat16(), bias.bfloat16()
        output = torch.addmm(bias, rows, matrix.t())
        if relu6:
            output.clamp_(0, TOP)
        ctx.save_for_backward(rows, matrix, output if relu6 else None, *fold)
        ctx.shape = image.shape
        return _image(output.float(), image.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, matrix, output, *fold = ctx.saved_tensors
        grad = _rows(grads[0]).to(rows.dtype)
        if output is not None:
            grad = torch.ops.aten.hardtanh_backward(grad, output, 0, TOP)
        of_image = _image((grad @ matrix).float(), ctx.shape) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = (grad.t() @ rows).float()[:, :, None, None], grad.sum(0, dtype=torch.float32)
        return of_image, *_Folded(*fold).gradients(of_weight, of_bias), None, None, None, None


def _rows(image: torch.Tensor) -> torch.Tensor:
    """(B, C, x, y) -> (B x y, C), a view where channels are last."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def _image(rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(B x y, C) -> (B, C, x, y), channels last."""
    return rows.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with its batch norm and ReLU6; a weight gradient of 5 x 5 is assembled from four of 3 x 3."""

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        weight: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        mean: torch.Tensor,
        inverse: torch.Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        fold = _Folded.of(weight, norm_weight, mean, inverse)
        kernels, bias = fold.weights(norm_bias)
        output = F.conv2d(image, kernels, bias, stride, padding, groups=len(weight)).clamp_(0, TOP)
        ctx.save_for_backward(image, kernels, output, *fold)
        ctx.stride, ctx.padding = stride, padding
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, kernels, output, *fold = ctx.saved_tensors
        grad = torch.ops.aten.hardtanh_backward(grads[0], output, 0, TOP)
        wanted = ctx.needs_input_grad[0]
        if kernels.shape[2:] == (SIDE, SIDE):
            of_image = _gradients(grad, image, kernels, ctx.stride, ctx.padding, (wanted, False))[0]
            of_weight = _gradient_by_parts(grad, image, kernels, ctx.stride, ctx.padding)
        else:
            of_image, of_weight = _gradients(grad, image, kernels, ctx.stride, ctx.padding, (wanted, True))
        return of_image, *_Folded(*fold).gradients(of_weight, grad.sum((0, 2, 3))), None, None, None, None


def _gradient_by_parts(
    grad: torch.Tensor, image: torch.Tensor, kernels: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """The gradient of the kernels from those of their corners."""
    if any(padding):
        image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    of_weight, part = torch.empty_like(kernels), kernels.new_empty(len(kernels), 1, PART, PART)
    x, y = ((n - 1) * s + PART for n, s in zip(grad.shape[2:], stride, strict=True))  # what the taps of a part see
    for i in CORNERS:
        for j in CORNERS:
            seen = image[:, :, i : i + x, j : j + y].contiguous(memory_format=torch.channels_last)
            of_weight[:, :, i : i + PART, j : j + PART] = _gradients(grad, seen, part, stride, (0, 0), (False, True))[1]
    return of_weight


def _gradients(
    grad: torch.Tensor,
    image: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's gradients of the image and of the weights, where wanted."""
    found: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), [*wanted, False]
    )
    return found[0], found[1]
