"""Scores where patients have several cases: intervals and tests count patients, files of earlier versions still read."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.centres import centre_grids, write_centres
from oasis_monai.evaluation.quality import fit
from oasis_monai.evaluation.quality_tables import quality_rows, read_quality, write_quality
from oasis_monai.evaluation.statistics import interval, wilcoxon
from tests.helpers.study_rows import frame, row


def test_with_one_value_each_the_interval_is_the_common_one_to_the_bit():
    values = np.random.default_rng(0).normal(0.8, 0.1, 30)
    assert interval(values, patients=[str(i) for i in range(30)]) == interval(values)
    assert wilcoxon(values - 0.8, [str(i) for i in range(30)]) == wilcoxon(values - 0.8)


def test_scans_counted_twice_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(0.8, 0.1, 12)
    people = [f"p{i}" for i in range(12)]
    once, twice = interval(values), interval([*values, *values], patients=[*people, *people])
    assert twice[0] == pytest.approx(once[0])
    assert twice[2:] == pytest.approx(once[2:])
    assert interval([*values, *values])[3] < once[3] - 0.01
    gaps = values - 0.78
    assert wilcoxon([*gaps, *gaps], [*people, *people]) == pytest.approx(wilcoxon(gaps))


def test_the_clustered_interval_is_its_formula_and_covers_the_mean():
    random = np.random.default_rng(2)
    covered, naive = 0, 0
    for _ in range(400):
        people = np.repeat(np.arange(20), random.integers(1, 4, 20))
        values = random.normal(0, 1, 20)[people] + random.normal(0, 0.3, len(people))
        mean, sd, low, high = interval(values, patients=[str(p) for p in people])
        covered += low <= 0 <= high
        naive += interval(values)[2] <= 0 <= interval(values)[3]
    sums = [(values[people == p] - mean).sum() for p in range(20)]
    error = math.sqrt(20 / 19 * sum(s**2 for s in sums)) / len(values)
    assert (high - low) / 2 == pytest.approx(2.093024 * error, rel=1e-5)  # t(0.975, 19)
    assert sd == pytest.approx(values.std(ddof=1))
    assert covered > 0.91 * 400
    assert naive < 0.88 * 400


def test_values_that_are_not_defined_leave_with_their_patients():
    assert interval([1.0, math.nan, 3.0], patients=["a", "a", "b"]) == interval([1.0, 3.0])
    assert math.isnan(interval([1.0, 2.0], patients=["a", "a"])[2])


def test_the_summary_counts_patients():
    rows = [row(f"c{i}", "OASIS", 6, 0.6 + 0.03 * (i // 2), patient=f"p{i // 2}") for i in range(12)]
    summary = tables.summarise(frame(rows)).iloc[0]
    assert (summary["cases"], summary["patients"]) == (12, 6)
    once = interval([0.6 + 0.03 * i for i in range(6)])
    assert [summary["dsc_ci_low"], summary["dsc_ci_high"]] == pytest.approx(once[2:])
    other = [row(f"c{i}", "FwoW", 6, 0.5, patient=f"p{i // 2}") for i in range(12)]
    gap = tables.paired_difference(frame(rows + other), ("OASIS", 6), ("FwoW", 6)).iloc[0]
    assert (gap["cases"], gap["unpaired"]) == (12, 0)
    assert gap["ci_high"] == pytest.approx(once[3] - 0.5)


def test_scores_of_an_earlier_version_are_read(tmp_path):
    tables.write_scores(tmp_path / "scores.csv", [row("Case01", "OASIS", 6, 0.8)])
    old = pd.read_csv(tmp_path / "scores.csv").drop(columns=["patient", "centre"])
    old.to_csv(tmp_path / "old.csv", index=False)
    read = tables.read_scores(tmp_path / "old.csv")
    assert read["patient"].tolist() == ["Case01"]
    assert read["centre"].tolist() == [""]
    assert read.equals(tables.read_scores(tmp_path / "scores.csv"))
    assert tables.join_scores([tmp_path / "old.csv", tmp_path / "scores.csv"]).equals(read)


def test_jobs_that_deal_a_patient_otherwise_are_not_joined(tmp_path):
    for name, fold, case in (("a", 0, "c0"), ("b", 1, "c1")):
        tables.write_scores(tmp_path / f"{name}.csv", [row(case, "OASIS", 6, 0.8, patient="p", fold=fold)])
    with pytest.raises(tables.DataError, match=r"c1: fold: expected 0 as in .*found 1 in"):
        tables.join_scores([tmp_path / "a.csv", tmp_path / "b.csv"])


def centres():
    rows = [row(f"c{i}", "OASIS", 6, 0.6 + 0.01 * i, protocol="centre", centre="AB"[i % 2], fold=i % 2) for i in range(10)]
    return frame(rows)


def test_every_centre_has_its_row(tmp_path):
    (grid,) = centre_grids(centres(), "centre")
    assert grid.head == ("centre", "cases", "patients", "OASIS-6")
    assert [[cell.text.partition(" [")[0] for cell in line] for line in grid.rows] == [
        ["A", "5", "5", "64.0"],
        ["B", "5", "5", "65.0"],
    ]
    write_centres(tmp_path / "centres.csv", centres())
    written = pd.read_csv(tmp_path / "centres.csv")
    assert dict(zip(written["centre"], written["dsc_mean"].round(6), strict=True)) == {"A": 0.64, "B": 0.65}
    write_centres(tmp_path / "centres.csv", frame([row("c", "OASIS", 6, 0.8)]))
    assert not (tmp_path / "centres.csv").exists()


def test_the_spread_leaves_a_patient_out_whole():
    random = np.random.default_rng(5)
    values = random.uniform(0.5, 1, (24, 2))
    dsc = values.mean(1) + random.normal(0, 0.05, 24)
    units = [i // 2 for i in range(24)]
    made = fit(values, dsc, units)
    assert (made.weights, made.offset) == (fit(values, dsc).weights, fit(values, dsc).offset)
    # slowly: the same centre and scale of the prior, the fit without the patient's rows
    x, start = values, np.array([0.5, 0.5])
    scale = max(float((x - x.mean(0)).std()), 1e-3)
    penalty = np.diag([0, *[10 * scale**2] * 2])
    design, rest = np.column_stack([np.ones(24), x - x.mean(0)]), dsc - x @ start
    errors = []
    for unit in set(units):
        kept, out = ([i for i in range(24) if (units[i] == unit) == own] for own in (False, True))
        a = design[kept]
        beta = np.linalg.solve(a.T @ a + penalty, a.T @ rest[kept])
        errors += [dsc[i] - np.clip(design[i] @ beta + x[i] @ start, 0, 1) for i in out]
    assert made.spread == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-6)
    assert fit(values, dsc, list(range(24))) == fit(values, dsc)


def test_no_case_is_predicted_from_its_patient(tmp_path):
    random = np.random.default_rng(3)
    counts = {
        (f"c{i}", "OASIS", 6): torch.tensor([[[a, 100]], [[a, 100]]]) for i, a in enumerate(random.integers(30, 50, 16).tolist())
    }
    groups = {f"c{i}": i // 4 for i in range(16)}

    def predicted(lowered):
        rows = [row(f"c{i}", "OASIS", 6, 0.2 if i in lowered else 0.8, patient=f"p{i // 2}", centre="X") for i in range(16)]
        return quality_rows(rows, counts, ["prostate"], groups)[0]

    before, after = predicted(()), predicted((1,))
    first = [table[table["case"] == "c0"]["predicted_dsc"].item() for table in (before, after)]
    assert first[0] == first[1]
    assert before[before["case"] == "c5"]["predicted_dsc"].item() != after[after["case"] == "c5"]["predicted_dsc"].item()
    write_quality(tmp_path / "quality.csv", before)
    assert set(read_quality(tmp_path / "quality.csv")[0].rows["patient"]) == {f"p{i}" for i in range(8)}
    before.drop(columns=["patient", "centre"]).to_csv(tmp_path / "quality.csv", index=False)
    assert len(read_quality(tmp_path / "quality.csv")[0].rows) == 16
