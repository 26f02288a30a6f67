"""Augmentation: image and label stay together, rotations are rotations in millimetres, strengths of zero change nothing."""

import math

import pytest
import torch

from oasis_monai.transforms.augmentation import Augmentation

STILL = {k: 0.0 for k in ("rotation_deg", "scale", "shear", "shift", "flip", "elastic_mm", "gamma", "contrast", "bias", "noise")}
SIZES = [(24, 20), (20, 24, 12)]
grid = pytest.mark.parametrize("size", SIZES, ids=["2D", "3D"])
SPACING = (0.8, 1.3, 3.0)


def seeded(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def apply(augmentation, image, label, flip=None, spacing=SPACING, seed=0):
    flip = torch.zeros(len(image), dtype=torch.bool) if flip is None else torch.as_tensor(flip)
    random = torch.Generator().manual_seed(seed)
    return augmentation(image, label, flip, spacing[: image.ndim - 2], random)


def only(**strengths):
    return Augmentation(**STILL | strengths)


def positions_mm(size, spacing):
    axes = [(torch.arange(s) - (s - 1) / 2) * mm for s, mm in zip(size, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def gauss(size, spacing, centre_mm, width_mm):
    centre = torch.tensor(centre_mm).view(-1, *[1] * len(size))
    return torch.exp(-(positions_mm(size, spacing) - centre).square().sum(0) / (2 * width_mm**2))


def centroids(blobs, spacing):
    """(B, C, *S) -> (B, C, D) in mm."""
    where = positions_mm(blobs.shape[2:], spacing)
    mass = blobs.flatten(2)
    return torch.einsum("bcn,dn->bcd", mass, where.flatten(1)) / mass.sum(2, keepdim=True)


def rounding(size):
    """Volumes on a CPU are sampled at positions that float32 rounds to fractions of a row of y * z voxels."""
    return 2e-5 if len(size) == 2 else 1e-4


@grid
def test_strengths_of_zero_change_nothing(size):
    image, label = seeded(0, 3, 1, *size), (seeded(1, 3, 2, *size) > 0.5).float()
    moved, moved_label = apply(only(), image, label)
    torch.testing.assert_close(moved, image, atol=rounding(size), rtol=0)
    torch.testing.assert_close(moved_label, label, atol=rounding(size), rtol=0)


@grid
def test_image_and_label_move_together(size):
    """An image that is its own label still is after any motion; and each image of the batch moves its own way."""
    label = seeded(0, 1, 1, *size).repeat(3, 2, *[1] * len(size))
    shape = Augmentation(elastic_mm=3, gamma=0, contrast=0, bias=0, noise=0)
    moved, moved_label = apply(shape, label[:, :1], label, flip=[True, False, False])
    torch.testing.assert_close(moved.expand_as(moved_label), moved_label, atol=1e-6, rtol=0)
    for one, other in ((0, 1), (1, 2)):
        assert (moved[one] - moved[other]).abs().mean() > 0.05


@grid
def test_intensity_leaves_the_label_alone_and_labels_stay_in_0_to_1(size):
    image, label = 2 * seeded(0, 4, 1, *size) - 1, (seeded(1, 4, 3, *size) > 0.6).float()
    look = only(gamma=0.3, contrast=0.2, bias=0.3, noise=0.1)
    moved, same = apply(look, image, label)
    torch.testing.assert_close(same, label, atol=rounding(size), rtol=0)
    assert ((moved - image).abs().flatten(1).mean(1) > 0.02).all()
    assert torch.isfinite(moved).all()
    _, turned = apply(Augmentation(), image, label)
    assert turned.min() >= 0
    assert turned.max() <= 1 + 1e-5


@pytest.mark.parametrize("strength", ["gamma", "contrast", "bias"])
def test_a_brightness_curve_is_monotonic_where_it_should_be(strength):
    ramp = torch.linspace(-2, 2, 24).view(1, 1, 24, 1).repeat(6, 1, 1, 20)
    moved, _ = apply(only(**{strength: 0.2}), ramp, ramp)
    change = (moved - ramp).abs().flatten(1).amax(1)
    assert (change > 1e-3).all()
    assert (torch.diff(moved, dim=2) > 0).float().mean() > 0.97
    assert change.max() < 2.5  # a change, not another image


def test_noise_is_of_the_stated_strength():
    image = torch.zeros(40, 1, 24, 20)
    moved, _ = apply(only(noise=0.1), image, image)
    spread = moved.flatten(1).std(1)
    assert 0.08 < spread.max() < 0.11
    assert spread.min() < 0.03
    assert abs(float(moved.mean())) < 5e-3


@pytest.mark.parametrize(
    ("size", "spacing", "limit"), [((64, 40), (0.7, 1.3), 40.0), ((48, 36, 24), (0.9, 1.2, 2.0), 30.0)], ids=["2D", "3D"]
)
def test_a_rotation_is_a_rotation_in_millimetres(size, spacing, limit):
    """Three blobs on an anisotropic grid: distances and handedness in mm stay, and angles are drawn up to the limit."""
    dims = len(size)
    corners = torch.tensor([[11.0, 0, 0], [-4, 9, 0], [-5, -7, 6]])[:, :dims]
    blobs = torch.stack([gauss(size, spacing, c.tolist(), 2.5) for c in corners])[None].repeat(12, 1, *[1] * dims)
    _, moved = apply(only(rotation_deg=limit), blobs[:, :1], blobs, spacing=spacing)
    found = centroids(moved, spacing)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        want = (corners[i] - corners[j]).norm()
        torch.testing.assert_close((found[:, i] - found[:, j]).norm(dim=1), want.expand(12), atol=0.12, rtol=0)
    torch.testing.assert_close(found.norm(dim=2), corners.norm(dim=1).expand(12, 3), atol=0.12, rtol=0)  # about the centre
    mapping = torch.linalg.lstsq(corners.expand(12, -1, -1), found).solution
    torch.testing.assert_close(torch.linalg.det(mapping), torch.ones(12), atol=0.03, rtol=0)
    angle = torch.atan2(mapping[:, 0, 1] - mapping[:, 1, 0], mapping[:, 0, 0] + mapping[:, 1, 1]).abs().rad2deg()
    assert limit / 2 < angle.max() < limit + 1
    if dims == 3:  # out of plane a third of it: the z axis leans by both turns at most
        lean = mapping[:, 2, 2].clamp(-1, 1).acos().rad2deg()
        assert limit / 10 < lean.max() < math.sqrt(2) * limit / 3 + 1


def test_a_rotation_in_voxels_would_have_been_noticed():
    """The same test's distances, had the turn been made in voxels: off by far more than its tolerance."""
    angle, stretch = math.radians(20), torch.tensor([0.7, 1.3])
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    step = torch.tensor([11.0, 0]) - torch.tensor([-4.0, 9])
    assert abs(float((turn @ (step / stretch) * stretch).norm() - step.norm())) > 1


@pytest.mark.parametrize(("strength", "value"), [("scale", 0.2), ("shift", 0.1), ("shear", 0.2)])
def test_scale_shift_and_shear_stay_within_their_ranges(strength, value):
    size, spacing = (64, 40), (0.7, 1.3)
    corners = torch.tensor([[9.0, 0], [-4, 8], [-5, -7]])
    blobs = torch.stack([gauss(size, spacing, c.tolist(), 2.5) for c in corners])[None].repeat(16, 1, 1, 1)
    _, moved = apply(only(**{strength: value}), blobs[:, :1], blobs, spacing=spacing)
    homogeneous = torch.cat([corners, torch.ones(3, 1)], 1).expand(16, -1, -1)
    mapping = torch.linalg.solve(homogeneous, centroids(moved, spacing))  # (16, 3, 2): x -> x A + b
    backwards = torch.linalg.inv(mapping[:, :2].mT)  # sampling transform, as the strengths are meant
    extent = torch.tensor([s * mm for s, mm in zip(size, spacing, strict=True)])
    moves = mapping[:, 2].abs() / extent
    diagonal, off = torch.diagonal(backwards, dim1=1, dim2=2) - 1, backwards[:, [0, 1], [1, 0]]
    found = {"scale": diagonal.abs(), "shift": moves, "shear": off[:, :1].abs()}
    for name, values in found.items():
        if name == strength:
            assert value / 2 < values.max() < value + 0.02
            assert (values.amin(0) < value / 2).all()  # spread over the range
        else:
            assert values.max() < 0.02
    assert off[:, 1].abs().max() < 0.02


@grid
def test_a_flip_mirrors_x_of_the_pairs_it_is_drawn_for(size):
    image = seeded(0, 3, 1, *size)
    moved, moved_label = apply(only(), image, image, flip=[True, False, True])
    want = torch.stack([image[0].flip(1), image[1], image[2].flip(1)])
    torch.testing.assert_close(moved, want, atol=rounding(size), rtol=0)
    torch.testing.assert_close(moved_label, want, atol=rounding(size), rtol=0)


def test_flips_are_drawn_at_their_probability():
    random = torch.Generator().manual_seed(0)
    assert not only().flips(100, random).any()
    assert only(flip=1.0).flips(100, random).all()
    assert 0.2 < only(flip=0.3).flips(2000, random).float().mean() < 0.4


@grid
def test_the_generator_decides_all_and_nothing_else_does(size):
    image, label = seeded(0, 2, 1, *size), (seeded(1, 2, 2, *size) > 0.5).float()
    kept = image.clone(), label.clone()
    first = apply(Augmentation(), image, label, seed=5)
    torch.rand(7)  # the global generator has no say
    again, other = apply(Augmentation(), image, label, seed=5), apply(Augmentation(), image, label, seed=6)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().mean() > 0.02
    assert torch.equal(image, kept[0])
    assert torch.equal(label, kept[1])


def test_a_slice_and_its_neighbours_change_by_one_curve_and_one_field():
    """Three equal slices stay equal, and are not what they were."""
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1)
    still = Augmentation(rotation_deg=0, scale=0, shear=0, shift=0, flip=0, gamma=0.5, contrast=0.5, bias=0.5)
    got, label = still(image, image[:, :1], torch.zeros(2, dtype=torch.bool), (1.0, 1.0), torch.Generator().manual_seed(1))
    assert got.shape == image.shape
    torch.testing.assert_close(got, got[:, :1].expand_as(got))
    assert float((got - image).abs().mean()) > 0.05
    torch.testing.assert_close(label, image[:, :1])


@grid
def test_an_elastic_change_displaces_by_millimetres_and_not_twice_alike(size):
    """Seen in an image of each voxel's own position: it bends smoothly, within its bound, in mm whatever the spacing."""
    spacing, strength = SPACING[: len(size)], 2.0
    where = positions_mm(size, spacing)[None].repeat(4, *[1] * (len(size) + 1))
    found = apply(only(elastic_mm=strength), where, where[:, :1])[0] - where
    inner = found[(slice(None), slice(None), *[slice(4, -4)] * len(size))]  # beyond the field of view there is nothing to see
    assert inner.abs().amax() <= strength + 1e-3
    assert (inner.abs().amax((0, *range(2, inner.ndim))) > 0.3 * strength).all()  # along every axis, in mm
    for axis in range(2, inner.ndim):  # from one point of control to the next at most twice the strength
        between = (size[axis - 2] - 1) / 3
        assert inner.diff(dim=axis).abs().amax() <= 2 * strength / between * 1.01 + 1e-3
    assert (inner[0] - inner[1]).abs().mean() > 0.1


def test_volumes_are_moved_as_torch_moves_them():
    from torch.nn import functional as F

    from oasis_monai.transforms.augmentation import apply_motion

    random = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 10, 8, 6, generator=random)
    transforms = Augmentation(rotation_deg=40, scale=0.5, shear=0.3, shift=0.3)._transforms(
        images, torch.tensor([True, False, True]), torch.tensor([[1.0, 2.0, 3.0]] * 3), random
    )
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    want = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(apply_motion(images, transforms), want, atol=1e-4, rtol=0)
    bend = 2 * torch.randn(3, 3, 10, 8, 6, generator=random)
    bent = grid + 2 * (bend / torch.tensor([10.0, 8, 6]).view(3, 1, 1, 1)).movedim(1, -1).flip(-1)
    want = F.grid_sample(images, bent, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(apply_motion(images, transforms, bend), want, atol=1e-4, rtol=0)


def test_a_rotation_is_one_in_the_millimetres_of_each_image():
    """A disc stays round on its own voxels, whatever those of the image beside it."""
    size, spacings = 64, torch.tensor([[1.0, 1.0], [1.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    places = (torch.arange(size) - (size - 1) / 2).double()
    bars = [((places[:, None] * mm[0]).abs() < 12) & ((places[None] * mm[1]).abs() < 12) for mm in spacings]  # squares of 24 mm
    images = torch.stack(bars)[:, None].float()
    turn = Augmentation(rotation_deg=40.0, scale=0.0, shear=0.0, shift=0.0, flip=0.0)
    out, _ = turn(images, images, torch.zeros(3, dtype=torch.bool), spacings, torch.Generator().manual_seed(3))
    for image, mm in zip(out[:, 0], spacings, strict=True):
        x, y = (image > 0.5).nonzero().double().unbind(1)
        spread = torch.cov(torch.stack([x * mm[0], y * mm[1]]))
        assert spread[0, 0] == pytest.approx(float(spread[1, 1]), rel=0.06)  # a square has the same spread along every axis
        assert abs(float(spread[0, 1])) < 0.06 * float(spread[0, 0])


# --- several channels


@grid
def test_channels_of_a_scan_share_the_motion_and_differ_in_intensity(size):
    image, label = seeded(0, 2, 1, *size).repeat(1, 2, *[1] * len(size)), seeded(1, 2, 1, *size)

    def run(augmentation, channels):
        return augmentation(
            image, label, torch.tensor([True, False]), SPACING[: len(size)], torch.Generator().manual_seed(0), channels
        )[0]

    moved = run(Augmentation(), 2)
    assert torch.equal(moved[:, 0], moved[:, 1])
    for change in ("gamma", "contrast", "bias", "noise"):
        one, two = run(only(**{change: 0.3}), 1), run(only(**{change: 0.3}), 2)
        assert not torch.allclose(two[:, 0], two[:, 1])
        assert torch.allclose(one[:, 0], one[:, 1]) or change == "noise"


def test_a_slice_and_its_neighbours_are_of_one_channel():
    """Six channels of two images with three slices each: one curve for each image."""
    image = seeded(0, 1, 1, 24, 20).repeat(1, 6, 1, 1)
    random = torch.Generator().manual_seed(0)
    got, _ = only(gamma=0.5)(image, image[:, :1], torch.zeros(1, dtype=torch.bool), SPACING[:2], random, 2)
    first, second = got.split(3, 1)
    for three in (first, second):
        assert torch.equal(three[:, 0], three[:, 1])
        assert torch.equal(three[:, 0], three[:, 2])
    assert not torch.allclose(first, second)


# --- zoom


def sampling_matrices(count, size=(20, 24, 12), spacing=SPACING, seed=0, **strengths):
    """(count, D, D) what a displacement in mm in the result becomes in the image it is read from."""
    dims = len(size)
    images, random = torch.zeros(count, 1, *size), torch.Generator().manual_seed(seed)
    voxels = torch.tensor(spacing[:dims], dtype=torch.float64).expand(count, dims)
    found = only(**strengths)._transforms(images, torch.zeros(count, dtype=torch.bool), voxels, random)
    extent = torch.tensor(size) * voxels[0]
    return found[:, :, :dims].flip(1, 2).double() * extent[None, :, None] / extent[None, None, :]


@grid
def test_zoom_makes_some_images_larger_or_smaller_and_the_same_along_all_axes(size):
    matrices = sampling_matrices(4000, size, zoom_chance=0.3, zoom=1.6, zoom_axes=1.0)
    factors = matrices.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(torch.diag_embed(factors), matrices, atol=1e-5, rtol=0)  # nothing turns
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-5, rtol=0)
    logs = factors[:, 0].log() / math.log(1.6)
    zoomed = logs.abs() > 1e-5
    assert 0.27 < zoomed.double().mean() < 0.33
    drawn = logs[zoomed]
    assert drawn.abs().max() <= 1 + 1e-5
    assert 0.22 < (drawn < -0.5).double().mean() < 0.28  # log-uniform: a quarter below 1 / sqrt(1.6), a quarter above sqrt(1.6)
    assert 0.22 < (drawn > 0.5).double().mean() < 0.28


@grid
def test_proportions_change_along_every_axis_on_its_own(size):
    logs = sampling_matrices(3000, size, zoom_chance=1.0, zoom=1.0, zoom_axes=1.4).diagonal(dim1=1, dim2=2).log() / math.log(1.4)
    assert logs.abs().max() <= 1 + 1e-5
    assert (logs.abs().amax(0) > 0.98).all()
    assert (torch.corrcoef(logs.T) - torch.eye(len(size))).abs().max() < 0.08


def test_a_zoomed_image_shows_what_it_showed_larger_or_smaller():
    """A ball's volume in a hundred zooms: that of the factor each was given, on voxels of any proportions."""
    size, spacing = (40, 32, 20), (1.0, 1.25, 2.0)
    ball = (positions_mm(size, spacing).square().sum(0) < 9.0**2).float()[None, None].repeat(12, 1, 1, 1, 1)
    sizes = 1 / sampling_matrices(12, size, spacing, zoom_chance=1.0, zoom=1.6, zoom_axes=1.0)[:, 0, 0]
    random = torch.Generator().manual_seed(0)
    zoom = only(zoom_chance=1.0, zoom=1.6, zoom_axes=1.0)
    _, moved = zoom(ball, ball, torch.zeros(12, dtype=torch.bool), spacing, random)
    torch.testing.assert_close(moved.sum((1, 2, 3, 4)).double() / ball[0].sum(), sizes**3, rtol=0.06, atol=0)
    assert sizes.min() < 0.8
    assert sizes.max() > 1.25


@grid
def test_images_that_are_not_zoomed_move_as_without_zoom(size):
    image = seeded(0, 30, 1, *size)
    plain, zoomed = (apply(Augmentation(zoom_chance=chance), image, image)[0] for chance in (0.0, 0.3))
    same = torch.tensor([torch.equal(one, other) for one, other in zip(plain, zoomed, strict=True)])
    assert 12 < int(same.sum()) < 29


# --- chance, blur and resolution


@grid
@pytest.mark.parametrize(
    "strengths", [{"gamma": 0.3}, {"contrast": 0.3}, {"bias": 0.3}, {"noise": 0.2}, {"blur_mm": 4.0}, {"coarsen": 3.0}], ids=str
)
def test_each_change_of_intensity_has_its_chance(size, strengths):
    image = seeded(0, 120, 1, *size)
    same, _ = apply(only(), image, image)
    changed, label = apply(only(**strengths, intensity_chance=0.3), image, image)
    share = float(((changed - same).abs().flatten(1).amax(1) > 1e-3).float().mean())
    assert 0.12 < share < 0.45
    torch.testing.assert_close(label, same)
    none, _ = apply(only(**strengths, intensity_chance=0.0), image, image)
    torch.testing.assert_close(none, same, atol=1e-5, rtol=0)


def test_changes_are_drawn_one_by_one():
    """A contrast changes values in a straight line, noise does not; a quarter of the images each has neither, one or both."""
    image = seeded(0, 400, 1, 8, 8)
    changed = apply(only(contrast=0.5, noise=0.5, intensity_chance=0.5), image, image)[0] - apply(only(), image, image)[0]
    change, value = changed.flatten(1).double(), image.flatten(1).double()
    value = value - value.mean(1, keepdim=True)
    slope = (change * value).sum(1, keepdim=True) / value.square().sum(1, keepdim=True)
    rough = (change - change.mean(1, keepdim=True) - slope * value).std(1) > 1e-3
    straight = ~rough & (change.abs().amax(1) > 1e-3)
    assert 0.4 < rough.double().mean() < 0.6
    assert 0.18 < straight.double().mean() < 0.32
    sloping = rough & (slope[:, 0].abs() > 0.3)  # more than noise of that strength makes of 64 voxels
    assert 0.02 < sloping.double().mean() < 0.3


@grid
def test_a_blur_has_its_width_in_millimetres_and_leaves_what_is_constant(size):
    """The second moment of a blurred point, along every axis, is the square of the width."""
    from oasis_monai.transforms.augmentation import blur

    spacing = SPACING[: len(size)]
    larger = tuple(2 * n for n in size)
    point = torch.zeros(1, 1, *larger)
    point[(0, 0, *[n // 2 for n in larger])] = 1
    width_mm = 2.4
    spread = blur(point, [width_mm / mm for mm in spacing])[0, 0]
    where = positions_mm(larger, spacing)
    mass = spread / spread.sum()
    centre = (where * mass).flatten(1).sum(1)
    moments = ((where - centre.view(-1, *[1] * len(size))).square() * mass).flatten(1).sum(1)
    torch.testing.assert_close(
        moments.sqrt(), torch.full((len(size),), width_mm), rtol=0.08, atol=0
    )  # MONAI's widths are those of points
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-3)
    flat = torch.full((1, 2, *size), 3.0)
    torch.testing.assert_close(blur(flat, [2.0] * len(size)), flat, atol=2e-3, rtol=0)  # no dark frame
    assert blur(flat, [0.1] * len(size)) is flat


def test_the_width_that_is_drawn_is_in_millimetres_of_the_image_s_own_voxels():
    """Voxels of 50 mm are not blurred by 2 mm, voxels of 0.5 mm are; the first axis of one image, the second of the other."""
    image = seeded(0, 1, 1, 20, 20).repeat(2, 1, 1, 1)
    flat, spacings = torch.zeros_like(image), torch.tensor([[50.0, 0.5], [0.5, 50.0]], dtype=torch.float64)
    random = torch.Generator().manual_seed(1)
    got, _ = only(blur_mm=2.0)(image, flat, torch.zeros(2, dtype=torch.bool), spacings, random)
    rough = [(got.diff(dim=axis).square().mean((1, 2, 3)) / image.diff(dim=axis).square().mean((1, 2, 3))) for axis in (2, 3)]
    assert float(rough[1][0]) < 0.5 * float(rough[0][0])  # what varies along the blurred axis is gone sooner
    assert float(rough[0][1]) < 0.5 * float(rough[1][1])


def test_a_blur_along_one_axis_leaves_the_others():
    from oasis_monai.transforms.augmentation import blur

    image = seeded(0, 1, 1, 20, 1).expand(1, 1, 20, 16)
    torch.testing.assert_close(blur(image, [0.0, 2.0]), image, atol=1e-3, rtol=0)
    assert (blur(image, [2.0, 0.0]) - image).abs().mean() > 0.1


def test_coarser_voxels_hold_the_mean_of_what_they_cover():
    from oasis_monai.transforms.augmentation import coarsen

    image = seeded(0, 1, 2, 12, 8, 6)
    got = coarsen(image, [3.0, 1.0, 2.0])
    assert got.shape == image.shape
    means = image.view(1, 2, 4, 3, 8, 3, 2).mean((3, 6))
    torch.testing.assert_close(got[:, :, 1::3, :, 0], means[..., 0])  # the outermost half voxel continues the last mean
    torch.testing.assert_close(got.mean(), image.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(coarsen(image, [1.0, 1.0, 1.0]), image)
    ramp = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 1, 12, 4)
    torch.testing.assert_close(coarsen(ramp, [2.0, 1.0])[..., 1:-1, :], ramp[..., 1:-1, :])  # what is straight stays
    one = coarsen(image, [50.0] * 3)
    torch.testing.assert_close(one, image.mean((2, 3, 4), keepdim=True).expand_as(one))  # a single voxel of each channel


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zoom", 0.9),
        ("zoom_axes", 0.0),
        ("zoom_chance", 1.2),
        ("flip", -0.1),
        ("coarsen", 0.5),
        ("blur_mm", -1.0),
        ("intensity_chance", 2.0),
    ],
)
def test_a_strength_that_cannot_be_is_one_line_naming_it(key, value):
    from oasis_monai.utils.errors import ConfigError

    with pytest.raises(ConfigError, match=rf"^augmentation\.{key}: expected .*found {value}"):
        Augmentation(**{key: value})


@grid
def test_the_generator_decides_the_new_changes_too(size):
    image = seeded(0, 6, 1, *size)
    wide = Augmentation(zoom_chance=0.5, blur_mm=2.0, coarsen=2.0, gamma=0.2, noise=0.2, intensity_chance=0.5)
    first, again, other = (apply(wide, image, image, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.02


@pytest.mark.parametrize(("size", "margin"), [((10, 8), (3, 2)), ((10, 8, 6), (3, 0, 2))])
def test_what_lies_in_the_margin_is_moved_into_view(size, margin):
    """Every voxel of a larger image is its own place, counted from the first voxel in view: what comes back is where torch's
    affine grid of the view itself reads."""
    from torch.nn import functional as F

    from oasis_monai.transforms.augmentation import apply_motion

    whole = [n + 2 * m for n, m in zip(size, margin, strict=True)]
    axes = [torch.arange(n, dtype=torch.float32) - m for n, m in zip(whole, margin, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].repeat(2, *[1] * (len(size) + 1))
    shown = torch.zeros(2, 1, *size)
    transforms = Augmentation(rotation_deg=10, scale=0.1, shear=0.05, shift=0.02)._transforms(
        shown, torch.tensor([True, False]), torch.ones(2, len(size)), torch.Generator().manual_seed(2)
    )
    grid = F.affine_grid(transforms, list(shown.shape), align_corners=False).flip(-1).movedim(-1, 1)
    sides = torch.tensor(size).view(-1, *[1] * len(size))
    want = ((grid + 1) * sides - 1) / 2
    found = apply_motion(places, transforms, margin=margin)
    assert found.shape == want.shape
    last = torch.tensor([n + m - 1 for n, m in zip(size, margin, strict=True)]).view(-1, *[1] * len(size))
    first = -torch.tensor(margin).view(-1, *[1] * len(size))
    read = ((want >= first) & (want <= last)).all(1, keepdim=True).expand_as(want)
    assert float(read.float().mean()) > 0.6
    assert float(((want < 0) | (want > sides - 1)).any(1)[read[:, 0]].float().mean()) > 0.02  # some of it from the margin
    torch.testing.assert_close(found[read], want[read], atol=1e-3, rtol=0)


def test_a_margin_without_changes_is_cut_off():
    image, label = torch.rand(2, 1, 10, 8, 6), torch.rand(2, 2, 10, 8, 6)
    still = Augmentation(rotation_deg=0, scale=0, shear=0, shift=0, flip=0)
    random = torch.Generator().manual_seed(0)
    moved, structures = still(image, label, torch.tensor([False, False]), (1.0, 1.0, 2.0), random, margin=(2, 1, 0))
    torch.testing.assert_close(moved, image[:, :, 2:-2, 1:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(structures, label[:, :, 2:-2, 1:-1], atol=1e-5, rtol=0)
