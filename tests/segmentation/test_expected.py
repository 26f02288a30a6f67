"""What training labels show of each structure."""

from dataclasses import replace

import pytest
import torch

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import IGNORE
from oasis_monai.segmentation.expected import Expected

pytestmark = pytest.mark.fast


def library():
    """Four labels: 1 in one place of each, 2 in two places of one, 3 in a single one, 4 in three of them."""
    labels = torch.zeros(4, 1, 20, 16, 12, dtype=torch.uint8)
    for row in range(4):
        labels[row, 0, 2 : 6 + row, 3:8, 2:4] = 1
        labels[row, 0, 2:5, 3:8, 6:8] = 2
    labels[1, 0, 14:16, 3:5, 6:8] = 2
    labels[2, 0, 18, 14, 10] = 3
    labels[:3, 0, 18, 2, 2] = 4
    labels[:3, 0, 18, 5, 2] = 4  # two voxels between
    names = tuple(f"c{row}" for row in range(4))
    return AtlasLibrary(torch.zeros(4, 1, 20, 16, 12), labels, torch.zeros(4, 3), names, torch.full((4,), -1), classes=5)


def test_size_place_and_presence_are_those_of_the_labels():
    found = Expected.of(library())
    assert found.extents == {1: (6, 5, 2), 2: (3, 5, 2), 4: (1, 4, 1)}, "the median; 3 is too rare"
    assert found.one_place == {1, 4}


def test_labels_with_unknown_voxels_say_nothing():
    some = library()
    some.labels[1, 0, 0, 0, 0] = IGNORE
    found = Expected.of(some)
    assert found.one_place == {1, 2}, "the one with two places does not count"
    assert 4 not in found.extents, "two labels are too few"
    assert Expected.of(replace(some.subset([0, 2]))) == Expected()
