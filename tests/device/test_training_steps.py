"""Training steps on a (pretend) GPU: they compute what the CPU computes, send little, and never make the host wait."""

import pytest
import torch

from oasis_monai.training import registration, resident, segmentation, slices
from oasis_monai.transforms.augmentation import Augmentation
from tests.helpers import trainers
from tests.helpers.pretend_device import MixedDevicesError, pretend_device
from tests.helpers.trainers import TRAINERS

MOST_SENT = 10_000
"""Bytes that a step may send to the device."""


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Steps of two devices are compared: the CPU's own bfloat16 is another rounding."""
    for module in (registration, segmentation, slices):
        monkeypatch.setattr(module, "use_bfloat16", lambda device, asked: False)


def cost_of_a_step(make):
    """(the trainer, its first step's terms, the record of its second step: the first one also sends what never changes)."""
    with pretend_device() as record:
        trainer = make("cuda")
        terms = trainer.step(0)
        record.reset()
        trainer.step(1)
    return trainer, terms.held, record


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_is_that_of_the_cpu_and_makes_nobody_wait(name):
    trainer, terms, record = cost_of_a_step(TRAINERS[name])
    assert record.sent_bytes < MOST_SENT, record.sent
    assert not record.syncs
    assert not record.fetched
    torch.testing.assert_close(terms, TRAINERS[name]("cpu").step(0), atol=1e-5, rtol=1e-5)
    assert all(weight.device.type == "cuda" for weight in trainer.model.state_dict().values())


def test_noise_and_patches_of_the_working_grid_are_drawn_on_the_device():
    """Random numbers of a device are others than the CPU's: so many are too many to send."""
    noisy = Augmentation(noise=0.1, gamma=0.2, intensity_chance=0.5)
    patch = trainers.NETWORK.__class__(unet=(4, 8), patch=(16, 16, 8))
    trainer, terms, record = cost_of_a_step(lambda device: trainers.segmentation(device, network=patch, augmentation=noisy))
    assert record.sent_bytes < MOST_SENT
    assert not record.syncs
    assert bool(terms.isfinite().all())
    with pretend_device():
        trainer = trainers.segmentation("cuda", network=patch, augmentation=noisy)
        (first, _), (again, _), (other, _) = (trainer.draw(number) for number in (0, 0, 1))
        assert torch.equal(first.cpu(), again.cpu())
        assert not torch.equal(first.cpu(), other.cpu())


def test_patches_cut_on_the_device_lie_where_their_voxels_say():
    from oasis_monai.training.patches import cut_at_random

    size, patch = (12, 10, 8), (4, 6, 8)
    image = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij"))[None].repeat(6, 1, 1, 1, 1)
    label = torch.zeros(6, 1, *size)
    label[:4, 0, 9:11, 2, 5] = 1  # the last two show no structure
    random, corners = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        seen, shown = cut_at_random(image, label, patch, 2, random)
        assert seen.shape == (6, 3, *patch)
        assert shown.shape == (6, 1, *patch)
        for own, there in zip(seen, shown, strict=True):
            corner = tuple(int(axis.min()) for axis in own)
            corners.add(corner)
            box = tuple(slice(c, c + n) for c, n in zip(corner, patch, strict=True))
            assert torch.equal(own, image[(0, slice(None), *box)])
            assert there.sum() == 0 or torch.equal(there[0], label[(0, 0, *box)])
        assert bool((shown[[0, 2]].flatten(1).sum(1) > 0).all())  # every second one, where there is a structure
    assert len(corners) > 10


def test_what_does_not_fit_is_copied_batch_by_batch(monkeypatch, caplog):
    monkeypatch.setattr(resident, "SHARE", 0.0)
    wanted = TRAINERS["registration"]("cpu").step(0)
    for name in ("registration", "U-Net", "slice network", "box network", "U-Net, patches of a fine grid"):
        caplog.clear()
        _, terms, record = cost_of_a_step(TRAINERS[name])
        assert "do not fit on the GPU" in caplog.text
        assert record.sent_bytes > MOST_SENT
        assert not [place for what, place in record.syncs if what == "copy to the device"], record.syncs  # of pinned memory
        if name == "registration":
            torch.testing.assert_close(terms, wanted, atol=1e-5, rtol=1e-5)


def test_planted_faults_are_caught(monkeypatch):
    """What a lost ``to(device)``, a generator of the CPU, and a look by numpy would do on a GPU, each planted in the product."""
    with pretend_device(), monkeypatch.context() as patch:
        patch.setattr("oasis_monai.transforms.augmentation.upload", lambda device, *tensors: tensors)
        with pytest.raises(MixedDevicesError, match="same device"):
            trainers.segmentation("cuda").step(0)
    with pretend_device(), monkeypatch.context() as patch:
        normal = lambda image, random: torch.randn(image.shape, device=image.device, generator=random)  # noqa: E731
        patch.setattr("oasis_monai.transforms.augmentation.draw_noise", normal)
        with pytest.raises(MixedDevicesError, match="generator of cuda:0, found one of cpu"):
            trainers.segmentation("cuda", augmentation=Augmentation(noise=0.1)).step(0)
    with pretend_device(), monkeypatch.context() as patch:
        trainer = trainers.segmentation("cuda")
        loss = trainer.loss
        trainer.loss = lambda *given: loss(*given) + float(given[0].detach().numpy().mean())
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            trainer.step(0)
    with monkeypatch.context() as patch:  # MONAI's warp, as it was: its grid is made on the host
        from monai.networks.blocks import Warp

        library = Warp(padding_mode="border")
        patch.setattr("oasis_monai.networks.warp.sample_image", lambda moving, ddf, padding: library(moving, ddf))
        _, _, record = cost_of_a_step(TRAINERS["registration"])
        assert record.sent_bytes > MOST_SENT
        assert record.syncs
