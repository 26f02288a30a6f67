"""Layers that train faster: torch's functions and gradients, and torch's own layers to the bit where nothing is trained."""

import copy

import pytest
import torch
from torch import nn

from oasis_monai.networks import fast_training
from oasis_monai.networks.fast_training import NARROW, speed_up_training
from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel


def layers(dims: int, affine: bool) -> nn.Sequential:
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    slope = nn.PReLU()
    nn.init.constant_(slope.weight, -0.3)  # learned slopes become negative, too
    return nn.Sequential(conv(3, 8, 3, padding=1), norm(8, affine=affine), slope, conv(8, 2, 3, padding=1))


def made(network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    image = image.clone(memory_format=torch.preserve_format).requires_grad_()
    output = network(image)
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return [output.detach(), image.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [(7, 10), (5, 6, 4)])
def test_values_and_gradients_are_torchs(
    size: tuple[int, ...], affine: bool, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_training, "SMALL", 0)
    torch.manual_seed(0)
    network, image = layers(len(size), affine).double(), torch.randn(3, 3, *size, dtype=torch.float64)
    if last:
        image = image.contiguous(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)
    fast = speed_up_training(copy.deepcopy(network))
    assert type(fast[1]) not in (nn.InstanceNorm2d, nn.InstanceNorm3d)
    assert type(fast[2]) is not nn.PReLU
    assert list(fast.state_dict()) == list(network.state_dict())
    for one, other in zip(made(fast, image), made(network, image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * max(1.0, float(other.abs().max())))


def test_without_gradients_nothing_changes() -> None:
    torch.manual_seed(0)
    network, image = layers(3, True), torch.randn(2, 3, 6, 5, 4)
    fast = speed_up_training(copy.deepcopy(network))
    with torch.no_grad():
        assert torch.equal(fast(image), network(image))


def test_only_narrow_convolutions_without_stride_change() -> None:
    network = nn.Sequential(
        nn.Conv3d(8, NARROW, 3),
        nn.Conv3d(8, NARROW + 1, 3),
        nn.Conv3d(8, NARROW, 3, 2),
        nn.Conv3d(8, NARROW, 1),
        nn.Conv2d(8, 1, 3),
    )
    changed = [type(part) not in (nn.Conv2d, nn.Conv3d) for part in speed_up_training(network)]
    assert changed == [True, False, False, False, False]


def test_norms_that_keep_statistics_stay_torchs() -> None:
    torch.manual_seed(0)
    norm, image = nn.InstanceNorm2d(3, track_running_stats=True), torch.randn(2, 3, 8, 8)
    fast = speed_up_training(copy.deepcopy(norm))
    assert torch.equal(fast(image), norm(image))
    assert torch.equal(fast.running_mean, norm.running_mean)


def test_the_flow_is_trained_in_float32_and_used_as_it_was() -> None:
    torch.manual_seed(0)
    network = SpatialTransformModel((32, 32), RegistrationSettings(field_stride=(2, 2), channels=(4, 8), joint=False))
    flow = network.body[1]
    nn.init.normal_(flow.weight)
    seen = []
    flow.register_forward_hook(lambda _layer, _image, output: seen.append(output.dtype))
    pair = torch.randn(2, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        network.train()(pair, pair)
        network.eval()(pair, pair)
    assert seen == [torch.float32, torch.bfloat16]
