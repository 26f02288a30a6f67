"""Further boxes for what is usually there, and one place for what lies in one."""

import math

import pytest
import torch

from oasis_monai.segmentation.box_places import CANDIDATES, FAINTEST, FOUND, keep_one_place, missed_places
from oasis_monai.segmentation.boxes import lay_boxes
from oasis_monai.segmentation.expected import Expected
from tests.segmentation.test_boxes import FACTOR, WORKING, likely, sides

pytestmark = pytest.mark.fast


def faint(*places, number=2, classes=4):
    """What two networks say: nothing, but for faint places of a structure for the second one."""
    said = torch.zeros(2, classes, *WORKING.shape)
    for x, y, z, value in places:
        said[1, number, x, y, z] = value
    said[:, 0] = 1 - said.sum(1)
    return said


def test_what_is_usually_there_is_looked_for_where_it_is_most_probable():
    usual = Expected({2: (3, 4, 2)}, frozenset({2}))
    networks = faint((10, 10, 5, 0.3), (11, 10, 5, 0.2), (30, 20, 15, 0.1), (0, 0, 0, 0.05), (38, 3, 3, 0.04))
    made = missed_places(networks, usual)
    assert [sides(box) for box in made] == [
        [(9, 12), (8, 12), (4, 6)],
        [(29, 32), (18, 22), (14, 16)],
        [(0, 2), (0, 2), (0, 1)],
    ]
    assert len(made) == CANDIDATES
    several = Expected({2: (3, 4, 2)})
    assert [sides(box) for box in missed_places(networks, several)] == [sides(made[0])], "which of many is right nobody knows"


def test_what_is_found_or_not_expected_is_not_looked_for():
    place = (10, 10, 5)
    assert missed_places(faint((*place, FOUND)), Expected({2: (3, 3, 3)})) == []
    assert missed_places(faint((*place, FOUND - 0.01)), Expected({2: (3, 3, 3)}))
    assert missed_places(faint((*place, FOUND - 0.01)), Expected()) == []
    assert missed_places(faint((*place, FAINTEST / 2)), Expected({2: (3, 3, 3)})) == []


def test_further_boxes_come_while_there_is_room():
    sure = likely((slice(6, 9), slice(10, 16), slice(6, 12), 0.9))
    (alone,) = lay_boxes(sure, WORKING, FACTOR, window=4).boxes
    missed = [(slice(30, 33), slice(20, 23), slice(15, 17)), (slice(20, 21), slice(3, 5), slice(2, 4))]
    both = lay_boxes(sure, WORKING, FACTOR, window=4, missed=missed)
    assert both.boxes[0] == alone
    assert len(both.boxes) == 3
    for place, box in zip(missed, both.boxes[1:], strict=True):
        assert all(b.start <= p.start and p.stop <= b.stop for p, b in zip(place, box, strict=True))
    voxels = [math.prod((s.stop - s.start) * f for s, f in zip(box, FACTOR, strict=True)) for box in both.boxes]
    tight = lay_boxes(sure, WORKING, FACTOR, most_voxels=voxels[0] + voxels[2], window=4, missed=missed)
    assert tight.boxes == (both.boxes[0], both.boxes[2]), "the first one is too large for what is left"
    assert lay_boxes(sure, WORKING, FACTOR, most_voxels=voxels[0], window=4, missed=missed).boxes == (alone,)
    assert len(lay_boxes(likely(), WORKING, FACTOR, window=4, missed=missed).boxes) == 2, "also where nothing is likely"


BOXES = [
    (slice(2, 8), slice(2, 8), slice(2, 8)),
    (slice(6, 12), slice(2, 8), slice(2, 8)),
    (slice(30, 36), slice(20, 26), slice(2, 8)),
]


def whole(*pieces):
    """Probabilities of four classes on the common grid of the boxes: pieces (x, y, z, class, value), the rest to class 3."""
    said = torch.zeros(4, *(n * f for n, f in zip(WORKING.shape, FACTOR, strict=True)))
    said[0] = 1
    for x, y, z, number, value in pieces:
        said[:, x, y, z] = 0
        said[number, x, y, z] = value
        said[3, x, y, z] += 1 - value
    return said


def cut(said):
    return [
        said[(slice(None), *(slice(s.start * f, s.stop * f) for s, f in zip(box, FACTOR, strict=True)))].clone() for box in BOXES
    ]


def test_far_pieces_of_what_lies_in_one_place_go():
    main = (slice(12, 24), slice(12, 24), slice(8, 16), 1, 0.9)  # in the first box
    near = (slice(32, 36), slice(12, 16), slice(8, 12), 1, 0.9)  # in both of the first boxes, two working voxels apart
    far = (slice(124, 130), slice(84, 90), slice(8, 14), 1, 0.6)  # in the third
    other = (slice(132, 140), slice(84, 90), slice(8, 14), 2, 1.0)
    given = cut(whole(main, near, far, other))
    before = [one.clone() for one in given]
    made = keep_one_place(given, BOXES, FACTOR, WORKING.shape, Expected({}, frozenset({1})))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)), "what was given stays"
    wanted = cut(whole(main, near, (*far[:3], 3, 1.0), other))
    for one, right in zip(made, wanted, strict=True):
        torch.testing.assert_close(one, right)
    several = keep_one_place(given, BOXES, FACTOR, WORKING.shape, Expected({}, frozenset({2})))
    assert all(torch.equal(a, b) for a, b in zip(several, before, strict=True)), "other structures may have several places"


def test_the_place_with_most_voxels_stays_and_nothing_is_left_is_background():
    small, large = (slice(12, 14), slice(12, 14), slice(8, 10), 1, 1.0), (slice(124, 136), slice(84, 96), slice(8, 14), 1, 1.0)
    made = keep_one_place(cut(whole(small, large)), BOXES, FACTOR, WORKING.shape, Expected({}, frozenset({1})))
    assert not made[0].argmax(0).any()
    torch.testing.assert_close(made[0].sum(0), torch.ones(made[0].shape[1:]))
    assert int((made[2].argmax(0) == 1).sum()) == 12 * 12 * 6
