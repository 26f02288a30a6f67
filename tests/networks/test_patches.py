"""What comparison networks see of a fine grid at once: as large and as cubic as allowed, and the same for all of them."""

import math

import pytest

from oasis_monai.networks.patches import LEAST_VOXELS, VOXELS_A_STEP, choose_patch, on_fine_grid
from oasis_monai.networks.segmentation import NETWORKS, NetworkSettings
from oasis_monai.utils.errors import ConfigError

GRIDS = [
    ((160, 160, 128), (1.0, 1.0, 1.5)),
    ((288, 288, 160), (1.0, 1.0, 2.0)),
    ((512, 48, 40), (0.7, 0.7, 3.0)),
    ((97, 130, 71), (1.0, 0.8, 1.2)),
]


@pytest.mark.parametrize(("size", "spacing_mm"), GRIDS)
@pytest.mark.parametrize("voxels", [2**17, 2**19, 2**23])
def test_a_patch_fits_and_could_not_be_larger(size, spacing_mm, voxels):
    by = 16
    patch = choose_patch(size, spacing_mm, by, voxels)
    assert all(p % by == 0 and by <= p <= n for p, n in zip(patch, size, strict=True))
    assert math.prod(patch) <= voxels
    for axis in range(3):
        grown = [p + by * (axis == other) for other, p in enumerate(patch)]
        assert math.prod(grown) > voxels or grown[axis] > size[axis]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.5), (3.0, 1.0, 0.5)])
def test_sides_are_as_equal_in_mm_as_steps_allow_where_the_grid_is_no_limit(spacing_mm):
    by = 8
    patch = choose_patch((640, 640, 640), spacing_mm, by, 2**19)
    mm = [p * s for p, s in zip(patch, spacing_mm, strict=True)]
    assert max(mm) - min(mm) <= 2 * by * max(spacing_mm)
    cubic = (2**19 * math.prod(spacing_mm)) ** (1 / 3)  # side in mm of the cube of as many voxels
    assert max(abs(one - cubic) for one in mm) <= 2 * by * max(spacing_mm)


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_all_patches_of_a_step_have_at_most_so_many_voxels(batch):
    patch = on_fine_grid(NetworkSettings(), (160, 160, 128), (1.0, 1.0, 1.5), batch).patch
    assert math.prod(patch) <= max(VOXELS_A_STEP / batch, LEAST_VOXELS)
    assert math.prod(patch) > max(VOXELS_A_STEP / batch, LEAST_VOXELS) / 4


def test_every_network_can_take_it_and_it_is_the_same_for_all():
    found = on_fine_grid(NetworkSettings(dynunet=(4, 8), convnet=(4, 8, 16)), (60, 70, 50), (1.0, 1.0, 1.0), 2)
    assert found.patch == (48, 64, 48)  # multiples of the 16 of the deepest, the U-Net
    for name, dims in NETWORKS.items():
        if dims == 3:
            assert found.window((60, 70, 50), name) == found.patch


def test_a_given_patch_stays_and_a_grid_that_is_too_small_is_refused():
    given = NetworkSettings(patch=(32, 32, 16))
    assert on_fine_grid(given, (160, 160, 128), (1.0, 1.0, 1.5), 2) is given
    with pytest.raises(ConfigError, match=r"preprocessing\.size: expected a fine grid of 16 voxels or more along each axis.*12"):
        on_fine_grid(NetworkSettings(), (64, 64, 12), (1.0, 1.0, 1.0), 2)
