"""Contours become the voxels whose centres they enclose: against matplotlib, areas and volumes of shapes, and formulas."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from oasis_monai.data.formats.contours import fill_even_odd
from oasis_monai.data.formats.dicom_labels import dicom_label_names, read_dicom_label
from oasis_monai.data.formats.header import split_affine
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_dicom import GRIDS, affine, turned
from tests.helpers.dicom_objects import write_rtstruct

GRID = Geometry((40, 36, 9), affine(spacing=(1.5, 1.5, 3.0)))


def by_matplotlib(rings, shape):
    """Contours one by one, each pixel asked for by itself, joined by exclusive or."""
    centres = np.indices(shape).reshape(2, -1).T
    inside = np.zeros(shape, bool)
    for ring in rings:
        inside ^= Outline(ring, closed=False).contains_points(centres).reshape(shape)
    return inside


@pytest.mark.parametrize("seed", range(12))
def test_random_polygons_are_filled_as_matplotlib_fills_them(seed):
    """Also outside the image, and with edges that cross each other."""
    random = np.random.default_rng(seed)
    rings = [random.uniform(-6, 26, (random.integers(3, 9), 2)) for _ in range(random.integers(1, 4))]
    np.testing.assert_array_equal(fill_even_odd(rings, (22, 17)), by_matplotlib(rings, (22, 17)))


def test_neighbours_whose_edge_runs_through_centres_share_no_pixel_and_leave_none_out():
    left, right = (np.array([(a, 1), (b, 1), (b, 6), (a, 6)]) for a, b in ((1, 4), (4, 9)))
    one, other = fill_even_odd([left], (12, 9)), fill_even_odd([right], (12, 9))
    assert not (one & other).any()
    np.testing.assert_array_equal(one | other, fill_even_odd([np.array([(1, 1), (9, 1), (9, 6), (1, 6)])], (12, 9)))
    assert (int(one.sum()), int(other.sum())) == (15, 25)  # as their areas


def disc(grid, z, radius, centre=(20, 18), points=720, turn=1):
    """A circle of ``radius`` mm in slice ``z`` (which need not be whole), in RAS mm."""
    angle = turn * np.linspace(0, 2 * np.pi, points, endpoint=False)
    spacing = split_affine(grid.affine)[1]
    x, y = centre[0] + radius * np.cos(angle) / spacing[0], centre[1] + radius * np.sin(angle) / spacing[1]
    return (grid.affine @ np.stack([x, y, np.full_like(x, z), np.ones_like(x)]))[:3].T


def distance(grid, centre=(20, 18)):
    """(x, y) distance of pixel centres from a centre in their plane, mm."""
    spacing = split_affine(grid.affine)[1]
    x, y = np.indices(grid.shape[:2])
    return np.hypot((x - centre[0]) * spacing[0], (y - centre[1]) * spacing[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_a_ball_on_any_series_has_the_voxels_and_the_volume_of_a_ball(tmp_path, grid):
    matrix = GRIDS[grid].copy()
    matrix[:3, :3] = split_affine(matrix)[0] * (0.8, 0.8, 1.0)
    geometry = Geometry((40, 36, 21), matrix)
    radius, levels = 9.3, np.arange(1, 20)
    radii = np.sqrt(np.clip(radius**2 - (levels - 10.0) ** 2, 0, None))
    drawn = [disc(geometry, z, r) for z, r in zip(levels, radii, strict=True) if r > 0]
    write_rtstruct(tmp_path / "rt.dcm", {"ball": drawn})
    label, notes = read_dicom_label(tmp_path / "rt.dcm", geometry)
    away = distance(geometry)
    for z, r in zip(levels, radii, strict=True):
        sure = np.abs(away - r) > 0.01
        np.testing.assert_array_equal(label[..., z][sure] == 1, (away < r)[sure])
    assert label.sum() * geometry.voxel_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)
    assert notes == ()


def keyhole(z, outer, inner):
    """A ring drawn in one stroke: round the outside, through a slit, the other way round the inside, and back."""
    return np.vstack([disc(GRID, z, outer), disc(GRID, z, outer)[:1], disc(GRID, z, inner, turn=-1), disc(GRID, z, inner)[:1]])


SHAPES = {
    "hole": (lambda z: [disc(GRID, z, 20), disc(GRID, z, 10)], [(10, 20)]),
    "hole of its own kind": (
        lambda z: [("CLOSEDPLANAR_XOR", disc(GRID, z, 20)), ("CLOSEDPLANAR_XOR", disc(GRID, z, 10))],
        [(10, 20)],
    ),
    "nested": (lambda z: [disc(GRID, z, 6), disc(GRID, z, 20), disc(GRID, z, 13)], [(0, 6), (13, 20)]),
    "keyhole": (lambda z: [keyhole(z, 20, 10)], [(10, 20)]),
    "the same contour twice": (lambda z: [disc(GRID, z, 20), disc(GRID, z, 20)], [(0, 20)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_holes_nested_and_keyhole_contours(tmp_path, shape):
    draw, rings = SHAPES[shape]
    write_rtstruct(tmp_path / "rt.dcm", {"ring": [ring for z in (3, 4) for ring in draw(z)]})
    label, notes = read_dicom_label(tmp_path / "rt.dcm", GRID)
    away = distance(GRID)
    wanted = np.any([(low <= away) & (away < high) for low, high in rings], axis=0)
    sure = np.all([np.abs(away - edge) > 0.01 for ring in rings for edge in ring if edge], axis=0)
    for z in (3, 4):
        np.testing.assert_array_equal(label[..., z][sure] == 1, wanted[sure])
    assert label[..., [0, 1, 2, 5, 6, 7, 8]].max() == 0
    area = sum(np.pi * (high**2 - low**2) for low, high in rings)
    assert label[..., 3].sum() * 1.5**2 == pytest.approx(area, rel=0.05)
    assert notes == ()


def test_names_numbers_and_a_choice(tmp_path):
    rois = {"External": [disc(GRID, 3, 25)], "Prostate ": [disc(GRID, 3, 8)], "iso": [("POINT", disc(GRID, 3, 8)[:1])]}
    path = tmp_path / "rt.dcm"
    write_rtstruct(path, rois, numbers=[0, 77, 5])
    assert dicom_label_names(path) == {"External": 1, "Prostate": 2}
    with pytest.raises(DataError, match=r"External and Prostate in \d+ voxels; choose structures .* data.labels") as error:
        read_dicom_label(path, GRID)
    assert len(str(error.value).splitlines()) == 1
    label, (note,) = read_dicom_label(path, GRID, {"prostate": 9})
    assert set(np.unique(label)) == {0, 9}
    np.testing.assert_array_equal(label[..., 3] == 9, distance(GRID) < 8)
    assert "1 POINT, left out" in str(note)
    write_rtstruct(path, {"a": [disc(GRID, 3, 5, (10, 18))], "A": [disc(GRID, 3, 5, (30, 18))]}, numbers=[7, 3])
    assert dicom_label_names(path) == {"A 1": 1, "a 2": 2}


def test_a_contour_goes_to_the_nearest_slice(tmp_path):
    rois = {"a": [disc(GRID, 2.4, 8), disc(GRID, 2.95, 12.2), disc(GRID, 3.3, 5), disc(GRID, 6, 5), disc(GRID, 11, 5)]}
    write_rtstruct(tmp_path / "rt.dcm", rois)
    label, notes = read_dicom_label(tmp_path / "rt.dcm", GRID)
    away = distance(GRID)
    for z, radius in ((2, 8), (3, 12.2), (4, 0), (5, 0), (6, 5)):
        np.testing.assert_array_equal(label[..., z] == 1, away < radius)
    text = "\n".join(map(str, notes))
    for told in (
        r"contours beyond the image, left out (1)",
        r"contours of a second plane in a slice, left out (1)",
        r"slices without a contour between others of their structure (2)",
        r"planes more than 0.1 slices aside the middle of their slice (1)",
    ):
        assert told in text


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (lambda: [disc(GRID, 40, 8)], "a: none of 1; give the image they were drawn on"),
        (lambda: [disc(Geometry(GRID.shape, affine(turned(20, 0, 0))), 3, 12)], "slices aside their plane"),
    ],
)
def test_contours_elsewhere_are_one_clear_line(tmp_path, draw, found):
    write_rtstruct(tmp_path / "rt.dcm", {"a": draw()})
    with pytest.raises(DataError, match=found) as error:
        read_dicom_label(tmp_path / "rt.dcm", GRID)
    assert len(str(error.value).splitlines()) == 1


def test_an_image_with_its_axes_in_another_order(tmp_path):
    """As a NIfTI file of the series may have them."""
    write_rtstruct(tmp_path / "rt.dcm", {"a": [disc(GRID, z, 9) for z in range(2, 6)]})
    label, _ = read_dicom_label(tmp_path / "rt.dcm", GRID)
    moved = Geometry((9, 40, 36), GRID.affine[:, [2, 0, 1, 3]])
    np.testing.assert_array_equal(read_dicom_label(tmp_path / "rt.dcm", moved)[0], label.transpose(2, 0, 1))
