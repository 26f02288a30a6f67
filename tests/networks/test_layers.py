"""Batch norms folded into convolutions: the same function, the network as it was."""

import torch
from torch import nn

from oasis_monai.networks.encoders import untrained_network
from oasis_monai.networks.layers import without_batch_norms
from oasis_monai.networks.slice_unet import SliceUNet
from oasis_monai.segmentation.estimate import Estimator


def norms(network):
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def used(network):
    """The network with statistics and gains as a trained one has them, not the ones and zeros of a new one."""
    random = torch.Generator().manual_seed(0)
    for norm in norms(network):
        for values in (norm.running_var, norm.weight.data):
            values.copy_(0.5 + torch.rand(values.shape, generator=random))
        for values in (norm.running_mean, norm.bias.data):
            values.copy_(torch.randn(values.shape, generator=random))
    return network.eval()


def test_the_function_stays_and_the_network_too():
    network = used(untrained_network("efficientnet-lite0"))
    before = {name: values.clone() for name, values in network.state_dict().items()}
    folded = without_batch_norms(network)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = network(images), folded(images)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not norms(folded)
    assert len(norms(network)) > 40
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_other_networks_are_only_copied():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    folded = without_batch_norms(network)
    assert folded is not network
    assert len(norms(folded)) == 1
    images = torch.randn(1, 1, 8, 8)
    assert torch.equal(folded(images), network(images))


def test_an_estimator_runs_without_them_and_keeps_the_model_that_was_given():
    model = SliceUNet(2, pretrained=False)
    used(model.encoder)
    estimator = Estimator(model, tta_flip=False, bfloat16=False)
    slices = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = torch.softmax(model(slices), 1)
    torch.testing.assert_close(estimator(slices), wanted, rtol=1e-3, atol=1e-4)
    assert estimator.model is model
    assert norms(estimator.model)
    assert not any(norms(network) for network in estimator._fused)
