"""A scan seen larger, smaller, turned, or with other intensities."""

import itertools

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry, Volume
from oasis_monai.transforms.preprocessing import Preprocessing, restore
from oasis_monai.transforms.views import UNCHANGED, View, filled, inverted, lost_slices, scaled, turned

CUBE = Preprocessing("physical", 3, (24, 24, 24), (1.0, 1.0, 1.0))


def smooth(shape, seed=0):
    """Blobs that no turn maps onto themselves."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    image = np.zeros(shape)
    for _ in range(6):
        centre = random.uniform(0.2, 0.8, 3) * shape
        image += random.uniform(0.5, 2) * np.exp(-sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) / 20)
    return torch.from_numpy(image)[None].float()


def volume_of(image, affine=None, label=None):
    return Volume("c", image, label, Geometry(tuple(image.shape[1:]), np.eye(4) if affine is None else affine))


@pytest.mark.parametrize(("axis", "degrees"), list(itertools.product("xyz", (90, 180, 270))))
def test_a_scan_whose_header_is_turned_looks_as_it_did_in_that_view(axis, degrees):
    upright = volume_of(smooth((24, 24, 24)))
    first, second = {"x": (2, 3), "y": (3, 1), "z": (1, 2)}[axis]
    lying = volume_of(upright.image.rot90(degrees // 90, (first, second)).contiguous())
    seen = CUBE.apply(lying, (0, 0, 0), View("t", turned(degrees, axis)))
    assert not torch.allclose(CUBE.apply(lying).image, CUBE.apply(upright).image, atol=0.1)
    assert torch.allclose(seen.image, CUBE.apply(upright).image, atol=1e-4)


@pytest.mark.parametrize(("size", "axes"), [(0.5, "xyz"), (2.0, "xyz"), (0.8, "xy"), (1.6, "z")])
def test_a_scan_of_another_size_looks_as_it_did_at_that_size(size, axes):
    """Also its neighbourhood: as many voxels, not as many mm."""
    upright = volume_of(smooth((30, 28, 26)), np.diag([0.8, 0.9, 1.1, 1]))
    wrong = np.diag([1 / size if axis in axes else 1.0 for axis in "xyz"] + [1.0]) @ upright.geometry.affine
    seen = CUBE.apply(volume_of(upright.image, wrong), (0, 0, 0), View("s", scaled(size, axes)))
    assert torch.allclose(seen.image, CUBE.apply(upright).image, atol=1e-4)


def test_a_view_turns_about_the_centre_and_moves_along_its_own_axes():
    grid = CUBE.working_geometry(Geometry((40, 40, 10), np.array([[2.0, 0, 0, 7], [0, 2, 0, -3], [0, 0, 5, 1], [0, 0, 0, 1]])))
    view = View("b", turned(20, "z")).with_view(View("s", scaled(0.5)))
    placed = view.placed(grid)
    middle = np.array([11.5, 11.5, 11.5, 1])
    assert placed.affine @ middle == pytest.approx(grid.affine @ middle)
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    assert placed.affine[:3, 0] == pytest.approx([2 * cos, 2 * sin, 0])
    native = Geometry((40, 40, 40), np.eye(4))
    moved = CUBE.working_geometry(native, (3, 0, 0), View("t", turned(90, "z")))
    still = CUBE.working_geometry(native, (0, 0, 0), View("t", turned(90, "z")))
    assert moved.affine[:3, 3] - still.affine[:3, 3] == pytest.approx([0, 3, 0])
    assert UNCHANGED.placed(grid) is grid
    assert not UNCHANGED
    assert view.name == "b, s"


@pytest.mark.parametrize(
    "matrix", [turned(20, "z"), turned(-20, "z"), turned(90, "x"), turned(270, "y"), scaled(0.8), scaled(1.25, "xy")]
)
def test_a_label_comes_back_from_every_view_to_where_it_was(matrix):
    label = torch.zeros(1, 40, 36, 30, dtype=torch.uint8)
    label[0, 14:26, 12:22, 10:19] = 1
    label[0, 20:26, 12:15, 10:14] = 0
    volume = volume_of(torch.rand(1, 40, 36, 30), np.diag([-0.6, 0.7, 0.9, 1]), label)
    seen = CUBE.apply(volume, (2, -1, 0), View("v", matrix))
    back = restore(torch.stack([seen.label[0] == 0, seen.label[0] == 1]).float(), seen.geometry, seen.native).label
    common = ((back > 0) & (label[0] > 0)).sum()
    assert float(2 * common / (back.sum() + label.sum())) > 0.88
    assert seen.native is volume.geometry


def test_inverted_exchanges_dark_and_bright_whatever_the_brightest_voxel():
    image = torch.linspace(0, 100, 1000).view(1, 10, 10, 10).clone()
    image[0, 9, 9, 9] = 1e6  # beyond a percentile
    inside = torch.ones(10, 10, 10, dtype=torch.bool)
    made = inverted(image, inside)
    ranks = image.flatten()[5:-6].argsort()
    assert torch.equal(made.flatten()[5:-6].argsort(descending=True), ranks)
    assert float(made.max()) <= 100
    two = inverted(torch.cat([image, 3 * image]), inside)
    assert torch.allclose(two[0], made[0])
    assert torch.allclose(two[1], 3 * made[0], rtol=1e-4)


def test_slices_without_signal_are_found_and_filled_from_their_neighbours():
    ramp = (10 + torch.arange(9.0)).view(1, 1, 1, 9).expand(1, 4, 5, 9).clone()
    ramp[0, 0, 0, 0] = 0
    spoilt = ramp.clone()
    spoilt[..., [0, 3, 6, 7]] = 0
    assert lost_slices(spoilt, 2).tolist() == [True, False, False, True, False, False, True, True, False]
    made = filled(spoilt, 2)
    assert torch.allclose(made[0, 1, 1], torch.tensor([11.0, 11, 12, 13, 14, 15, 16, 17, 18]))
    assert filled(ramp, 2) is ramp
    turned_stack = filled(spoilt.movedim(3, 1), 0)
    assert torch.equal(turned_stack.movedim(1, 3), made)
    two = torch.cat([ramp, spoilt])  # a slice lost in one channel
    assert lost_slices(two, 2).sum() == 4
