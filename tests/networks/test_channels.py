"""Every network sees every channel of a scan, and starts on several as it does on one."""

import pytest
import torch

from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
from oasis_monai.networks.segmentation import NETWORKS, NetworkSettings, make_network
from oasis_monai.networks.slice_unet import JointSettings, SliceUNet, make_slice_network, with_neighbours

SMALL = NetworkSettings(convnet=(4, 8), unet=(4, 8), dynunet=(4, 8))


def depends(output, image):
    """(c,) how much the output changes with each channel of the image."""
    (gradient,) = torch.autograd.grad(output.square().sum(), image)
    return gradient.abs().transpose(0, 1).flatten(1).sum(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_segmentation_network_sees_every_channel(name):
    image = torch.rand(2, 3, *[16] * NETWORKS[name], requires_grad=True)
    network = make_network(name, 2, SMALL, channels=3).eval()
    assert (depends(network(image), image) > 0).all()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("body", ["unet", "voxelmorph", "localnet"])
def test_the_registration_network_sees_every_channel_of_both_images(body, affine):
    settings = RegistrationSettings(body=body, channels=(4, 8), field_stride=(2,), affine=affine)
    network = SpatialTransformModel((16, 16, 16), settings, structures=1, channels=2)
    with torch.no_grad():
        for parameter in network.parameters():  # the flow starts at zero, and the affine network at the identity
            parameter.add_(0.05 * torch.randn_like(parameter))
    pair = [torch.rand(2, 3, 16, 16, 16, requires_grad=True) for _ in range(2)]
    field = network(*pair)
    for image in pair:
        gradient = torch.autograd.grad(field.square().sum(), image, retain_graph=True)[0]
        assert (gradient.abs().transpose(0, 1).flatten(1).sum(1) > 0).all()
    if affine:  # which sees the images, not the structures
        start = network.affine(pair[0][:, :2], pair[1][:, :2])
        assert (depends(start, pair[0])[:2] > 0).all()


def test_slices_stand_between_their_neighbours_channel_by_channel():
    volume = torch.rand(2, 5, 4, 3)
    got = with_neighbours(volume)
    assert got.shape == (3, 6, 5, 4)
    for z in range(3):
        for channel in range(2):
            for place, other in enumerate((max(z - 1, 0), z, min(z + 1, 2))):
                assert torch.equal(got[z, 3 * channel + place], volume[channel, :, :, other])


def test_the_slice_network_sees_every_channel_and_starts_on_their_mean():
    torch.manual_seed(1)
    one = SliceUNet(2, decoder=(4, 4, 4, 4), pretrained=False).eval()
    torch.manual_seed(1)
    two = SliceUNet(2, decoder=(4, 4, 4, 4), pretrained=False, channels=2).eval()
    scan, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(two(torch.cat([scan, other], 1)), one((scan + other) / 2), atol=1e-4, rtol=1e-3)
    image = torch.cat([scan, other], 1).requires_grad_()
    assert (depends(two(image), image) > 0).all()
    stem = two.encoder._conv_stem.weight
    two(image.detach()).square().sum().backward()
    first, second = stem.grad.split(3, 1)
    assert not torch.allclose(first, second)  # equal at the start, and not for long


def test_atlases_beside_a_slice_have_all_channels():
    settings = JointSettings(pretrained=False, decoder=(4, 4, 4, 4), atlases=2)
    network = make_slice_network(3, settings, channels=2).eval()
    with torch.no_grad():
        network.extra.weight.add_(0.1)
    image = torch.rand(1, 3 * 2 + 2 * (2 + 2), 32, 32, requires_grad=True)
    assert (depends(network(image), image) > 0).all()
    # before it looks, it expects the mean of the two atlases' labels
    labels = image[:, 6:].unflatten(1, (2, 4))[:, :, 2:].mean(1)
    expected = 2 * torch.cat([1 - labels.sum(1, keepdim=True), labels], 1) - 1
    torch.testing.assert_close(network.prior_logits(image[:, 6:], torch.ones(())), expected)
