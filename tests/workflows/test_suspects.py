"""Wrong labels in a cross-validation: they are looked for where parts are compared, and nothing of them reaches a result."""

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.types import Selection
from oasis_monai.evaluation.report import write_report
from oasis_monai.evaluation.suspects import COLUMNS, Finding
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.segmentation.result import Result
from oasis_monai.workflows import suspects
from oasis_monai.workflows.crossval import crossval
from tests.conftest import CASES, merged
from tests.helpers.runs import THREE, quiet, scores_of


def told(folder):
    return pd.read_csv(folder / "suspects.csv", dtype={"case": str})


@pytest.mark.parametrize("dims", [2, 3])
def test_every_case_is_measured_against_the_result_whose_parts_are_compared(settings, tmp_path, dims, monkeypatch):
    monkeypatch.setattr(suspects, "SUSPECT", -100.0)  # a network of four steps fits nothing
    monkeypatch.setattr(suspects, "MOST_PICTURES", 2)
    given = {"methods": ["FwoW", "majority", "OASIS"], "n": [1, 2], "k": 2, "overlays": 1}
    crossval(settings(given, dims=dims), tmp_path / "a", quiet)
    rows, scores = told(tmp_path / "a"), scores_of(tmp_path / "a")
    assert tuple(rows.columns) == COLUMNS
    assert len(rows) == CASES
    assert set(rows.method) == {"OASIS"}
    assert set(rows.n) == {2}
    own = scores[(scores.method == "OASIS") & (scores.n == 2) & (scores.region == "whole")].set_index("case")
    assert rows.dsc.tolist() == pytest.approx(own.loc[rows.case, "dsc"].tolist(), abs=1e-4)
    assert rows.score.is_monotonic_decreasing
    assert len(list((tmp_path / "a" / "suspects").glob("*.png"))) == 2
    page = write_report(tmp_path / "a").read_text()
    assert "Suspects: labels to look at" in page


def test_nothing_is_said_where_nothing_is_compared_or_slices_of_the_label_are_atlases(settings, tmp_path):
    (tmp_path / "a" / "suspects").mkdir(parents=True)
    (tmp_path / "a" / "suspects.csv").write_text("of a run before")
    (tmp_path / "a" / "suspects" / "old.png").write_text("of a run before")
    crossval(settings({"methods": ["FwoW"], "k": 2}), tmp_path / "a", quiet)
    crossval(
        settings({"methods": ["OASIS"], "folds": "slice", "k": 2, "data": {"include": THREE}}, dims=2), tmp_path / "b", quiet
    )
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert not (folder / "suspects.csv").exists()
        assert not list(folder.glob("suspects/*.png"))
        assert "labels to look at" not in write_report(folder).read_text()


def test_several_structures_have_a_row_each(phantom_two_labels, settings, tmp_path):
    data = {"root": str(phantom_two_labels), "labels": {"inner": 1, "outer": 2}}
    crossval(settings(merged({"methods": ["OASIS"], "n": 2, "k": 2}, {"data": data})), tmp_path / "a", quiet)
    rows = told(tmp_path / "a")
    assert rows.groupby("case").label.agg(set).tolist() == [{"inner", "outer"}] * CASES
    first = rows.groupby("case", sort=False).score.max()
    assert first.is_monotonic_decreasing


@pytest.mark.fast
def test_the_result_to_trust():
    compared, alone = (Result(torch.zeros(1), None, counts) for counts in (torch.zeros(2, 1, 2), None))

    def of(**results):
        found = {(name.replace("_", "-"), n): result for name, (ns, result) in results.items() for n in ns}
        return suspects.key_to_trust(CaseResult(None, (0, 0, 0), found, {}, Selection(torch.empty(0), torch.empty(0))))

    assert of(FwoW=((2, 6), alone), OASIS=((2, 6, 8), compared), OASIS_joint=((2, 6, 8), compared)) == ("OASIS-joint", 6)
    assert of(majority=((2, 4), compared), OASIS=((2, 4), compared)) == ("OASIS", 4)
    assert of(estimate=((0,), compared), FwoW=((6,), alone)) == ("estimate", 0)
    assert of(FwoW=((6,), alone)) is None


@pytest.mark.fast
def test_a_planted_label_is_first_and_the_agreement_of_other_folds_decides():
    random = np.random.default_rng(0)
    cases = [f"c{i}" for i in range(12)]
    shares = dict(zip(cases, random.uniform(0.8, 0.95, 12), strict=True))
    shares["c3"] = 0.3  # a result that nobody trusts
    counts = {case: torch.tensor([[[share * 2e4, 2e4]], [[share * 2e4, 2e4]]]) for case, share in shares.items()}
    dsc = dict(shares) | {"c7": 0.5}  # its label is wrong
    found = [Finding(case, "gland", dsc[case], (), "differs", ()) for case in cases]
    groups = {case: i % 4 for i, case in enumerate(cases)}
    made = suspects.rank_findings(found, counts, ["gland"], groups)
    assert made[0].finding.case == "c7"
    assert made[0].predicted == pytest.approx(shares["c7"], abs=0.03)
    assert list(suspects.first_suspects(made)) == ["c7"]
    assert suspects.rank_findings(found, {}, ["gland"], groups) == []
