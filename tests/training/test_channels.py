"""Training on several channels and on labels that are not complete."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.losses import SegmentationLoss
from oasis_monai.networks.segmentation import NetworkSettings
from oasis_monai.training import registration, slices
from oasis_monai.training.registration import make_registration_network, train_registration
from oasis_monai.training.segmentation import coarsen_library, train_segmentation, train_volume_network
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import FitContext
from oasis_monai.transforms.labels import foreground
from tests.training.test_slices import JOINT, SHORT, SMALL, discs

TINY = NetworkSettings(convnet=(4, 8), unet=(4, 8), dynunet=(4, 8))
PLAIN = replace(JOINT, joint=False)


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def beside(library, informative):
    """The library with a second channel: which of the two shows the discs, and which is noise."""
    shown, empty = library.images, noise(library.images.shape)
    images = torch.cat([empty, shown] if informative else [shown, empty], 1)
    context = None if library.context is None else torch.cat([library.context, library.context], 1)
    return replace(library, images=images, context=context)


def context(library, **more):
    return FitContext(library, (1.0,) * library.spatial_dims, replace(SHORT, **more), 0, None, progress=False)


@pytest.mark.parametrize("second", [False, True], ids=["in the first", "in the second"])
def test_what_is_in_one_channel_is_found_whichever_it_is(second):
    """The structure is visible in one of two channels; the other is noise. A network learns it from either."""
    library = beside(discs(2, cases=6, per_case=1), second)
    network = train_segmentation(context(library, iterations=40, lr=1e-2, augment=False), "U-Net2D", TINY)
    with torch.inference_mode():
        found = network(library.images).argmax(1, keepdim=True)
    truth = library.labels
    assert 2 * float((found * truth).sum()) / float((found + truth).sum()) > 0.9


def test_the_registration_network_learns_from_both_channels():
    """The first layer changes for each channel of each image."""
    library = beside(discs(2, cases=4, per_case=1), True)
    after = train_registration(context(library, iterations=30, lr=1e-2, augment=False), PLAIN)
    torch.manual_seed(0)  # as the training has its first weights from
    start = make_registration_network(library, PLAIN)
    assert start.stem.conv.in_channels == 4
    moved = (after.stem.conv.weight - start.stem.conv.weight).abs().sum((0, 2, 3))
    assert (moved > 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_slice_network_trains_on_both_channels_with_their_neighbours(dims):
    library = beside(discs(dims), True)
    settings = replace(SMALL, atlases=2 if dims == 2 else 0)
    network = train_slice_network(context(library, iterations=3), settings)
    first, second = network.encoder._conv_stem.weight.split(3, 1)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("dims", [2, 3])
def test_slices_are_drawn_as_they_are_shown_later(dims):
    """What a training step sees of a slice is what :func:`with_neighbours` makes of the scan."""
    from oasis_monai.atlases.slices import context_slices
    from oasis_monai.networks.slice_unet import make_slice_network, with_neighbours

    library = beside(discs(dims), True)
    library = replace(library, images=library.images + noise(library.images.shape, 3))
    trainer = slices.SliceTrainer(context(library), make_slice_network(2, SMALL, channels=2), SMALL)
    drawn, _, rows = trainer.draw(torch.Generator().manual_seed(0))
    assert drawn.shape[1] == 6
    for picture, row in zip(drawn, rows.tolist(), strict=True):
        whole = with_neighbours(library.images[row]) if dims == 3 else context_slices(library, torch.tensor([row]))
        assert any(torch.equal(picture, one) for one in whole)


# --- labels that are not complete


def half(library):
    """Nobody labelled the upper half of any slice."""
    labels = library.labels.clone()
    labels[:, :, :, labels.shape[3] // 2 :] = IGNORE
    return replace(library, labels=labels)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["segmentation", "slices"])
def test_no_gradient_comes_from_where_nobody_labelled(dims, kind, monkeypatch):
    """The gradient of the loss with respect to the network's output is 0 there, and the loss that of the labelled voxels."""
    library = half(discs(dims))
    seen = []
    whole = SegmentationLoss.__call__

    def watched(self, logits, target, counts=None):
        logits.retain_grad()
        seen.append((logits, target, counts))
        return whole(self, logits, target, counts)

    monkeypatch.setattr(SegmentationLoss, "__call__", watched)
    once = context(library, iterations=1, augment=False)
    if kind == "slices":
        train_slice_network(once, SMALL)
    else:
        train_segmentation(once, f"U-Net{dims}D", TINY)
    ((logits, target, counts),) = seen
    assert torch.equal(counts[:, :, :, 16:], torch.zeros_like(counts[:, :, :, 16:]))
    assert counts[:, :, :, :16].all()
    assert not logits.grad[:, :, :, 16:].any()
    assert logits.grad[:, :, :, :16].any()
    cut = [x[:, :, :, :16] for x in (logits.detach(), target)]
    torch.testing.assert_close(
        whole(SegmentationLoss(kind == "slices"), logits.detach(), target, counts),
        SegmentationLoss(kind == "slices")(*[c.requires_grad_() for c in cut]),
    )


@pytest.mark.parametrize("joint", [False, True])
def test_a_registration_step_counts_what_both_labels_say(joint, monkeypatch):
    library = half(discs(2))
    library = library.with_estimates(foreground(discs(2).labels, 2))
    seen = []
    whole = registration.RegistrationLoss.__call__

    def watched(self, moved, fixed, moved_label, fixed_label, ddf, counts=None):
        seen.append((moved_label, fixed_label, counts))
        return whole(self, moved, fixed, moved_label, fixed_label, ddf, counts)

    monkeypatch.setattr(registration.RegistrationLoss, "__call__", watched)
    train_registration(context(library, iterations=1, augment=False), replace(JOINT, joint=joint))
    ((moved, fixed, counts),) = seen
    assert moved.shape == fixed.shape == (2, 1, 32, 32)  # no channel is left of what was ignored
    assert not counts[..., 16:].any()
    assert counts[..., :16].all()  # the first field is the identity


def test_without_ignored_voxels_a_step_is_what_it_was(monkeypatch):
    seen = []
    whole = SegmentationLoss.__call__
    monkeypatch.setattr(
        SegmentationLoss, "__call__", lambda self, a, b, counts=None: (seen.append(counts), whole(self, a, b, counts))[1]
    )
    train_segmentation(context(discs(2), iterations=2), "U-Net2D", TINY)
    assert seen == [None, None]


def test_a_network_learns_from_halves_what_whole_labels_teach():
    """Every case has another half labelled."""
    library = discs(2, cases=8, per_case=1)
    labels = library.labels.clone()
    for row in range(8):
        labels[row, :, :, 16 * (row % 2) : 16 * (row % 2) + 16] = IGNORE
    settings = dict(iterations=60, lr=1e-2, augment=True)
    network = train_segmentation(context(replace(library, labels=labels), **settings), "U-Net2D", TINY)
    with torch.inference_mode():
        found = network(library.images).argmax(1, keepdim=True)
    assert 2 * float((found * library.labels).sum()) / float((found + library.labels).sum()) > 0.85


def test_slices_that_nobody_labelled_are_not_drawn():
    from oasis_monai.networks.slice_unet import make_slice_network

    library = discs(3)
    labels = library.labels.clone()
    labels[0] = IGNORE
    labels[1, ..., 2] = IGNORE
    trainer = slices.SliceTrainer(context(replace(library, labels=labels)), make_slice_network(2, SMALL), SMALL)
    places = set(map(tuple, trainer.places.tolist()))
    assert places == {(row, z) for row in range(1, 4) for z in range(4)} - {(1, 2)}


def test_a_block_of_voxels_that_is_mostly_ignored_is_ignored():
    library = discs(3, classes=3)
    random = torch.rand(library.labels.shape, generator=torch.Generator().manual_seed(0))
    library = replace(library, labels=torch.where(random < 0.4, IGNORE, library.labels))
    got = coarsen_library(library, (2, 2, 1)).labels
    for row, x, y, z in [(0, 8, 8, 1), (1, 5, 9, 0), (2, 10, 6, 3), (3, 8, 7, 2), (0, 0, 0, 0), (1, 9, 10, 1)]:
        block = library.labels[row, 0, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, z].flatten().tolist()
        votes = [block.count(value) for value in (0, 1, 2, IGNORE)]  # a tie goes to the first
        assert int(got[row, 0, x, y, z]) == (0, 1, 2, IGNORE)[votes.index(max(votes))]
    assert (got == IGNORE).any()
    train_volume_network(context(library, iterations=1), replace(SMALL, volume_budget=0.3), TINY)


def test_a_patch_is_cut_from_label_and_mask_alike():
    library = half(discs(2))
    patched = replace(TINY, patch=(16, 16))
    trained = train_segmentation(context(library, iterations=2), "U-Net2D", patched)
    assert all(bool(torch.isfinite(p).all()) for p in trained.parameters())
