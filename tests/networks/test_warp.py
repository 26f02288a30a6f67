"""The warp against numpy's roll and scipy's map_coordinates; fields against transforms known in closed form."""

import numpy as np
import pytest
import torch

from oasis_monai.networks.warp import compose, folding_voxels, integrate, jacobian_determinant, resize_ddf, warp, warp_pair

GRIDS = [(13, 9), (9, 7, 6)]
grid = pytest.mark.parametrize("size", GRIDS, ids=["2D", "3D"])


def seeded(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def points(size):
    return torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in size], indexing="ij"))


def affine_field(matrix, size, shift=0.0):
    """u(p) = A (p - middle) + shift as a field (1, D, *S)."""
    middle = torch.tensor([(s - 1) / 2 for s in size]).view(-1, *[1] * len(size))
    return (torch.einsum("ij,j...->i...", torch.as_tensor(matrix, dtype=torch.float32), points(size) - middle) + shift)[None]


def smooth_field(seed, size, amplitude):
    """A few waves: a field of `amplitude` voxels, smooth on this grid and zero on its border."""
    random = torch.Generator().manual_seed(seed)
    x = points(size) / (torch.tensor(size).view(-1, *[1] * len(size)) - 1)
    window = (torch.sin(torch.pi * x) ** 2).prod(0)
    phases = 2 * torch.pi * torch.rand(len(size), len(size), generator=random)
    waves = torch.stack([torch.sin(2 * torch.pi * x + p.view(-1, *[1] * len(size))).mean(0) for p in phases])
    return (amplitude * waves * window / waves.abs().max())[None]


def inner(values, margin):
    return values[(..., *[slice(margin, -margin)] * (values.ndim - 2))]


@grid
def test_a_zero_field_is_the_identity(size):
    image = seeded(0, 2, 3, *size)
    rounding = 1e-5 if len(size) == 2 else 2e-5  # of positions in a volume, see oasis_monai/sampling.py
    torch.testing.assert_close(warp(image, torch.zeros(2, len(size), *size)), image, atol=rounding, rtol=0)


@grid
@pytest.mark.parametrize("step", [2, -1])
def test_channel_i_moves_along_axis_i_and_pulls_back(size, step):
    """out[p] = img[p + u]: numpy's roll by -u, away from the border it wraps round."""
    image = seeded(0, 1, 1, *size)
    for axis in range(len(size)):
        field = torch.zeros(1, len(size), *size)
        field[:, axis] = step
        want = torch.from_numpy(np.roll(image.numpy(), -step, axis=2 + axis))
        torch.testing.assert_close(inner(warp(image, field), 2), inner(want, 2), atol=1e-5, rtol=0)


@grid
def test_random_fields_against_scipy(size):
    from scipy.ndimage import map_coordinates

    image, field = seeded(0, 2, 2, *size), 4 * seeded(1, 2, len(size), *size)  # well over the border
    moved = warp(image, field)
    for item in range(2):
        where = (points(size) + field[item]).numpy()
        for channel in range(2):
            want = map_coordinates(image[item, channel].numpy(), where, order=1, mode="nearest")
            np.testing.assert_allclose(moved[item, channel], want, atol=2e-5)


@pytest.mark.parametrize(("padding", "outside"), [("border", 5.0), ("zeros", 0.0)])
def test_what_lies_outside(padding, outside):
    image = torch.full((1, 1, 6, 6), 5.0)
    field = torch.zeros(1, 2, 6, 6)
    field[:, 0] = 20
    moved = warp(image, field, padding)
    torch.testing.assert_close(moved, torch.full_like(moved, outside))


def test_image_and_label_move_together_and_classes_still_sum_to_one():
    size, index = (9, 8, 7), torch.arange(4)
    label = (torch.randint(4, (2, 1, *size), generator=torch.Generator().manual_seed(2)) == index.view(1, 4, 1, 1, 1)).float()
    image = (label * index.view(1, 4, 1, 1, 1)).sum(1, keepdim=True)
    moved, moved_label = warp_pair(image, label, 2 * seeded(3, 2, 3, *size))
    torch.testing.assert_close(moved_label.sum(1), torch.ones(2, *size), atol=1e-5, rtol=0)
    assert moved_label.min() >= 0
    torch.testing.assert_close((moved_label * index.view(1, 4, 1, 1, 1)).sum(1, keepdim=True), moved, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("moving", "field"),
    [
        ((1, 1, 8, 8), (1, 2, 8, 9)),  # other grid
        ((1, 1, 8, 8), (1, 3, 8, 8)),  # a component too many
        ((1, 1, 8, 8, 8), (1, 2, 8, 8)),  # volume and slice
        ((2, 1, 8, 8), (1, 2, 8, 8)),  # other batch
    ],
)
def test_shapes_that_do_not_fit(moving, field):
    with pytest.raises(ValueError, match=r"expected moving|must be"):
        warp(torch.zeros(moving), torch.zeros(field))


def test_half_precision_is_sampled_in_float32():
    image, field = seeded(0, 2, 1, 16, 16), 3 * seeded(1, 2, 2, 16, 16)
    want = warp(image.bfloat16().float(), field.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = warp(image.bfloat16(), field.bfloat16())
        assert integrate(field.bfloat16()).dtype == torch.float32
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, want)


def test_uint8_labels_and_inference_mode_before_training():
    with torch.inference_mode():
        moved = warp(torch.eye(8, dtype=torch.uint8)[None, None], torch.zeros(1, 2, 8, 8))
    torch.testing.assert_close(moved[0, 0].clone(), torch.eye(8), atol=1e-5, rtol=0)
    field = torch.full((1, 2, 8, 8), 0.25, requires_grad=True)  # the sampling grid kept from inference must not break this
    warp(points((8, 8))[None, :1] * 3, field).sum().backward()
    inside = inner(field.grad, 1)
    torch.testing.assert_close(inside[:, 0], torch.full_like(inside[:, 0], 3.0), atol=1e-4, rtol=0)  # d out / d u = image slope
    torch.testing.assert_close(inside[:, 1], torch.zeros_like(inside[:, 1]), atol=1e-4, rtol=0)


# --- resizing


def test_one_coarse_voxel_is_stride_fine_voxels_along_its_own_axis():
    coarse = torch.ones(1, 3, 4, 5, 6)
    fine = resize_ddf(coarse, (8, 15, 6))
    torch.testing.assert_close(fine.amin((0, 2, 3, 4)), torch.tensor([2.0, 3.0, 1.0]))
    torch.testing.assert_close(fine.amax((0, 2, 3, 4)), torch.tensor([2.0, 3.0, 1.0]))
    assert resize_ddf(coarse, (4, 5, 6)) is coarse


@pytest.mark.parametrize(
    ("coarse", "fine"), [((8, 10), (16, 30)), ((8, 10), (12, 15)), ((6, 8, 7), (12, 16, 7))], ids=["2-3", "1.5", "3D"]
)
def test_an_affine_field_stays_the_same_transform_in_mm(coarse, fine):
    """Half-pixel convention: voxel i of a grid of n over an extent of L mm lies at (i + 1/2) L / n."""
    dims = len(coarse)
    matrix, shift = 0.2 * seeded(0, dims, dims), seeded(1, dims)
    extent = torch.tensor([80.0, 50.0, 30.0])[:dims]

    def in_voxels(size):
        spacing = (extent / torch.tensor(size)).view(-1, *[1] * dims)
        mm = (points(size) + 0.5) * spacing
        return ((torch.einsum("ij,j...->i...", matrix, mm) + shift.view(-1, *[1] * dims)) / spacing)[None]

    found, want = inner(resize_ddf(in_voxels(coarse), fine), 3), inner(in_voxels(fine), 3)  # beyond the last centre it is flat
    assert want.numel() > 0
    torch.testing.assert_close(found, want, atol=1e-3, rtol=1e-4)


def test_resizing_to_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="zip"):
        resize_ddf(torch.zeros(1, 2, 4, 4), (8, 8, 8))


# --- composing and integrating


@grid
def test_compose_is_two_affine_maps_one_after_the_other(size):
    """(id + F)(id + S) p: matrices tell which comes first, as they do not commute."""
    dims = len(size)
    first, second = 0.1 * seeded(4, dims, dims), 0.1 * seeded(5, dims, dims)
    eye = torch.eye(dims)
    want = affine_field((eye + first) @ (eye + second) - eye, size)
    found = compose(affine_field(first, size), affine_field(second, size))
    torch.testing.assert_close(inner(found, 2), inner(want, 2), atol=1e-4, rtol=1e-4)
    other = affine_field((eye + second) @ (eye + first) - eye, size)
    assert (inner(want, 2) - inner(other, 2)).abs().max() > 1e-2


def test_warping_by_the_composition_is_warping_twice():
    size = (48, 40)
    first, second = smooth_field(0, size, 4.0), smooth_field(1, size, 4.0)
    x = points(size) / 48
    image = torch.sin(4 * x[0] + 3 * x[1])[None, None]
    twice = warp(warp(image, first), second)
    assert (twice - image).abs().max() > 0.1
    torch.testing.assert_close(warp(image, compose(first, second)), twice, atol=3e-3, rtol=0)
    assert (warp(image, compose(second, first)) - twice).abs().max() > 0.01


@grid
def test_a_constant_velocity_is_a_translation(size):
    velocity = torch.tensor([1.5, -0.75, 0.5])[: len(size)].view(1, -1, *[1] * len(size)).expand(1, -1, *size)
    torch.testing.assert_close(integrate(velocity), velocity, atol=1e-5, rtol=0)


def test_the_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    size, generator = (33, 33), torch.tensor([[0.1, -0.5], [0.4, -0.2]])
    want = torch.matrix_exp(generator) - torch.eye(2)
    found = integrate(affine_field(generator, size), steps=8)
    torch.testing.assert_close(inner(found, 12), inner(affine_field(want, size), 12), atol=0.03, rtol=0)
    assert (inner(affine_field(generator, size), 12) - inner(affine_field(want, size), 12)).abs().max() > 0.3


@pytest.mark.parametrize("size", [(40, 36), (24, 20, 22)], ids=["2D", "3D"])
def test_velocity_and_its_negative_undo_each_other(size):
    velocity = smooth_field(2, size, 4.0)
    there, back = integrate(velocity, steps=6), integrate(-velocity, steps=6)
    assert there.abs().max() > 2
    assert compose(there, back).abs().max() < 0.12
    assert jacobian_determinant(there).min() > 0


# --- Jacobian


@grid
def test_the_jacobian_of_an_affine_map(size):
    matrix = 0.3 * seeded(6, len(size), len(size))
    want = float(torch.linalg.det(torch.eye(len(size)) + matrix))
    found = jacobian_determinant(affine_field(matrix, size, shift=2.0).repeat(2, *[1] * (len(size) + 1)))
    assert found.shape == (2, *size)
    torch.testing.assert_close(found, torch.full_like(found, want), atol=1e-4, rtol=0)


def test_a_fold_is_seen_where_it_is():
    field = torch.zeros(1, 2, 12, 10)
    field[0, 0, 6] = -3.0  # row 6 lands behind row 4
    folded = (jacobian_determinant(field) <= 0)[0]
    assert folded[5].all()  # between 4 and 6 the order turns
    assert not folded[[0, 1, 2, 3, 4, 6, 8, 9, 10, 11]].any()
    assert not (jacobian_determinant(torch.zeros(1, 2, 12, 10)) <= 0).any()


@grid
def test_folding_voxels_are_counted_for_each_field_on_the_fine_grid(size):
    flat = torch.zeros(1, len(size), *size)
    mirror = affine_field(-2 * torch.diag(torch.eye(len(size))[0]), size)  # p -> middle - (p - middle) along the first axis
    half = flat.clone()
    half[:, 0, :4] = mirror[:, 0, :4]
    fields = torch.cat([flat, mirror, half])
    fine = [2 * s for s in size]
    ddf = torch.cat([resize_ddf(field[None], fine) for field in fields])
    wanted = [int((jacobian <= 0).sum()) for jacobian in jacobian_determinant(ddf)]
    assert folding_voxels(fields, fine).tolist() == wanted
    assert wanted[0] == 0
    inner = mirror.new_ones(fine).numel() - 4 * mirror.new_ones(fine[1:]).numel()  # a resized field levels off at its ends
    assert wanted[1] >= inner
    assert 0 < wanted[2] < wanted[1]
    assert folding_voxels(fields, size)[1] == mirror[0, 0].numel()


@pytest.mark.parametrize("size", [(7, 5), (6, 4, 1)])
def test_sampling_and_integration_are_monais_to_the_last_bit(size):
    """Also their gradients: networks that were trained with MONAI's layers stay what they are."""
    from monai.networks.blocks import DVF2DDF, Warp

    from oasis_monai.networks.warp import sample_image

    found = {}
    for name, sample, squared in (
        ("ours", lambda moving, ddf: sample_image(moving, ddf, "border"), lambda ddf: integrate(ddf, 3)),
        ("monai", Warp(padding_mode="border"), DVF2DDF(3, padding_mode="border")),
    ):
        torch.manual_seed(0)
        moving = torch.rand(2, 3, *size, requires_grad=True)
        ddf = (3 * torch.randn(2, len(size), *size)).requires_grad_()
        made, whole = sample(moving, ddf), squared(ddf)
        (made.square().sum() + (whole * torch.rand_like(whole)).sum()).backward()
        found[name] = [made, whole, moving.grad, ddf.grad]
    assert all(torch.equal(a, b) for a, b in zip(found["ours"], found["monai"], strict=True))
