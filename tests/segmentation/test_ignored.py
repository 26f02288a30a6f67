"""Atlases of which a part is labelled: where nobody labelled one it has no vote, against sums over the atlases that have."""

import dataclasses

import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.losses import soft_dice
from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.agreement import consensus, overlap_counts
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.recentre import AtlasPositions
from oasis_monai.transforms.labels import one_hot
from tests.segmentation.test_segmenter import ALL, CLASSES, Known, segmenter, world

N = 4


def partly(library, seed=3, part=0.5):
    """The library with a part of every label ignored: a half-space, another for each atlas."""
    labels = library.labels.clone()
    for row in range(len(labels)):
        axis, size = row % library.spatial_dims, labels.shape[2 + row % library.spatial_dims]
        labels[row].narrow(1 + axis, 0 if row % 2 else round(size * part), round(size * (1 - part)))[:] = IGNORE
    return dataclasses.replace(library, labels=labels)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_alignment_each_voxel_is_the_vote_of_the_labelled_atlases(dims):
    library, target, features = world(dims)
    library = partly(library)
    found = segmenter(library)(target, features, ["FwoW"], [N])
    result = found.results["FwoW", N]
    for image, rows in enumerate(found.selection.indices):
        probability = result.probability[..., image] if dims == 2 else result.probability
        hot = one_hot(library.labels[rows], CLASSES).double()
        known = (library.labels[rows] != IGNORE).double()
        weights = result.weights[image].double().view(-1, *[1] * (dims + 1))
        votes = (weights * known).sum(0)
        want = (weights * hot).sum(0) / votes.clamp_min(1e-9)
        nobody = votes[0] == 0
        want[0][nobody] = 1
        torch.testing.assert_close(probability, want.float(), atol=1e-5, rtol=1e-5)
        assert not nobody.all()


@pytest.mark.parametrize("dims", [2, 3])
def test_every_method_fuses_partly_labelled_atlases_into_probabilities(dims):
    library, target, features = world(dims)
    found = segmenter(partly(library))(target, features, ALL, [1, N]).results
    for key, result in found.items():
        total = result.probability.sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)
        assert torch.isfinite(result.probability).all(), key
        assert result.weights is None or torch.isfinite(result.weights).all(), key


def test_an_atlas_without_any_label_is_as_if_it_were_not_there():
    """Equal weights, so that only the votes count."""
    library, target, features = world(3)
    rows = segmenter(library).select(features, N).indices[0]
    labels = library.labels.clone()
    labels[rows[-1]] = IGNORE
    some = segmenter(dataclasses.replace(library, labels=labels))(target, features, ["majority", "STAPLE"], [N]).results
    fewer = segmenter(library)(target, features, ["majority", "STAPLE"], [N - 1]).results
    torch.testing.assert_close(some["majority", N].probability, fewer["majority", N - 1].probability, atol=1e-5, rtol=1e-5)
    assert torch.equal(some["majority", N].agreement, fewer["majority", N - 1].agreement)


@pytest.mark.parametrize("dims", [2, 3])
def test_loa_counts_what_both_labels_say(dims):
    library, _, _ = world(dims)
    library = partly(library)
    aligner = Aligner(Known(), batch=3)
    got = LoaTable(library, aligner).matrix(torch.arange(N))
    for j in range(N):
        for k in set(range(N)) - {j}:
            pair = torch.tensor([k])
            fields = aligner.fields(library.images[pair].float(), library.images[[j]].float())
            ((_, _, moved),) = aligner.warped(library, pair, fields)
            known = (moved.sum(1, keepdim=True) > 0.5) & (library.labels[[j]] != IGNORE)
            onto = one_hot(library.labels[[j]], CLASSES) * known
            there = ((moved * known)[:, 1:].flatten(2).sum(2) + onto[:, 1:].flatten(2).sum(2)) > fusion.EMPTY
            each = soft_dice((moved * known)[:, 1:], onto[:, 1:])[there]
            assert float(got[j, k]) == pytest.approx(float(each.mean()) if len(each) else 1.0, abs=1e-5)


def test_a_vote_is_whole_or_there_is_none():
    """A warp by half a voxel mixes labelled and ignored voxels; what it makes of them is a label, or says nothing."""
    library = partly(world(3)[0])
    ((_, _, label),) = Aligner(Known()).warped(library, torch.tensor([0]), torch.full((1, 3, 6, 5, 4), 0.25, dtype=torch.float16))
    sums = label.sum(1)
    assert ((sums < 1e-6) | ((sums - 1).abs() < 1e-5)).all()
    assert (sums < 1e-6).any()
    assert (sums > 0.5).any()


def test_the_estimate_stands_in_where_no_atlas_votes():
    probability = torch.tensor([[0.2, 0.0], [0.2, 0.0]])  # (C, voxels): 40 % of the votes, and none
    estimate = torch.tensor([[0.9, 0.3], [0.1, 0.7]])
    assert torch.allclose(fusion.share_votes(probability, estimate), torch.tensor([[0.5, 0.3], [0.5, 0.7]]))
    assert torch.allclose(fusion.share_votes(probability), torch.tensor([[0.5, 1.0], [0.5, 0.0]]))
    whole = torch.tensor([[0.4, 1.0], [0.6, 0.0]])
    assert fusion.share_votes(whole, estimate) is whole


def test_overlap_with_the_estimate_counts_labelled_voxels():
    warped = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])  # foreground, background, ignored
    for ignored in (0.0, 0.9):
        estimate = torch.tensor([[0.2, 0.9, 1 - ignored], [0.8, 0.1, ignored]])
        got = fusion.agreement_with_estimate(warped, estimate)
        assert float(got) == pytest.approx(2 * 0.8 / (1 + 0.9), abs=1e-4)


def test_counts_leave_out_what_one_of_them_ignores():
    a = torch.tensor([1, 1, IGNORE, 0, 2, 1], dtype=torch.uint8)
    b = torch.tensor([1, 0, 1, 2, IGNORE, 1], dtype=torch.uint8)
    assert overlap_counts(a, b, 3).tolist() == [[4, 5], [0, 1]]
    fused = one_hot(b[None, None].clamp_max(2), 3)[0]
    assert consensus(a[None], fused)[1].tolist() == overlap_counts(a, b.clamp_max(2), 3).tolist()


def test_staple_takes_an_ignored_vote_for_that_of_most_others():
    votes = torch.zeros(3, 6, 5, 4, dtype=torch.uint8)
    votes[:, 2:4, 1:4, 1:3] = 1
    votes[1, 2:4, 1:4] = IGNORE
    assert torch.equal(fusion.staple(votes, 2)[1].round(), (votes[0] == 1).float())


def test_ignored_voxels_are_no_structure_of_an_atlas():
    labels = torch.zeros(2, 1, 6, 5, 4, dtype=torch.uint8)
    labels[:, :, 1:3, 2, 2] = 1
    positions = AtlasPositions.of(labels)
    labels[:, :, 4:] = IGNORE
    again = AtlasPositions.of(labels)
    assert again.smallest == positions.smallest == 2
    assert again.usual.tolist() == positions.usual.tolist()
