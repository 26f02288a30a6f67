"""What is measured of a scan, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from oasis_monai.data.types import IGNORE, Case, Geometry, Volume
from oasis_monai.workflows.fingerprint import Measured, measure, take_fingerprint

pytestmark = pytest.mark.fast


def volume_of(label, image=None, affine=None, case="c"):
    shape = tuple(label.shape)
    image = torch.rand(1, *shape) if image is None else torch.as_tensor(image, dtype=torch.float32)[None]
    grid = Geometry(shape, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine)
    return Volume(case, image, torch.as_tensor(label, dtype=torch.uint8)[None], grid)


def test_the_reach_is_measured_to_the_outer_edges_on_the_scan_s_anatomical_axes():
    label = np.zeros((10, 8, 6))
    label[7:9, 3, 1] = 2  # axis 0 to the edge 9, 4 from the centre; axis 1: 3..4 round 4; axis 2: 1..2 of 0..6
    label[0, 0, 0] = IGNORE  # nobody labelled it
    flipped = np.array([[0, 0, -2.0, 5], [3.0, 0, 0, 7], [0, 0.5, 0, 9], [0, 0, 0, 1]])  # axis 0 is A, 1 is S, 2 is L
    found = measure(volume_of(label, affine=flipped))
    assert found.spacing_mm == (2.0, 3.0, 0.5)
    assert found.shape == (6, 10, 8)
    assert found.size_mm == (12.0, 30.0, 4.0)
    assert found.label_extent_mm == (4.0, 12.0, 0.5)
    assert set(found.structures) == {2}
    two = found.structures[2]
    assert two.volume_ml == pytest.approx(2 * 3 / 1000)
    assert two.centre_mm == pytest.approx((3.0, 9.0, -0.25))  # axis 2 runs to the left
    assert two.width_mm == (2.0, 6.0, 0.5)


def test_without_labels_there_is_nothing_to_reach():
    empty = measure(volume_of(np.zeros((4, 4, 4))))
    assert (empty.label_extent_mm, dict(empty.structures), empty.bias) == ((), {}, 0.0)
    assert measure(Volume("c", torch.rand(1, 4, 4, 4), None, Geometry((4, 4, 4), np.eye(4)))) is None


def test_a_sheet_is_as_thick_as_it_is_and_a_ball_a_fifth_of_its_diameter():
    sheet = np.zeros((60, 60, 9))
    sheet[5:55, 5:55, 3:6] = 1
    affine = np.diag([1.0, 1.0, 0.5, 1])
    expected = 2 * 50 * 50 * 1.5 / (2 * 50 * 50 + 4 * 50 * 1.5)
    assert measure(volume_of(sheet, affine=affine)).structures[1].thickness_mm == pytest.approx(expected)
    x, y, z = np.mgrid[:41, :41, :41] - 20
    ball = (x**2 + y**2 + z**2 <= 18.5**2).astype(int)
    assert measure(volume_of(ball)).structures[1].thickness_mm == pytest.approx(37 / 4.5, rel=0.03)


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_a_coil_s_field_is_found_within_one_tissue_whatever_its_noise_and_the_image_s_units(strength):
    random = np.random.default_rng(0)
    label = np.zeros((40, 40, 20))
    label[8:32, 8:32, 4:16] = 1
    label[8:32, 34:38, 4:16] = 2  # holds two tissues, and so changes by itself
    ramp = np.linspace(-1, 1, 24)[:, None, None] * np.ones((24, 24, 12))
    image = np.full((40, 40, 20), 50.0)
    image[8:32, 8:32, 4:16] = 400 * np.exp(strength * math.sqrt(3) * ramp)  # the deviation of a ramp is 1 / sqrt(3)
    image[8:20, 34:38, 4:16] = 400
    image *= random.normal(1, 0.1, image.shape)
    for scale in (1.0, 1000.0):
        found = measure(volume_of(label, image * scale)).bias
        if strength:
            assert found == pytest.approx(strength, rel=0.35)
        else:
            assert found < 0.03


def test_what_was_cut_away_and_the_structure_s_own_values():
    label, image = np.zeros((10, 10, 10)), np.zeros((10, 10, 10))
    label[2:8, 2:8, 2:8] = 1
    image[2:8, 2:8, 2:8] = np.arange(216).reshape(6, 6, 6) - 50
    image[image == 0] = -1000
    found = measure(volume_of(label, image))
    assert found.constant == pytest.approx((1000 - 215) / 1000)
    assert found.lowest == -1000
    low, high = np.percentile(image[label == 1], (0.5, 99.5))
    assert (found.structures[1].low, found.structures[1].high) == pytest.approx((low, high))


def test_measures_are_kept_by_the_files_stamp_and_made_again_if_damaged(tmp_path):
    read = []
    label = np.zeros((6, 6, 6))
    label[2:4, 2:4, 2:4] = 1

    def reader(case):
        read.append(case.id)
        return volume_of(label, case=case.id)

    case = Case("a", tmp_path / "a.nii", tmp_path / "b.nii")
    first = Measured(tmp_path / "m", [0, 1]).get(case, "stamp", reader)
    assert Measured(tmp_path / "m", [0, 1]).get(case, "stamp", reader) == first
    assert read == ["a"]
    Measured(tmp_path / "m", [0, 2]).get(case, "stamp", reader)
    Measured(tmp_path / "m", [0, 1]).get(case, "later", reader)
    assert len(read) == 3
    for path in (tmp_path / "m").iterdir():
        path.write_text('{"spacing_mm": "x", "structures": {}}')
    assert Measured(tmp_path / "m", [0, 1]).get(case, "stamp", reader).spacing_mm == first.spacing_mm
    assert len(read) == 4


def test_scans_that_cannot_be_read_and_those_without_a_label_are_left_out(phantom, tmp_path):
    from oasis_monai.data.cases import find_cases

    cases = find_cases(phantom, "promise12")
    broken = Case("broken", tmp_path / "none.mhd", tmp_path / "none_segmentation.mhd")
    found = take_fingerprint([*cases[:3], cases[3].without_label(), broken], (0, 1), ["prostate"])
    assert (len(found.scans), found.patients, found.names) == (3, 3, ("prostate",))
    assert found.memory_gb > 0.1
    assert found.cores >= 1
