"""What labels show of their structures, on grids of any voxel size."""

import itertools
import math

import numpy as np
import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.anatomy import (
    NOTEWORTHY,
    AnatomyStatistics,
    StructureShape,
    likely_range,
    measure_anatomy,
)

NAMES = ["organ", "cyst"]


def label_of(*boxes, shape=(20, 18, 12)):
    label = torch.zeros(shape, dtype=torch.uint8)
    for value, (x, y, z) in boxes:
        label[slice(*x), slice(*y), slice(*z)] = value
    return label


def test_a_label_is_measured_in_ml_and_mm():
    label = label_of((1, ((2, 12), (2, 12), (2, 10))), (0, ((6, 8), (6, 8), (5, 7))), (1, ((15, 19), (2, 6), (2, 4))))
    label[19, 17, 11] = 1  # a crumb
    found = measure_anatomy(label, (2.0, 1.0, 5.0), NAMES)
    voxel = 0.01
    organ = found["organ"]
    assert organ.volume_ml == pytest.approx((800 - 8 + 32 + 1) * voxel)
    assert organ.pieces_ml == pytest.approx([792 * voxel, 32 * voxel])
    assert organ.holes_ml == ()  # 8 of 825 voxels are under a hundredth
    assert organ.extent_mm == (2.0 * 18, 16.0, 5.0 * 10)
    assert found["cyst"] == StructureShape(0.0)
    larger = label_of((1, ((2, 12), (2, 12), (2, 10))), (0, ((6, 8), (6, 8), (5, 8))))
    assert measure_anatomy(larger, (2.0, 1.0, 5.0), NAMES)["organ"].holes_ml == pytest.approx([12 * voxel])
    assert NOTEWORTHY * 825 > 8


def test_neighbours_share_a_corner_at_least():
    random = np.random.default_rng(0)
    for _ in range(20):
        label = np.zeros((7, 7, 7), np.uint8)
        for value in (1, 2, 3):
            label[tuple(random.integers(0, 7, (2, 3)).T)] = value
        expected = set()
        for at, step in itertools.product(np.argwhere(label).tolist(), itertools.product((-1, 0, 1), repeat=3)):
            other = tuple(a + s for a, s in zip(at, step, strict=True))
            if all(0 <= o < 7 for o in other) and label[other] and label[other] != label[tuple(at)]:
                expected.add((label[tuple(at)], label[other]))
        found = measure_anatomy(torch.from_numpy(label), (1, 1, 1), ["a", "b", "c"])
        told = {("abc".index(one) + 1, "abc".index(other) + 1) for one, shape in found.items() for other in shape.touches}
        assert told == expected


def test_a_label_in_part_unknown_teaches_nothing():
    label = label_of((1, ((2, 12), (2, 12), (2, 10))))
    label[0, 0, 0] = IGNORE
    assert measure_anatomy(label, (1, 1, 1), NAMES) == {}


def test_shapes_come_back_from_json():
    shape = StructureShape(4.0, (3.0, 1.0), (0.5,), (10.0, 20.0, 30.0), ("cyst",))
    assert StructureShape.from_json(shape.to_json()) == shape
    assert StructureShape(1.23456).to_json()["volume_ml"] == 1.235


def shape(volume, pieces=None, holes=(), touches=()):
    return StructureShape(volume, tuple(pieces or (volume,)), tuple(holes), (1.0, 2.0, 3.0), tuple(touches))


def test_statistics_keep_the_extremes_and_what_all_share():
    labels = [
        {"organ": shape(10, touches=["cyst"]), "cyst": shape(3, (2, 1), touches=["organ"])},
        {"organ": shape(12, holes=(2.0, 0.5), touches=["cyst", "other"]), "cyst": shape(4, (3, 0.6, 0.4), touches=["organ"])},
        {"organ": shape(20, touches=["cyst"]), "cyst": shape(1)},
        {"organ": shape(14, touches=["cyst"]), "cyst": StructureShape(0.0)},
        {},
    ]
    found = AnatomyStatistics.of_shapes(labels).structures
    organ, cyst = found["organ"], found["cyst"]
    assert (organ.labels, cyst.labels) == (4, 3)
    assert (organ.volume_ml, cyst.volume_ml) == ((10, 20), (1, 4))
    assert (organ.most_pieces, organ.smallest_piece_ml) == (1, math.inf)
    assert (cyst.most_pieces, cyst.smallest_piece_ml) == (3, 0.4)
    assert (organ.most_holes, organ.smallest_hole_ml) == (2, 0.5)
    assert (organ.neighbours, cyst.neighbours) == (("cyst",), ())
    assert AnatomyStatistics.of_shapes(labels[:2]).structures == {}


def test_the_likely_range_holds_99_of_100_further_volumes_and_all_known_ones():
    random = np.random.default_rng(0)
    for n in (3, 10, 40):
        hits = []
        for _ in range(3000):
            drawn = np.exp(random.normal(3.5, 0.4, n + 1))
            low, high = likely_range(drawn[:n].tolist())
            assert low <= drawn[:n].min() <= drawn[:n].max() <= high
            hits.append(low <= drawn[n] <= high)
        assert 0.98 < np.mean(hits) < 1
    reach = 9.92484 * math.log(2) * math.sqrt(4 / 3)  # t of two degrees of freedom at 99.5 %, from a table
    assert likely_range([10.0, 20.0, 40.0]) == pytest.approx((20 / math.exp(reach), 20 * math.exp(reach)), rel=1e-4)
    assert likely_range([5.0, 5.0, 5.0]) == pytest.approx((5, 5))
    assert likely_range([1e-3, 1e3, 1.0])[1] < math.inf


def test_what_no_training_label_shows_is_flagged_in_words():
    training = [
        {"organ": shape(v, touches=["cyst"]), "cyst": shape(2, (1.5, 0.5), touches=["organ"])} for v in (30, 40, 42, 45, 60)
    ]
    anatomy = AnatomyStatistics.of_shapes(training)
    assert flags.implausible(training[0], anatomy) == ()
    odd = {"organ": shape(400, (300, 100), (30,)), "cyst": shape(2, (1.5, 0.5), touches=["other"])}
    by_name = {flag.name: flag.text for flag in flags.implausible(odd, anatomy)}
    assert list(by_name) == ["pieces", "holes", "volume", "neighbours"]
    assert by_name["pieces"] == "organ in 2 pieces (300 and 100 ml), in the training labels at most 1"
    assert by_name["holes"] == "1 hole in organ (30 ml), in the training labels none"
    low, high = anatomy.volume_range("organ")
    assert by_name["volume"] == (
        f"organ has 400 ml, in the training labels 30 to 60 ml (of others {low:.3g} to {high:.3g} ml can be expected)"
    )
    assert by_name["neighbours"] == "organ and cyst do not touch, as they do in all training labels"
    absent = {"organ": shape(40), "cyst": StructureShape(0.0), "unheard of": shape(1, (0.5, 0.5))}
    assert flags.implausible(absent, anatomy) == ()
    assert anatomy.volume_range("unheard of") is None


def test_statistics_of_labels_on_different_grids_are_alike():
    coarse = [label_of((1, ((2, 2 + n), (2, 8), (2, 8)))) for n in (8, 10, 12)]
    fine = [one.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2) for one in coarse]
    one = AnatomyStatistics.of(coarse, [(2, 2, 4)] * 3, NAMES)
    other = AnatomyStatistics.of(fine, [(1, 1, 2)] * 3, NAMES)
    assert one.structures["organ"].volume_ml == pytest.approx(other.structures["organ"].volume_ml)
    assert one.structures["organ"].extent_mm == other.structures["organ"].extent_mm
    with pytest.raises(ValueError, match="zip"):
        AnatomyStatistics.of(coarse, [(2, 2, 4)], NAMES)
