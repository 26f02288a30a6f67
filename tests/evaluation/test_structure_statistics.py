"""Volume, surface, place and intensity of structures, against MONAI's areas, formulas of bodies and loops over voxels."""

import numpy as np
import pytest
import torch
from monai.metrics.utils import get_mask_edges
from scipy.ndimage import gaussian_filter

from oasis_monai.data.formats.structure import structures_of
from oasis_monai.data.types import Geometry
from oasis_monai.evaluation.structure_statistics import measure_structures, surface_area
from tests.data.formats.test_dicom import affine, turned

SPACING = (0.7, 1.3, 2.9)


@pytest.mark.parametrize("width", [0, 1.5])
def test_the_surface_is_the_area_of_monais_triangles(width):
    mask = gaussian_filter(np.random.default_rng(3).normal(size=(14, 11, 9)), width) > 0
    edges, _, areas, _ = get_mask_edges(torch.from_numpy(mask), torch.from_numpy(mask), crop=True, spacing=SPACING)
    assert surface_area(mask, SPACING) == pytest.approx(float(areas[edges].sum()), rel=1e-5)


def test_the_surface_of_a_box_is_that_of_the_box_with_its_edges_cut():
    mask = np.ones((30, 20, 10), bool)
    x, y, z = (n * s for n, s in zip(mask.shape, SPACING, strict=True))
    assert surface_area(mask, SPACING) == pytest.approx(2 * (x * y + y * z + z * x), rel=0.03)
    assert surface_area(mask, SPACING) < 2 * (x * y + y * z + z * x)


def test_a_ball_on_an_oblique_grid_has_the_measures_of_a_ball():
    grid = Geometry((60, 50, 44), affine(turned(12, -7, 20), (1.0, 1.2, 1.4)))
    radius, middle = 18.0, (grid.affine @ [30, 25, 22, 1])[:3]
    centres = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    ball = np.linalg.norm(centres - middle, axis=-1) <= radius
    image = np.stack([centres[..., 0], np.random.default_rng(0).normal(size=grid.shape)])
    found = measure_structures(structures_of([("ball", 1, ball)]), image, grid)["ball"]
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert found.surface_mm2 == pytest.approx(4 * np.pi * radius**2 * 1.08, rel=0.03)  # see surface_area
    np.testing.assert_allclose(found.center_mm, middle, atol=0.02)
    np.testing.assert_allclose(found.box_mm[0], middle - radius, atol=1.6)
    np.testing.assert_allclose(found.box_mm[1], middle + radius, atol=1.6)
    assert found.intensity_mean[0] == pytest.approx(middle[0], abs=0.02)  # the first channel is the place itself
    assert found.intensity_mean[1] == pytest.approx(float(image[1][ball].mean()))
    assert found.intensity_sd[1] == pytest.approx(float(np.sqrt(((image[1][ball] - image[1][ball].mean()) ** 2).mean())))
    at = np.argwhere(ball)
    assert found.box_voxels == (tuple(at.min(0)), tuple(at.max(0)))


def test_the_box_holds_every_corner_of_every_voxel():
    grid = Geometry((6, 5, 4), affine(turned(30, 40, 50), (1.0, 2.0, 3.0)))
    mask = np.zeros(grid.shape, bool)
    mask[1, 2, 1] = mask[4, 3, 2] = True
    corners = [
        (grid.affine @ [*(np.array(voxel) + np.array(shift) - 0.5), 1])[:3]
        for voxel in np.argwhere(mask)
        for shift in np.ndindex(2, 2, 2)
    ]
    found = measure_structures(structures_of([("two", 1, mask)]), np.zeros((1, *grid.shape)), grid)["two"]
    np.testing.assert_allclose(found.box_mm, [np.min(corners, 0), np.max(corners, 0)])


def test_an_absent_structure_and_an_image_of_one_slice_say_what_they_cannot():
    one = np.ones((4, 4, 1), bool)
    structures = structures_of([("there", 1, one), ("absent", 2, ~one)])
    found = measure_structures(structures, np.full((1, 4, 4, 1), 3.0), Geometry((4, 4, 1), np.diag([2.0, 2.0, 5.0, 1.0])))
    assert (found["there"].voxels, found["there"].volume_mm3, found["there"].surface_mm2) == (16, 320.0, None)
    assert found["there"].intensity_mean == (3.0,)
    absent = found["absent"].to_json()
    assert (absent.pop("voxels"), absent.pop("volume_mm3"), set(absent.values())) == (0, 0.0, {None})
