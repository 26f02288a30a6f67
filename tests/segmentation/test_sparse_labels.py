"""Warped labels held by voxel say what channels say: against warped channels, and point by point."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.warp import warp
from oasis_monai.segmentation import alignment, fine_fusion, fusion
from oasis_monai.segmentation.alignment import with_background
from oasis_monai.segmentation.result import hard_label
from oasis_monai.segmentation.sparse_labels import SparseLabels, warp_sparse
from oasis_monai.transforms.labels import one_hot, with_ignored
from tests.segmentation.test_fine_fusion import with_fine
from tests.segmentation.test_segmenter import ALL, Known, segmenter, world

CLASSES = 12  # of which some are nowhere
VALUES = (0, 2, 3, 7, 11)


def labels(dims, count=3, ignore=True, seed=0):
    """(n, 1, *S) blocks of a few voxels, of classes that are not all there; some voxels nobody labelled."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, len(VALUES), (count, 1, *[5] * dims), generator=random)
    for axis in range(2, 2 + dims):
        coarse = coarse.repeat_interleave(2, axis)
    made = torch.tensor(VALUES)[coarse].to(torch.uint8)
    if ignore:
        made[:, :, :3, 4:] = IGNORE
    return made


def fields(dims, count=3, seed=1):
    return 1.5 * torch.randn(count, dims, *[10] * dims, generator=torch.Generator().manual_seed(seed))


def both(dims, ignore=True):
    """The same warped labels in channels and by voxel."""
    label, field = labels(dims, ignore=ignore), fields(dims)
    channels = with_background(warp(with_ignored(label, CLASSES), field), CLASSES)
    axes = torch.meshgrid(*[torch.arange(10)] * dims, indexing="ij")
    places = [[w + a for w, a in zip(way, axes, strict=True)] for way in field]
    moved = (warp_sparse(one, where, CLASSES) for one, where in zip(label, places, strict=True))
    return channels, SparseLabels(tuple(moved))


def clear(channels):
    """Voxels whose class does not hang on rounding."""
    first, second = channels.topk(2, 1).values.unbind(1)
    return ((first - second) > 1e-3) & ((channels.sum(1) - 0.5).abs() > 1e-3)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_they_are_what_warped_channels_are(dims, ignore):
    channels, sparse = both(dims, ignore)
    assert bool((channels.sum(1) == 0).any()) == ignore
    for one, of_channels, sure in zip(sparse, channels, clear(channels), strict=True):
        torch.testing.assert_close(one.dense(), of_channels, atol=2e-4, rtol=0)
        assert torch.equal(hard_label(one)[sure], hard_label(of_channels)[sure])
        assert float(sure.float().mean()) > 0.8
        assert set(one.hard.unique().tolist()) <= {*VALUES, IGNORE}  # nothing invented
        torch.testing.assert_close(one.sums(), of_channels.flatten(1).sum(1).double(), atol=0.02, rtol=1e-4)


def test_point_by_point():
    label, field = labels(3, 1)[0], fields(3, 1)[0]
    axes = torch.meshgrid(*[torch.arange(10)] * 3, indexing="ij")
    found = warp_sparse(label, [way + axis for way, axis in zip(field, axes, strict=True)], CLASSES).dense().numpy()
    for p in itertools.product(range(0, 10, 3), repeat=3):
        place = np.clip(np.array(p) + field[(slice(None), *p)].double().numpy(), 0, 9)
        low = np.floor(place).astype(int)
        share = dict.fromkeys((*range(CLASSES), IGNORE), 0.0)
        for corner in itertools.product((0, 1), repeat=3):
            at = np.minimum(low + corner, 9)
            share[int(label[(0, *at)])] += np.prod(np.where(np.array(corner) == 1, place - low, 1 - (place - low)))
        unknown = share.pop(IGNORE)
        wanted = np.array(list(share.values())) / (1 - unknown) if unknown < 0.5 else np.zeros(CLASSES)
        np.testing.assert_allclose(found[(slice(None), *p)], wanted, atol=1e-5)


def test_what_is_made_of_them_is_what_is_made_of_channels():
    channels, sparse = both(3)
    weights = torch.tensor([0.5, 0.2, 0.3])
    torch.testing.assert_close(fusion.fuse(sparse, weights), fusion.fuse(channels, weights), atol=2e-4, rtol=0)
    torch.testing.assert_close(fusion.fuse(sparse[:2], weights[:2]), fusion.fuse(channels[:2], weights[:2]), atol=2e-4, rtol=0)
    estimate = torch.softmax(3 * torch.randn(CLASSES, 10, 10, 10), 0)
    found, wanted = (fusion.agreement_with_estimate(one, estimate) for one in (sparse, channels))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    references = labels(3, seed=4)
    dense = one_hot(references, CLASSES)
    wanted = fusion.overlap(channels, dense)
    torch.testing.assert_close(fusion.overlap(sparse, references[:, 0]), wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(fusion.overlap(sparse, dense), wanted, atol=1e-3, rtol=0)
    soft = channels[1][None].expand_as(channels)
    torch.testing.assert_close(fusion.overlap(sparse, soft), fusion.overlap(channels, soft), atol=1e-3, rtol=0)


def test_two_labels_without_any_structure_agree():
    nothing = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
    axes = torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij")
    empty = SparseLabels((warp_sparse(nothing[0], axes, CLASSES),))
    assert fusion.overlap(empty, nothing[:, 0]).item() == 1
    full = torch.ones_like(nothing)
    assert fusion.overlap(empty, full[:, 0]).item() < 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_every_method_says_the_same(dims, monkeypatch):
    library, target, features = world(dims)
    library.labels[0, :, :4] = IGNORE
    wanted = segmenter(library)(target, features, ALL, (1, 3)).results
    monkeypatch.setattr(alignment, "MANY", 0)
    monkeypatch.setattr(fine_fusion, "MANY", 0)
    found = [segmenter(library)(target, features, ALL, (1, 3)).results]
    if dims == 3:
        fine_library, fine_target = with_fine(library, target, (1, 1, 1))
        found.append(segmenter(fine_library)(fine_target, features, ALL, (1, 3)).results)
    for results in found:
        for key, result in wanted.items():
            torch.testing.assert_close(results[key].probability, result.probability, atol=2e-3, rtol=0)
            if result.weights is not None:
                torch.testing.assert_close(results[key].weights, result.weights, atol=2e-3, rtol=0)


def test_few_classes_keep_their_channels():
    library, _, _ = world(3)
    aligner = alignment.Aligner(Known())
    rows = torch.arange(2)
    still = torch.zeros(2, 3, *library.images.shape[2:])
    ((_, _, few),) = aligner.warped(library, rows, still)
    assert isinstance(few, torch.Tensor)
    ((_, images, many),) = aligner.warped(replace(library, classes=CLASSES), rows, still, images=True)
    assert [one.hard.tolist() for one in many] == library.labels[:2, 0].tolist()
    torch.testing.assert_close(images, library.images[:2])
