"""Folds: every image tested once, nobody on both sides."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oasis_monai.data.folds import Fold, Split, check_no_leak, limit_training, make_split, patient_groups
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError

IMAGES = {f"Case{i:02d}": 5 + i % 4 for i in range(11)}
VOLUMES = dict.fromkeys(IMAGES, 1)


def images_of(part):
    return [(case, number) for case, numbers in part.items() for number in numbers]


@pytest.mark.parametrize("k", [2, 3, 5, 11])
@pytest.mark.parametrize(("protocol", "images", "dims"), [("patient", VOLUMES, 3), ("patient", IMAGES, 2), ("slice", IMAGES, 2)])
def test_every_image_is_tested_once_and_trained_on_in_all_other_folds(k, protocol, images, dims):
    split = make_split(images, k, seed=4, protocol=protocol, spatial_dims=dims)
    everything = sorted((case, number) for case, count in images.items() for number in range(count))
    assert sorted(image for fold in split.folds for image in images_of(fold.test)) == everything
    assert [fold.index for fold in split.folds] == list(range(k))
    for fold in split.folds:
        assert sorted(images_of(fold.train) + images_of(fold.test)) == everything
        if protocol == "patient":
            assert not set(fold.train) & set(fold.test)
    sizes = [len(fold.test) if protocol == "patient" else len(images_of(fold.test)) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1


def test_slice_folds_do_share_patients():
    """What makes the paper's protocol easier is really there: nearly every test case has neighbours in training."""
    split = make_split(IMAGES, 5, seed=0, protocol="slice", spatial_dims=2)
    assert all(set(fold.test) & set(fold.train) for fold in split.folds)


@pytest.mark.parametrize("protocol", ["patient", "slice"])
def test_the_seed_decides_and_the_order_of_cases_does_not(protocol):
    first = make_split(IMAGES, 5, 7, protocol, 2)
    assert make_split(dict(reversed(IMAGES.items())), 5, 7, protocol, 2) == first
    assert make_split(IMAGES, 5, 7, protocol, 2).key() == first.key()
    assert make_split(IMAGES, 5, 8, protocol, 2).key() != first.key()
    assert len({fold.key() for fold in first.folds}) == 5


def test_the_split_of_a_seed_stays_what_it_was():
    """Another machine or another version of numpy must find the models and the folds of this one."""
    split = make_split(dict.fromkeys("abcdefg", 1), 3, 0)
    assert [list(fold.test) for fold in split.folds] == [["c", "d", "e"], ["f", "g"], ["a", "b"]]


def test_as_json_the_split_says_who_is_where():
    split = make_split({"a": 1, "b": 2}, 2, 0, spatial_dims=2)
    told = split.to_json()
    assert (told["protocol"], told["seed"]) == ("patient", 0)
    assert sorted(case for fold in told["folds"] for case in fold["test"]) == ["a", "b"]
    assert all(fold["test"].get("b", (0, 1)) == (0, 1) for fold in told["folds"])


@pytest.mark.parametrize(
    ("protocol", "folds", "match"),
    [
        ("patient", [Fold(0, {"a": (0,), "b": (0,)}, {"a": (1,)})], r"fold 0: \['a'\] on both sides"),
        ("slice", [Fold(0, {"a": (0, 1)}, {"a": (1,)})], "fold 0: slices of a on both sides"),
        ("patient", [Fold(0, {"b": (0,)}, {"a": (0,)}), Fold(1, {"b": (0,)}, {"a": (0,)})], "tested in two folds"),
    ],
)
def test_a_leak_raises(protocol, folds, match):
    with pytest.raises(ValueError, match=match):
        check_no_leak(Split(protocol, 0, tuple(folds)))


def test_one_slice_moved_to_the_other_side_is_found():
    good = make_split(IMAGES, 5, 1, "slice", 2)
    case, numbers = next(iter(good.folds[2].test.items()))
    train = {**good.folds[2].train, case: (*good.folds[2].train.get(case, ()), numbers[0])}
    folds = (*good.folds[:2], replace(good.folds[2], train=train), *good.folds[3:])
    check_no_leak(good)
    with pytest.raises(ValueError, match=f"fold 2: slices of {case}"):
        check_no_leak(replace(good, folds=folds))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((VOLUMES, 1, 0), "^k: expected 2 folds or more, found 1"),
        ((VOLUMES, 12, 0), r"^k: expected no more folds than cases \(11\), found 12"),
        (({}, 2, 0), r"^k: expected no more folds than cases \(0\)"),
        ((VOLUMES, 5, 0, "patients"), r"^folds: expected one of \['patient', 'centre', 'file', 'slice'\], found 'patients'"),
        ((VOLUMES, 5, 0, "slice", 3), r"^folds: expected patient .*spatial_dims=3.*set spatial_dims=2 or folds=patient"),
        (({"a": 3}, 5, 0, "slice", 2), r"^k: expected no more folds than slices \(3\), found 5"),
    ],
)
def test_what_cannot_work_is_said(arguments, match):
    with pytest.raises(ConfigError, match=match):
        make_split(*arguments)


def test_of_fewer_cases_than_folds_each_is_a_group():
    assert patient_groups(["b", "a"], 5, 0) in ({"a": 0, "b": 1}, {"a": 1, "b": 0})
    assert patient_groups(["a"], 5, 0) == {"a": 0}


def test_a_smaller_training_set_lies_within_a_larger_one_and_tests_stay():
    split = make_split(VOLUMES, 3, 4)
    two, five = limit_training(split, 2), limit_training(split, 5)
    for fold, small, large in zip(split.folds, two.folds, five.folds, strict=True):
        assert len(small.train) == 2
        assert len(large.train) == 5
        assert set(small.train) < set(large.train) < set(fold.train)
        assert small.test == large.test == fold.test
        assert all(small.train[case] == fold.train[case] for case in small.train)
        assert len({fold.key(), small.key(), large.key()}) == 3
    assert limit_training(split, 2) == two
    assert limit_training(make_split(VOLUMES, 3, 5), 2) != two
    with pytest.raises(ConfigError, match=r"^train_cases: expected 1 to 7, the training patients of fold 0, found 8"):
        limit_training(split, 8)


def old_test_sides(ids, k, seed):
    """How folds by patient were dealt before patients could have several cases, in two lines."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return [sorted(sorted(ids)[i] for i in part) for part in np.array_split(order, k)]


@pytest.mark.parametrize(("count", "k", "seed"), [(7, 3, 0), (34, 5, 0), (50, 5, 3), (200, 5, 1), (11, 11, 2)])
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_with_one_case_each_the_folds_are_those_of_earlier_versions_whatever_the_patients_are_called(count, k, seed, named):
    ids = [f"Case{i:02d}" for i in range(count)]
    names = np.random.default_rng(1).permutation(count)
    cases = [Case(i, Path(), patient=f"p{name}") for i, name in zip(ids, names, strict=True)] if named else []
    split = make_split(dict.fromkeys(ids, 1), k, seed, cases=cases)
    assert [list(fold.test) for fold in split.folds] == old_test_sides(ids, k, seed)
    assert split.key() == make_split(dict.fromkeys(ids, 1), k, seed).key()
    assert patient_groups(ids, k, seed, {c.id: c.patient for c in cases}) == patient_groups(ids, k, seed)
    assert limit_training(split, 2) == replace(limit_training(split, 2), patients=split.patients)


def people(random, cases, patients, centres=3):
    """Random persons: who a case is of, and one centre each."""
    home = random.integers(centres, size=patients)
    who = random.integers(patients, size=cases)
    return [Case(f"c{i:03d}", Path(), patient=f"p{p}", centre=f"centre {home[p]}") for i, p in enumerate(who.tolist())]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("protocol", ["patient", "centre", "file"])
def test_nobody_is_on_both_sides_and_each_case_is_tested_once(seed, protocol):
    random = np.random.default_rng(seed)
    cases = people(random, int(random.integers(12, 60)), int(random.integers(6, 12)))
    if protocol == "file":
        of = {p: int(random.integers(3)) for p in sorted({c.patient for c in cases})} | {
            cases[0].patient: 0,
            cases[-1].patient: 1,
        }
        of[cases[0].patient] = 2 if cases[0].patient == cases[-1].patient else 0
        cases = [replace(c, fold=of[c.patient]) for c in cases]
    k = int(random.integers(2, 5))
    if protocol != "patient" and len({(c.centre if protocol == "centre" else c.fold) for c in cases}) < 2:
        pytest.skip("one centre or fold by chance")
    split = make_split({c.id: 1 for c in cases}, k, seed, protocol, cases=cases[::-1])
    who = {c.id: c.patient for c in cases}
    tested = [case for fold in split.folds for case in fold.test]
    assert sorted(tested) == sorted(who)
    for fold in split.folds:
        assert fold.train
        assert sorted([*fold.train, *fold.test]) == sorted(who)
        assert not {who[c] for c in fold.train} & {who[c] for c in fold.test}
    if protocol == "centre":
        assert [fold.name for fold in split.folds] == sorted({c.centre for c in cases})
        assert all({c.centre for c in cases if c.id in fold.test} == {fold.name} for fold in split.folds)
    if protocol == "patient":
        sizes = sorted(len(fold.test) for fold in split.folds)
        most = max(sum(c.patient == p for c in cases) for p in who.values())
        assert len(sizes) == k
        assert sizes[-1] - sizes[0] <= most  # one patient cannot be cut
        assert make_split({c.id: 1 for c in cases}, k, seed, cases=cases) == split
    fewest = min(len({who[c] for c in fold.train}) for fold in split.folds)
    for size in range(1, min(2, fewest) + 1):
        small = limit_training(split, size)
        assert all(len({who[c] for c in fold.train}) == size for fold in small.folds)
        assert all(c in small.folds[0].train for c in who if who[c] in {who[t] for t in small.folds[0].train})


def test_pairs_and_singles_make_equal_folds():
    """As in the hippocampus: 52 persons with two scans, 96 with one."""
    cases = [Case(f"h{i:03d}", Path(), patient=f"p{i // 2 if i < 104 else i}") for i in range(200)]
    for seed in range(5):
        split = make_split({c.id: 1 for c in cases}, 5, seed, cases=cases)
        assert {len(fold.test) for fold in split.folds} == {40}
    groups = patient_groups([c.id for c in cases], 5, 0, {c.id: c.patient for c in cases})
    assert groups == make_split({c.id: 1 for c in cases}, 5, 0, cases=cases).testing()


def test_a_split_by_centre_tells_its_names_and_can_be_asked_by_them():
    cases = [Case(f"c{i}", Path(), centre="BA"[i % 2], patient=f"p{i}") for i in range(4)]
    split = make_split({c.id: 1 for c in cases}, 5, 0, "centre", cases=cases)
    assert [fold["name"] for fold in split.to_json()["folds"]] == ["A", "B"]
    assert split.to_json()["cases"]["c1"] == {"patient": "p1", "centre": "A"}
    assert split.choose("B") == split.choose(1) == [split.folds[1]]
    assert split.choose(None) == list(split.folds)
    with pytest.raises(ConfigError, match=r"^fold: expected null .all., 0 to 1 or one of \['A', 'B'\], found 'C'"):
        split.choose("C")


def at(name, fold=None, split="", patient="", centre=""):
    return Case(name, Path(), fold=fold, split=split, patient=patient, centre=centre)


def test_cases_with_a_split_alone_train_or_are_tested_and_a_fold_goes_before():
    one = make_split(
        {"a": 1, "b": 1, "c": 1}, 5, 0, "file", cases=[at("a", split="train"), at("b", split="test"), at("c", split="train")]
    )
    assert [(list(f.train), list(f.test)) for f in one.folds] == [(["a", "c"], ["b"])]
    cases = [at("a", 4), at("b", 7), at("always", split="train"), at("kept", split="test"), at("c", 7, "test")]
    two = make_split({c.id: 1 for c in cases}, 5, 0, "file", cases=cases)
    assert [(f.name, list(f.train), list(f.test)) for f in two.folds] == [
        ("4", ["always", "b"], ["a"]),
        ("7", ["a", "always"], ["b", "c"]),
    ]


@pytest.mark.parametrize(
    ("protocol", "cases", "match"),
    [
        (
            "centre",
            [at("a", centre="X"), at("b")],
            r"folds=centre: expected a centre of every case, found none of 1 of 2 cases \(b\)",
        ),
        ("centre", [at("a", centre="X"), at("b", centre="X")], "folds=centre: expected 2 centres or more, found X"),
        (
            "centre",
            [at("a", centre="X", patient="p"), at("b", centre="Y", patient="p")],
            "^a: patient p: expected one centre, found a: X, b: Y",
        ),
        (
            "file",
            [at("a", 0), at("b", 1), at("c")],
            r"a fold or a split of every case, found none of 1 of 3 cases \(c\)",
        ),
        (
            "file",
            [at("a", 0, patient="p"), at("b", 1, patient="p")],
            "^a: patient p: expected one fold or split, found a: 0, b",
        ),
        ("file", [at("a", 0, patient="p"), at("b", split="train", patient="p")], "patient p: .*found a: 0, b: train"),
        ("file", [at("a", 0), at("b", 0)], r"folds=file: .*found none to train with \(fold 0\)"),
        ("file", [at("a", split="train")], r"folds=file: .*found none to test \(split\)"),
        ("patient", [at("a", patient="p"), at("b", patient="p")], r"^k: expected no more folds than patients \(1\), found 2"),
    ],
)
def test_what_the_data_set_does_not_say_or_says_wrongly_is_told(protocol, cases, match):
    with pytest.raises((ConfigError, DataError), match=match) as error:
        make_split({c.id: 1 for c in cases}, 2, 0, protocol, cases=cases)
    assert "\n" not in str(error.value)


def test_a_patient_with_a_scan_on_either_side_is_found():
    patients = {"a": "p", "b": "p"}
    with pytest.raises(ValueError, match=r"fold 0: \['b'\] on both sides"):
        check_no_leak(Split("patient", 0, (Fold(0, {"a": (0,)}, {"b": (0,)}),), patients))
    with pytest.raises(ValueError, match="the patient of b is tested in two folds"):
        check_no_leak(Split("file", 0, (Fold(0, {"c": (0,)}, {"a": (0,)}), Fold(1, {"c": (0,)}, {"b": (0,)})), patients))
    check_no_leak(Split("slice", 0, (Fold(0, {"a": (0,)}, {"b": (0,)}),), patients))
