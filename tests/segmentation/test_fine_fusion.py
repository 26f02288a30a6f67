"""Fusion on the fine grid: against the same grid without one, and point by point in millimetres."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.atlases.library import FineAtlas
from oasis_monai.data.types import IGNORE, Geometry, Preprocessed
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.segmentation import fine_fusion
from oasis_monai.segmentation.agreement import agreement
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.estimate import Estimator, add_detail, see
from oasis_monai.segmentation.fine_fusion import slabs, warp_slab
from oasis_monai.segmentation.fusion import remove_unsupported_components, staple
from oasis_monai.segmentation.learned_fusion import LearnedFusion
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.segmentation.views import AtlasVolumes, result_agreement
from oasis_monai.transforms.fine import refined
from oasis_monai.transforms.labels import decide, foreground
from tests.networks.test_slice_unet import net
from tests.segmentation.test_segmenter import ALL, CLASSES, Known, segmenter, world
from tests.segmentation.test_segmenter_joint import Shifted
from tests.training.test_slices import discs


def spread(values, factor):
    """(C, x, y, z) with every voxel repeated: the same picture on a fine grid."""
    for axis, count in enumerate(factor, 1):
        values = values.repeat_interleave(count, axis)
    return values


def with_fine(library, target, factor):
    """The same atlases and target with a fine grid that shows no more than the working grid does."""
    fine = tuple(
        FineAtlas(spread(i, factor).half(), spread(m, factor)) for i, m in zip(library.images, library.labels, strict=True)
    )
    grid = refined(target.geometry, factor)
    there = Preprocessed(target.case, spread(target.image, factor), None, grid, target.native)
    return replace(library, fine=fine), replace(target, fine=there)


def same(found, wanted):
    for part, other in zip(found, wanted, strict=True):
        if other is None:
            assert part is None
        else:
            torch.testing.assert_close(part, other, atol=2e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("values", [fine_fusion.SLAB_VALUES, 1])
def test_on_a_fine_grid_that_is_the_working_grid_nothing_changes(values, monkeypatch):
    """In one slab as in many."""
    monkeypatch.setattr(fine_fusion, "SLAB_VALUES", values)
    library, target, features = world(3)
    library.labels[0, :, :4] = IGNORE
    plain = segmenter(library)(target, features, ALL, (1, 3)).results
    library, target = with_fine(library, target, (1, 1, 1))
    fine = segmenter(library)(target, features, ALL, (1, 3)).results
    assert set(plain) == set(fine)
    for key, wanted in plain.items():
        same(fine[key], wanted)


@pytest.mark.parametrize("volume", [False, True])
def test_so_it_is_for_a_joint_model(volume):
    library = discs(3)
    volume_network = (lambda image: torch.softmax(torch.cat([1 - image, image], 1), 1)) if volume else None
    estimator = Estimator(net(pretrained=False), volume_network=volume_network, stride=(2, 2, 1))
    image = torch.rand(1, 32, 32, 4, generator=torch.Generator().manual_seed(3))
    grid = Geometry((32, 32, 4), np.eye(4))
    target, features = Preprocessed("t", image, None, grid, grid), torch.randn(1, 5)

    def results(library, target):
        model = Segmenter(library, Aligner(Shifted(), batch=2), estimator=estimator, joint=JointSettings(estimate_weight=0.4))
        return model(target, features, ("FwoW", "estimate", "OASIS-joint"), (3,)).results

    plain, fine = results(library, target), results(*with_fine(library, target, (1, 1, 1)))
    for key, wanted in plain.items():
        same(fine[key], wanted)


def linear(values, point):
    """(C, x, y, z) between its voxels at a point, one of its eight neighbours after the other; its border continues."""
    point = np.clip(point, 0, np.array(values.shape[1:]) - 1)
    low = np.floor(point).astype(int)
    total = np.zeros(len(values))
    for corner in itertools.product((0, 1), repeat=3):
        at = np.minimum(low + corner, np.array(values.shape[1:]) - 1)
        weight = np.prod(np.where(np.array(corner) == 1, point - low, 1 - (point - low)))
        total += weight * values[(slice(None), *at)]
    return total


def test_a_slab_is_warped_as_its_points_are_in_millimetres():
    random = torch.Generator().manual_seed(5)
    working = Geometry((8, 10, 6), np.diag([2.0, 2.0, 3.0, 1.0]))
    factor, stride = (3, 2, 2), (2, 2, 1)
    fine = refined(working, factor)
    coarse = refined(refined(working, [1 / s for s in stride]), (1, 1, 1))
    label = torch.randint(0, 3, (1, *fine.shape), generator=random, dtype=torch.uint8)
    field = 3 * torch.randn(3, *coarse.shape, generator=random)  # in voxels of its own grid; some points leave the atlas
    hot = np.stack([(label[0] == index).numpy().astype(float) for index in range(3)])
    found = warp_slab(label, field, slice(5, 17), 3)
    assert found.shape == (3, 12, *fine.shape[1:])
    to_coarse, to_fine = np.linalg.inv(coarse.affine), np.linalg.inv(fine.affine)
    for x, y, z in itertools.product(range(5, 17, 3), range(0, 20, 5), range(0, 12, 3)):
        place_mm = fine.affine @ [x, y, z, 1]
        moved_mm = coarse.affine[:3, :3] @ linear(field.numpy(), (to_coarse @ place_mm)[:3])
        place_mm[:3] += moved_mm
        wanted = linear(hot, (to_fine @ place_mm)[:3])
        np.testing.assert_allclose(found[:, x - 5, y, z], wanted, atol=2e-4)


@pytest.mark.parametrize("maps", [1, 7, 10**9])
def test_slabs_are_the_grid(maps):
    parts = list(slabs((50, 1000, 1000), maps))
    assert [x for part in parts for x in range(part.start, part.stop)] == list(range(50))
    assert all((p.stop - p.start) * maps * 10**6 <= fine_fusion.SLAB_VALUES or p.stop - p.start == 1 for p in parts)


def test_votes_on_the_fine_grid_are_weighted_sums_of_its_labels():
    """Labels with a detail that the working grid does not show."""
    library, target, features = world(3)
    library, target = with_fine(library, target, (2, 1, 2))
    library.fine[0].label[0, 5, 4, 7] = 2
    found = segmenter(library)(target, features, ("FwoW", "majority"), (4,))
    rows, fields = found.selection.indices[0], found.fields[0]
    for method in ("FwoW", "majority"):
        weights = found.results[method, 4].weights[0]
        wanted = 0
        for weight, row, field in zip(weights, rows, fields, strict=True):
            label = library.fine[row].label
            still = torch.stack([(label[0] == index).float() for index in range(CLASSES)])
            moved = warp_slab(label, field, slice(0, label.shape[1]), CLASSES) if method == "majority" else still
            wanted = wanted + weight * moved
        torch.testing.assert_close(found.results[method, 4].probability, wanted, atol=1e-5, rtol=0)
    assert found.results["majority", 4].uncertainty.shape == target.fine.geometry.shape


@pytest.mark.parametrize("values", [fine_fusion.SLAB_VALUES, 1])
def test_staple_rates_what_atlases_say_on_the_fine_grid(values, monkeypatch):
    """Labels with a detail that the working grid does not show; no other method needs to be asked."""
    monkeypatch.setattr(fine_fusion, "SLAB_VALUES", values)
    library, target, features = world(3)
    library, target = with_fine(library, target, (2, 1, 2))
    for one in library.fine:
        one.label[0, 5, 4, 7] = 2
    found = segmenter(library)(target, features, ("STAPLE",), (2, 4))
    said = []
    for row, field in zip(found.selection.indices[0], found.fields[0], strict=True):
        label = library.fine[row].label
        said.append(decide(warp_slab(label, field, slice(0, label.shape[1]), CLASSES)))
    for n in (2, 4):
        assert torch.equal(found.results["STAPLE", n].probability, staple(torch.stack(said[:n]), CLASSES))


def seen_by_two_networks():
    """A library and a target with a fine grid, and the networks of a joint model."""
    library = discs(3)
    estimator = Estimator(net(pretrained=False), volume_network=lambda image: torch.cat([1 - image, image], 1).sigmoid())
    image = torch.rand(1, 32, 32, 4, generator=torch.Generator().manual_seed(3))
    grid = Geometry((32, 32, 4), np.eye(4))
    library, target = with_fine(library, Preprocessed("t", image, None, grid, grid), (2, 2, 1))
    return library, target, estimator


def test_parts_are_compared_on_the_fine_grid():
    library, target, estimator = seen_by_two_networks()
    model = Segmenter(library, Aligner(Shifted(), batch=2), estimator=estimator, joint=JointSettings(estimate_weight=1.0))
    results = model(target, torch.randn(1, 5), ("estimate", "majority"), (2,)).results
    seen = see(estimator, target)
    counts = results["majority", 2].agreement
    assert torch.equal(results["estimate", 0].probability, seen.fine.mean(0))
    assert torch.equal(counts[0], agreement(seen.networks, None)[0])
    assert torch.equal(counts[1], agreement(seen.fine.mean(0)[None], results["majority", 2].probability)[1])


@pytest.mark.parametrize("fusions", [{}, {2: LearnedFusion((0.5, 0.2), 2.0, 9)}])
def test_slabs_change_no_voxel_of_what_networks_and_atlases_say_together(fusions, monkeypatch):
    random = torch.Generator().manual_seed(3)
    networks = torch.softmax(3 * torch.randn(2, 3, 33, 30, 7, generator=random), 1)
    fused = torch.softmax(5 * torch.randn(3, 33, 30, 7, generator=random), 0)
    model = Segmenter(discs(3), joint=JointSettings(estimate_weight=0.3), fusions=fusions)
    learned = fusions.get(2)
    wanted = 0.7 * fused + 0.3 * networks.mean(0) if learned is None else learned(networks, fused)
    for values in (fine_fusion.SLAB_VALUES, 4000, 1):
        monkeypatch.setattr(fine_fusion, "SLAB_VALUES", values)
        found = model.vote_with_networks(fused, networks, 2)
        # to the bit where it is a sum; torch rounds a softmax by where in memory a voxel lies
        torch.testing.assert_close(found, remove_unsupported_components(wanted, fused), atol=1e-6 if learned else 0, rtol=0)
        assert torch.equal(decide(found), decide(wanted))


def test_learned_weights_pool_what_is_said_on_the_fine_grid():
    library, target, estimator = seen_by_two_networks()
    learned = LearnedFusion((0.5, 0.2), 2.0, 9)
    model = Segmenter(library, Aligner(Shifted(), batch=2), estimator=estimator, fusions={2: learned})
    result = model(target, torch.randn(1, 5), ("OASIS-joint",), (2,), keep_opinions=True).results["OASIS-joint", 2]
    assert result.opinions.shape == (3, 2, 64, 64, 4)
    assert torch.equal(result.opinions[:2], see(estimator, target).fine)
    wanted = learned(result.opinions[:2], result.opinions[2])
    torch.testing.assert_close(result.probability, remove_unsupported_components(wanted, result.opinions[2]))


def test_a_label_on_the_fine_grid_is_refused_as_one_on_the_working_grid_is():
    library, target, features = world(3)
    library, target = with_fine(library, target, (2, 2, 1))
    labelled = replace(target, fine=replace(target.fine, label=library.fine[0].label))
    with pytest.raises(ValueError, match="must come without its label"):
        segmenter(library)(labelled, features, ("majority",), (1,))


def test_the_volume_network_says_where_and_the_slice_network_what_detail():
    random = torch.Generator().manual_seed(2)
    by_slices = 0.25 + 0.5 * torch.rand(1, 8, 8, 4, generator=random)
    by_slices = torch.cat([1 - by_slices, by_slices])
    pooled = torch.nn.functional.avg_pool3d(by_slices[None], (2, 2, 1))[0]
    shift = torch.tensor([-0.2, 0.2]).view(2, 1, 1, 1)
    torch.testing.assert_close(add_detail(pooled + shift, pooled, by_slices), by_slices + shift)
    assert torch.equal(add_detail(by_slices.flip(0), by_slices, by_slices), by_slices.flip(0))  # on one grid it sees all itself
    changed = torch.rand(2, 4, 4, 4, generator=random)
    larger = torch.nn.functional.interpolate((changed - pooled)[None], size=(8, 8, 4), mode="trilinear")[0]
    wanted = (by_slices + larger).clamp_min(0)
    place = torch.empty(2, 8, 8, 4)
    assert add_detail(changed, pooled, by_slices, place) is place
    torch.testing.assert_close(place, wanted / wanted.sum(0))
    far = add_detail(torch.cat([torch.ones_like(pooled[:1]), torch.zeros_like(pooled[:1])]), pooled, by_slices)
    assert float(far.min()) >= 0
    torch.testing.assert_close(far.sum(0), torch.ones(8, 8, 4))


def test_large_slices_are_seen_a_few_at_a_time(monkeypatch):
    estimator = Estimator(net(pretrained=False))
    image = torch.rand(1, 32, 32, 5, generator=torch.Generator().manual_seed(3))
    whole = estimator.volume(image)
    sizes = []
    forward = Estimator.__call__
    monkeypatch.setattr(Estimator, "__call__", lambda self, slices, views: sizes.append(len(slices)) or forward(self, slices))
    monkeypatch.setattr("oasis_monai.segmentation.estimate.MOST_PIXELS", 2 * 32 * 32)
    torch.testing.assert_close(estimator.volume(image), whole, atol=1e-5, rtol=1e-4)
    assert sizes == [2, 2, 1]


def test_a_structure_is_no_larger_for_having_more_voxels():
    library, _, _ = world(3)
    volumes = AtlasVolumes.of(library.labels, CLASSES)
    label = library.labels[0]
    hot = torch.cat([1 - foreground(label[None], CLASSES)[0].sum(0, keepdim=True), foreground(label[None], CLASSES)[0]])
    counts = torch.ones(2, CLASSES - 1, 2, dtype=torch.float64)
    working = result_agreement(counts, hot, volumes)
    assert working == 1
    assert result_agreement(counts, spread(hot, (2, 2, 2)), volumes) == working
    assert decide(spread(hot, (2, 2, 2))).sum() == 8 * decide(hot).sum()


def test_fields_come_from_the_working_grid():
    """A network that knows one pair's field is asked once for every pair, whatever the fine grid."""
    library, target, features = world(3)
    asked = Known()
    library, target = with_fine(library, target, (2, 2, 2))
    Segmenter(library, Aligner(asked, batch=8))(target, features, ("majority",), (3,))
    assert asked.pairs == 3
