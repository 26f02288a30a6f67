"""Estimates in the training of a joint STM are made as wrong as those of unseen scans."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.training.estimate_errors import bend_estimate, mean_dice, reach_for_dice
from oasis_monai.training.registration import RegistrationTrainer, make_registration_network
from oasis_monai.training.trainer import FitContext
from oasis_monai.transforms.labels import foreground
from tests.training.test_slices import JOINT, SHORT, discs


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def told(dims=3, cases=4):
    """A library whose estimates are its labels."""
    library = discs(dims, cases=cases, per_case=1)
    return library.with_estimates(foreground(library.labels, library.classes))


def dice(one, other):
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_bend_is_within_its_reach_in_millimetres(dims):
    """Maps of each voxel's own place in mm: how far a voxel comes from is read off them, on voxels of any proportions."""
    size, spacing = (24, 30, 16)[:dims], torch.tensor([1.0, 0.5, 3.0][:dims])
    axes = [torch.arange(n) * mm for n, mm in zip(size, spacing, strict=True)]
    where = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].expand(20, dims, *size)
    moved = bend_estimate(where, 2.0, spacing.expand(20, dims), drawn(0)) - where
    inner = moved[(slice(None), slice(None), *[slice(n // 4, -n // 4) for n in size])].abs().flatten(2).amax(2)
    assert inner.amax() <= 3.0  # one and a half of the reach
    assert (inner.amax(0) > 1.0).all()  # along every axis, in mm
    assert inner.amax(1).std() > 0.1  # not all as far
    assert torch.equal(bend_estimate(where, 2.0, spacing.expand(20, dims), drawn(0)) - where, moved)
    assert not torch.equal(bend_estimate(where, 2.0, spacing.expand(20, dims), drawn(1)) - where, moved)


def test_structures_of_one_estimate_bend_alike():
    estimate = torch.rand(3, 1, 12, 12, 12, generator=drawn(0)).repeat(1, 2, 1, 1, 1)
    bent = bend_estimate(estimate, 3.0, torch.ones(3, 3), drawn(1))
    assert torch.equal(bent[:, 0], bent[:, 1])
    assert (bent - estimate).abs().mean() > 0.05


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("wanted", [0.95, 0.8])
def test_the_reach_brings_the_dice_down_to_what_is_wanted(dims, wanted):
    library = told(dims, 6)
    spacings = torch.ones(len(library), dims)
    reach = reach_for_dice(library, spacings, wanted)
    assert reach > 0
    bent = torch.cat([bend_estimate(library.estimates.float(), reach, spacings, drawn(seed)) for seed in range(20)])
    truth = (library.labels == 1).repeat(20, *[1] * (dims + 1))
    found = [dice(one > 0.5, real) for one, real in zip(bent, truth, strict=True)]
    assert sum(found) / len(found) == pytest.approx(wanted, abs=0.04)


def test_the_reach_is_one_in_millimetres():
    """Voxels three times as large: the same bends in voxels reach three times as far."""
    library = told()
    one, three = (reach_for_dice(library, torch.full((len(library), 3), mm), 0.85) for mm in (1.0, 3.0))
    assert three == pytest.approx(3 * one, rel=1e-3)


def test_estimates_that_are_worse_already_stay():
    library = told()
    shifted = library.with_estimates(library.estimates.roll(5, 2))
    assert mean_dice(shifted.estimates.float(), (library.labels == 1).float()) < 0.7
    spacings = torch.ones(len(library), 3)
    assert reach_for_dice(shifted, spacings, 0.7) == 0.0
    assert reach_for_dice(library, spacings, 1.0) == 0.0
    empty = replace(library, labels=torch.zeros_like(library.labels))
    assert reach_for_dice(empty, spacings, 0.8) == 0.0
    with pytest.raises(ValueError, match="estimates"):
        reach_for_dice(discs(3), torch.ones(len(discs(3)), 3), 0.8)


def test_the_mean_dice_is_of_structures_that_are_shown_and_voxels_that_somebody_labelled():
    truth = torch.zeros(2, 2, 4, 4)
    truth[0, 0, :2], truth[1, 0, :1] = 1, 1  # the second structure is nowhere
    found = torch.zeros_like(truth)
    found[0, 0, :1], found[1, 0, :2] = 0.9, 0.6
    found[:, 1] = 0.4
    assert mean_dice(found, truth) == pytest.approx((2 * 4 / (4 + 8) + 2 * 4 / (8 + 4)) / 2)
    counts = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    counts[0, 0, 1], counts[1, 0, 1] = False, False
    assert mean_dice(found, truth, counts) == 1.0


def test_ignored_voxels_do_not_decide_the_reach():
    library = told()
    labels = library.labels.clone()
    labels[:, :, :, :, :2] = IGNORE
    half = replace(library, labels=labels)
    wrong = library.estimates.clone()
    wrong[..., :2] = 1 - wrong[..., :2]
    spacings = torch.ones(len(library), 3)
    kept = half.with_estimates(torch.where(labels == IGNORE, 0, library.estimates))
    assert mean_dice(wrong.float(), (labels == 1).float()) < 0.8
    assert reach_for_dice(half.with_estimates(wrong), spacings, 0.9) > 0.5 * reach_for_dice(kept, spacings, 0.9)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_stm_is_trained_with_bent_estimates_where_asked_for(dims, monkeypatch):
    """What the network is given: by default the estimate with another logit, else a bent one; the target's label stays."""
    from oasis_monai.training import registration

    seen = {}
    real = registration.perturb_estimate

    def watched(estimate, random):
        seen["estimate"] = estimate
        return real(estimate, random)

    monkeypatch.setattr(registration, "perturb_estimate", watched)
    library, found = told(dims), {}
    for wanted in (1.0, 0.7):
        context = FitContext(
            library, (1.0,) * dims, replace(SHORT, augment=False, batch=4), 0, None, progress=False, estimate_dice=wanted
        )
        trainer = RegistrationTrainer(context, make_registration_network(library, JOINT), RegistrationLoss())
        assert (trainer.reach_mm > 0) == (wanted < 1)
        trainer.step(0)
        found[wanted] = seen["estimate"]
    assert set(found[1.0].unique().tolist()) == {0.0, 1.0}
    assert dice(found[0.7] > 0.5, found[1.0] > 0.5) < 0.9
