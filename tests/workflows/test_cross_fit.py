"""Estimates for training the registration network, by networks that have not seen the patient."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.training.slices import FILE as SLICE_FILE
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.workflows import cross_fit
from tests.training.test_slices import discs

HALF = JointSettings(
    decoder=(8, 8, 8, 8),
    slices_per_step=2,
    pretrained=False,
    slice_budget=0.3,
    volume_budget=0.2,
    cross_fit_budget=0.4,
    tta_flip=False,
)
TRAINING = TrainingSettings(iterations=10, minutes=None)


def patients(count=6, scans=2):
    library = discs(3, cases=count * scans, per_case=1)
    return replace(library, patients=tuple(f"p{i // scans}" for i in range(count * scans)))


def context(library, folder=None):
    return FitContext(library, torch.ones(len(library), 3), TRAINING, 3, folder, progress=False)


def test_a_patient_s_scans_are_in_one_half_and_the_halves_are_of_one_size():
    library = patients()
    half = cross_fit.halves(library, 0)
    assert torch.equal(half[0::2], half[1::2])
    assert sorted(half.tolist()) == [0] * 6 + [1] * 6
    others = [cross_fit.halves(library, seed).tolist() for seed in range(1, 6)]
    assert any(other != half.tolist() for other in others)
    assert cross_fit.halves(library, 0).tolist() == half.tolist()
    assert set(cross_fit.halves(patients(2, 1), 0).tolist()) == {0, 1}


def test_no_network_estimates_a_patient_it_was_trained_on(monkeypatch):
    """Networks are stood in for by the set of patients that they saw; each gets half of that budget."""
    library, trained = patients(), []

    def train(own, joint):
        trained.append(
            (set(own.library.patients), own.training.part(joint.budgets(3)[0]).iterations, own.seed, len(own.spacings_mm))
        )
        return set(own.library.patients)

    def estimate(network, whole, rows):
        assert not {whole.patients[row] for row in rows.tolist()} & network
        return torch.stack([torch.full((1, *whole.images.shape[2:]), 0.1 * (1 + row)) for row in rows.tolist()]).half()

    monkeypatch.setattr(cross_fit, "train_slice_network", train)
    monkeypatch.setattr(cross_fit, "build_estimator", lambda networks, *_: networks.slices)
    monkeypatch.setattr(cross_fit, "estimate_atlases", estimate)
    made = cross_fit.cross_fitted(context(library), HALF)
    torch.testing.assert_close(made.estimates.float().amax((1, 2, 3, 4)), 0.1 * torch.arange(1, 13), atol=1e-3, rtol=0)
    (one, steps, seed, count), (two, other_steps, other_seed, _) = trained
    assert one | two == set(library.patients)
    assert not one & two
    assert (steps, other_steps, count) == (2, 2, 6)  # of 10, a fifth each
    assert len({seed, other_seed, 3}) == 3


def test_estimates_are_kept_and_networks_are_not(tmp_path):
    library = patients(3, 1)
    made = cross_fit.cross_fitted(context(library, tmp_path), HALF)
    assert made.estimates.shape == (3, 1, *library.images.shape[2:])
    assert made.estimates.float().std() > 0
    assert not list(tmp_path.rglob(SLICE_FILE))
    assert (tmp_path / cross_fit.FILE).exists()
    again = cross_fit.cross_fitted(context(library, tmp_path), HALF)
    assert torch.equal(again.estimates, made.estimates)


@pytest.mark.parametrize("budget", [0.0, 0.2])
def test_the_registration_network_of_a_fold_learns_from_them_where_they_have_a_budget(phantom, tmp_path, monkeypatch, budget):
    """What the STM is trained with; the atlases of the fold keep the estimates of the fold's own networks."""
    from oasis_monai.settings import build
    from oasis_monai.workflows import fold_models
    from oasis_monai.workflows.prepare import find_and_check, prepare, split_of
    from tests.conftest import JOINT, TINY, merged

    seen = []
    real = fold_models.train_registration

    def watched(own, *rest):
        seen.append((own.library.estimates.clone(), own.training.iterations))
        return real(own, *rest)

    monkeypatch.setattr(fold_models, "train_registration", watched)
    more = {
        "data": {"root": str(phantom)},
        "cache": str(tmp_path),
        "joint": {"slice_budget": 0.4, "cross_fit_budget": budget, "tta_views": 0},
    }
    settings = build(merged(TINY, JOINT, {"methods": ["OASIS-joint"]}, more))
    dataset = prepare(settings, find_and_check(settings, tmp_path, str), tmp_path, str)
    split = split_of(settings, dataset)
    models = fold_models.FoldModels(settings, dataset, split, tmp_path, str)
    segmenter = models.segmenter(split.folds[0])
    ((estimates, iterations),) = seen
    assert torch.equal(estimates, segmenter.library.estimates) == (budget == 0)
    slices, volume, rest = settings.joint.budgets(3)
    assert slices + volume + rest == pytest.approx(1 - budget)
    assert iterations == max(1, round(rest * settings.training.iterations))
    models.segmenter(split.folds[0])
    assert len(seen) == 2  # loaded
    assert len(list(tmp_path.rglob(cross_fit.FILE))) == (budget > 0)
