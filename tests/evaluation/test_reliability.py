"""Reliability of probabilities: sums against slow formulas, temperatures that are found again, labels that stay."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.evaluation.reliability import (
    BINS,
    NEAR_MM,
    TEMPERATURES,
    cross_fitted,
    expected_calibration_error,
    measure_reliability,
    near_structures,
    scale_probability,
    total,
)
from oasis_monai.evaluation.reliability_tables import (
    AFTER,
    BEFORE,
    calibration_error,
    read_reliability,
    reliability_rows,
    write_reliability,
)
from oasis_monai.utils.errors import DataError


def drawn(classes, seed, true_temperature, voxels=(20, 20, 20)):
    """Probabilities, and labels drawn from them at another temperature."""
    random = torch.Generator().manual_seed(seed)
    probability = torch.softmax(2.5 * torch.randn(classes, *voxels, generator=random), 0)
    there = scale_probability(probability, true_temperature)
    truth = torch.multinomial(there.flatten(1).T, 1, generator=random).view(voxels)
    return probability, truth


@pytest.mark.parametrize("classes", [2, 4])
def test_a_temperature_keeps_every_label_and_what_is_impossible(classes):
    probability = torch.softmax(3 * torch.randn(classes, 500, generator=torch.Generator().manual_seed(0)), 0)
    probability[:, :50] = torch.eye(classes)[:, :1]
    for temperature in TEMPERATURES:
        scaled = scale_probability(probability, temperature)
        assert torch.equal(scaled.argmax(0), probability.argmax(0))
        torch.testing.assert_close(scaled.sum(0), torch.ones(500))
        torch.testing.assert_close(scaled[:, :50], probability[:, :50])
        logits = torch.softmax(probability[:, 50:].log() / temperature, 0)  # the usual form of it
        torch.testing.assert_close(scaled[:, 50:], logits)


def test_the_sums_are_those_of_the_definition():
    probability, truth = drawn(3, 1, 1.0, (4, 5, 6))
    near = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    truth[0, 0, :] = IGNORE
    found = measure_reliability(probability, truth, near)
    counted = [place for place in np.ndindex(4, 5, 6) if near[place] and truth[place] != IGNORE]
    k = TEMPERATURES.index(1.0)
    slow = -sum(math.log(float(probability[(int(truth[place]), *place)])) for place in counted) / len(counted)
    assert found.loss[k] == pytest.approx(slow, rel=1e-5)
    error = []
    for c in (1, 2):
        bins = np.zeros((BINS, 3))
        for place in counted:
            p = float(probability[(c, *place)])
            bins[min(int(p * BINS), BINS - 1)] += [1, p, truth[place] == c]
        assert found.at(1.0)[c - 1] == pytest.approx(bins / len(counted), abs=1e-6)
        error.append(sum(abs(p - y) for n, p, y in bins if n) / len(counted))
    assert expected_calibration_error(found.at(1.0)) == pytest.approx(error, abs=1e-6)
    assert measure_reliability(probability, truth, torch.zeros_like(near)) is None


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("true", [0.5, 1.0, 2.0])
def test_the_temperature_of_the_truth_is_found_and_mends_the_error(true, classes):
    near = torch.ones(20, 20, 20, dtype=torch.bool)
    parts = {fold: measure_reliability(*drawn(classes, fold, true), near) for fold in range(4)}
    whole = total(parts.values())
    assert whole.results == 4
    assert whole.temperature() == pytest.approx(true, rel=0.13)
    before = expected_calibration_error(whole.at(1.0) / 4).max()
    after = expected_calibration_error(cross_fitted(parts) / 4).max()
    assert after < 0.015
    assert (before > 0.03) == (true != 1)


def test_a_fold_takes_no_part_in_its_own_temperature():
    near = torch.ones(20, 20, 20, dtype=torch.bool)
    parts = {fold: measure_reliability(*drawn(2, fold, 0.5 if fold else 2.0), near) for fold in (0, 1, 2)}
    expected = sum(part.at(total(o for f, o in parts.items() if f != fold).temperature()) for fold, part in parts.items())
    assert cross_fitted(parts) == pytest.approx(expected)
    assert parts[0].temperature() != total([parts[1], parts[2]]).temperature()
    assert cross_fitted({0: parts[0]}) is None


def test_of_many_voxels_some_are_looked_at(monkeypatch):
    probability, truth = drawn(2, 3, 1.5)
    near = torch.ones(20, 20, 20, dtype=torch.bool)
    every = measure_reliability(probability, truth, near)
    monkeypatch.setattr("oasis_monai.evaluation.reliability.MOST_VALUES", 4000)
    some = measure_reliability(probability, truth, near)
    assert some.bins[0].sum(1)[0, 0] == pytest.approx(1)
    assert not np.array_equal(some.loss, every.loss)
    assert some.loss == pytest.approx(every.loss, rel=0.15)


def test_what_counts_lies_near_the_structures():
    label, truth = np.zeros((60, 50, 12), np.uint8), np.zeros((60, 50, 12), np.uint8)
    label[30, 25, 6] = 1
    truth[32, 25, 6] = 2
    truth[0, 0, 0] = IGNORE  # nobody looked there: no structure
    box, near = near_structures(label, truth, (1.0, 2.0, 3.0))
    whole = np.zeros(label.shape, bool)
    whole[box] = near
    places = np.stack(np.indices(label.shape), -1) * (1.0, 2.0, 3.0)
    away = np.minimum(*(np.linalg.norm(places - np.array(at) * (1, 2, 3), axis=-1) for at in ((30, 25, 6), (32, 25, 6))))
    assert np.array_equal(whole, away <= NEAR_MM)
    assert near_structures(np.zeros_like(label), np.full_like(label, IGNORE), (1, 1, 1)) is None


def test_the_table_keeps_the_error(tmp_path):
    near = torch.ones(20, 20, 20, dtype=torch.bool)
    parts = {fold: measure_reliability(*drawn(3, fold, 2.0), near) for fold in range(3)}
    about = {"protocol": "patient", "method": "OASIS-joint", "n": 6}
    rows = reliability_rows(about, ["NA", "b"], total(parts.values()), cross_fitted(parts))
    write_reliability(tmp_path / "r.csv", rows)
    read = read_reliability(tmp_path / "r.csv")
    for when, bins in ((BEFORE, total(parts.values()).at(1.0)), (AFTER, cross_fitted(parts))):
        for c, label in enumerate(["NA", "b"]):
            own = read[(read["when"] == when) & (read["label"] == label)]
            assert own["share"].sum() == pytest.approx(1)
            assert calibration_error(own) == pytest.approx(expected_calibration_error(bins[c]), abs=1e-6)
    assert sorted(set(read["temperature"])) == pytest.approx([1.0, 2.0], rel=0.13)
    assert len(read_reliability(tmp_path / "none.csv")) == 0
    only = pd.DataFrame(reliability_rows(about, ["a", "b"], parts[0], None))
    assert set(only["when"]) == {BEFORE}
    (tmp_path / "bad.csv").write_text("label\nx\n")
    with pytest.raises(DataError, match="probability"):
        read_reliability(tmp_path / "bad.csv")
