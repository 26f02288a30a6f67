"""Training that goes on from a network's weights and draws some atlases more often than others."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NetworkSettings
from oasis_monai.networks.slice_unet import make_slice_network
from oasis_monai.training.registration import Pairs, make_registration_network, train_registration
from oasis_monai.training.segmentation import train_segmentation
from oasis_monai.training.slices import SliceTrainer, train_slice_network
from oasis_monai.training.trainer import FitContext, draw_rows
from tests.training.test_slices import SHORT, SMALL, discs

TINY = NetworkSettings(convnet=(4, 8), unet=(4, 8), dynunet=(4, 8))
STM = RegistrationSettings(channels=(4, 8), field_stride=(1,), joint=False)
STILL = replace(SHORT, iterations=1, lr=1e-30)  # a step that changes nothing
TRAIN = {
    "slices": lambda context: train_slice_network(context, replace(SMALL, lr=1e-30)),
    "members": lambda context: train_slice_network(context, replace(SMALL, lr=1e-30, members=2)),
    "segmentation": lambda context: train_segmentation(context, "U-Net2D", TINY),
    "registration": lambda context: train_registration(context, STM),
}


def context(library, training=STILL, **more):
    return FitContext(library, (1.0, 1.0), training, 0, None, progress=False, **more)


@pytest.mark.parametrize("kind", TRAIN)
def test_training_starts_from_the_weights_that_are_given(kind):
    library = discs(2)
    drawn = TRAIN[kind](context(library)).state_dict()
    given = {k: torch.randn(v.shape).abs() if v.is_floating_point() else v for k, v in drawn.items()}  # variances are positive
    found = TRAIN[kind](context(library, start=given)).state_dict()
    assert list(found) == list(given)
    for key, value in given.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12)
    assert not all(torch.equal(drawn[key], value) for key, value in given.items())


def test_rows_are_drawn_by_their_chances_and_without_any_as_ever():
    def random():
        return torch.Generator().manual_seed(3)

    assert torch.equal(draw_rows(7, 100, random()), torch.randint(7, (100,), generator=random()))
    counts = torch.bincount(draw_rows(4, 8000, random(), torch.tensor([0.25, 0.0, 0.5, 0.25])), minlength=4) / 8000
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.0, 0.5, 0.25]), atol=0.03, rtol=0)


ONLY = torch.tensor([0.0, 0, 1, 0, 1, 0, 0, 0])  # cases c1 and c2 of c0 to c3, two slices each


def test_pairs_are_of_atlases_that_are_drawn():
    pairs, random = Pairs(discs(2), 0, chances=ONLY), torch.Generator().manual_seed(0)
    atlases, targets = pairs.draw(200, random)
    assert set(atlases.tolist()) == set(targets.tolist()) == {2, 4}
    assert (atlases != targets).all()  # never of one patient


@pytest.mark.parametrize("dims", [2, 3])
def test_slices_are_of_atlases_that_are_drawn_and_those_far_from_the_structure_stay_rare(dims):
    library = discs(dims, cases=8 if dims == 3 else 4)
    library.labels[2] = 0  # no structure anywhere near
    trainer = SliceTrainer(
        context(library, chances=ONLY),
        make_slice_network(2, SMALL),
        replace(SMALL, slices_per_step=2000, empty_slice_weight=0.25),
    )
    _, _, rows = trainer.draw(torch.Generator().manual_seed(0))
    share = torch.bincount(rows, minlength=8) / len(rows)
    expected = torch.tensor([0, 0, 0.2, 0, 0.8, 0, 0, 0])
    if dims == 2:  # the slice beside it in its case shows the structure: it is near
        expected = torch.tensor([0, 0, 0.5, 0, 0.5, 0, 0, 0])
    torch.testing.assert_close(share, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("kind", ["slices", "segmentation", "registration"])
def test_a_training_sees_only_what_is_drawn(kind):
    """What is never drawn may be anything: the weights that result are the same."""
    library, some = discs(2), replace(SHORT, iterations=2)
    spoiled = replace(library, images=library.images.clone(), context=library.context.clone())
    spoiled.images[ONLY == 0] = 9.0
    spoiled.context[ONLY == 0] = 9.0
    train = {**TRAIN, "slices": lambda one: train_slice_network(one, SMALL)}[kind]
    one, two = (train(context(x, some, chances=ONLY)).state_dict() for x in (library, spoiled))
    assert all(torch.equal(one[key], two[key]) for key in one)
    other = train(context(spoiled, some)).state_dict()
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_network_of_other_layers_is_not_started_from():
    with pytest.raises(RuntimeError, match="Missing key"):
        context(discs(2), start={"a": torch.zeros(1)}).begin(make_registration_network(discs(2), STM))
