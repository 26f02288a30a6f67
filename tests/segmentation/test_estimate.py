"""The estimate of the segmentation networks: test-time augmentation, and what the networks run without."""

import math

import pytest
import torch

from oasis_monai.networks.slice_unet import (
    VIEWS,
    SliceUNet,
    with_neighbours,
)
from oasis_monai.segmentation import estimate
from oasis_monai.segmentation.estimate import Estimator, rotate_and_scale
from oasis_monai.utils.interpolation import enlarge
from tests.networks.test_layers import norms, used
from tests.networks.test_slice_unet import net


class Lopsided(torch.nn.Module):
    """A volume network of two classes that looks to one side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.see = torch.nn.Conv3d(1, 2, 5, padding=2)

    def forward(self, volume):
        return torch.softmax(3 * self.see(volume), 1)


@pytest.mark.parametrize("views", [0, 2, 4])
def test_mirrored_scans_get_mirrored_estimates_also_of_turned_copies(views):
    model, volume = net(pretrained=False), Lopsided()
    image = torch.rand(1, 32, 32, 5, generator=torch.Generator().manual_seed(2))
    own = {"volume_network": volume, "stride": (2, 2, 1), "tta_views": views}
    both, alone = Estimator(model, tta_flip=True, **own), Estimator(model, tta_flip=False, **own)
    # a pair of copies, (0.1, 1.1) and (-0.1, 0.9), is symmetric only with the other two
    agree = torch.allclose(both.network_probabilities(image.flip(1)), both.network_probabilities(image).flip(2), atol=1e-4)
    assert agree == (views != 2)
    assert not torch.allclose(alone.network_probabilities(image.flip(1)), alone.network_probabilities(image).flip(2), atol=1e-3)


def test_a_volume_network_is_averaged_over_turned_copies_of_its_own_coarser_grid():
    """Slice by slice; of the mirrored scan where they are turned to one side. One that sees every voxel is not."""
    volume, model = Lopsided(), net(pretrained=False)
    image = torch.rand(1, 48, 48, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        seen = torch.nn.functional.avg_pool3d(image[None], (2, 2, 1))
        copies = [(volume(seen) + volume(seen.flip(2)).flip(2)) / 2]
        for angle, scale in VIEWS:
            turned = torch.stack([rotate_and_scale(seen[..., z], angle, scale) for z in range(5)], -1)
            found = volume(turned.flip(2)).flip(2) if angle > 0 else volume(turned)
            found = torch.stack([rotate_and_scale(found[:, 1:, ..., z], angle, scale, back=True) for z in range(5)], -1)
            copies.append(torch.cat([1 - found, found], 1))
        wanted = enlarge(torch.cat(copies).mean(0, keepdim=True), (48, 48, 5))[0]
    several = Estimator(model, volume_network=volume, stride=(2, 2, 1), tta_views=4, bfloat16=False)
    torch.testing.assert_close(several.network_probabilities(image)[1], wanted, atol=1e-5, rtol=1e-4)
    whole = [
        Estimator(model, volume_network=volume, stride=(1, 1, 1), tta_views=views).network_probabilities(image)[1]
        for views in (0, 4)
    ]
    assert torch.equal(*whole)


def test_mirrored_scans_get_mirrored_estimates():
    model = net(pretrained=False)
    image = torch.rand(1, 32, 32, 5, generator=torch.Generator().manual_seed(2))
    both, alone = Estimator(model, tta_flip=True, batch=2), Estimator(model, tta_flip=False)
    torch.testing.assert_close(both.volume(image.flip(1)), both.volume(image).flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone.volume(image.flip(1)), alone.volume(image).flip(1), atol=1e-3)
    torch.testing.assert_close(
        both.volume(image), (alone.volume(image) + alone.volume(image.flip(1)).flip(1)) / 2, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_a_turned_slice_turns_back(size):
    """A smooth blob well inside comes back; on the way it is where the transform says, in voxels, also on oblong slices."""
    x, y = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    blob = torch.exp(-((x - 6) ** 2 + (y + 4) ** 2) / 18)[None, None]
    for angle, scale in VIEWS:
        there = rotate_and_scale(blob, angle, scale)
        torch.testing.assert_close(rotate_and_scale(there, angle, scale, back=True), blob, atol=0.04, rtol=0)
        total = there.sum()
        centre = float((there * x).sum() / total), float((there * y).sum() / total)
        # what is at p in the turned slice was at scale * R p; torch's grid counts the last axis first
        cos, sin = math.cos(angle), math.sin(angle)
        back = (scale * (sin * centre[1] + cos * centre[0]), scale * (cos * centre[1] - sin * centre[0]))
        assert back == pytest.approx((6, -4), abs=0.05)


def test_views_are_a_mean_over_turned_copies_where_there_is_something_to_see():
    model = net(pretrained=False)
    slices = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    one, more = Estimator(model, tta_flip=False), Estimator(model, tta_flip=False, tta_views=2)
    copies = [one(slices)]
    for angle, scale in VIEWS[:2]:
        seen = rotate_and_scale(one(rotate_and_scale(slices, angle, scale))[:, 1:], angle, scale, back=True)
        copies.append(torch.cat([1 - seen.sum(1, keepdim=True), seen], 1))
    torch.testing.assert_close(more(slices), torch.stack(copies).mean(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(more.without_views()(slices), one(slices))

    class Blank(torch.nn.Module):
        calls = 0

        def forward(self, image):
            Blank.calls += 1
            return torch.stack([torch.full(image.shape[2:], 9.0), torch.zeros(image.shape[2:])]).expand(len(image), -1, -1, -1)

    assert float(Estimator(Blank(), tta_flip=False, tta_views=4)(slices)[:, 1].max()) < 1e-3
    assert Blank.calls == 1


def test_large_scans_are_seen_in_fewer_views(monkeypatch):
    """As many as their voxels allow; those of the usual grids in all four."""
    assert [estimate.views_within(n) for n in (96 * 96 * 32, 160 * 160 * 128, 6_900_000, 2**24)][2:] == [2, 0]
    assert min(estimate.views_within(n) for n in (96 * 96 * 32, 160 * 160 * 128)) >= 4
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    four, two = (Estimator(net(pretrained=False), tta_views=views) for views in (4, 2))
    two.model, two._fused = four.model, four._fused
    monkeypatch.setattr(estimate, "MOST_SEEN", 3 * image.numel())
    assert torch.equal(four.volume(image), two.volume(image))
    monkeypatch.setattr(estimate, "MOST_SEEN", image.numel())
    assert torch.equal(four.volume(image), four.without_views().volume(image))
    assert not torch.equal(two(with_neighbours(image)), two.without_views()(with_neighbours(image)))  # slices by themselves


def test_an_estimator_runs_without_batch_norms_and_keeps_the_model_that_was_given():
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


def test_slices_larger_than_a_window_are_seen_in_windows_that_overlap():
    model, sizes = net(pretrained=False), []
    model.forward = lambda image, **_: sizes.append(tuple(image.shape[2:])) or torch.cat([image[:, :1], -image[:, :1]], 1)
    image = torch.rand(1, 80, 40, 2, generator=torch.Generator().manual_seed(3))
    estimators = [Estimator(model, window=window) for window in (None, 48)]
    for one in estimators:
        one._fused = [model]
    whole, parts = (one.volume(image) for one in estimators)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)  # of a network that sees one voxel
    assert set(sizes) == {(80, 40), (48, 40)}
    assert estimators[1].quick().window == 48
