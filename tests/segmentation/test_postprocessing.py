"""Implausible pieces go, implausible holes are filled, and nothing else changes."""

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry, Segmentation
from oasis_monai.segmentation.anatomy import AnatomyStatistics, StructureShape
from oasis_monai.segmentation.postprocessing import HOLES, PIECES, every_operation, postprocess
from tests.segmentation.test_anatomy import label_of

NAMES = ["organ", "cyst"]
BODY, FAR, TINY = ((2, 12), (2, 12), (2, 10)), ((15, 19), (2, 6), (2, 6)), ((15, 17), (14, 16), (2, 3))


def anatomy(organ=((5.0,), ()), cyst=((1.0,), ())):
    labels = [
        {
            name: StructureShape(sum(pieces), pieces, holes, (1.0, 1.0, 1.0))
            for name, (pieces, holes) in (("organ", organ), ("cyst", cyst))
        }
    ]
    return AnatomyStatistics.of_shapes(labels * 3)


def result_of(label, probability=None, spacing=(1.0, 1.0, 1.0)):
    return Segmentation("scan", label, probability, Geometry(tuple(label.shape), np.diag([*spacing, 1.0])))


def edited(label, known, choice=None, **more):
    result, changes = postprocess(result_of(label, **more), known, choice or every_operation(known), NAMES)
    return result.label, [(c.structure, c.operation, c.parts, c.volume_ml) for c in changes]


def test_a_structure_in_one_piece_keeps_its_largest():
    label = label_of((1, BODY), (1, FAR), (1, TINY))
    found, changes = edited(label, anatomy())
    assert torch.equal(found, label_of((1, BODY)))
    assert changes == [("organ", PIECES, 2, pytest.approx(0.068))]
    assert torch.equal(label, label_of((1, BODY), (1, FAR), (1, TINY)))


def test_a_structure_in_many_pieces_keeps_those_as_large_as_in_training_labels():
    label = label_of((1, BODY), (1, FAR), (1, TINY))  # 800, 64 and 4 voxels of 1 mm
    for smallest, kept in ((0.003, 3), (0.005, 2), (0.1, 1)):
        found, _ = edited(label, anatomy(organ=((5.0, 4.0, smallest), ())))
        assert torch.equal(found, label_of(*[(1, box) for box in (BODY, FAR, TINY)[:kept]]))
    found, _ = edited(label, anatomy(organ=((5.0, 0.003), ())))  # no label has three
    assert torch.equal(found, label_of((1, BODY), (1, FAR)))
    found, _ = edited(label, anatomy(organ=((5.0, 4.0, 0.05), ())), spacing=(3.0, 3.0, 3.0))  # 27 times the volume
    assert torch.equal(found, label)
    found, _ = edited(label_of((1, TINY)), anatomy(organ=((5.0, 4.0), ())))  # the largest stays, however small
    assert int(found.sum()) == 4


def test_holes_are_filled_but_for_those_of_training_labels():
    hole = ((6, 8), (6, 8), (5, 7))
    label = label_of((1, BODY), (0, hole))
    assert torch.equal(edited(label, anatomy())[0], label_of((1, BODY)))
    assert edited(label, anatomy())[1] == [("organ", HOLES, 1, pytest.approx(0.008))]
    assert torch.equal(edited(label, anatomy(organ=((5.0,), (0.004,))))[0], label)  # rings are like that
    assert torch.equal(edited(label, anatomy(organ=((5.0,), (0.5,))))[0], label_of((1, BODY)))
    filled = label_of((1, BODY), (2, hole))  # by another structure
    assert torch.equal(edited(filled, anatomy())[0], filled)


def test_a_piece_within_another_structure_becomes_that():
    label = label_of((1, BODY), (2, ((16, 19), (2, 6), (2, 6))), (2, ((5, 7), (5, 7), (4, 6))))
    found, changes = edited(label, anatomy())
    assert torch.equal(found, label_of((1, BODY), (2, ((16, 19), (2, 6), (2, 6)))))
    assert [c[:3] for c in changes] == [("cyst", PIECES, 1)]


def test_what_lies_beyond_all_structures_is_beside_a_piece_as_well():
    body, plate = ((2, 12), (2, 12), (2, 12)), ((12, 13), (4, 9), (4, 9))  # 25 faces on the body, 25 outside, 20 around
    label = label_of((1, body), (2, ((5, 10), (13, 18), (3, 11))), (2, plate))
    assert torch.equal(edited(label, anatomy())[0], label_of((1, body), (2, ((5, 10), (13, 18), (3, 11)))))
    label = label_of((1, body), (2, ((5, 10), (13, 18), (3, 11))), (2, ((11, 12), (4, 9), (4, 9))))  # sunk in: 45 on the body
    assert torch.equal(edited(label, anatomy())[0], label_of((1, body), (2, ((5, 10), (13, 18), (3, 11)))))


def test_two_pieces_side_by_side_both_go_whichever_is_looked_at_first():
    both = [(1, ((15, 17), (2, 6), (2, 6))), (2, ((17, 19), (2, 6), (2, 6)))]
    label = label_of((1, BODY), (2, ((2, 12), (12, 17), (2, 10))), *both)
    expected = label_of((1, BODY), (2, ((2, 12), (12, 17), (2, 10))))
    assert torch.equal(edited(label, anatomy())[0], expected)
    swapped = torch.where(label == 1, 2, torch.where(label == 2, 1, 0)).to(torch.uint8)
    found = edited(swapped, anatomy())[0]
    assert torch.equal(found > 0, expected > 0)


def test_a_removed_piece_within_a_removed_piece_leaves_no_gap():
    around, inner, core = ((2, 12), (2, 12), (2, 10)), ((5, 9), (5, 9), (4, 8)), ((7, 8), (7, 8), (6, 7))
    label = label_of((2, around), (1, inner), (2, core), (1, ((14, 20), (2, 12), (2, 10))))
    found, changes = edited(label, anatomy())
    assert torch.equal(found, label_of((2, around), (1, ((14, 20), (2, 12), (2, 10)))))
    assert [c[:3] for c in changes] == [("organ", PIECES, 1), ("cyst", PIECES, 1)]


def test_only_what_is_chosen_is_done():
    label = label_of((1, BODY), (1, FAR), (0, ((6, 8), (6, 8), (5, 7))), (2, ((13, 14), (14, 17), (2, 9))), (2, TINY))
    result = result_of(label)
    for nothing in ({}, {"organ": ()}, {"unheard of": (PIECES,)}):
        same, changes = postprocess(result, anatomy(), nothing, NAMES)
        assert same is result
        assert changes == ()
    assert [c[:2] for c in edited(label, anatomy(), {"organ": (HOLES,)})[1]] == [("organ", HOLES)]
    assert [c[:2] for c in edited(label, anatomy(), {"cyst": (PIECES,)})[1]] == [("cyst", PIECES)]
    clean = result_of(label_of((1, BODY)))
    assert postprocess(clean, anatomy(), every_operation(anatomy()), NAMES)[0] is clean


def test_the_probability_follows_the_label():
    label = label_of((1, BODY), (1, FAR), (0, ((6, 8), (6, 8), (5, 7))))
    probability = torch.rand(3, *label.shape)
    before = probability.clone()
    found, _ = postprocess(result_of(label, probability), anatomy(), every_operation(anatomy()), NAMES)
    changed = found.label != label
    assert int(changed.sum()) == 64 + 8
    assert torch.equal(found.probability.argmax(0)[changed].to(torch.uint8), found.label[changed])
    assert torch.equal(found.probability.sum(0)[changed], torch.ones(72))
    assert torch.equal(found.probability[:, ~changed], before[:, ~changed])
    assert torch.equal(probability, before)


def test_what_was_done_is_told():
    found, changes = postprocess(
        result_of(label_of((1, BODY), (1, FAR), (1, TINY))), anatomy(), every_operation(anatomy()), NAMES
    )
    assert found.case == "scan"
    assert str(changes[0]) == "2 pieces of organ removed (0.068 ml)"
    assert changes[0].to_json() == {"structure": "organ", "operation": "remove_pieces", "parts": 2, "volume_ml": 0.068}
