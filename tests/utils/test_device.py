"""bfloat16 at inference: asked for, where the CPU is made for it, and never far from float32."""

import pytest
import torch

from oasis_monai.networks.layers import avoid_bfloat16_bug
from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
from oasis_monai.networks.slice_unet import SliceUNet
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator
from oasis_monai.utils import device as precision
from tests.helpers.pretend_device import pretend_device


@pytest.mark.parametrize(
    ("device", "made", "asked", "trains", "infers"),
    [
        ("cpu", True, None, True, True),
        ("cpu", False, None, False, False),
        ("cpu", False, True, True, True),
        ("cuda", True, None, False, True),
        ("cuda", False, None, False, False),
        ("cuda", True, False, False, False),
    ],
)
def test_where_it_is_used(monkeypatch, device, made, asked, trains, infers):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: made)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: made)
    assert precision.use_bfloat16(torch.device(device), asked) is trains
    assert precision.infer_in_bfloat16(torch.device(device), asked) is infers


def test_a_torch_that_cannot_tell_is_taken_for_no(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision.has_fast_bfloat16() is False


def test_fields_are_those_of_float32_but_for_rounding():
    torch.manual_seed(0)
    model = SpatialTransformModel((16, 16, 8), RegistrationSettings(channels=(8, 16), field_stride=(2, 2, 1)))
    torch.nn.init.normal_(model.body[1].weight, std=0.05)
    pair = torch.randn(3, 1, 16, 16, 8), torch.randn(3, 1, 16, 16, 8)
    exact, half = (Aligner(model, bfloat16=half).fields(*pair).float() for half in (False, True))
    assert 0.3 < float(exact.abs().max()) < 20
    assert not torch.equal(exact, half)
    assert float((exact - half).abs().mean()) < 0.02 * float(exact.abs().mean())


@pytest.mark.slow
def test_estimates_are_those_of_float32_but_for_rounding():
    torch.manual_seed(0)
    model = SliceUNet(3, decoder=(8, 8, 8, 8))
    whole = SliceUNet(3, decoder=(8, 8, 8, 8), pretrained=False).eval()

    def volume(x):
        return torch.softmax(whole(x[..., 0].repeat(1, 3, 1, 1)).float(), 1)[..., None].repeat(1, 1, 1, 1, 4)

    image = torch.rand(1, 32, 32, 4)
    exact, half = (
        Estimator(model, volume_network=volume, stride=(1, 1, 1), tta_views=2, bfloat16=half) for half in (False, True)
    )
    assert (exact.without_views().bfloat16, half.without_views().bfloat16) == (False, True)
    one, other = exact.network_probabilities(image), half.network_probabilities(image)
    assert (one.dtype, other.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(8, 8, 2), (8, 8, 1), (16, 2), (8, 8, 4)])
def test_a_narrow_strided_convolution_is_right_whatever_lay_in_memory(size):
    """oneDNN's kernels of CPUs with AMX read beyond what was written; this fails there without :func:`avoid_bfloat16_bug`."""
    torch.manual_seed(0)
    kind = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[len(size)]
    network = torch.nn.Sequential(kind(16, 32, 3, stride=2, padding=1))
    expected = network(image := torch.randn(2, 16, *size))
    names = list(network.state_dict())
    assert avoid_bfloat16_bug(network) is network
    assert list(network.state_dict()) == names
    for _ in range(3):
        leave_garbage()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found = network(image)
        torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
        assert found.dtype == (torch.float32 if size[-1] <= 2 else torch.bfloat16)  # so that it fails on other CPUs too


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 3, 4), (3, 3, 3), (4, 8, 8)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_weights_of_volumes_get_their_gradient_whatever_lay_in_memory(size, kernel):
    """That of a kernel larger than the image is NaN in bfloat16 without :func:`avoid_bfloat16_bug`, also on CPUs without AMX."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(16, 32, kernel, padding=kernel // 2))
    image, weights = torch.randn(2, 16, *size), network[0].weight
    (network(image) * (pull := torch.randn(2, 32, *size))).sum().backward()
    expected = weights.grad.clone()
    avoid_bfloat16_bug(network)
    for _ in range(3):
        weights.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            found = network(image)
        loss = (found.float() * pull).sum()
        leave_garbage()
        loss.backward()
        torch.testing.assert_close(weights.grad, expected, atol=0.5, rtol=0.05)
        assert found.dtype == (torch.float32 if min(size) < kernel else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert network(image).dtype == torch.bfloat16  # results of trained models stay what they were


def leave_garbage():
    """Fill free memory with NaN."""
    garbage = [torch.full((k * 2**j,), float("nan"), dtype=torch.bfloat16) for k in (1, 3, 5) for j in range(5, 20)]
    del garbage


@pytest.mark.parametrize(
    ("name", "worker", "gpus", "expected"),
    [
        ("cuda", 0, 2, "cuda:0"),
        ("cuda", 3, 2, "cuda:1"),
        ("auto", 1, 2, "cuda:1"),
        ("cuda:0", 1, 2, "cuda:0"),  # as asked
        ("cuda", 1, 1, "cuda"),
        ("cuda", None, 2, "cuda"),
        ("cpu", 1, 2, "cpu"),
        ("auto", 1, 0, "cpu"),
    ],
)
def test_workers_are_dealt_the_gpus_that_nobody_named(monkeypatch, name, worker, gpus, expected):
    monkeypatch.setattr(precision, "worker_number", lambda: worker)
    if not gpus:
        assert precision.resolve_device(name) == expected
        return
    with pretend_device(gpus):
        assert precision.resolve_device(name) == expected
