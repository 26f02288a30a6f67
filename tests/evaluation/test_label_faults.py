"""What a wrong reference looks like, against changes that were made on purpose and searches that try everything."""

import itertools

import numpy as np
import pytest

from oasis_monai.data.types import IGNORE
from oasis_monai.evaluation import label_faults
from oasis_monai.evaluation.label_faults import UNSURE, Compared, explanations

SPACING = (1.0, 1.0, 3.0)


def organ(shape=(24, 22, 12)):
    """A body without any symmetry, off the middle."""
    label = np.zeros(shape, np.uint8)
    label[5:15, 6:12, 2:9] = 1
    label[5:9, 12:16, 2:5] = 1
    label[5:7, 6:9, 9] = 1
    return label


def beside(result, reference, sure=None, labels=("gland",), spacing=SPACING):
    return Compared(result, reference, result if sure is None else sure, spacing, tuple(labels))


def dice(one, other):
    """As it is written in books."""
    return 2 * np.logical_and(one, other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize(
    ("axis", "step", "words"),
    [
        (2, 2, "2 slices towards the head"), (2, -1, "1 slice towards the feet"), (0, 4, "4 mm towards the right"),
        (0, -3, "3 mm towards the left"), (1, 5, "5 mm towards the front"), (1, -2, "2 mm towards the back"),
    ],
)  # fmt: skip
def test_a_shift_is_found_with_its_way_and_size(axis, step, words):
    result = organ()
    best = explanations(beside(result, np.roll(result, step, axis)))["gland"][0]
    assert (best.kind, best.text, best.dsc) == ("shifted", f"the reference looks shifted by {words}", 1.0)


def test_a_shift_along_several_axes_and_of_isotropic_voxels():
    result = organ()
    best = explanations(beside(result, np.roll(result, (3, -2), (0, 2)), spacing=(2.0, 2.0, 2.0)))["gland"][0]
    assert best.dsc == 1.0
    assert best.text == "the reference looks shifted by 6 mm towards the right and 4 mm towards the feet"


def test_the_best_shift_is_that_of_a_search_through_all():
    random = np.random.default_rng(0)
    for axis in range(3):
        one, other = (random.random((7, 6, 5)) > 0.6 for _ in range(2))
        tried = {}
        for step in range(-6, 7):
            moved = np.zeros_like(other)
            for at in np.argwhere(other):
                to = at.copy()
                to[axis] += step
                if 0 <= to[axis] < other.shape[axis]:
                    moved[tuple(to)] = True
            assert np.array_equal(label_faults._move(other, axis, step) if abs(step) < other.shape[axis] else moved, moved)
            tried[step] = int((moved & one).sum())
        step, common = label_faults._best_shift(one, other, axis)
        assert common == max(tried.values()) == tried[step]
        assert abs(step) == min(abs(s) for s, value in tried.items() if value == common)


@pytest.mark.parametrize("axes", [axes for count in (1, 2, 3) for axes in itertools.combinations(range(3), count)])
def test_a_mirrored_label_is_found_with_its_axes(axes):
    result = organ()
    best = explanations(beside(result, np.flip(result, axes)))["gland"][0]
    names = " and ".join(("left and right", "front and back", "head and foot")[axis] for axis in axes)
    assert (best.kind, best.text, best.dsc) == ("mirrored", f"the reference looks mirrored ({names})", 1.0)


def test_of_mirror_images_that_fit_alike_the_simplest_is_told():
    result = np.zeros((20, 20, 10), np.uint8)
    result[4:16, 3:9, 2:5] = 1  # left and right alike
    best = explanations(beside(result, np.flip(result, (0, 2))))["gland"][0]
    assert best.text.endswith(("(head and foot)", "slices towards the head"))
    assert best.dsc == 1.0


def test_swapped_and_renamed_structures():
    result = organ() + np.roll(2 * organ(), 12, 0)
    a, b = result == 1, result == 2
    swapped = np.where(a, 2, np.where(b, 1, 0))
    told = explanations(beside(result, swapped, labels=("left", "right")))
    assert [told[name][0].text for name in ("left", "right")] == ["left and right look swapped in the reference"] * 2
    assert [told[name][0].dsc for name in ("left", "right")] == [1.0, 1.0]
    renamed = np.where(a, 2, 0)  # right is not there at all
    told = explanations(beside(np.where(a, 1, 0), renamed, labels=("left", "right")))
    assert told["left"][0].text == "the reference seems to call right what is left"
    assert not [one for one in explanations(beside(result, result, labels=("left", "right")))["left"] if one.kind == "swapped"]


def test_slices_without_a_label_count_only_where_the_result_is_sure():
    result = organ()
    reference = result.copy()
    reference[..., 3:6] = 0
    best = explanations(beside(result, reference))["gland"][0]
    assert (best.kind, best.dsc) == ("missing slices", 1.0)
    assert best.text == "slices 4-6 have no gland in the reference, though the result is sure of it"
    unsure = np.where(result == 1, UNSURE, 0).astype(np.uint8)
    assert "missing slices" not in {one.kind for one in explanations(beside(result, reference, unsure))["gland"]}


def test_slices_with_a_label_that_the_result_is_sure_not_to_see():
    result, reference = organ(), organ()
    reference[5:15, 6:12, 10] = 1
    found = {one.kind: one for one in explanations(beside(result, reference))["gland"]}
    assert found["extra slices"].text == "slice 11 has gland in the reference, though the result is sure that there is none"
    assert found["extra slices"].dsc == 1.0


def test_slices_are_those_of_the_coarsest_axis():
    assert beside(organ(), organ(), spacing=(3.0, 1.0, 1.0)).slice_axis == 0
    assert beside(organ(), organ(), spacing=(1.0, 1.0, 1.0)).slice_axis == 2
    reference = organ()
    reference[7:9] = 0
    best = explanations(beside(organ(), reference, spacing=(3.0, 1.0, 1.0)))["gland"][0]
    assert best.text.startswith("slices 8-9 have no gland")


def test_what_nobody_labelled_counts_nowhere():
    result, reference = organ(), organ()
    reference[..., :5] = IGNORE
    case = beside(result, reference)
    known = reference != IGNORE
    assert case.dice(1) == pytest.approx(dice((result == 1) & known, reference == 1)) == 1.0
    assert not case.unseen(1).any()
    assert not case.differing(1).any()
    assert all(one.kind not in ("missing slices", "extra slices") for one in explanations(case)["gland"])
    everything = np.full_like(reference, IGNORE)
    assert np.isnan(beside(result, everything).dice(1))
    assert explanations(beside(result, everything))["gland"][0].dsc == 0


def test_empty_labels_have_no_shift():
    result, nothing = organ(), np.zeros_like(organ())
    for case in (beside(result, nothing), beside(nothing, result), beside(nothing, nothing)):
        assert "shifted" not in {one.kind for one in explanations(case)["gland"]}


def test_dice_of_every_pair():
    random = np.random.default_rng(1)
    one, other = (random.integers(0, 4, (5, 6, 7)) for _ in range(2))
    other[0] = IGNORE
    table = label_faults.dice_table(label_faults.confusion(one, other, 4))
    for i, j in itertools.product(range(4), repeat=2):
        assert table[i, j] == pytest.approx(dice((one == i) & (other != IGNORE), other == j))


def test_a_result_is_sure_where_its_probability_is_high():
    probability = np.array([[0.95, 0.5, 0.05], [0.05, 0.5, 0.95]]).reshape(2, 3, 1, 1)
    assert label_faults.sure_classes(probability).ravel().tolist() == [0, UNSURE, 1]


def test_slices_in_words():
    assert label_faults.named_slices([2]) == "slice 3"
    assert label_faults.named_slices([2, 3, 4]) == "slices 3-5"
    assert label_faults.named_slices([0, 2, 3, 7]) == "slices 1, 3-4 and 8"
