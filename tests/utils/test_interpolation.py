"""Sampling and enlarging on a CPU against torch's own functions."""

import pytest
import torch
from torch.nn import functional as F

from oasis_monai.utils.interpolation import enlarge, enlarge_rows, rows_near, sample_volume


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_torch(volume, where, padding):
    """The same positions in torch's coordinates: last axis first, -1 and 1 at the outer voxel centres."""
    sizes = volume.shape[2:]
    grid = torch.stack([2 * p / max(s - 1, 1) - 1 for p, s in zip(where, sizes, strict=True)][::-1], -1)
    return F.grid_sample(volume, grid, padding_mode=padding, align_corners=True)


def places(seed, batch, shape, sizes):
    """Positions in, round and far beyond the volume."""
    return [(0.5 + 0.8 * seeded(seed + i, batch, *shape)) * (s - 1) for i, s in enumerate(sizes)]


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("shape", [(9, 7, 6), (3, 4, 5)], ids=["same grid", "other grid"])
def test_volumes_are_sampled_as_torch_samples_them(padding, shape):
    volume, where = seeded(0, 2, 3, 9, 7, 6), places(1, 2, shape, (9, 7, 6))
    torch.testing.assert_close(sample_volume(volume, where, padding), by_torch(volume, where, padding), atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_its_gradients_are_torchs(padding):
    """To the volume, and to positions that are not on a voxel plane, where the slope changes."""
    volume, where = seeded(0, 2, 2, 8, 6, 7).requires_grad_(), [p.requires_grad_() for p in places(1, 2, (5, 6, 7), (8, 6, 7))]
    weight = seeded(9, 2, 2, 5, 6, 7)
    found = torch.autograd.grad((sample_volume(volume, where, padding) * weight).sum(), [volume, *where])
    want = torch.autograd.grad((by_torch(volume, where, padding) * weight).sum(), [volume, *where])
    for a, b in zip(found, want, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_voxel(axis):
    sizes = [4, 5, 6]
    sizes[axis] = 1
    volume, where = seeded(0, 1, 1, *sizes), places(1, 1, (3, 3, 3), (4, 5, 6))
    where[axis] = torch.zeros(1, 3, 3, 3)
    torch.testing.assert_close(sample_volume(volume, where), by_torch(volume, where, "border"), atol=1e-4, rtol=0)


def test_a_long_row_stays_exact_to_a_hundredth_of_a_voxel():
    """256 x 256 columns: the largest error of a position in float32 is still far below what a field means."""
    volume = torch.arange(256.0).expand(1, 1, 2, 256, 256)  # a ramp along z: the value is the position
    z = 255 * torch.rand(1, 2, 256, 256, generator=torch.Generator().manual_seed(0))
    y = torch.arange(256.0).view(1, 1, -1, 1).expand_as(z)
    found = sample_volume(volume, [torch.zeros_like(z), y, z])[:, 0]
    assert (found - z).abs().max() < 1e-2


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("small", "large"),
    [((5,), (12,)), ((4, 5), (8, 15)), ((4, 5, 6), (8, 20, 6)), ((1, 5, 6), (3, 5, 13)), ((8, 9, 6), (4, 5, 6))],
    ids=str,
)
def test_enlarging_is_torchs_interpolation(small, large, corners):
    values = seeded(0, 2, 3, *small).requires_grad_()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(small)]
    found, want = enlarge(values, large, corners), F.interpolate(values, size=large, mode=mode, align_corners=corners)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    weight = seeded(1, *want.shape)
    one, other = (torch.autograd.grad((made * weight).sum(), values)[0] for made in (found, want))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_enlarging_first_in_inference_mode_leaves_training_possible():
    with torch.inference_mode():
        enlarge(torch.zeros(1, 1, 3, 3), (11, 11))
    values = torch.zeros(1, 1, 3, 3, requires_grad=True)
    enlarge(values, (11, 11)).sum().backward()
    assert values.grad.sum() == pytest.approx(121, rel=1e-5)


def test_enlarging_half_precision_is_done_in_float32():
    values = seeded(0, 1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert enlarge(values.bfloat16(), (8, 8)).dtype == torch.float32
        want = F.interpolate(values, size=(8, 8), mode="bilinear")
        torch.testing.assert_close(enlarge(values, (8, 8)), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_rows_near_a_slab_are_all_that_enlarging_looks_at(factor):
    values, size = seeded(7, 1, 2, 6, 4, 3), (6 * factor, 8, 6)
    whole = F.interpolate(values, size=size, mode="trilinear", align_corners=False)
    for first in range(size[0]):
        slab = slice(first, min(first + 2, size[0]))
        rows = rows_near(6, size[0], slab)
        assert 0 <= rows.start < rows.stop <= 6
        assert rows.stop - rows.start <= 4
        found = enlarge_rows(values[:, :, rows], 6, rows, size, slab)
        torch.testing.assert_close(found, whole[:, :, slab], atol=1e-5, rtol=0)
