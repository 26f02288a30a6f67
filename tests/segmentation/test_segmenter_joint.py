"""The joint model's methods: estimates, alignment that sees labels, and the vote of both."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks import warp
from oasis_monai.networks.slice_unet import (
    JointSettings,
)
from oasis_monai.segmentation.agreement import agreement
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator
from oasis_monai.segmentation.fusion import remove_unsupported_components
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.training.registration import make_registration_network
from oasis_monai.transforms.labels import foreground, one_hot
from tests.networks.test_slice_unet import net
from tests.training.test_slices import JOINT, discs


class Shifted(torch.nn.Module):
    """A joint STM that moves an atlas's label by what the target's estimate lacks of it: only tells that it sees both."""

    def __init__(self):
        super().__init__()
        self.settings, self.unused = JOINT, torch.nn.Parameter(torch.zeros(1))

    def field(self, atlas, target):
        assert atlas.shape[1] == target.shape[1] == 2
        size = tuple(s // 2 for s in atlas.shape[2:])
        strength = 8 * (atlas[:, 1] - target[:, 1]).flatten(1).mean(1).view(-1, *[1] * (atlas.ndim - 1))
        return strength.expand(-1, atlas.ndim - 2, *size)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("vote", [0.0, 0.3, 1.0])
def test_the_joint_vote_formula_by_formula(dims, vote):
    library = discs(dims)
    estimator = Estimator(net(pretrained=False), tta_flip=True)
    image = torch.rand(1, 32, 32, 4, generator=torch.Generator().manual_seed(3))
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    target = Preprocessed("t", image, None, grid, grid)
    features = torch.randn(4 if dims == 2 else 1, 5, generator=torch.Generator().manual_seed(4))
    segmenter = Segmenter(library, Aligner(Shifted(), batch=2), estimator=estimator, joint=JointSettings(estimate_weight=vote))
    results, chosen, _ = segmenter(target, features, ("estimate", "OASIS-joint"), (3,))
    estimate = estimator.volume(image)
    torch.testing.assert_close(results["estimate", 0].probability, estimate, atol=1e-5, rtol=1e-4)
    assert results["estimate", 0].weights is None
    got, weights, counts, uncertain, _ = results["OASIS-joint", 3]
    wanted_counts = torch.zeros_like(counts)
    for number, rows in enumerate(chosen.indices):
        here = estimate if dims == 3 else estimate[..., number]
        moved = []
        for row in rows:
            atlas = torch.cat([library.images[row], foreground(library.labels[row][None], 2)[0]])[None]
            onto = torch.cat([image if dims == 3 else image[..., number], here[1:]])[None]
            ddf = warp.resize_ddf(Shifted().field(atlas, onto).half().float(), onto.shape[2:])
            moved.append(warp.warp(one_hot(library.labels[row][None], 2), ddf)[0])
        overlaps = [2 * float((m[1] * here[1]).sum()) / float(m[1].sum() + here[1].sum()) for m in moved]
        want = [o / sum(overlaps) for o in overlaps]
        torch.testing.assert_close(weights[number], torch.tensor(want), atol=1e-4, rtol=1e-4)
        atlases = sum(w * m for w, m in zip(want, moved, strict=True))
        wanted_counts += agreement(here[None], atlases)
        mean = (atlases + here) / 2  # the only network and the atlases count once each, whatever the vote
        entropy = -(mean.clamp_min(1e-12).log() * mean).sum(0) / torch.tensor(2.0).log()
        torch.testing.assert_close(uncertain if dims == 3 else uncertain[..., number], entropy, atol=2e-3, rtol=1e-3)
        fused = vote * here + (1 - vote) * atlases
        fused = remove_unsupported_components(fused, atlases) if dims == 3 else fused
        torch.testing.assert_close(got if dims == 3 else got[..., number], fused, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(counts, wanted_counts, atol=4, rtol=0)  # a voxel at exactly one half may fall either way


def test_beside_a_target_stands_no_atlas_of_its_own_case():
    library = discs(2, cases=3, per_case=4)
    image = library.images[:4, 0].movedim(0, -1)[None]  # the scan is the first case's
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    seen = []

    class Watched(Estimator):
        def __call__(self, slices):
            seen.append(slices)
            return super().__call__(slices)

    segmenter = Segmenter(
        library, estimator=Watched(net(pretrained=False, atlases=2), tta_flip=False), joint=JointSettings(atlases=2)
    )
    target = Preprocessed("c0", image, None, grid, grid)
    for barred, expected in (("c0", False), (None, True)):
        segmenter(target, torch.randn(4, 5), ("estimate",), (2,), exclude_patient=barred)
        beside = seen.pop()[:, [3, 5]].flatten(0, 1)
        own = any(torch.equal(one, atlas[0]) for one in beside for atlas in library.images[:4])
        assert own is expected


def test_methods_of_a_joint_model_need_one():
    library = discs(3)
    image = torch.rand(1, 32, 32, 4)
    grid = Geometry((32, 32, 4), torch.eye(4).double().numpy())
    plain = Segmenter(library, Aligner(make_registration_network(library, replace(JOINT, joint=False))))
    for method in ("estimate", "OASIS-joint"):
        with pytest.raises(ValueError, match="joint model"):
            plain(Preprocessed("t", image, None, grid, grid), torch.zeros(1, 5), (method,), (2,))
