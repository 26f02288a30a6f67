"""Segmenting on a (pretend) GPU: results of the CPU, and no copy of the library for every scan."""

import numpy as np
import pytest
import torch

from oasis_monai import OasisNetwork
from oasis_monai.atlases.features import embedder
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NetworkSettings, Predictor, make_network
from oasis_monai.networks.slice_unet import make_slice_network
from oasis_monai.segmentation import alignment, estimate
from oasis_monai.segmentation.build import SegmenterOptions, TrainedNetworks, build_segmenter
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.training.registration import make_registration_network
from oasis_monai.utils import device as precision
from tests.helpers.pretend_device import pretend_device
from tests.helpers.trainers import JOINT, rods

METHODS, N = ("FwoW", "majority", "OASIS", "OASIS-joint"), 3


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Two devices are compared: bfloat16 is another rounding."""
    for module in (alignment, estimate):
        monkeypatch.setattr(module, "infer_in_bfloat16", lambda device, asked: False)


def scan(seed):
    image = rods(count=seed + 1, size=32, depth=8).images[seed] + 0.01
    grid = Geometry((32, 32, 8), np.diag([2.0, 2.0, 3.0, 1.0]))
    return Scan(Preprocessed(f"scan{seed}", image, None, grid, grid), features=torch.full((1, 5), float(seed)))


def segmenter_on(device, library):
    torch.manual_seed(0)
    stm = make_registration_network(library, RegistrationSettings(channels=(4, 8), field_stride=(2, 2, 1), joint=True))
    with torch.no_grad():
        for parameter in stm.body.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    networks = TrainedNetworks(stm, make_slice_network(library.classes, JOINT, False))
    return build_segmenter(library, networks, SegmenterOptions(batch=4, joint=JOINT), device)


def segmented(segmenter, number):
    results = segment_case(segmenter, scan(number), embedder("intensity"), METHODS, (N,)).results
    return {key: result.probability.cpu() for key, result in results.items()}


def test_results_are_those_of_the_cpu_and_atlases_are_sent_once():
    library = rods(count=8)
    wanted = [segmented(segmenter_on("cpu", library), number) for number in (0, 3)]
    with pretend_device() as record:
        segmenter = segmenter_on("cuda", library)
        found, sent = [], []
        for number in (0, 3, 0):
            record.reset()
            found.append(segmented(segmenter, number))
            sent.append(record.sent_bytes)
    for own, expected in zip(found, wanted, strict=False):
        for key, probability in expected.items():
            torch.testing.assert_close(own[key], probability, atol=1e-4, rtol=1e-4, msg=str(key))
    one_scan, atlas = 4 * 32 * 32 * 8, 4 * 32 * 32 * 8 * 2  # an atlas: image, label, estimates
    assert sent[2] < 20 * one_scan  # the scan, its slices with their neighbours in two views, the networks' opinion
    assert sent[0] > sent[2] + N * atlas // 2  # the first scan brought its atlases along


def test_comparison_networks_run_in_bfloat16_where_the_gpu_has_it(monkeypatch):
    torch.manual_seed(0)
    network, image = make_network("U-Net3D", 2, NetworkSettings(unet=(4, 8))), torch.rand(2, 1, 16, 16, 8)
    wanted = Predictor(network, "U-Net3D", NetworkSettings(unet=(4, 8)))(image)
    seen = []
    hook = network.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    for fast in (True, False):
        monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: False)
        with pretend_device():
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
            made = Predictor(network, "U-Net3D", NetworkSettings(unet=(4, 8)), "cuda")(image)
            network.to("cpu")
        torch.testing.assert_close(made, wanted, atol=2e-2 if fast else 1e-5, rtol=0)
    hook.remove()
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("body", ["unet", "voxelmorph"])
def test_displacements_are_predicted_in_float32_on_a_gpu(body):
    settings = RegistrationSettings(body=body, channels=(4, 8), field_stride=(2, 2, 1), joint=False)
    found = {}
    for device in ("cpu", "cuda"):
        with pretend_device():
            model = make_registration_network(rods(), settings).to(device).eval()
            flow = [module for module in model.body.modules() if type(module).__name__ == "_Flow3d"]
            assert len(flow) == 1
            flow[0].register_forward_hook(lambda module, given, made, device=device: found.update({device: made.dtype}))
            image = torch.rand(1, 1, 32, 32, 8).to(device)
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                model(image, image)
    assert found == {"cpu": torch.bfloat16, "cuda": torch.float32}


def bundled():
    """A network of a bundle with random atlases."""
    torch.manual_seed(0)
    registration = {"channels": [4, 8], "field_stride": [2], "joint": False}
    features = {"features": 768, "embedding": "intensity", "distance": "l2"}
    network = OasisNetwork((32, 32, 8), 2, 20, **features, method="majority", n=3, registration=registration)
    network.images.uniform_()
    network.labels[:, :, 8:20, 8:20] = 1
    network.features.uniform_()
    return network.eval()


def test_a_bundle_copies_its_library_once():
    image = torch.rand(1, 1, 32, 32, 8)
    wanted = bundled()(image)
    with pretend_device() as record:
        network = bundled().to("cuda")
        found = network(image.to("cuda"))
        assert record.fetched_bytes > network.images.numel() * 4
        record.reset()
        again = network(image.to("cuda"))
        assert record.fetched_bytes < network.labels.numel()  # the smallest of its tensors, and none is in it
        assert not [place for _, place in record.syncs if place.startswith("segmentation/device_rows")]
        torch.testing.assert_close(found.cpu(), wanted, atol=1e-2, rtol=0)
        assert torch.equal(found.cpu(), again.cpu())


def test_a_bundle_notices_new_weights_and_atlases():
    network, other, image = bundled(), bundled(), torch.rand(1, 1, 32, 32, 8)
    before = network(image)
    assert torch.equal(network(image), before)
    other.labels.zero_()
    other.labels[:, :, 2:6] = 1
    network.load_state_dict(other.state_dict())
    moved = network(image)
    assert not torch.equal(moved, before)
    assert torch.equal(moved, other(image))
    with torch.no_grad():
        for parameter in network.stm.body.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    assert not torch.equal(network(image), moved)
    assert network.train()(image).shape == moved.shape  # its parts stay in evaluation mode
    assert not network.stm.training
