"""How far the parts of a result agree: counts of overlap, and what they say of an absent structure."""

import numpy as np
import pytest
import torch

from oasis_monai.segmentation.agreement import agreement, consensus, overlap_counts, overlaps


def hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels.long(), classes).movedim(-1, 0).float()


def dice(a: torch.Tensor, b: torch.Tensor, c: int) -> float:
    """A loop over voxels."""
    common = both = 0
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
        common += 2 * (x == c and y == c)
        both += (x == c) + (y == c)
    return common / both


def test_counts_are_dice_of_the_parts():
    random = torch.Generator().manual_seed(1)
    one, two, fused = (torch.randint(0, 3, (5, 6, 4), generator=random) for _ in range(3))
    voices = torch.stack([hot(one, 3), 0.9 * hot(two, 3) + 0.1 / 3])  # the mean of both decides for the first
    told = overlaps(agreement(voices, hot(fused, 3)))
    for c in (1, 2):
        assert told[c - 1] == pytest.approx([dice(one, two, c), dice(fused, one, c)])


def test_counts_of_slices_add_up_to_those_of_the_volume():
    random = torch.Generator().manual_seed(2)
    voices = torch.rand(2, 3, 6, 5, 7, generator=random)
    fused = torch.rand(3, 6, 5, 7, generator=random)
    slices = sum(agreement(voices[..., z], fused[..., z]) for z in range(7))
    assert torch.equal(slices, agreement(voices, fused))


def test_one_network_alone_compares_nothing():
    voices = hot(torch.ones(3, 3, 2), 2)[None]
    assert np.isnan(overlaps(agreement(voices, None))).all()


def test_a_structure_nobody_finds_is_no_agreement():
    nothing = hot(torch.zeros(3, 3, 2), 3)
    one = hot(torch.ones(3, 3, 2), 3)
    assert overlaps(agreement(torch.stack([one, one]), one)).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert np.isnan(overlaps(agreement(torch.stack([nothing, nothing]), nothing))).all()


def test_consensus_is_the_overlap_of_each_atlas_with_the_result():
    random = torch.Generator().manual_seed(3)
    atlases = torch.randint(0, 2, (4, 6, 6), generator=random)
    fused = hot(atlases[0], 2)
    counts = consensus(atlases, fused)
    common = sum(2 * ((a == 1) & (atlases[0] == 1)).sum().item() for a in atlases)
    both = sum((a == 1).sum().item() + (atlases[0] == 1).sum().item() for a in atlases)
    assert counts[0].sum() == 0
    assert overlaps(counts)[0, 1] == pytest.approx(common / both)


def test_structures_that_share_voxels_are_compared_mask_by_mask():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 4, (6, 7, 5), generator=draw).to(torch.uint8) for _ in range(2))
    one[0] = 255
    members = ((1, 3), (2, 3))
    made = overlap_counts(one, other, 4, members)
    known = one != 255
    for row, own in zip(made.tolist(), members, strict=True):
        a, b = ((sum(x == c for c in own) > 0) & known for x in (one, other))
        assert row == [2 * int((a & b).sum()), int(a.sum() + b.sum())]
    probabilities = torch.softmax(torch.randn(2, 4, 6, 7, 5, generator=draw), 1)
    assert agreement(probabilities, probabilities[0], members).shape == (2, 2, 2)
