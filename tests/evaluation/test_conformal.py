"""The 90 % intervals: coverage on simulated patients against the theory's bounds, quantiles against a slow formula."""

import math

import numpy as np
import pytest

from oasis_monai.evaluation.conformal import LEVEL, Interval, conformal_quantile, difficulty, fit_factor
from oasis_monai.evaluation.quality import Calibration, cross_fitted
from oasis_monai.evaluation.quality_intervals import Results, cross_fitted_intervals, fit_interval, held
from oasis_monai.transforms.corruptions import UNTOUCHED


def slow_quantile(scores, patients, level):
    """The smallest score that the share of the results up to it, weighed by patient and with one more patient who lies beyond
    all, reaches the level."""
    everyone = sorted(set(patients))
    for score in sorted(scores):
        share = 0.0
        for one in everyone:
            own = [s for s, p in zip(scores, patients, strict=True) if p == one]
            share += sum(s <= score for s in own) / len(own) / (len(everyone) + 1)
        if share >= level - 1e-9:
            return score
    return math.inf


@pytest.mark.parametrize("seed", range(5))
def test_the_quantile_is_that_of_the_definition(seed):
    random = np.random.default_rng(seed)
    patients = random.integers(0, 14, 40).tolist()
    scores = random.integers(0, 12, 40) / 10  # some are equal
    for level in (0.3, 0.5, 0.8, LEVEL):
        assert conformal_quantile(scores, patients, level) == slow_quantile(scores.tolist(), patients, level)


@pytest.mark.parametrize("count", [9, 10, 19, 34, 100])
def test_of_one_result_a_patient_it_is_the_usual_rank(count):
    scores = np.random.default_rng(count).permutation(count) + 1.0
    assert conformal_quantile(scores, range(count)) == math.ceil(0.9 * (count + 1) - 1e-9)


def test_too_few_patients_hold_everything():
    assert conformal_quantile(np.ones(8), range(8)) == math.inf
    assert conformal_quantile(np.ones(80), [i % 8 for i in range(80)]) == math.inf  # more results make no more patients
    assert conformal_quantile(np.empty(0), []) == math.inf
    everything = Interval(fit_factor(np.full(8, 0.8), np.full(8, 0.7), range(8), np.ones(8, bool)), 8)
    assert everything.bounds(0.95) == (0.0, 1.0)


@pytest.mark.parametrize("count", [12, 34])
def test_coverage_of_new_patients_lies_within_the_bounds_of_the_theory(count):
    """Of one result a patient: at least 0.9, and at most 0.9 + 1 / (N + 1), whatever the errors (Lei et al., theorem 2)."""
    random = np.random.default_rng(count)
    hits = []
    for _ in range(3000):
        predicted = random.uniform(0.4, 0.98, count + 1)
        true = np.clip(predicted - random.gamma(1.0, 0.3, count + 1) * (1.05 - predicted) + 0.02, 0, 1)  # skewed
        factor = fit_factor(predicted[:-1], true[:-1], range(count), np.ones(count, bool))
        low, high = Interval(factor, count).bounds(predicted[-1])
        hits.append(low <= true[-1] <= high)
    error = 3 * math.sqrt(0.09 / 3000)
    assert LEVEL - error < np.mean(hits) < LEVEL + 1 / (count + 1) + error


def test_results_of_one_patient_count_once():
    """Half of the patients have 20 alike results, easy ones: pooled they would decide; a random patient is held all the same."""
    random = np.random.default_rng(5)
    hits, pooled = [], []
    for _ in range(2000):
        error = random.exponential(np.where(np.arange(25) % 2, 0.02, 0.2))
        counts = np.where(np.arange(25) % 2, 20, 1)
        order = random.permutation(25)
        error, counts = error[order], counts[order]
        scores, patients = np.repeat(error[:-1], counts[:-1]), np.repeat(np.arange(24), counts[:-1]).tolist()
        hits.append(error[-1] <= conformal_quantile(scores, patients))
        pooled.append(error[-1] <= conformal_quantile(scores, range(len(scores))))
    slack = 3 * math.sqrt(0.09 / 2000)
    assert LEVEL - slack < np.mean(hits) < LEVEL + 2 / 25 + slack
    assert np.mean(pooled) < 0.85


def test_neither_kind_of_scan_is_left_to_the_other():
    """Corrupted copies three times as wrong as their difficulty says, and then the untouched scans: each is held."""
    random = np.random.default_rng(7)
    for wrong in (0, 1):
        hits = np.zeros((1500, 2))
        for trial in range(1500):
            kinds = np.repeat([0, 1], 30)
            patients = np.concatenate([np.arange(30)] * 2)
            predicted = random.uniform(0.5, 0.95, 60)
            true = predicted - random.normal(0, 0.1, 60) * (1 + 2 * (kinds == wrong)) * difficulty(predicted)
            calibrating = patients < 29
            untouched = kinds[calibrating] == 0
            factor = fit_factor(predicted[calibrating], true[calibrating], patients[calibrating].tolist(), untouched)
            for row in np.flatnonzero(~calibrating):
                low, high = Interval(factor, 29).bounds(predicted[row])
                hits[trial, kinds[row]] = low <= true[row] <= high
        slack = 3 * math.sqrt(0.09 / 1500)
        assert (hits.mean(0) > LEVEL - slack).all()
        assert hits.mean(0)[wrong] < LEVEL + 1 / 30 + slack
        assert hits.mean(0)[1 - wrong] > 0.99


def test_doubtful_results_get_wider_intervals_within_0_and_1():
    one = Interval(0.5, 20)
    sure, doubtful = one.bounds(0.95), one.bounds(0.6)
    assert sure == pytest.approx((0.9, 1.0))
    assert doubtful == pytest.approx((0.375, 0.825))
    assert Interval(3.0, 20).bounds(0.4) == (0.0, 1.0)


def world(patients, copies, seed, folds=5):
    """Results as a cross-validation has them: an untouched one of each patient, and corrupted ones."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), 1 + copies)
    names = np.array(([UNTOUCHED, "noise", "ghosts", "turned"][: 1 + copies]) * patients)
    dsc = np.clip(np.where(names == UNTOUCHED, 0.88, 0.7) + random.normal(0, 0.08, len(who)), 0, 1)
    values = np.clip(dsc[:, None] + random.normal(0, 0.06, (len(who), 2)), 0, 1)
    return Results(values, dsc, who % folds, names, who.tolist(), list(range(len(who))))


def predict(results):
    return cross_fitted(results.values, results.dsc, results.folds.tolist(), results.corruptions.tolist(), units=results.units)[0]


def test_intervals_of_left_out_folds_hold_as_often_as_they_say():
    found = []
    for seed in range(12):
        results = world(24, 2, seed)
        bounds = cross_fitted_intervals(results, predict(results))
        clean = results.corruptions == UNTOUCHED
        found.append([held(results.dsc[kind], bounds[kind])[0] / kind.sum() for kind in (clean, ~clean)])
    assert np.mean(found, 0)[0] == pytest.approx(0.93, abs=0.04)
    assert np.mean(found, 0)[1] > 0.89  # the errors of these copies are not larger, though their difficulty is


def test_a_fold_takes_no_part_in_its_own_intervals_nor_a_corruption_in_its_own():
    results = world(20, 2, 3)
    predicted = predict(results)
    before = cross_fitted_intervals(results, predicted)
    own = results.folds == 1
    changed = results._replace(dsc=np.where(own, 0.05, results.dsc))
    after = cross_fitted_intervals(changed, predicted)
    assert np.array_equal(before[own], after[own])
    assert not np.isclose(before[~own], after[~own]).all()
    noise = results.corruptions == "noise"
    after = cross_fitted_intervals(results._replace(dsc=np.where(noise, 0.05, results.dsc)), predicted)
    assert np.array_equal(before[noise], after[noise])
    assert not np.isclose(before[~noise], after[~noise]).all()


def test_of_one_fold_no_interval_is_known():
    results = world(12, 0, 1, folds=1)
    predicted = predict(results)
    assert fit_interval(results, predicted) is None
    assert np.isnan(cross_fitted_intervals(results, predicted)).all()
    assert held(results.dsc, np.full((12, 2), math.nan)) == (0, 0)


def test_folds_of_one_patient_each_are_dealt_together():
    results = world(14, 0, 2, folds=14)
    bounds = cross_fitted_intervals(results, predict(results))
    assert (bounds[:, 1] > bounds[:, 0]).all()
    assert (bounds[:, 0] > 0).all()


def test_an_interval_survives_json_and_an_earlier_calibration_has_none():
    own = Calibration(("atlases",), (1.0,), 0.0, 0.1, 30, Interval(0.4321, 30, (27, 30), (55, 60)))
    assert Calibration.from_json(own.to_json()) == own
    few = Calibration(("atlases",), (1.0,), 0.0, 0.1, 30, Interval(None, 7))
    assert Calibration.from_json(few.to_json()) == few
    earlier = {"sources": ["atlases"], "weights": [1.0], "offset": 0.0, "spread": 0.1, "cases": 30}
    old = Calibration.from_json(earlier)
    assert old.interval is None
    assert old.bounds(0.9) is None
    assert old.to_json() == earlier
    assert own.bounds(math.nan) is None
    warm = Calibration.from_json(earlier | {"temperature": 1.5})
    assert warm.temperature == 1.5
    assert Calibration.from_json(warm.to_json()) == warm
    with pytest.raises(ValueError, match="temperature above 0"):
        Calibration.from_json(earlier | {"temperature": 0})
    for key, value in (("factor", -1), ("level", 0.8), ("held", [1])):
        with pytest.raises(ValueError, match="expected"):
            Calibration.from_json(earlier | {"interval": own.to_json()["interval"] | {key: value}})
