"""Who is a suspect, in what order, and what is written of it."""

import numpy as np
import pandas as pd
import pytest

from oasis_monai.evaluation import suspects
from oasis_monai.evaluation.label_faults import Explanation
from oasis_monai.evaluation.suspects import Finding, expected_dice, findings, ranked, suspect
from oasis_monai.utils.errors import DataError
from tests.evaluation.test_label_faults import beside, organ


def finding(case="a", label="gland", dsc=0.6, explained=()):
    return Finding(case, label, dsc, tuple(explained), "only the border differs", (3, 5))


SHIFT = Explanation("shifted", "the reference looks shifted by 2 slices towards the head", 0.9)


def test_the_score_is_what_the_dice_lacks_and_what_an_explanation_gains():
    plain = suspect(finding(), 0.9, 0.05, 0.9)
    assert plain.score == pytest.approx(0.3 / 0.05)
    assert plain.text == "only the border differs"
    explained = suspect(finding(explained=[SHIFT]), 0.9, 0.05, 0.9)
    assert explained.score == pytest.approx(0.3 / 0.05 + 0.3 / suspects.LEAST_SPREAD)
    assert explained.text == f"{SHIFT.text} (Dice 0.60, with that undone 0.90)"
    assert suspect(finding(), float("nan"), 0.05, 0.9) is None


def test_a_bad_result_is_no_evidence_against_a_label():
    scores = [suspect(finding(dsc=predicted - 0.3), predicted, 0.05, 0.9).score for predicted in (0.9, 0.7, 0.5, 0.3)]
    assert scores == pytest.approx([6, 2, 1.2, 6 / 7])
    confirmed = suspect(finding(dsc=0.2, explained=[Explanation("shifted", "moved", 0.95)]), 0.5, 0.05, 0.9)
    assert confirmed.score == pytest.approx(0.3 / 0.05 + 0.75 / 0.03)  # the label confirms the result


def test_an_explanation_is_told_where_it_explains_most_of_what_is_missing():
    little = Explanation("shifted", "moved", 0.7)
    assert suspect(finding(explained=[little]), 0.9, 0.05, 0.9).explanation is None
    assert suspect(finding(dsc=0.69, explained=[little]), 0.7, 0.05, 0.9).explanation is None  # hardly any gain
    assert suspect(finding(explained=[little]), 0.72, 0.05, 0.9).explanation is little


def test_wrong_labels_do_not_hide_themselves():
    """A fifth of the labels is wrong: the expected Dice stays what it is without them."""
    random = np.random.default_rng(0)
    overlaps = random.uniform(0.8, 0.95, (30, 2))
    dsc = overlaps.mean(1) + random.normal(0, 0.01, 30)
    right, spread = expected_dice(overlaps, dsc, [i % 5 for i in range(30)])
    assert right == pytest.approx(overlaps.mean(1), abs=0.01)
    assert spread == suspects.LEAST_SPREAD
    wrong = dsc.copy()
    wrong[:6] = random.uniform(0.2, 0.6, 6)
    told, wider = expected_dice(overlaps, wrong, [i % 5 for i in range(30)])
    assert told == pytest.approx(right, abs=0.02)
    assert wider < 1.5 * spread


def test_with_few_cases_or_no_fold_to_learn_from_the_overlap_counts():
    told, spread = expected_dice(np.array([[0.9, 0.8], [0.7, 0.9]]), np.array([0.8, 0.2]), [0, 0])
    assert told.tolist() == pytest.approx([0.85, 0.8])
    assert spread == 2 * suspects.LEAST_SPREAD
    told, _ = expected_dice(np.full((2, 2), np.nan), np.array([0.8, 0.2]), [0, 1])
    assert np.isnan(told).all()


def test_the_structures_of_the_worst_case_come_first():
    made = [
        suspect(finding(case, label, dsc), 0.9, 0.05, 0.9)
        for case, label, dsc in [("a", "x", 0.8), ("a", "y", 0.7), ("b", "x", 0.3), ("b", "y", 0.9), ("c", "x", 0.5)]
    ]
    assert [(one.finding.case, one.finding.label) for one in ranked(made)] == [
        ("b", "x"), ("b", "y"), ("c", "x"), ("a", "y"), ("a", "x")
    ]  # fmt: skip


def test_findings_say_where_to_look():
    result, reference = organ(), organ()
    reference[..., 3:6] = 0
    (found,) = findings("a", beside(result, reference))
    assert found.dsc == pytest.approx(2 * reference.sum() / (result.sum() + reference.sum()))
    assert found.explained[0].kind == "missing slices"
    assert set(found.slices) == {3, 4, 5}
    missing = float((result != reference).sum()) * 3 / 1000
    assert found.difference == f"the result is sure of {missing:.2g} ml (mostly in slices 4-6) that the reference leaves out"
    (found,) = findings("a", beside(reference, result, np.zeros_like(result)))
    assert "the reference has" in found.difference
    assert found.difference.endswith("where the result is sure of something else")


def test_structures_that_are_absent():
    result, nothing = organ(), np.zeros_like(organ())
    (found,) = findings("a", beside(result, nothing))
    assert found.difference.startswith("the reference has no gland, of which the result sees ")
    (found,) = findings("a", beside(nothing, result))
    assert found.difference.endswith(" ml of gland, of which the result sees nothing")
    assert findings("a", beside(nothing, nothing)) == []
    (found,) = findings("a", beside(result, result))
    assert (found.dsc, found.slices, found.difference) == (1.0, (), "only the border differs")


def test_slices_stand_for_equal_shares():
    weight = np.zeros(40)
    weight[10:30] = 5
    assert suspects.spread_slices(weight) == (12, 17, 22, 27)
    weight[:] = 0
    weight[7] = 1
    assert suspects.spread_slices(weight) == (7,)
    assert suspects.spread_slices(np.zeros(5)) == ()


def test_the_table_comes_back_as_it_was_written(tmp_path):
    about = {"NA": {"protocol": "patient", "patient": "NA", "centre": "", "method": "OASIS", "n": 6}}
    rows = suspects.suspect_rows([suspect(finding("NA", explained=[SHIFT]), 0.9, 0.05, 0.9)], about)
    suspects.write_suspects(tmp_path / "suspects.csv", rows)
    back = suspects.read_suspects(tmp_path / "suspects.csv")
    pd.testing.assert_frame_equal(back, rows, atol=1e-4, check_dtype=False)
    assert back.loc[0, "slices"] == "4 6"
    assert len(suspects.read_suspects(tmp_path / "none.csv")) == 0
    (tmp_path / "bad.csv").write_text("case,score\na,b\n")
    with pytest.raises(DataError, match="expected a CSV with the columns protocol, case"):
        suspects.read_suspects(tmp_path / "bad.csv")


def test_a_shift_that_does_not_make_the_label_fit_is_not_told_but_slices_are():
    half = Explanation("shifted", "moved", 0.78)
    assert suspect(finding(explained=[half]), 0.9, 0.05, 0.9).explanation is None
    slices = Explanation("missing slices", "slices 4-6 have no gland", 0.77)
    assert suspect(finding(explained=[half, slices]), 0.9, 0.05, 0.9).explanation is slices
