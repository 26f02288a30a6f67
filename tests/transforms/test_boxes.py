"""Boxes of a finer grid: where they lie, and what a scan shows in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.transforms.boxes import (
    AROUND_MM,
    PLACE_MM,
    box_grid,
    covering_box,
    images_in_boxes,
    labelled_box,
    labelled_part,
    places_in_box,
)
from oasis_monai.transforms.fine import refined
from oasis_monai.transforms.preprocessing import PreprocessCache, Preprocessing
from oasis_monai.transforms.spatial import resample_label
from oasis_monai.transforms.views import View, scaled
from oasis_monai.utils.errors import ConfigError

NATIVE = Geometry((40, 36, 20), np.array([[0.0, 1.5, 0, 3], [-1.2, 0, 0, 8], [0, 0, 2.5, -4], [0, 0, 0, 1]]))
SETTING = Preprocessing("physical", 3, (12, 12, 8), (4.0, 4.0, 5.0), "window", window=(-1.0, 2.0), box_factor=(3, 2, 2))
BOXES = [(slice(2, 9), slice(0, 12), slice(1, 5)), (slice(0, 3), slice(8, 12), slice(3, 8))]


def volume(label=False):
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, *NATIVE.shape, generator=random)
    made = torch.zeros(1, *NATIVE.shape, dtype=torch.uint8)
    made[0, 10:17, 20:30, 6:11] = 1
    return Volume("case", image, made if label else None, NATIVE)


def test_a_box_is_a_part_of_one_common_grid():
    working = Geometry((12, 12, 8), np.diag([4.0, 4.0, 5.0, 1.0]))
    whole = refined(working, (3, 2, 2))
    for box in BOXES:
        grid = box_grid(working, box, (3, 2, 2))
        first = whole.affine @ [box[0].start * 3, box[1].start * 2, box[2].start * 2, 1]
        np.testing.assert_allclose(grid.affine[:3, 3], first[:3], atol=1e-9)
        assert grid.shape == tuple((s.stop - s.start) * f for s, f in zip(box, (3, 2, 2), strict=True))


def test_a_covering_box_shows_every_voxel_and_no_row_too_many():
    """Against a look at every voxel's corners."""
    working = SETTING.working_geometry(NATIVE)
    corner, shape = (12, 8, 4), (9, 11, 5)
    box = covering_box(NATIVE, corner, shape, working)
    ends = np.array([[c - 0.5 + s * e for c, s, e in zip(corner, shape, end, strict=True)] for end in np.ndindex(2, 2, 2)])
    places = np.linalg.solve(working.affine, NATIVE.affine @ np.c_[ends, np.ones(8)].T)[:3]
    for axis, side in enumerate(box):
        assert side.start - 0.5 <= places[axis].min() + 1e-6 < side.start + 0.5 + 1e-6
        assert side.stop - 1.5 - 1e-6 < places[axis].max() - 1e-6 <= side.stop - 0.5
    wider = covering_box(NATIVE, corner, shape, working, margin_mm=4.0)
    assert [(b.start - w.start, w.stop - b.stop) for b, w in zip(box[:2], wider[:2], strict=True)] == [(1, 1), (1, 1)]
    assert covering_box(working, (0, 0, 0), working.shape, working, 100.0) == (slice(0, 12), slice(0, 12), slice(0, 8))
    aside = covering_box(NATIVE, (500, 0, 0), (3, 3, 3), working)
    assert any(side.start == side.stop for side in aside)


def test_places_are_counted_from_the_middle_of_the_working_grid():
    working = SETTING.working_geometry(NATIVE, (3, -2, 1))
    middle = working.affine @ [5.5, 5.5, 3.5, 1]
    axes = working.affine[:3, :3] / working.spacing_mm
    for box in BOXES:
        grid = box_grid(working, box, (3, 2, 2))
        places = places_in_box(working, grid)
        assert tuple(places.shape[1:]) == grid.shape
        for voxel in ((0, 0, 0), (3, 2, 1)):
            mm = axes.T @ (grid.affine @ [*voxel, 1] - middle)[:3]
            np.testing.assert_allclose(PLACE_MM * places[(slice(None), *voxel)], mm, atol=1e-4)


@pytest.mark.parametrize("intensity", ["window", "zscore", "local"])
@pytest.mark.parametrize("view", [View(), View("larger", scaled(1.5)), View("inverted", intensities=("inverted",))])
def test_boxes_show_what_the_whole_grid_shows(intensity, view):
    setting = replace(SETTING, intensity=intensity)
    moved = (1, -1, 0)
    whole = setting.on_grid(
        refined(setting.working_geometry(NATIVE, moved, view), (3, 2, 2)),
        volume(),
        view,
        [mm / f for mm, f in zip(SETTING.spacing_mm, (3, 2, 2), strict=True)],
    ).image
    images = images_in_boxes(setting, volume(label=True), BOXES, moved, view)
    for box, image in zip(BOXES, images, strict=True):
        x, y, z = (slice(s.start * f, s.stop * f) for s, f in zip(box, (3, 2, 2), strict=True))
        torch.testing.assert_close(image.float(), whole[:, x, y, z], atol=2e-3, rtol=1e-3)
    assert images_in_boxes(setting, volume(), []) == []
    with pytest.raises(ValueError, match="box_factor"):
        images_in_boxes(replace(setting, box_factor=None), volume(), BOXES)


def test_what_is_kept_of_a_training_scan_lies_round_its_structures(tmp_path, phantom):
    case = Case("Case00", phantom / "Case00.mhd", phantom / "Case00_segmentation.mhd")
    setting = Preprocessing("physical", 3, (16, 16, 8), (5.0, 5.0, 8.0), "zscore", box_factor=(2, 2, 1))
    store = PreprocessCache(tmp_path, setting, (0, 1))
    part = labelled_part(store, case)
    scan = read_volume(case, (0, 1))
    working = setting.working_geometry(scan.geometry)
    box = labelled_box(scan, working, AROUND_MM)
    assert part.grid.shape == box_grid(working, box, (2, 2, 1)).shape == tuple(part.image.shape[1:])
    assert torch.equal(part.label, resample_label(scan.label, scan.geometry, part.grid))
    (image,) = images_in_boxes(setting, scan, [box])
    assert torch.equal(part.image, image)
    there = resample_label(scan.label, scan.geometry, refined(working, (2, 2, 1)))
    assert part.label.sum() == there.sum() > 0
    again = labelled_part(store, case)  # mapped from the cache
    assert torch.equal(again.image, part.image)
    assert torch.equal(again.label, part.label)
    for grid, wanted in ((again.grid, part.grid), (again.working, working)):
        np.testing.assert_allclose(grid.affine, wanted.affine)
        assert grid.shape == wanted.shape
    assert torch.equal(labelled_part(PreprocessCache(None, setting, (0, 1)), case).label, part.label)
    empty = replace(scan, label=torch.zeros_like(scan.label))
    assert labelled_box(empty, working, AROUND_MM) is None


def test_preprocessed_scans_are_the_same_with_boxes_and_without(tmp_path, phantom):
    """So that what is in the cache stays."""
    case = Case("Case00", phantom / "Case00.mhd", phantom / "Case00_segmentation.mhd")
    plain = Preprocessing("physical", 3, (16, 16, 8), (5.0, 5.0, 8.0), "zscore")
    keys = [PreprocessCache(tmp_path, one, (0, 1)).keys(case) for one in (plain, replace(plain, box_factor=(2, 2, 1)))]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(("factor", "found"), [((2, 2), r"\(2, 2\)|\[2, 2\]"), ((2, 0, 1), "0"), ((2000, 2000, 2000), "16,384")])
def test_factors_that_cannot_be_are_refused(factor, found):
    with pytest.raises(ConfigError, match=f"preprocessing.box_factor.*{found}"):
        replace(SETTING, size=(16, 16, 8), box_factor=factor)
    with pytest.raises(ConfigError, match=r"preprocessing\.box_factor.*null where spatial_dims is 2"):
        Preprocessing("physical", 2, box_factor=(2, 2, 1))
