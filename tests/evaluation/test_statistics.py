"""Paired tests against published and hand-made numbers; n never chosen with the help of the case it is used on."""

import math
from itertools import product

import numpy as np
import pytest

from oasis_monai.evaluation.statistics import at_best_n, choose_n, holm, interval, wilcoxon
from tests.helpers.study_rows import CASES, GROUPS, row, study
from tests.helpers.study_rows import frame as framed

NAN = math.nan


def exact_wilcoxon(values):
    """Two-sided exact p without ties or zeros, over all signs."""
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    seen = ranks[np.array(values) > 0].sum()
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in product((0, 1), repeat=len(values))]
    lower, upper = np.mean([s <= seen for s in sums]), np.mean([s >= seen for s in sums])
    return min(1.0, 2 * min(lower, upper))


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5, 6], [1, -2, 3, 4, -5, 6, 7], [-1, 2, -3, 4.5, -5, 6, 0.5, 9]])
def test_wilcoxon_is_the_exact_test_over_all_signs(values):
    assert wilcoxon(values) == pytest.approx(exact_wilcoxon(values))
    assert wilcoxon([-v for v in values]) == pytest.approx(wilcoxon(values))
    assert wilcoxon([*values, NAN]) == wilcoxon(values)


def test_wilcoxon_degenerate():
    assert wilcoxon([0.0] * 8) == 1.0
    assert math.isnan(wilcoxon([1.0] * 5))
    assert math.isnan(wilcoxon([]))
    assert wilcoxon([0, 0, 0, 1, 1, 1, 1, 1, 1]) > wilcoxon([1, 1, 1, 1, 1, 1, 1, 1, 1])  # no difference is evidence against


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's steps by hand
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, NAN, 0.03], [0.04, NAN, 0.04]),
        ([], []),
    ],
)
def test_holm(given, expected):
    assert holm(given) == pytest.approx(expected, nan_ok=True)


def by_n(method, n, i, protocol):
    return {1: 0.5, 2: 0.7, 4: 0.7}[n] + 0.001 * i


def test_the_best_n_is_chosen_and_a_tie_goes_to_the_smaller():
    assert choose_n(study(["OASIS"], dsc=by_n), "OASIS", GROUPS) == dict.fromkeys(range(5), 2)


def test_a_fold_s_own_scores_never_choose_its_n():
    plain = study(["OASIS"], dsc=by_n)
    for fold in range(5):
        spoiled = plain.copy()
        own = spoiled["case"].map(GROUPS) == fold
        spoiled.loc[own & (spoiled["n"] == 4), "dsc"] = 1.0  # this fold alone would now choose 4
        spoiled.loc[own & (spoiled["n"] != 4), "dsc"] = 0.0
        chosen = choose_n(spoiled, "OASIS", GROUPS)
        assert chosen[fold] == 2
        assert all(n == 4 for other, n in chosen.items() if other != fold)
        rows, _ = at_best_n(spoiled, "OASIS", GROUPS)
        for case, n in zip(rows["case"], rows["n"], strict=True):
            assert n == chosen[GROUPS[case]]


def test_each_case_comes_once_per_region_and_a_network_as_it_is():
    scores = study(["OASIS", "ConvNet3D"], dsc=lambda m, n, i, p: 0.5 + 0.01 * n)
    rows, chosen = at_best_n(scores, "OASIS", GROUPS)
    assert set(chosen.values()) == {4}
    assert len(rows) == len(CASES) * 3
    network, none = at_best_n(scores, "ConvNet3D", GROUPS)
    assert none == {}
    assert set(network["n"]) == {0}
    assert len(network) == len(CASES) * 3


def test_absent_rows_do_not_choose():
    rows = [row(case, "OASIS", n, 0.5 + 0.1 * (n == 2)) for case in CASES for n in (1, 2)]
    blank = dict.fromkeys(("rvd_percent", "arvd_percent", "hd_mm", "hd95_mm", "abd_mm"), NAN)
    rows[0] |= {"status": "absent", "dsc": NAN, **blank}
    assert set(choose_n(framed(rows), "OASIS", GROUPS).values()) == {2}


def test_a_case_without_a_fold_and_a_fold_without_others():
    with pytest.raises(ValueError, match="found none of Case00"):
        choose_n(study(["OASIS"]), "OASIS", {})
    rising = study(["OASIS"], dsc=lambda _, n, *__: 0.5 + 0.01 * n)
    assert choose_n(rising, "OASIS", dict.fromkeys(CASES, 0)) == {0: 1}  # not the best, which its own cases would tell


def test_interval_is_student_s():
    mean, sd, low, high = interval([1.0, 2.0, 3.0, 4.0, NAN])
    assert (mean, sd) == pytest.approx((2.5, 1.2909944))
    assert (low, high) == pytest.approx((2.5 - 3.1824463 * 1.2909944 / 2, 2.5 + 3.1824463 * 1.2909944 / 2))
    assert interval([3.0])[0] == 3.0
    assert all(math.isnan(v) for v in (*interval([3.0])[1:], *interval([])))
