"""The pretend GPU itself: what it refuses, what it counts, and that it computes what the CPU does."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.pretend_device import DeviceTensor, MixedDevicesError, pretend_device


def on_device(*shape):
    return torch.ones(*shape).to("cuda")


REFUSED = {
    "a sum of two devices": lambda: on_device(2) + torch.ones(2),
    "a matrix product with a number of the CPU": lambda: torch.cat([on_device(1), torch.ones(())[None]]),
    "two GPUs": lambda: on_device(2) + torch.ones(2).to("cuda:1"),
    "in place on the CPU": lambda: torch.zeros(2).add_(on_device(2)),
    "an index on the device into the CPU": lambda: torch.ones(4)[torch.tensor([1], device="cuda")],
    "values of the CPU written by an index": lambda: on_device(4).index_put_((torch.tensor([1, 2]),), torch.ones(2)),
    "a generator of the CPU": lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
    "the same in place": lambda: on_device(2).normal_(generator=torch.Generator()),
    "a generator of the device for a draw on the CPU": lambda: (
        torch.ones(2).to("cuda:1").normal_(generator=torch.Generator("cuda"))
    ),
    "a network on the CPU": lambda: nn.Linear(2, 2)(on_device(2)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_two_devices_never_meet(what):
    with pretend_device(2), pytest.raises(MixedDevicesError, match=r"same device|generator of|indices should be|expected values"):
        REFUSED[what]()


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, lambda x: x.detach().numpy()])
def test_its_memory_is_not_read_by_numpy(read):
    with pretend_device(), pytest.raises(TypeError, match="can't convert cuda:0"):
        read(on_device(2))


def test_what_is_allowed_is_right():
    with pretend_device(2):
        x = torch.arange(6.0).view(2, 3).to("cuda")
        assert (x * torch.tensor(2.0)).cpu().tolist() == [[0, 2, 4], [6, 8, 10]]  # a number of the CPU
        assert x[torch.tensor([1])].cpu().tolist() == [[3, 4, 5]]  # an index of the CPU
        assert x.to("cuda:1").device == torch.device("cuda", 1)
        assert torch.zeros(2).copy_(x[0, :2]).tolist() == [0, 1]
        assert float(x.sum()) == 15
        x[0] = 7
        x[x > 6] = 1
        assert x.tolist() == [[1, 1, 1], [3, 4, 5]]
        assert copy.deepcopy(x).device == x.device
        assert torch.zeros_like(x).device == x.new_zeros(2).device == torch.empty(1, device="cuda").device == x.device
        assert x.new_tensor([1.0]).device == torch.ones(1).type_as(x).device == x.device
    with pretend_device(1), pytest.raises(RuntimeError, match="ordinal"):
        torch.empty(1, device="cuda:1")


def test_training_is_that_of_the_cpu():
    def trained(device):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(), nn.Flatten(), nn.Linear(64, 2))
        network.load_state_dict(network.state_dict())
        network, image = network.to(device), torch.rand(2, 1, 6, 6).to(device)
        optimiser = torch.optim.Adam(network.parameters(), fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            network(image).square().mean().backward()
            optimiser.step()
        return {name: weight.cpu() for name, weight in network.state_dict().items()}, network

    wanted, _ = trained("cpu")
    with pretend_device():
        found, network = trained("cuda")
        assert all(isinstance(weight, DeviceTensor) and isinstance(weight, nn.Parameter) for weight in network.parameters())
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_what_costs_is_counted():
    with pretend_device() as record:
        x = torch.ones(5).to("cuda")  # 20 bytes, and the host waits
        assert (record.sent_bytes, len(record.syncs)) == (20, 1)
        record.reset()
        y = torch.ones(5).pin_memory().to("cuda", non_blocking=True)
        assert (record.sent_bytes, record.syncs) == (20, [])
        torch.ones(5).to("cuda", non_blocking=True)  # of pageable memory
        assert [what for what, _ in record.syncs] == ["copy to the device"]
        record.reset()
        x.view(5, 1).add(y)
        assert dict(record.kernels) == {"add": 1}
        x.half().cpu()
        assert record.fetched_bytes == 10
        record.reset()
        for waits in (x.sum().item, lambda: x.nonzero(), lambda: x[x > 0], torch.cuda.synchronize, lambda: bool(x.any())):
            before = len(record.syncs)
            waits()
            assert len(record.syncs) == before + 1
        x[x > 0] = 2.0  # filled in without a look
        torch.where(x > 0, x, 0.0)
        assert len(record.syncs) == 5
        record.reset()
        torch.tensor([1.0, 2.0], device="cuda")
        assert (record.sent_bytes, len(record.syncs)) == (8, 1)
        x[torch.tensor([0, 1])]
        assert (record.sent_bytes, len(record.syncs)) == (24, 2)


def test_places_are_lines_of_the_package():
    from oasis_monai.networks.warp import warp

    with pretend_device() as record:
        warp(torch.rand(1, 1, 4, 4).to("cuda"), torch.zeros(1, 2, 4, 4).to("cuda")).isfinite().all().item()
        record.reset()
        warp(torch.rand(1, 1, 4, 4).to("cuda"), torch.zeros(1, 2, 4, 4).to("cuda"))
        assert {place for _, place in record.syncs} == {"outside the package"}  # the copies of this test
    with pretend_device() as record:
        from oasis_monai.utils.device import resolve_device

        assert resolve_device("cuda") == "cuda"
        assert resolve_device("auto") == "cuda"


def test_inference_mode_and_autocast():
    with pretend_device():
        layer = nn.Linear(3, 2).to("cuda")

        @torch.inference_mode()
        def inferred(x):
            return layer(x)[0]

        assert not inferred(on_device(1, 3)).requires_grad
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(on_device(1, 3)).dtype == torch.bfloat16
        drawn = torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    assert torch.equal(drawn.held, torch.rand(2, generator=torch.Generator().manual_seed(1)))
    assert not torch.cuda.is_available()  # all is as before
