"""The networks OASIS is compared with: shapes, residual sums, deep supervision, and sizes told before training."""

import pytest
import torch

from oasis_monai.networks.segmentation import NETWORKS, ConvNet, NetworkSettings, make_network
from oasis_monai.utils.errors import ConfigError

TINY = NetworkSettings(convnet=(4, 6, 8), unet=(4, 6, 8), dynunet=(4, 6, 8), deep_supervision=(0.5, 0.25))
SIZES = {2: (16, 24), 3: (16, 8, 12)}


def images(dims, batch=2, seed=0):
    return torch.randn(batch, 1, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_every_class_on_the_image_s_grid_and_all_of_it_learns(name):
    torch.manual_seed(0)
    model = make_network(name, 3, TINY).train()
    image = images(NETWORKS[name])
    out = model(image)
    outputs = out if isinstance(out, list) else [out]
    assert len(outputs) == (2 if name.startswith("ConvNet") else 1)  # three levels have one decoder level beside the finest
    assert all(o.shape == (2, 3, *image.shape[2:]) for o in outputs)
    sum(o.square().mean() for o in outputs).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a normalisation has no effect, and so no gradient but rounding
    assert not [n for n in silent if not n.endswith("bias")]
    with torch.no_grad():
        assert model.eval()(image).shape == (2, 3, *image.shape[2:])


def test_the_auxiliary_outputs_stand_behind_the_main_one_from_fine_to_coarse():
    torch.manual_seed(0)
    model = ConvNet(2, 2, (4, 6, 8, 10), auxiliary=2).train()
    image = images(2)
    main, fine, coarse = model(image)
    with torch.no_grad():
        model.eval()
        assert torch.allclose(model(image), main, atol=1e-5)

    def roughness(x):
        return float(((x[..., 1:] - x[..., :-1]).square().mean() / x.var()).detach())

    assert roughness(main) > roughness(fine) > roughness(coarse)


def test_long_connections_are_sums():
    """With the way up silenced, a decoder level sees the encoder's features of its level alone."""
    torch.manual_seed(0)
    model = ConvNet(2, 2, (4, 6, 8)).eval()
    image = images(2)
    with torch.no_grad():
        model.up[0] = torch.nn.Identity()
        model.up[0].forward = lambda x: torch.zeros(2, 4, *image.shape[2:])
        assert torch.allclose(model(image), model.heads[0](model.decode[0](model.first(image))))


def test_a_network_of_one_dimension_does_not_know_another():
    assert make_network("U-Net2D", 2, TINY)(images(2)).shape == (2, 2, *SIZES[2])
    with pytest.raises(RuntimeError):
        make_network("U-Net2D", 2, TINY)(images(3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"convnet": (4,)}, r"network\.convnet: expected two or more positive numbers"),
        ({"unet": (4, 0)}, r"network\.unet"),
        ({"deep_supervision": (-0.1,)}, r"network\.deep_supervision"),
        ({"patch": (0, 4)}, r"network\.patch"),
        ({"overlap": 1.0}, r"network\.overlap"),
    ],
)
def test_bad_settings(change, match):
    with pytest.raises(ConfigError, match=match):
        NetworkSettings(**change)


@pytest.mark.parametrize(
    ("patch", "size", "match"),
    [
        (None, (18, 16), r"preprocessing\.size: expected multiples of 4, not all of them 4, for ConvNet2D, found \[18, 16\]"),
        ((8, 10), (16, 16), r"network\.patch: expected multiples of 4"),
        ((4, 4), (16, 16), r"not all of them 4"),
        ((8, 32), (16, 16), r"none above the grid \(16, 16\)"),
        ((8, 8, 8), (16, 16), r"network\.patch: expected 2 numbers"),
    ],
)
def test_windows_that_cannot_be(patch, size, match):
    with pytest.raises(ConfigError, match=match):
        NetworkSettings(convnet=(4, 6, 8), patch=patch).window(size, "ConvNet2D")


def test_the_identity_is_the_network_s_own():
    a, b = NetworkSettings(), NetworkSettings(unet=(8, 16))
    assert a.identity("ConvNet3D") == b.identity("ConvNet3D")
    assert a.identity("U-Net3D") != b.identity("U-Net3D")
    assert a.identity("U-Net3D") == NetworkSettings(overlap=0.25, deep_supervision=()).identity("U-Net3D")
    assert a.identity("ConvNet3D") != NetworkSettings(deep_supervision=()).identity("ConvNet3D")


@pytest.mark.parametrize("dims", [2, 3])
def test_dynunet_is_the_function_of_monai_s_own_with_the_same_weights(dims):
    from monai.networks.nets import DynUNet as Original

    torch.manual_seed(0)
    ours = make_network(f"DynU-Net{dims}D", 3, TINY).eval()
    filters = list(TINY.dynunet)
    original = Original(dims, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=filters).eval()
    theirs = [original.input_block, *original.downsamples, original.bottleneck, *original.upsamples]
    for block, given in zip(theirs, [*ours.encoder, *ours.decoder], strict=True):
        block.load_state_dict(given.state_dict())
    original.output_block.load_state_dict(ours.head.state_dict())
    image = images(dims)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), original(image))
