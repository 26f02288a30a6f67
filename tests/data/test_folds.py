"""Folds: every image tested once, nobody on both sides."""

from dataclasses import replace

import pytest

from oasis_monai.data.folds import Fold, Split, check_no_leak, limit_training, make_split, patient_groups
from oasis_monai.utils.errors import ConfigError

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
        ((VOLUMES, 5, 0, "patients"), r"^folds: expected one of \['patient', 'slice'\], found 'patients'"),
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
