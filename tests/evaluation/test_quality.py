"""Predicted Dice: the regression and its prior, flags, the files of a run."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.types import Case
from oasis_monai.evaluation.quality import (
    FAILURE,
    PRIOR_CASES,
    Calibration,
    aurc,
    correlation,
    cross_fitted,
    fit,
    risk_coverage,
    uncalibrated,
)
from oasis_monai.evaluation.quality_tables import (
    failures,
    keep_calibrations,
    mean_error,
    quality_rows,
    read_calibrations,
    read_quality,
    write_calibrations,
    write_quality,
)
from oasis_monai.segmentation.agreement import known_sources
from oasis_monai.utils.errors import DataError
from oasis_monai.workflows.fold_models import calibration_path
from tests.conftest import JOINT


def test_without_cases_the_dsc_is_the_mean_overlap():
    model = fit(np.empty((0, 2)), [])
    assert model == Calibration(("networks", "atlases"), (0.5, 0.5))
    assert model.predict([0.6, 0.8]) == pytest.approx(0.7)
    assert uncalibrated([math.nan, 0.5]).predict([math.nan, 0.4]) == pytest.approx(0.4)


def test_a_source_that_is_missing_in_a_case_is_left_out():
    values = np.array([[0.9, 0.8], [math.nan, 0.7], [0.8, 0.6], [0.7, 0.9], [0.6, 0.5], [0.5, 0.4]])
    assert fit(values, np.full(6, 0.8)).sources == ("atlases",)


def test_many_cases_find_the_truth_whatever_the_prior():
    random = np.random.default_rng(0)
    values = random.uniform(0.3, 1, (4000, 2))
    model = fit(values, 0.1 + 0.7 * values[:, 0] + 0.05 * values[:, 1])
    assert model.weights == pytest.approx((0.7, 0.05), abs=0.01)
    assert model.offset == pytest.approx(0.1, abs=0.01)
    assert model.spread == pytest.approx(0, abs=2e-3)


def test_the_prior_weighs_as_its_number_of_cases():
    """One source that varies: N cases at plus and minus one unit pull the slope N / (N + PRIOR_CASES) of the way."""
    n = 20
    x = np.array([0.5, 0.7] * (n // 2))
    values = np.stack([np.full(n, math.nan), x], 1)
    assert fit(values, np.full(n, 0.8)).weights == pytest.approx([1 - n / (n + PRIOR_CASES)])


def test_a_scan_far_outside_the_fitted_range_is_not_predicted_average():
    random = np.random.default_rng(1)
    values = random.uniform(0.85, 0.95, (30, 2))
    dsc = 0.87 + random.normal(0, 0.03, 30)
    model = fit(values, dsc)
    good, bad = model.predict([0.9, 0.9]), model.predict([0.2, 0.3])
    assert not model.flag(good)
    assert model.flag(bad)
    assert bad < FAILURE


def test_predictions_stay_within_0_and_1_and_nothing_known_is_flagged():
    model = Calibration(("networks", "atlases"), (2.0, 2.0), -0.5, 0.02, 10)
    assert model.predict([1, 1]) == 1
    assert model.predict([0, 0]) == 0
    assert model.flag(model.predict([math.nan, 0.5]))
    assert model.flag(uncalibrated([math.nan, math.nan]).predict([math.nan, math.nan]))


def test_no_case_is_predicted_from_its_own_fold():
    random = np.random.default_rng(2)
    values, dsc = random.uniform(0.5, 1, (20, 2)), random.uniform(0.6, 0.9, 20)
    groups = [i % 4 for i in range(20)]
    before, _ = cross_fitted(values, dsc, groups)
    changed = dsc.copy()
    changed[[i for i in range(20) if groups[i] == 1]] = 0.1
    after, _ = cross_fitted(values, changed, groups)
    mine = np.array([g == 1 for g in groups])
    assert np.array_equal(before[mine], after[mine])
    assert not np.array_equal(before[~mine], after[~mine])


def test_parts_that_found_nothing_are_no_agreement_for_whoever_predicts():
    values = np.random.default_rng(1).uniform(0.4, 1, (12, 2))
    model = fit(values, values.mean(1))
    assert model.predict([math.nan, 0.0]) == model.predict([0.0, 0.0]) < 0.2
    assert model.flag(model.predict([math.nan, math.nan]))
    values[3] = math.nan, 0.0  # as cross-validation meets it
    predicted, _ = cross_fitted(values, np.full(12, 0.8), [i % 2 for i in range(12)])
    assert predicted[3] < 0.8
    assert not np.isnan(predicted).any()


def test_of_one_fold_the_prior_is_told_for_the_sources_there_are():
    values = np.column_stack([np.full(5, math.nan), np.linspace(0.5, 0.9, 5)])
    predicted, flags = cross_fitted(values, np.full(5, 0.8), [0] * 5)
    assert predicted == pytest.approx(values[:, 1])
    assert flags.tolist() == [True, True, False, False, False]


def test_what_may_not_be_fitted_to_is_predicted_all_the_same():
    random = np.random.default_rng(7)
    values, dsc = random.uniform(0.2, 1, (40, 2)), random.uniform(0.2, 0.9, 40)
    groups, fitted = [i % 2 for i in range(40)], np.arange(40) < 30
    before, _ = cross_fitted(values, dsc, groups, fitted=fitted)
    changed = np.where(fitted, dsc, 0.05)
    changed[39] = math.nan
    after, _ = cross_fitted(values, changed, groups, fitted=fitted)
    assert np.array_equal(before, after)
    assert not np.isnan(after).any()
    assert not np.isclose(cross_fitted(values, dsc, groups)[0], before).any()


def test_calibrations_of_several_runs_are_kept_side_by_side(tmp_path):
    def made(cases, weight):
        return {"prostate": Calibration(("atlases",), (weight,), 0.0, 0.1, cases)}

    path = tmp_path / "calibrations" / "c.json"
    keep_calibrations(path, {})
    assert not path.exists()
    keep_calibrations(path, {"OASIS-6": made(30, 0.5), "OASIS-2": made(30, 0.4)})
    keep_calibrations(path, {"estimate": made(30, 0.3)})
    keep_calibrations(path, {"OASIS-6": made(10, 0.9), "OASIS-2": made(30, 0.6)})  # without copies; a newer one
    keep_calibrations(path, {})
    kept = {name: by["prostate"].weights[0] for name, by in read_calibrations(path).items()}
    assert kept == {"OASIS-6": 0.5, "OASIS-2": 0.6, "estimate": 0.3}
    path.write_text("no JSON")
    keep_calibrations(path, {"OASIS-6": made(5, 0.1)})
    assert list(read_calibrations(path)) == ["OASIS-6"]


def _dataset(content):
    return SimpleNamespace(
        identity=lambda cases: {case: content for case in cases}, cases={"Case00": Case("Case00", Path())}, embedding="e"
    )


def test_what_a_calibration_is_named_by(settings):
    asked, content = settings({"methods": ["OASIS"]}), _dataset("x")
    name = calibration_path(asked, content)
    same = [{"methods": ["majority", "OASIS"]}, {"n": [5]}, {"k": 3}, {"corruptions": 2}, {"align_batch": 3}]
    assert {calibration_path(settings({"methods": ["OASIS"]}, change), content) for change in same} == {name}
    other = [{"features": {"name": "random"}}, {"features": {"distance": "cosine"}}, {"temperature": 0.2}, {"seed": 4}]
    found = {calibration_path(settings({"methods": ["OASIS"]}, change), content) for change in other}
    assert len(found | {name, calibration_path(asked, _dataset("y"))}) == len(other) + 2
    joint = [
        {},
        *(
            {"joint": {key: value}}
            for key, value in (("estimate_weight", 0.5), ("tta_flip", False), ("tta_views", 0), ("recentre", False))
        ),
    ]
    assert len({calibration_path(settings(JOINT, {"methods": ["OASIS-joint"]}, change), content) for change in joint}) == len(
        joint
    )


def test_no_corrupted_copy_is_predicted_from_its_own_corruption():
    random = np.random.default_rng(4)
    values, dsc = random.uniform(0.2, 1, (60, 2)), random.uniform(0.2, 0.9, 60)
    groups, names = [i % 3 for i in range(60)], [("untouched", "noise", "ghosts")[i // 20] for i in range(60)]
    before, _ = cross_fitted(values, dsc, groups, names)
    changed = dsc.copy()
    changed[20:40] = 0.1  # noise
    after, _ = cross_fitted(values, changed, groups, names)
    assert np.array_equal(before[20:40], after[20:40])
    assert not np.isclose(before[:20], after[:20]).any()
    assert not np.isclose(before[40:], after[40:]).any()


def test_failures_teach_that_agreement_falls_faster_than_the_dsc():
    """On good results alone the DSC hardly depends on the overlaps; with bad ones it does, and a failure is told as one."""
    random = np.random.default_rng(5)
    good = random.uniform(0.88, 0.94, 40)
    bad = random.uniform(0.3, 0.85, 40)
    truth = np.concatenate([np.full(40, 0.88) + random.normal(0, 0.03, 40), 1.3 * bad - 0.3])
    values = np.repeat(np.concatenate([good, bad])[:, None], 2, 1)
    clean, both = fit(values[:40], truth[:40]), fit(values, truth)
    new = [0.7, 0.7]  # true DSC 0.61
    assert clean.predict(new) > 0.75
    assert both.predict(new) == pytest.approx(0.61, abs=0.05)
    assert both.flag(both.predict(new))
    assert not both.flag(both.predict([0.93, 0.93]))


def test_no_structure_found_by_either_part_is_no_agreement_and_no_reason_to_forget_the_source():
    values = known_sources([[0.9, 0.8], [math.nan, 0.4], [0.7, math.nan]])
    assert values.tolist() == [[0.9, 0.8], [0.0, 0.4], [0.7, 0.0]]
    assert np.isnan(known_sources([[math.nan, 0.4], [math.nan, math.nan]])[:, 0]).all()
    assert known_sources([]).shape == (0, 2)


def test_calibrations_survive_json(tmp_path):
    models = {"OASIS-joint-6": {"prostate": fit(np.random.default_rng(0).uniform(0, 1, (9, 2)), np.linspace(0.5, 0.9, 9))}}
    write_calibrations(tmp_path / "c.json", models)
    again = read_calibrations(tmp_path / "c.json")
    assert again is not None
    assert again["OASIS-joint-6"]["prostate"].predict([0.8, 0.9]) == pytest.approx(
        models["OASIS-joint-6"]["prostate"].predict([0.8, 0.9]), abs=1e-5
    )
    (tmp_path / "c.json").write_text('{"x": {"y": {"sources": ["networks"], "weights": []}}}')
    assert read_calibrations(tmp_path / "c.json") is None


def rows_of(dsc: dict[str, float]) -> list[dict]:
    common = {"protocol": "patient", "fold": 0, "method": "OASIS-joint", "n": 6, "label": "prostate"}
    return [{**common, "case": case, "region": region, "dsc": v} for case, v in dsc.items() for region in ("whole", "apex")]


def counts_of(value: float) -> torch.Tensor:
    return torch.tensor([[[2 * value, 2.0]], [[2 * value, 2.0]]], dtype=torch.float64)


def test_a_run_keeps_predictions_of_whole_structures(tmp_path):
    truth = {f"case{i}": 0.5 + 0.04 * i for i in range(10)} | {"NA": 0.9, "gone": math.nan}  # a name that pandas reads as none
    agreements = {(case, "OASIS-joint", 6): counts_of(0 if math.isnan(v) else v) for case, v in truth.items()}
    groups = {case: i % 5 for i, case in enumerate(truth)}
    table, models = quality_rows(rows_of(truth), agreements, ["prostate"], groups)
    write_quality(tmp_path / "quality.csv", table)
    (group,) = read_quality(tmp_path / "quality.csv")
    assert sorted(group.rows["case"]) == sorted(set(truth) - {"gone"})
    assert correlation(group.rows["predicted_dsc"], group.rows["dsc"]) > 0.99
    assert mean_error(group.rows) < 0.01
    assert failures(group.rows) == (5, 5, 6, int((group.rows["flag"] & (group.rows["dsc"] >= FAILURE)).sum()))
    assert len(group.corrupted) == 0
    assert set(models) == {"OASIS-joint-6"}


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "quality.csv").write_text("case,dsc\na,0.5\n")
    with pytest.raises(DataError, match=r"quality\.csv.*predicted_dsc"):
        read_quality(tmp_path / "quality.csv")
    assert read_quality(tmp_path / "none.csv") == []


def test_correlation_of_what_does_not_vary_is_undefined():
    assert math.isnan(correlation([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]))
    assert math.isnan(correlation([0.5, 0.6], [0.1, 0.2]))
    assert correlation([0.1, 0.2, 0.3, math.nan], [0.2, 0.4, 0.6, 0.1]) == pytest.approx(1)


def test_no_rows_at_all(tmp_path):
    table, models = quality_rows([], {}, ["prostate"], {})
    write_quality(tmp_path / "quality.csv", table)
    assert read_quality(tmp_path / "quality.csv") == []
    assert models == {}
    assert isinstance(table, pd.DataFrame)


@pytest.mark.parametrize("cases", [6, 12, 34])
def test_the_spread_is_the_error_on_new_cases(cases):
    """In-sample it would be 1.33, 1.19 and 1.06 times too small."""
    random = np.random.default_rng(0)

    def world(count):
        dsc = np.clip(random.normal(0.8, 0.1, count), 0, 1)
        return np.clip(dsc[:, None] + random.normal(0, 0.06, (count, 2)), 0, 1), dsc

    expected, found = [], []
    for _ in range(400):
        model = fit(*world(cases))
        values, dsc = world(40)
        expected.append(model.spread**2)
        found.append(np.mean([(y - model.predict(x)) ** 2 for x, y in zip(values, dsc, strict=True)]))
    assert np.sqrt(np.mean(found) / np.mean(expected)) == pytest.approx(1, abs=0.05)


def slow_aurc(predicted, true):
    """By the definition, averaged over every order of results whose predictions are equal."""
    areas = []
    for order in itertools.permutations(range(len(true))):
        if all(predicted[a] >= predicted[b] for a, b in itertools.pairwise(order)):
            risks = [sum(1 - true[i] for i in order[:k]) / k for k in range(1, len(order) + 1)]
            areas.append(sum(risks) / len(risks))
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(6))
def test_the_area_under_the_risk_coverage_curve_is_that_of_the_definition(seed):
    random = np.random.default_rng(seed)
    true = random.random(6)
    predicted = random.integers(0, 4, 6) / 4  # some are equal
    assert aurc(predicted, true) == pytest.approx(slow_aurc(predicted, true))


def test_a_prediction_in_the_order_of_the_truth_has_the_smallest_area_and_a_constant_one_the_mean_loss():
    true = [0.9, 0.2, 0.7, 0.5]
    assert aurc([0.5] * 4, true) == pytest.approx(1 - np.mean(true))
    every = [aurc(order, true) for order in itertools.permutations([1.0, 2.0, 3.0, 4.0])]
    assert aurc(true, true) == pytest.approx(min(every))
    assert aurc([-t for t in true], true) == pytest.approx(max(every))
    assert aurc([0.5, math.nan], [0.8, 0.1]) == pytest.approx(0.2)
    assert math.isnan(aurc([math.nan], [0.5]))


@pytest.mark.parametrize("seed", range(4))
def test_the_risk_at_each_coverage_is_that_of_the_definition(seed):
    random = np.random.default_rng(seed)
    true, predicted = random.random(9), random.permutation(9) / 9
    order = sorted(range(9), key=lambda i: -predicted[i])
    slow = [sum(1 - true[i] for i in order[:k]) / k for k in range(1, 10)]
    assert risk_coverage(predicted, true) == pytest.approx(slow)
    assert risk_coverage([0.5] * 9, true) == pytest.approx([1 - true.mean()] * 9)
    assert len(risk_coverage([math.nan], [0.5])) == 0
