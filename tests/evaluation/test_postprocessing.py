"""A decision rests on patients, not on one of them, nor on rounding."""

import json

import numpy as np
import pytest

from oasis_monai.evaluation.postprocessing import (
    Trial,
    check_mode,
    choice_for,
    chosen,
    decide_operation,
    decide_operations,
    decisions_of,
    keep_decisions,
    plain_decisions,
    read_decisions,
)
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureShape
from oasis_monai.segmentation.postprocessing import HOLES, PIECES
from oasis_monai.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("own", "other", "helps"),
    [
        ([0, 0, 0, 0, 0.04], [0, 0, 0, 0, 0], True),  # one gains, none loses
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], False),
        ([0, 0, 0, 0, -0.01], [0, 0, 0, 0, 0], False),
        ([0, 0, 0, -0.01, 0.3], [0, 0, 0, 0, 0], False),
        ([0.001, 0, 0, -0.05, 0.3], [0, 0, 0, 0, 0], False),  # a single one outweighs
        ([0, 0, 0.02, -0.01, 0.3], [0, 0, 0, 0, 0], True),
        ([-0.01, -0.01, -0.01, 0.1, 0.3], [0, 0, 0, 0, 0], False),  # most lose
        ([0.02, 0.02, 0.02, -0.1, 0.02], [0, 0, 0, 0, 0], False),
        ([0, 0, 0.02, 0, 0.3], [0, 0, 0, -0.001, 0], False),  # another structure pays
        ([0, 0, 0.02, 0, 0.3], [0, 0, 0.002, -0.001, 0], True),
        ([0, 0, 1e-12, 0, 1e-12], [0, 0, 0, 0, 0], False),
        ([0, 0, 2e-4, 0, 2e-4], [0, 0, 0, 0, 0], False),  # less than a hundredth of a point
        ([0, 0, 3e-4, 0, 3e-4], [0, 0, 0, 0, 0], True),
    ],
)
def test_an_operation_must_help_without_its_best_patient_and_at_no_cost(own, other, helps):
    found = decide_operation(np.array([other, own]).T, 1)
    assert found.chosen == helps
    assert found.patients == 5
    assert found.mean_gain == pytest.approx(np.mean(own))
    assert (found.better, found.worse) == (sum(g > 1e-9 for g in own), sum(g < 0 for g in own))
    assert found.changed == found.better + found.worse
    assert found.largest_gain == max(0, *own)
    assert found.largest_loss == -min(0, *own)


def test_nothing_is_chosen_by_few_patients():
    assert not decide_operation(np.zeros((0, 2)), 0).chosen
    assert not decide_operation(np.full((4, 1), 0.1), 0).chosen
    assert decide_operation(np.full((5, 1), 0.1), 0).chosen


def test_decisions_count_patients_and_only_those_that_decide():
    patients = {"a1": "a", "a2": "a", **{one: one for one in "bcdef"}}
    trials = [
        Trial("a1", "organ", PIECES, {"organ": 0.4, "cyst": 0.0}),
        Trial("b", "organ", PIECES, {"organ": -0.1}),
        Trial("d", "organ", PIECES, {"organ": -0.9}),
        Trial("c", "cyst", HOLES, {"cyst": 0.2}),
        Trial("e", "organ", PIECES, {"organ": -0.05}),
    ]
    found = decide_operations(trials, patients, ["a1", "a2", "b", "c", "e", "f"], ["organ", "cyst"])
    assert set(found) == {"organ", "cyst"}
    assert set(found["organ"]) == {PIECES, HOLES}
    pieces = found["organ"][PIECES]
    assert pieces.patients == 5
    assert pieces.mean_gain == pytest.approx((0.4 / 2 - 0.1 - 0.05) / 5)  # a's two scans are one patient
    assert not pieces.chosen
    assert chosen(found) == {"cyst": (HOLES,)}
    assert decide_operations([], patients, [], ["organ"])["organ"][PIECES].patients == 0


def test_decisions_are_kept_beside_others_and_the_better_founded_stays(tmp_path):
    def made(cases, gain):
        trials = [Trial("0", "organ", PIECES, {"organ": gain})]
        return decide_operations(trials, {str(i): str(i) for i in range(cases)}, [str(i) for i in range(cases)], ["organ"])

    path = tmp_path / "kept" / "x.json"
    assert read_decisions(path) is None
    keep_decisions(path, {"OASIS-6": made(20, 0.1)})
    keep_decisions(path, {"OASIS-6": made(10, -0.1), "OASIS-4": made(10, -0.1)})
    kept = read_decisions(path)
    assert chosen(kept["OASIS-6"]) == {"organ": (PIECES,)}
    assert chosen(kept["OASIS-4"]) == {}
    keep_decisions(path, {"OASIS-6": made(20, -0.1)})
    assert chosen(read_decisions(path)["OASIS-6"]) == {}
    assert decisions_of(json.loads(json.dumps(plain_decisions(kept)))) == kept
    path.write_text("[]")
    assert read_decisions(path) is None
    with pytest.raises(ValueError, match="postprocessing"):
        decisions_of({"OASIS-6": {"organ": {PIECES: {"chosen": True}}}})


def test_what_is_asked_counts():
    shape = StructureShape(1.0, (1.0,), (), (1.0, 1.0, 1.0))
    anatomy = AnatomyStatistics.of_shapes([{"organ": shape}] * 3)
    decisions = decide_operations([Trial("a", "organ", PIECES, {"organ": 0.1})], {c: c for c in "abcde"}, "abcde", ["organ"])
    assert choice_for("auto", anatomy, decisions) == {"organ": (PIECES,)}
    assert choice_for("auto", anatomy, {}) == {}
    assert choice_for("none", anatomy, decisions) == {}
    assert choice_for("all", anatomy, {}) == {"organ": (PIECES, HOLES)}
    assert choice_for("auto", None, decisions) == {}
    check_mode("all", anatomy)
    check_mode("auto", None)
    with pytest.raises(ConfigError, match=r"^postprocessing: expected auto or none for this model, found 'all'; train it again"):
        check_mode("all", None)
    with pytest.raises(ConfigError, match=r"^postprocessing: expected one of auto, none, all, found 'some'"):
        check_mode("some", anatomy)
