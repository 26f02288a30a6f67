"""Budgets, draws and uncertain voxels of a training with pseudo labels."""

import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.training.self_training import SelfTraining, ignore_uncertain
from oasis_monai.training.trainer import TrainingSettings
from oasis_monai.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("how", "training", "minutes", "iterations"),
    [
        ({"rounds": 1}, {"minutes": 20.0}, 20.0, None),
        ({"rounds": 4}, {"minutes": 20.0}, 5.0, None),
        ({"minutes": 6.0, "rounds": 3}, {"minutes": 20.0}, 2.0, None),
        ({}, {"minutes": None, "iterations": 9}, None, 4),
        ({"iterations": 6, "rounds": 1}, {"minutes": 20.0}, None, 6),
        ({"minutes": 3.0, "rounds": 2}, {"minutes": None, "iterations": 9}, 1.5, None),
        ({}, {"minutes": None, "iterations": 1}, None, 1),
    ],
)
def test_the_rounds_share_what_is_given_or_as_much_as_the_first_budget(how, training, minutes, iterations):
    found = SelfTraining(**how).budget(TrainingSettings(lr=0.5, batch=3, **training))
    assert (found.minutes, found.iterations) == (minutes, iterations)
    assert (found.lr, found.batch) == (0.5, 3)


def test_uncertain_voxels_count_in_nothing():
    label = torch.tensor([[0, 1], [2, 1]], dtype=torch.uint8)
    sure = torch.tensor([[0.2, 0.5], [0.50001, 1.0]])
    assert ignore_uncertain(label, sure, 0.5).tolist() == [[0, 1], [IGNORE, IGNORE]]
    assert ignore_uncertain(label, sure, 0.5).dtype == torch.uint8
    assert torch.equal(ignore_uncertain(label, sure, 1.0), label)


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": 0.0},
        {"iterations": 0},
        {"rounds": 0},
        {"least_agreement": 1.1},
        {"most_uncertain": -0.1},
        {"share": 1.0},
        {"share": 0.0},
        {"rate": 0.0},
    ],
)
def test_a_value_that_cannot_work_is_named(wrong):
    (key,) = wrong
    with pytest.raises(ConfigError, match=f"self_training.{key}: expected"):
        SelfTraining(**wrong)
