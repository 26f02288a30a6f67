"""Voxels that nobody labelled: their way through interpolation, against loops over voxels."""

import numpy as np
import torch

from oasis_monai.data.types import IGNORE, Geometry
from oasis_monai.transforms.labels import foreground, labelled, one_hot, split_ignored, structures, with_ignored
from oasis_monai.transforms.spatial import resample_label


def label(seed=0, size=(8, 7, 6)):
    """Random classes 0, 1, 2, a third of the voxels ignored."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (2, 1, *size), generator=random).to(torch.uint8)
    return torch.where(torch.rand(2, 1, *size, generator=random) < 1 / 3, IGNORE, classes)


def test_an_ignored_voxel_is_in_no_class_and_no_structure():
    some = label()
    unknown = some == IGNORE
    assert not one_hot(some, 3).sum(1, keepdim=True)[unknown].any()
    assert torch.equal(labelled(one_hot(some, 3)), ~unknown)
    assert torch.equal(structures(some), (some == 1) | (some == 2))


def test_where_nothing_is_ignored_there_is_no_further_channel():
    some = label().clamp_max(2)
    parts, counts = split_ignored(with_ignored(some, 3), 3)
    assert counts is None
    assert torch.equal(parts, foreground(some, 3))


def test_after_interpolation_the_labelled_part_of_a_voxel_decides():
    """Half-way between neighbours along x: each voxel is what the labelled ones of two say, and ignored where none is."""
    some = label()
    maps = with_ignored(some, 3)
    weight = 0.75
    mixed = weight * maps[:, :, :-1] + (1 - weight) * maps[:, :, 1:]
    parts, counts = split_ignored(mixed, 3)
    for b, x, y, z in np.ndindex(2, 7, 7, 6):
        near, far = int(some[b, 0, x, y, z]), int(some[b, 0, x + 1, y, z])
        known = [(w, c) for w, c in ((weight, near), (1 - weight, far)) if c != IGNORE]
        total = sum(w for w, _ in known)
        assert bool(counts[b, 0, x, y, z]) == (total > 0.5)
        for c in (1, 2):
            want = sum(w for w, own in known if own == c) / total if total > 0.5 else 0.0
            assert abs(float(parts[b, c - 1, x, y, z]) - want) < 1e-6


def test_resampling_ignores_a_voxel_where_the_ignored_share_is_the_largest():
    some = label(1)[0]
    fine, coarse = Geometry((8, 7, 6), np.eye(4)), Geometry((7, 7, 6), np.array(np.diag([1.0, 1.0, 1.0, 1.0])))
    coarse.affine[0, 3] = 0.375
    got = resample_label(some, fine, coarse)[0]
    for x, y, z in np.ndindex(7, 7, 6):
        shares = {}
        for w, i in ((0.625, x), (0.375, x + 1)):
            shares[int(some[0, i, y, z])] = shares.get(int(some[0, i, y, z]), 0) + w
        assert int(got[x, y, z]) == max(shares, key=shares.get)
    assert (got == IGNORE).any()
