"""Pieces and holes, against a search voxel by voxel."""

import itertools

import numpy as np
import pytest

from oasis_monai.transforms.components import bounding_box, holes, pieces

FACES = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
ALL = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]


def flooded(mask, steps):
    """The parts of a mask as sets of voxels, by a flood from each."""
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        todo = [left.pop()]
        part = set(todo)
        while todo:
            x, y, z = todo.pop()
            for a, b, c in steps:
                other = (x + a, y + b, z + c)
                if other in left:
                    left.remove(other)
                    part.add(other)
                    todo.append(other)
        found.append(part)
    return found


def voxels(part):
    return {tuple((at + [b.start for b in part.box]).tolist()) for at in np.argwhere(part.mask)}


@pytest.mark.parametrize("seed", range(4))
def test_pieces_and_holes_are_those_of_a_flood(seed):
    random = np.random.default_rng(seed)
    label = (random.random((9, 8, 7)) > (0.85, 0.3, 0.2, 0.1)[seed]).astype(np.uint8)
    if seed % 2:
        label[5:][label[5:] > 0] = 2  # two structures side by side
    for number in (1, 2):
        found = pieces(label == number)
        assert sorted(map(sorted, map(voxels, found))) == sorted(map(sorted, flooded(label == number, ALL)))
        assert [part.voxels for part in found] == sorted((len(voxels(part)) for part in found), reverse=True)
    expected = []
    for part in flooded(np.pad(label, 1) == 0, FACES):
        if (0, 0, 0) not in part:
            border = {(x + a, y + b, z + c) for x, y, z in part for a, b, c in FACES} - part
            owners = {int(np.pad(label, 1)[at]) for at in border}
            if len(owners) == 1:
                expected.append((owners.pop(), sorted((x - 1, y - 1, z - 1) for x, y, z in part)))
    assert sorted((owner, sorted(voxels(part))) for owner, part in holes(label)) == sorted(expected)
    assert expected or seed == 0


def test_what_is_open_is_no_hole():
    label = np.ones((5, 5, 5), np.uint8)
    label[2, 2, 2] = 0
    assert [(owner, part.voxels) for owner, part in holes(label)] == [(1, 1)]
    label[2, 2, :3] = 0  # up to the border of the array
    assert list(holes(label)) == []
    label[2, 2, :2] = 2  # between two structures
    assert list(holes(label)) == []
    assert list(holes(np.zeros((3, 3, 3), np.uint8))) == []
    assert pieces(np.zeros((3, 3, 3), bool)) == []
    assert bounding_box(np.zeros((3, 3, 3), bool)) is None


def test_a_diagonal_holds_together():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert [part.voxels for part in pieces(mask)] == [2, 1]
    label = np.ones((5, 5, 5), np.uint8)
    label[1, 1, 1] = label[2, 2, 2] = 0
    assert [part.voxels for _, part in holes(label)] == [1, 1]
