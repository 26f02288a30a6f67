"""Boxes from what a coarse pass says, and their labels on the scan's own grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry, Segmentation
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.boxes import (
    LIKELY,
    MARGIN_MM,
    BoxResult,
    BoxSegmenter,
    blend,
    lay_boxes,
    restore_boxes,
)
from oasis_monai.transforms.boxes import box_grid
from oasis_monai.transforms.fine import refined
from oasis_monai.transforms.labels import decide
from oasis_monai.transforms.spatial import resample, restore

WORKING = Geometry((40, 30, 20), np.diag([4.0, 4.0, 6.0, 1.0]))
FACTOR = (4, 4, 3)
MORE = [int(np.ceil(MARGIN_MM / mm)) for mm in WORKING.spacing_mm]


def likely(*places):
    values = torch.zeros(WORKING.shape)
    for x, y, z, value in places:
        values[x, y, z] = value
    return values


def sides(box):
    return [(s.start, s.stop) for s in box]


def test_every_place_gets_a_box_with_a_margin():
    """Left and right, and a small one far away, each by itself."""
    left, right = (slice(6, 9), slice(10, 16), slice(6, 12), 0.9), (slice(30, 33), slice(10, 16), slice(6, 12), 0.8)
    laid = lay_boxes(likely(left, right, (slice(18, 19), slice(14, 15), slice(18, 19), 0.6)), WORKING, FACTOR, window=4)
    assert laid.left == 0
    wanted = [
        [(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(one[:3], MORE, WORKING.shape, strict=True)]
        for one in (left, right, (slice(18, 19), slice(14, 15), slice(18, 19)))
    ]
    assert [sides(box) for box in laid.boxes] == wanted


def test_faint_places_get_none():
    spot = (slice(6, 9), slice(10, 16), slice(6, 12))
    assert lay_boxes(likely((*spot, LIKELY - 0.01)), WORKING, FACTOR).boxes == ()
    assert lay_boxes(likely((*spot, 0.4)), WORKING, FACTOR).boxes == (), "likely everywhere, sure nowhere"
    faint_round_sure = likely((*spot, LIKELY + 0.01), (7, 12, 8, 0.7))
    (box,) = lay_boxes(faint_round_sure, WORKING, FACTOR, window=4).boxes
    assert sides(box)[0] == (6 - MORE[0], 9 + MORE[0])


def test_boxes_show_what_the_network_has_learned_from_where_the_grid_does():
    for x in (0, 20, 39):
        (box,) = lay_boxes(likely((x, 3, 10, 1.0)), WORKING, FACTOR, window=64).boxes
        assert [(s.stop - s.start) * f for s, f in zip(box[:2], FACTOR, strict=False)] == [64, 64]
        assert box[0].start <= x < box[0].stop
        assert box[0].start >= 0
        assert box[0].stop <= 40
    (box,) = lay_boxes(likely((5, 3, 10, 1.0)), WORKING, FACTOR, window=1000).boxes
    assert sides(box)[:2] == [(0, 40), (0, 30)]


def test_boxes_that_nearly_cover_each_other_become_one():
    near = likely((slice(6, 20), slice(10, 20), slice(6, 12), 0.9), (slice(21, 24), slice(10, 20), slice(6, 12), 0.9))
    near[20] = 0
    assert len(lay_boxes(near, WORKING, FACTOR, window=4).boxes) == 1
    apart = likely((slice(4, 6), slice(4, 6), slice(6, 12), 0.9), (slice(8, 10), slice(20, 22), slice(6, 12), 0.9))
    assert len(lay_boxes(apart, WORKING, FACTOR, window=4).boxes) == 2


def test_memory_is_bounded_and_the_most_likely_place_comes_first():
    spots = likely((slice(4, 7), slice(4, 7), slice(8, 11), 0.92), (slice(30, 36), slice(20, 26), slice(8, 11), 0.99))
    both = lay_boxes(spots, WORKING, FACTOR, window=4)
    assert both.boxes[0][0].start > 20
    voxels = [np.prod([(s.stop - s.start) * f for s, f in zip(box, FACTOR, strict=True)]) for box in both.boxes]
    one = lay_boxes(spots, WORKING, FACTOR, most_voxels=sum(voxels) - 1, window=4)
    assert one.boxes == both.boxes[:1]
    assert one.left == 1
    small = lay_boxes(spots, WORKING, FACTOR, most_voxels=voxels[1], window=4)
    assert small.boxes == both.boxes[1:], "a smaller place may still fit"


def test_a_vague_estimate_gets_boxes_where_it_is_surest():
    """It is likely everywhere: one box of the whole grid would be too large, and none would help nobody."""
    vague = likely((slice(0, 40), slice(0, 30), slice(0, 20), 0.4), (slice(6, 9), slice(10, 16), slice(6, 12), 0.8))
    laid = lay_boxes(vague, WORKING, FACTOR, most_voxels=200_000, window=4)
    sure = lay_boxes(likely((slice(6, 9), slice(10, 16), slice(6, 12), 0.8)), WORKING, FACTOR, window=4)
    assert laid == sure
    assert laid.boxes


def test_overlapping_boxes_agree():
    """Formula: every box weighs by its distance to its own faces; written voxel by voxel."""
    boxes = [
        (slice(0, 4), slice(0, 3), slice(0, 3)),
        (slice(2, 6), slice(1, 4), slice(0, 3)),
        (slice(9, 11), slice(0, 2), slice(0, 2)),
    ]
    factor, random = (2, 1, 1), torch.Generator().manual_seed(0)
    said = []
    for box in boxes:
        shape = [(s.stop - s.start) * f for s, f in zip(box, factor, strict=True)]
        said.append(torch.rand(2, *shape, generator=random))
    made = blend(said, boxes, factor)
    assert torch.equal(made[2], said[2])

    def at(number, voxel):
        """Value and weight of a box at a voxel of the common grid; None where it does not lie in it."""
        first = [s.start * f for s, f in zip(boxes[number], factor, strict=True)]
        own = tuple(v - f for v, f in zip(voxel, first, strict=True))
        shape = said[number].shape[1:]
        if any(not 0 <= o < n for o, n in zip(own, shape, strict=True)):
            return None
        depth = min(min(o + 1, n - o) for o, n in zip(own, shape, strict=True))
        return said[number][(slice(None), *own)], depth, own

    for voxel in np.ndindex(12, 4, 3):
        seen = [(n, found) for n in (0, 1) if (found := at(n, voxel)) is not None]
        if not seen:
            continue
        wanted = sum(value * depth for _, (value, depth, _) in seen) / sum(depth for _, (_, depth, _) in seen)
        for number, (_, _, own) in seen:
            torch.testing.assert_close(made[number][(slice(None), *own)], wanted)


class Threshold:
    """An estimator that finds what is bright."""

    def __call__(self, slices):
        assert slices.shape[1] == 6, "three slices, three places"
        inside = (slices[:, 1] > 0.5).float()
        return torch.stack([1 - inside, inside], 1)


def test_a_scan_is_labelled_anew_in_its_boxes_and_nowhere_else():
    """The finer label appears in the box; outside of all boxes the coarse one stays; the scan's axes run another way."""
    flipped = np.diag([-1.0, 1.0, 2.0, 1.0])
    flipped[:2, 3] = 157.5, 0.5  # on the voxels of the boxes
    native = Geometry((160, 120, 60), flipped)
    truth = torch.zeros(1, *native.shape)
    truth[0, 40:43, 50:75, 20:40] = 1.0  # 3 mm thin
    truth[0, 150:156, 100:110, 5:10] = 1.0  # beyond the boxes
    coarse_label = torch.zeros(native.shape, dtype=torch.uint8)
    coarse_label[120:130, 10:20, 50:55] = 1
    coarse = Segmentation("case", coarse_label, None, native)
    wall = torch.full((2, 2, *WORKING.shape), 0.0)
    wall[:, 0] = 1
    where = (29, slice(12, 19), slice(6, 14))  # 116 mm, as the axis is flipped
    wall[0][(0, *where)], wall[0][(1, *where)] = 0.2, 0.8  # the second network sees nothing
    asked = []

    def images(boxes):
        asked.extend(boxes)
        return [resample(truth, native, box_grid(WORKING, box, FACTOR)) for box in boxes]

    results = BoxSegmenter(Threshold(), FACTOR)(wall, WORKING, images)
    assert len(results) == len(asked) == 1
    made = restore_boxes(coarse, results)
    assert torch.equal(made.label[30:60, 40:90, 10:50], (truth[0, 30:60, 40:90, 10:50]).byte())
    assert torch.equal(made.label[120:130, 10:20, 50:55], coarse_label[120:130, 10:20, 50:55])
    assert not made.label[150:156, 100:110, 5:10].any()
    assert coarse.label.sum() == 10 * 10 * 5, "what was given stays"


def test_a_box_is_restored_as_its_grid_alone_would_be():
    native = Geometry((80, 60, 40), np.diag([2.0, 2.0, 3.0, 1.0]))
    box = (slice(5, 20), slice(4, 16), slice(3, 12))
    grid = box_grid(WORKING, box, FACTOR)
    probability = torch.softmax(4 * torch.randn(3, *grid.shape, generator=torch.Generator().manual_seed(0)), 0)
    label, kept = restore(probability, grid, native, True)
    nothing = torch.zeros(3, *native.shape)
    nothing[0] = 1
    blank = Segmentation("case", torch.zeros(native.shape, dtype=torch.uint8), nothing, native)
    made = restore_boxes(blank, [BoxResult(grid, probability)])
    assert torch.equal(made.label, label)
    torch.testing.assert_close(made.probability, kept)
    assert torch.equal(decide(made.probability), made.label)
    far = replace(blank, geometry=Geometry(native.shape, native.affine + np.array([[0, 0, 0, 5000.0]] + 3 * [[0] * 4])))
    assert not restore_boxes(far, [BoxResult(grid, probability)]).label.any()


def test_beside_a_box_a_scan_that_lies_askew_keeps_what_it_has():
    """Of such a scan the voxels round a box are more than those in it."""
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[2, 2], affine[:3, 3] = 3.0, (60.0, 0.0, 0.0)
    native = Geometry((60, 60, 40), affine)
    grid = box_grid(WORKING, (slice(15, 25), slice(8, 20), slice(3, 12)), FACTOR)
    background = torch.zeros(2, *grid.shape)
    background[0] = 1
    scan = Segmentation("case", torch.ones(native.shape, dtype=torch.uint8), None, native)
    made = restore_boxes(scan, [BoxResult(grid, background)]).label.numpy()
    centres = np.stack(np.meshgrid(*map(np.arange, native.shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    index = (centres - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    shape = np.array(grid.shape)
    inside, outside = ((index > 0) & (index < shape - 1)).all(-1), ((index < -1) | (index > shape)).any(-1)
    assert inside.sum() > 1000
    assert (made[inside] == 0).all()
    assert (made[outside] == 1).all()


def test_nothing_found_is_no_box_and_is_said():
    empty = torch.zeros(2, 2, *WORKING.shape)
    empty[:, 0] = 1

    def never(_):
        raise AssertionError("nothing to look at")

    assert BoxSegmenter(Threshold(), FACTOR)(empty, WORKING, never) == ()
    assert flags.no_box(()).name == "no_box"
    assert flags.no_box(None) is None
    assert flags.no_box((BoxResult(WORKING, empty[0]),)) is None


def test_the_grid_of_boxes_has_the_edges_of_the_working_grid():
    whole = tuple(slice(0, n) for n in WORKING.shape)
    np.testing.assert_allclose(box_grid(WORKING, whole, FACTOR).affine, refined(WORKING, FACTOR).affine)


@pytest.mark.parametrize("window", [1, 96])
def test_every_likely_voxel_lies_in_a_box(window):
    random = torch.Generator().manual_seed(3)
    values = torch.zeros(WORKING.shape)
    for _ in range(6):
        x, y, z = (int(torch.randint(n - 3, (1,), generator=random)) for n in WORKING.shape)
        values[x : x + 3, y : y + 2, z : z + 3] = 0.7
    covered = torch.zeros(WORKING.shape, dtype=torch.bool)
    for box in lay_boxes(values, WORKING, FACTOR, window=window).boxes:
        covered[box] = True
    assert covered[values >= LIKELY].all()
