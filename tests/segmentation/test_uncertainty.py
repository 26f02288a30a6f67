"""Where a result is uncertain: the entropy formula, the way back to the scan's grid."""

import math

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry
from oasis_monai.segmentation.uncertainty import restore_uncertainty, uncertainty


def slow(opinions):
    """One voxel after the other."""
    voters, classes, *shape = opinions.shape
    made = torch.zeros(shape)
    for place in np.ndindex(*shape):
        mean = [sum(float(opinions[(v, c, *place)]) for v in range(voters)) / voters for c in range(classes)]
        total = sum(mean)
        made[place] = sum(-p / total * math.log(p / total) for p in mean if p > 0) / math.log(classes)
    return made


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_it_is_the_entropy_of_the_mean_opinion(classes):
    random = torch.Generator().manual_seed(classes)
    opinions = torch.rand(3, classes, 4, 3, 2, generator=random)
    opinions /= opinions.sum(1, keepdim=True)
    opinions[:, :, 0, 0] = 0
    opinions[:, 0, 0, 0] = 1  # all are certain of the background
    torch.testing.assert_close(uncertainty(opinions), slow(opinions), atol=1e-5, rtol=1e-5)
    assert float(uncertainty(opinions)[0, 0].max()) == 0


def test_a_large_map_is_made_a_part_at_a_time(monkeypatch):
    opinions = torch.rand(2, 9, 10, 4, 3).softmax(1)
    whole = uncertainty(opinions)
    monkeypatch.setattr("oasis_monai.segmentation.uncertainty.AT_ONCE", 2 * 9 * 3 * 4 * 3)
    torch.testing.assert_close(uncertainty(opinions), whole, atol=1e-6, rtol=0)


def test_it_is_one_where_every_class_is_as_likely_by_contradiction_or_by_doubt():
    certain = torch.eye(3).view(3, 3, 1)
    torch.testing.assert_close(uncertainty(certain), torch.ones(1))
    torch.testing.assert_close(uncertainty(torch.full((2, 3, 1), 1 / 3)), torch.ones(1))
    assert float(uncertainty(certain[:1])) == 0
    assert float(uncertainty(torch.zeros(1, 2, 1))) == 0  # nobody says anything


def test_it_comes_back_on_the_scan_s_grid_and_is_0_where_nobody_looked():
    working = Geometry((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    shifted = np.diag([1.0, 1.0, 1.0, 1.0])
    shifted[:3, 3] = -4
    native = Geometry((16, 16, 16), shifted)
    values = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    back = restore_uncertainty(values, working, native)
    assert back.shape == (16, 16, 16)
    assert back.dtype == torch.float32
    # voxel centres of the working grid lie on native voxels 4, 6, 8 and 10
    torch.testing.assert_close(back[4:11:2, 4:11:2, 4:11:2], values)
    torch.testing.assert_close(back[5, 4, 4], (values[0, 0, 0] + values[1, 0, 0]) / 2)
    outside = back.clone()
    outside[3:12, 3:12, 3:12] = 0
    assert float(outside.max()) == 0
