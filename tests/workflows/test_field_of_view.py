"""What check says of the field of view."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry, Volume
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.workflows.field_of_view import VOXELS, Extent, advice, extent, suited
from tests.helpers.command import run

LOCAL = Preprocessing("physical", 3, (96, 96, 32), (1.0, 1.0, 3.0), "local", 15.0)
BY = (32, 32, 16)


def takes(preprocessing):
    """Networks halve no grid down to a single voxel."""
    return preprocessing.size not in ((8, 8, 8), (16, 16, 16), BY, (32, 32, 8), (32, 32))


def one(spacing, size, reach, lowest=0.0):
    return Extent(tuple(map(float, spacing)), tuple(map(float, size)), tuple(map(float, reach)), lowest)


PROSTATE = one((0.6, 0.6, 3.6), (200, 200, 90), (42, 39, 43))
HIPPOCAMPUS = one((1, 1, 1), (43, 59, 47), (15, 24.5, 18.5))
LIVER = one((0.8, 0.8, 2.5), (400, 400, 500), (170, 130, 220), -1024.0)
PUPIL = one((0.5, 0.5, 0.5), (200, 200, 200), (2, 2, 2))


def test_the_reach_is_measured_to_the_outer_edges_on_the_scan_s_anatomical_axes():
    label = torch.zeros(1, 10, 8, 6, dtype=torch.uint8)
    label[0, 7:9, 3, 1] = 2  # axis 0 to the edge 9, 4 from the centre; axis 1: 3..4 round 4; axis 2: 1..2 of 0..6
    flipped = np.array([[0, 0, -2.0, 5], [3.0, 0, 0, 7], [0, 0.5, 0, 9], [0, 0, 0, 1]])  # axis 0 is A, 1 is S, 2 is L
    volume = Volume("c", torch.full((1, 10, 8, 6), -7.0), label, Geometry((10, 8, 6), flipped))
    found = extent(volume)
    assert found.spacing_mm == (2.0, 3.0, 0.5)
    assert found.size_mm == (12.0, 30.0, 4.0)
    assert found.label_extent_mm == (4.0, 12.0, 0.5)
    assert found.lowest == -7.0
    assert extent(Volume("c", volume.image, torch.zeros_like(label), volume.geometry)) is None
    assert extent(Volume("c", volume.image, None, volume.geometry)) is None


@pytest.mark.parametrize(
    ("scans", "by"), list(itertools.product([PROSTATE, HIPPOCAMPUS, LIVER, PUPIL], [BY, (16, 16, 16), (8, 8, 8), (32, 32, 8)]))
)
def test_a_suited_grid_holds_the_labels_and_what_networks_can_take(scans, by):
    found = suited([scans], LOCAL, by, takes)
    assert all(n % d == 0 for n, d in zip(found.size, by, strict=True))
    assert found.size != by
    assert np.prod(found.size) <= VOXELS[3]
    half = np.multiply(found.size, found.spacing_mm) / 2
    assert (half >= np.minimum(np.multiply(scans.label_extent_mm, 1.1), np.divide(scans.size_mm, 2)) - 1e-6).all()
    assert (np.array(found.spacing_mm) >= scans.spacing_mm).all()
    found.check_divisor(by)


def test_a_suited_grid_keeps_the_scans_voxels_where_it_can_and_coarsens_the_finest_first():
    assert suited([HIPPOCAMPUS], LOCAL, (16, 16, 16), takes).spacing_mm == (1.0, 1.0, 1.0)
    assert suited([HIPPOCAMPUS], LOCAL, (16, 16, 16), takes).size == (48, 64, 48)
    prostate = suited([PROSTATE], LOCAL, BY, takes)
    assert prostate.spacing_mm[2] == 3.6
    assert 0.6 < prostate.spacing_mm[0] == prostate.spacing_mm[1] < 1.3
    liver = suited([LIVER], LOCAL, BY, takes)
    assert liver.spacing_mm[0] == liver.spacing_mm[1] == liver.spacing_mm[2] > 2.5
    assert (liver.intensity, prostate.intensity) == ("zscore", "local")
    median = suited([HIPPOCAMPUS, HIPPOCAMPUS, one((2, 2, 2), (40, 40, 40), (10, 10, 10))], LOCAL, (16, 16, 16), takes)
    assert median.spacing_mm == (1.0, 1.0, 1.0)
    flat = suited([PROSTATE], Preprocessing("physical", 2, (96, 96), (1.0, 1.0)), (32, 32), takes)
    assert flat.size == (96, 96)
    assert 0.95 < flat.spacing_mm[0] < 1.05


def test_a_suggested_grid_is_taken_by_a_joint_model_on_fine_voxels(settings):
    small = one((4, 4, 4), (16, 60, 60), (8, 20, 20))
    joint = {
        "registration": {"field_stride": [2], "joint": True},
        "methods": ["OASIS-joint"],
        "preprocessing": {"size": [64, 64, 32]},
    }
    for more in ({}, {"joint": {"volume_stride": [1, 1, 1]}}, {"joint": {"volume_budget": 0.0}}):
        asked = settings(joint, more)
        found = suited([small], LOCAL, asked.divisor, asked.takes)
        assert min(found.size[:2]) >= 32
        dataclasses.replace(asked, preprocessing=found)
        assert not asked.takes(dataclasses.replace(found, size=(16, 32, 16)))


@pytest.mark.parametrize(
    ("scans", "setting", "second"),
    [
        (PROSTATE, LOCAL, None),
        (HIPPOCAMPUS, LOCAL, "size=[64,64,48] preprocessing.spacing_mm=[1,1,1]"),
        (LIVER, LOCAL, "preprocessing.intensity=zscore"),
        (PROSTATE, Preprocessing("physical", 3, (64, 96, 32), (1.0, 1.0, 3.0)), "preprocessing.spacing_mm=["),
        (one((1, 1, 1), (96, 96, 96), (40, 40, 40), -1024.0), LOCAL, "preprocessing.intensity=zscore"),
    ],
    ids=["fits", "wide and coarse", "CT", "cut", "CT that fits"],
)
def test_another_grid_is_suggested_where_the_set_one_does_not_suit(scans, setting, second):
    lines = advice([scans], setting, BY, takes)
    assert lines[0].startswith("field of view: labels reach ")
    assert len(lines) == 1 + (second is not None)
    assert second is None or second in lines[1]


def test_nothing_is_said_without_labels_or_of_a_grid_that_is_the_scan():
    assert advice([], LOCAL, BY, takes) == []
    assert advice([PROSTATE], Preprocessing("paper", 2), BY, takes) == []


def test_check_tells_it_and_what_it_suggests_can_be_given_back(phantom, tmp_path):
    words = ["check", "data=promise12", f"data.root={phantom}"]
    done = run(*words, "preprocessing.size=[32,32,32]", cwd=tmp_path)
    (line,) = [line for line in done.out.splitlines() if line.startswith("better suited: ")]
    again = run(*words, *line.removeprefix("better suited: ").split(), cwd=tmp_path)
    assert again.code == 0, again.err
    assert "better suited" not in again.out
    assert "outside" not in again.out
    assert "field of view: labels reach" in again.out
