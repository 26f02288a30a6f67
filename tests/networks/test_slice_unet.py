"""The network that segments slices: what it sees, where it starts, and settings it can not have."""

import pytest
import torch

from oasis_monai.networks.encoders import imagenet_network
from oasis_monai.networks.slice_unet import (
    MAX_DISTANCE,
    JointSettings,
    SliceUNet,
    with_neighbours,
)
from oasis_monai.utils.errors import ConfigError


def net(seed=0, **more):
    torch.manual_seed(seed)
    return SliceUNet(2, decoder=(8, 8, 8, 8), **more).eval()


def test_neighbours_stand_beside_every_slice():
    volume = torch.arange(5.0).expand(1, 2, 3, 5)
    got = with_neighbours(volume)
    assert got.shape == (5, 3, 2, 3)
    assert got[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert with_neighbours(volume[..., :1])[:, :, 0, 0].tolist() == [[0, 0, 0]]


def test_the_encoder_is_the_network_that_selects_atlases():
    """Pre-trained stages give, at every stride, what the ImageNet network itself computes."""
    model, whole = net(), imagenet_network("efficientnet-lite0").eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen = {}
    model.up[0].register_forward_hook(lambda _, given, __: seen.update(given=given[0]))
    x = whole._swish(whole._bn0(whole._conv_stem(image)))
    stages = []
    for block in whole._blocks:
        if block._depthwise_conv.stride[0] == 2:
            stages.append(x)
        x = block(x)
    with torch.no_grad():
        model(image)
    lowest = torch.nn.functional.interpolate(x, size=stages[-1].shape[2:])
    torch.testing.assert_close(seen["given"], torch.cat([lowest, stages[-1]], 1))


def test_statistics_of_imagenet_stay():
    model = net().train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items() if "running" in k}
    model(torch.randn(2, 3, 32, 32))
    assert before
    assert all(torch.equal(v, model.encoder.state_dict()[k]) for k, v in before.items())
    assert model.last.training


def test_atlases_start_without_a_say_in_the_encoder():
    model = net(atlases=2)
    assert model.extra is not None
    assert not model.extra.weight.any()
    assert model(torch.randn(1, 7, 32, 32)).shape == (1, 2, 32, 32)
    assert net(atlases=2, shape=True)(torch.randn(1, 8, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (33, 50)])
def test_every_size_from_32_up(size):
    logits = net(pretrained=False)(torch.randn(1, 3, *size))
    assert logits.shape == (1, 2, *size)
    assert bool(torch.isfinite(logits).all())


def test_what_the_atlases_say_is_where_the_slice_network_starts_from():
    """Without a decoder's say the result is the mean of the atlases' labels, whatever the number of classes."""
    model = SliceUNet(3, atlases=2, decoder=(8, 8, 8, 8), pretrained=False).eval()
    for weights in model.last.parameters():
        torch.nn.init.zeros_(weights)
    labels = torch.nn.functional.one_hot(torch.randint(0, 3, (1, 2, 33, 40)), 3).movedim(-1, 2).float()
    atlases = torch.cat([torch.rand(1, 2, 1, 33, 40), labels[:, :, 1:]], 2).flatten(1, 2)
    logits = model(torch.cat([torch.rand(1, 3, 33, 40), atlases], 1))
    torch.testing.assert_close(logits, 2 * labels.mean(1) - 1)


def test_the_expected_shape_is_where_the_slice_network_starts_from():
    """Without a decoder's say the result is the shape expected of each structure, whatever the number of classes."""
    model = SliceUNet(3, atlases=2, decoder=(8, 8, 8, 8), pretrained=False, shape=True).eval()
    for weights in model.last.parameters():
        torch.nn.init.zeros_(weights)
    distance = torch.full((1, 2, 33, 40), -MAX_DISTANCE)
    distance[0, 0, 3:20, 5:30], distance[0, 1, 20:30, 5:30] = 4.0, 7.0
    logits = model(torch.cat([torch.rand(1, 3 + 2 * 3, 33, 40), 1 + distance / MAX_DISTANCE], 1))
    torch.testing.assert_close(logits[:, 1:], 2 * torch.tanh(distance / 2))
    torch.testing.assert_close(logits[:, 0], -logits[:, 1:].amax(1))
    inside = (distance > 0).int()
    assert torch.equal(logits.argmax(1), inside[:, 0] + 2 * inside[:, 1])


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"decoder": (8, 8)}, "decoder"),
        ({"atlases": -1}, "atlases"),
        ({"atlases": 1}, "atlases"),
        ({"slice_budget": 1.0}, "slice_budget"),
        ({"slices_per_step": 0}, "slices_per_step"),
        ({"lr": 0.0}, "lr"),
        ({"encoder_lr": -0.1}, "encoder_lr"),
        ({"estimate_weight": 1.2}, "estimate_weight"),
    ],
)
def test_settings_out_of_range(given, key):
    with pytest.raises(ConfigError, match=rf"joint\.{key}"):
        JointSettings(**given)


def test_the_volume_network_is_part_of_what_decides_the_weights():
    plain, fine = JointSettings(), JointSettings(volume_network="DynU-Net3D")
    assert plain.identity() != fine.identity()
    assert JointSettings(volume_network="U-Net3D").identity() == plain.identity()
    with pytest.raises(ConfigError, match=r"joint\.volume_network: expected one of \['U-Net3D', 'DynU-Net3D'\], found 'U-Net2D'"):
        JointSettings(volume_network="U-Net2D")


def test_places_say_nothing_at_first_and_may_decide_later():
    plain, placed = net(pretrained=False), net(pretrained=False, places=3)
    placed.load_state_dict(placed.state_dict() | plain.state_dict())
    slices, places = torch.randn(1, 3, 33, 32), torch.randn(1, 3, 33, 32)
    with torch.inference_mode():
        before = placed(torch.cat([slices, places], 1))
        torch.testing.assert_close(before, plain(slices))
        placed.place.weight[1, 0], placed.place.bias[0] = 2.0, 3.0
        wanted = before + torch.cat([torch.full((1, 1, 33, 32), 3.0), 2 * places[:, :1]], 1)
        torch.testing.assert_close(placed(torch.cat([slices, places], 1)), wanted)
