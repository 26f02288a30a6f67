"""Blocks of EfficientNet-Lite while they are trained: the package's function and gradients, by other means."""

import pytest
import torch

from oasis_monai.networks import depthwise
from oasis_monai.networks.encoders import untrained_network
from oasis_monai.networks.slice_unet import SliceUNet

BLOCKS = {  # of the encoder, by what is special about them
    "without expansion": 0,
    "3 x 3, stride 2": 1,
    "3 x 3, skip": 2,
    "5 x 5, stride 2": 3,
    "5 x 5, skip": 4,
    "5 x 5, more channels": 8,
}


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    network = untrained_network("efficientnet-lite0").eval()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # statistics, scale and shift of a network that was trained
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias)
            torch.nn.init.normal_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.1, 2.0)
    return network


def _made(layers, image: torch.Tensor, run) -> list[torch.Tensor]:
    image = image.clone().requires_grad_()
    made = run(image)
    made.square().mean().backward()
    found = [made.detach(), image.grad, *(p.grad for p in layers.parameters())]
    layers.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (3, 5)])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_and_its_gradients_are_the_packages(encoder, name: str, size: tuple[int, int]) -> None:
    layers = encoder._blocks[BLOCKS[name]]
    first = layers._expand_conv if hasattr(layers, "_expand_conv") else layers._depthwise_conv
    image = torch.randn(2, first.in_channels, *size).contiguous(memory_format=torch.channels_last)
    expected = _made(layers, image, layers)
    found = _made(layers, image, lambda seen: depthwise.block(layers, seen))
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["3 x 3, skip", "5 x 5, stride 2"])
def test_in_bfloat16_it_is_nearly_the_same(encoder, name: str) -> None:
    layers = encoder._blocks[BLOCKS[name]]
    image = torch.randn(2, layers._expand_conv.in_channels, 12, 12).contiguous(memory_format=torch.channels_last)
    expected = _made(layers, image, layers)
    found = _made(layers, image, lambda seen: depthwise.block(layers, seen, bfloat16=True))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm()) < 0.05 * float(other.norm())
    assert any(float((one - other).norm()) > 1e-4 * float(other.norm()) for one, other in zip(found, expected, strict=True))


def test_slice_network_is_the_same_function_trained_and_used() -> None:
    torch.manual_seed(1)
    network, image = SliceUNet(2, 2, (8, 8, 8, 8), pretrained=False).train(), torch.randn(2, 7, 64, 48)
    with torch.no_grad():
        used = network(image)
    torch.testing.assert_close(network(image), used, rtol=1e-4, atol=1e-5)


def test_norms_that_learn_no_statistics_are_asked_for() -> None:
    norm = torch.nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="without statistics"):
        depthwise._affine(norm)
