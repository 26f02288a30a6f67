"""Networks of many classes, held packed, against maps held as they are."""

import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary, FineAtlas
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.networks.slice_unet import JointSettings, SliceUNet
from oasis_monai.segmentation import estimate, fine_fusion, fusion
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator, see
from oasis_monai.segmentation.learned_fusion import SMALLEST, LearnedFusion
from oasis_monai.segmentation.packed import PackedNetworks, mean_of, pack, slab_of, unpack
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.transforms.fine import refined
from oasis_monai.transforms.labels import decide

CLASSES, WORK, FACTOR = 12, (16, 16, 8), (2, 2, 2)
FINE = tuple(n * f for n, f in zip(WORK, FACTOR, strict=True))
CLOSE = 1e-4


def drawn(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Moving(torch.nn.Module):
    """Moves every atlas by another smooth field."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def field(self, atlas, target):
        return torch.cat([3 * torch.sin(6 * drawn(round(1000 * float(one.mean())), 1, 3, 8, 8, 4)) for one in atlas])


def volume_network(image):
    """Sure of a class that depends on the brightness."""
    return torch.softmax(20 * torch.sin(image * torch.arange(1, CLASSES + 1).view(1, -1, 1, 1, 1)), 1)


def model_and_scan(networks=2, fusions=None):
    """A joint model of blocky atlases with a slice network of random weights that is sure of what it says."""
    torch.manual_seed(1)
    slices = SliceUNet(CLASSES, decoder=(8, 8, 8, 8), pretrained=False)
    with torch.no_grad():
        slices.last[0].weight.mul_(60)
    labels = (drawn(2, 3, 1, 4, 4, 4) * CLASSES).to(torch.uint8)
    for axis, by in zip((2, 3, 4), (8, 8, 4), strict=True):
        labels = labels.repeat_interleave(by, axis)
    images = drawn(3, 3, 1, *FINE)
    library = AtlasLibrary(
        images[:, :, ::2, ::2, ::2].contiguous(),
        labels[:, :, ::2, ::2, ::2].contiguous(),
        drawn(4, 3, 5),
        ("a", "b", "c"),
        torch.full((3,), -1),
        CLASSES,
        fine=tuple(FineAtlas(image.half(), label) for image, label in zip(images, labels, strict=True)),
    )
    two = {"volume_network": volume_network, "stride": (1, 1, 1)} if networks == 2 else {}
    estimator = Estimator(slices, tta_views=2, **two)
    joint = JointSettings(estimate_weight=0.6)
    model = Segmenter(library, Aligner(Moving(), batch=2), estimator=estimator, joint=joint, fusions=fusions or {})
    grid = Geometry(WORK, np.eye(4))
    fine = Preprocessed("t", drawn(5, 1, *FINE), None, refined(grid, FACTOR), grid)
    return model, Preprocessed("t", fine.image[:, ::2, ::2, ::2].contiguous(), None, grid, grid, fine=fine)


def plainly(monkeypatch):
    """Hold the networks' maps as they are, whatever the number of classes."""
    monkeypatch.setattr(estimate, "MANY", 255)


def test_a_packed_probability_comes_back():
    values = torch.cat([torch.linspace(0, 1, 5001), torch.logspace(-9, 0, 5001)])
    found = unpack(pack(values))
    assert float((found - values).abs().max()) < 3.1e-5
    some = values >= SMALLEST
    assert float(((found - values).abs() / values)[some].max()) < 1e-3
    assert torch.equal(found[values == 1], values[values == 1])
    assert torch.equal(unpack(pack(torch.tensor([-1e-8, 1 + 1e-6]))), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("networks", [1, 2])
def test_networks_are_what_they_are_unpacked(networks, monkeypatch):
    model, scan = model_and_scan(networks)
    packed = see(model.estimator, scan)
    plainly(monkeypatch)
    plain = see(model.estimator, scan)
    assert isinstance(packed.fine, PackedNetworks)
    assert isinstance(plain.fine, torch.Tensor)
    assert packed.fine.shape == plain.fine.shape == (networks, CLASSES, *FINE)
    torch.testing.assert_close(packed.networks, plain.networks, atol=1e-5, rtol=0)
    for slab in (slice(0, 1), slice(15, 18), slice(31, 32), slice(0, 32)):
        torch.testing.assert_close(packed.fine.slab(slab), slab_of(plain.fine, slab), atol=CLOSE, rtol=0)
    torch.testing.assert_close(mean_of(packed.fine), mean_of(plain.fine), atol=CLOSE, rtol=0)
    assert float(plain.fine.amax(1).mean()) > 3 / CLASSES  # far from saying nothing, which is 1 / CLASSES


@pytest.mark.parametrize("fusions", [{}, {3: LearnedFusion((0.5, 0.3), 2.0, 9)}])
@pytest.mark.parametrize("values", [fine_fusion.SLAB_VALUES, 1])
def test_results_are_those_of_maps_held_as_they_are(values, fusions, monkeypatch):
    model, scan = model_and_scan(fusions=fusions)
    asked = ("FwoW", "majority", "estimate", "OASIS-joint")
    features = torch.zeros(1, 5)
    with monkeypatch.context() as other:
        plainly(other)
        plain = model(scan, features, asked, (3,), keep_opinions=True).results
    monkeypatch.setattr(fine_fusion, "SLAB_VALUES", values)
    found = model(scan, features, asked, (3,), keep_opinions=True).results
    assert set(found) == set(plain)
    for key, wanted in plain.items():
        got = found[key]
        torch.testing.assert_close(got.probability, wanted.probability, atol=CLOSE, rtol=0)
        first, second = wanted.probability.topk(2, 0).values
        clear = first - second > 2 * CLOSE
        assert key[0] in ("FwoW", "majority") or float(clear.float().mean()) > 0.9  # random atlases tie everywhere
        assert torch.equal(decide(got.probability)[clear], decide(wanted.probability)[clear])
        for part, other in ((got.uncertainty, wanted.uncertainty), (got.opinions, wanted.opinions)):
            assert (part is None) == (other is None)
            if other is not None:
                torch.testing.assert_close(part, other, atol=3 * CLOSE, rtol=0)
        assert (got.agreement is None) == (wanted.agreement is None)
        if wanted.agreement is not None:  # counts of voxels; a few are ties
            torch.testing.assert_close(got.agreement, wanted.agreement, atol=20, rtol=2e-3)
    assert found["OASIS-joint", 3].opinions.shape == (3, CLASSES, *FINE)


def test_pieces_no_atlas_supports_go_from_packed_results_too(monkeypatch):
    """The vote says there is one; the atlases say nothing of it."""
    model, scan = model_and_scan()
    seen = {}

    def unsupported(label, atlases):
        seen["label"], seen["atlases"] = label, atlases
        removed = torch.zeros(label.shape, dtype=torch.bool)
        removed[10:20, 5:9, 3] = True
        return removed

    whole = model(scan, torch.zeros(1, 5), ("OASIS-joint", "majority"), (3,)).results
    monkeypatch.setattr(fusion, "unsupported", unsupported)
    found = model(scan, torch.zeros(1, 5), ("OASIS-joint",), (3,)).results["OASIS-joint", 3]
    before = whole["OASIS-joint", 3].probability
    assert seen["label"].shape == seen["atlases"].shape == FINE
    assert not torch.equal(seen["label"], seen["atlases"])
    assert float(found.probability[0, 10:20, 5:9, 3].min()) == 1
    assert float(found.probability[1:, 10:20, 5:9, 3].max()) == 0
    torch.testing.assert_close(found.probability[:, 20:], before[:, 20:])
