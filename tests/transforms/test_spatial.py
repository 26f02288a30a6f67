"""Grids against analytic worlds: a ramp in millimetres comes back exact whatever the geometry, an ellipsoid keeps its volume."""

import itertools

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry
from oasis_monai.transforms import spatial as grids
from oasis_monai.transforms.intensity import z_score
from oasis_monai.transforms.labels import decide_streamed

RAMP, OFFSET = np.array([0.7, -1.3, 0.4]), 20.0


def rotation(x_deg, y_deg, z_deg):
    total = np.eye(3)
    for axis, deg in enumerate((x_deg, y_deg, z_deg)):
        c, s = np.cos(np.radians(deg)), np.sin(np.radians(deg))
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        total = turn @ total
    return total


def geometry(shape, spacing, direction=None, origin=(-31.0, 17.0, 40.0)):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else direction) * np.asarray(spacing)
    affine[:3, 3] = origin
    return Geometry(tuple(shape), affine)


WORLDS = {
    "plain": geometry((24, 20, 12), (1.0, 1.0, 1.0)),
    "anisotropic": geometry((30, 26, 9), (0.6, 0.7, 3.6)),
    "lps": geometry((30, 26, 9), (0.6, 0.7, 3.6), np.diag([-1.0, -1.0, 1.0])),
    "sagittal": geometry((9, 30, 26), (3.6, 0.6, 0.7), np.array([[0, 0, 1.0], [-1.0, 0, 0], [0, 1.0, 0]]).T),
    "oblique": geometry((30, 26, 9), (0.6, 0.7, 3.6), rotation(14, -9, 21) @ np.diag([-1.0, 1.0, -1.0])),
    "oblique coronal": geometry(
        (30, 9, 26), (0.6, 3.6, 0.7), rotation(20, 5, -8) @ np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    ),
}
world = pytest.mark.parametrize("native", WORLDS.values(), ids=WORLDS)


def positions_mm(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ramp(grid):
    return torch.tensor(positions_mm(grid) @ RAMP + OFFSET, dtype=torch.float32)[None]


def depth(source, target, margin):
    """Target voxels at least `margin` source voxels inside the outermost source voxel centres."""
    inverse = np.linalg.inv(source.affine)
    index = positions_mm(target) @ inverse[:3, :3].T + inverse[:3, 3]
    last = np.array(source.shape) - 1
    return torch.tensor(((index >= margin - 1e-4) & (index <= last - margin + 1e-4)).all(-1))


def ellipsoid(grid, centre_mm, radii_mm):
    return torch.tensor((((positions_mm(grid) - centre_mm) / radii_mm) ** 2).sum(-1) <= 1).to(torch.uint8)[None]


def middle_mm(grid):
    return grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]


def dice(a, b):
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@world
def test_working_axes_are_the_scans_own_in_ras_order(native):
    own = grids.closest_ras(native)
    unit = own.affine[:3, :3] / own.spacing_mm
    assert (np.diag(unit) > 0.8).all()  # right, anterior, superior within the obliquity
    ours, theirs = positions_mm(own).reshape(-1, 3), positions_mm(native).reshape(-1, 3)
    np.testing.assert_allclose(ours[np.lexsort(ours.round(4).T)], theirs[np.lexsort(theirs.round(4).T)], atol=1e-6)  # same voxels


@world
@pytest.mark.parametrize(("lying", "codes"), [("axial", "RAS"), ("coronal", "RSA"), ("sagittal", "ASR")])
def test_slices_follow_each_other_along_the_last_working_axis(native, lying, codes):
    """Against MONAI's own reordering of axes."""
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Orientation

    values = torch.rand(1, *native.shape)
    theirs = Orientation(axcodes=codes, labels=None)(MetaTensor(values, affine=native.affine))
    ours = grids.working_axes(native, lying)
    assert ours.shape == tuple(theirs.shape[1:])
    np.testing.assert_allclose(ours.affine, theirs.affine.numpy(), atol=1e-9)
    made = grids.resample(values, native, ours)
    torch.testing.assert_close(made, theirs.as_tensor(), atol=1e-5, rtol=0)
    working = grids.centred(native, (1.3, 1.1, 2.9), (16, 18, 10), lying)
    assert working.shape == (16, 18, 10)
    np.testing.assert_allclose(working.spacing_mm, (1.3, 1.1, 2.9))
    np.testing.assert_allclose(middle_mm(working), middle_mm(native), atol=1e-9)
    label = random_label(native.shape, 3, 0)
    maps = torch.stack([(grids.resample_label(label, native, ours)[0] == i).float() for i in range(3)])
    assert torch.equal(grids.restore(maps, ours, native)[0], label[0])


@world
def test_a_field_of_view_has_the_spacing_size_and_centre_asked_for(native):
    working = grids.centred(native, (1.3, 1.1, 2.9), (16, 18, 10))
    assert working.shape == (16, 18, 10)
    np.testing.assert_allclose(working.spacing_mm, (1.3, 1.1, 2.9))
    np.testing.assert_allclose(middle_mm(working), middle_mm(native), atol=1e-9)
    np.testing.assert_allclose(  # parallel to the scan's axes, not to the world's
        working.affine[:3, :3] / working.spacing_mm, (c := grids.closest_ras(native)).affine[:3, :3] / c.spacing_mm, atol=1e-12
    )


@world
def test_a_resized_grid_has_the_outer_edges_of_the_scan(native):
    own, working = grids.closest_ras(native), grids.resized(native, (17, 40, None))
    assert working.shape == (17, 40, own.shape[2])
    for end in itertools.product((0, 1), repeat=3):
        corners = [g.affine[:3, :3] @ (np.array(end) * g.shape - 0.5) + g.affine[:3, 3] for g in (own, working)]
        np.testing.assert_allclose(*corners, atol=1e-9)


@world
@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.9), (1.25, 1.25, 3.0), (2.5, 2.0, 5.0)], ids=str)
def test_a_ramp_in_mm_is_exact_on_every_grid(native, spacing):
    working = grids.centred(native, spacing, (20, 18, 8))
    got, want = grids.resample(ramp(native), native, working), ramp(working)
    coarsen_library = max(grids._sigma(native, working)) > 0
    within = depth(native, working, 4 if coarsen_library else 0)  # the Gaussian is one-sided at the edge
    if coarsen_library and not within.any():
        got, within = grids.resample(ramp(native), native, working, anti_alias=False), depth(native, working, 0)
    assert within.sum() > 50
    assert (got - want)[0][within].abs().max() < 1e-3


@world
def test_a_ramp_in_mm_survives_the_resize_of_the_paper(native):
    working = grids.resized(native, (41, 15, None))
    got = grids.resample(ramp(native), native, working, anti_alias=False)
    within = depth(native, working, 0)
    assert (got - ramp(working))[0][within].abs().max() < 1e-3
    assert within.float().mean() > 0.8
    assert grids.inside(native, working).all()


@world
def test_inside_is_the_box_of_whole_voxels(native):
    working = grids.centred(native, (1.3, 1.1, 2.9), (26, 24, 18))
    seen = grids.inside(native, working)
    assert torch.equal(seen, depth(native, working, -0.5))
    assert seen.any()
    assert not seen.all()


@pytest.mark.parametrize(("voxels", "wanted"), [(23, 32), (24, 32), (23, 15), (40, 32), (41, 32)])
def test_a_spacing_that_stays_is_cut_or_padded_never_interpolated(voxels, wanted):
    from monai.transforms import ResizeWithPadOrCrop

    native = geometry((voxels, 6, 5), (3.0004, 1.0, 1.0), rotation(10, 4, -7))
    image = torch.rand(1, *native.shape, generator=torch.Generator().manual_seed(0))
    working = grids.centred(native, (3.0, 1.0, 1.0), (wanted, 6, 5))
    got = grids.resample(image, native, working) * grids.inside(native, working)
    want = ResizeWithPadOrCrop(working.shape)(image)
    assert (got - want).abs().max() < 5e-3  # 0.4 um a voxel from 3.0004 against 3 mm
    assert np.linalg.norm(middle_mm(working) - middle_mm(native)) <= 1.51  # half a voxel


def test_smoothing_before_down_sampling_is_scipys():
    from scipy.ndimage import gaussian_filter1d, map_coordinates

    native = geometry((48, 7, 6), (0.5, 1.0, 1.0))
    working = grids.centred(native, (1.5, 1.0, 1.0), (12, 7, 6))
    image = torch.rand(1, *native.shape, generator=torch.Generator().manual_seed(1))
    smooth = gaussian_filter1d(image[0].numpy().astype(float), sigma=1.0, axis=0)
    inverse = np.linalg.inv(native.affine)
    index = np.moveaxis(positions_mm(working) @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    want = map_coordinates(smooth, index, order=1)
    np.testing.assert_allclose(grids.resample(image, native, working)[0], want, atol=0.02)  # erf against sampled Gaussian
    plain = grids.resample(image, native, working, anti_alias=False)
    assert float(plain.std()) > 1.5 * want.std()  # what aliasing would have let through


def test_edges_keep_their_brightness():
    native = geometry((40, 36, 9), (0.6, 0.6, 3.6))
    got = grids.resample(torch.full((2, *native.shape), 100.0), native, grids.resized(native, (10, 9, 5)))
    assert (got - 100).abs().max() < 1e-3  # MONAI's Resize(anti_aliasing=True) gives 94 in the corners


PROSTATE = {
    "BIDMC": geometry((256, 256, 24), (0.6, 0.6, 3.6)),
    "RUNMC": geometry((160, 160, 20), (1.25, 1.25, 3.6), np.diag([-1.0, -1, 1])),
}


@pytest.mark.parametrize("native", PROSTATE.values(), ids=PROSTATE)
def test_a_prostate_survives_the_way_there_and_back(native):
    truth = ellipsoid(native, middle_mm(native) + np.array([3.0, -8.0, 4.0]), np.array([25.0, 19.0, 23.0]))
    working = grids.centred(native, (1.25, 1.25, 3.0), (80, 80, 32))
    label = grids.resample_label(truth, native, working)
    onehot = torch.cat([label == 0, label == 1]).float()
    back, _ = grids.restore(onehot, working, native)
    assert back.shape == native.shape
    assert dice(back > 0, truth[0] > 0) > 0.97
    assert abs(float(back.sum()) / float(truth.sum()) - 1) < 0.01


def random_label(shape, classes, seed=0):
    """Blobs: the classes of random points, nearest wins."""
    generator = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)
    seeds = generator.uniform(0, shape, (classes * 2, 3))
    nearest = ((index[..., None, :] - seeds) ** 2).sum(-1).argmin(-1) % classes
    return torch.tensor(nearest, dtype=torch.uint8)[None]


@pytest.mark.parametrize("native", [WORLDS["lps"], WORLDS["oblique coronal"]], ids=["lps", "oblique coronal"])
def test_labels_class_by_class_are_the_argmax_of_all_maps_at_once(native):
    label = random_label(native.shape, 50)
    label[label == 7] = 0  # a class that is not there
    working = grids.centred(native, (0.9, 0.8, 2.1), (26, 26, 22))
    onehot = torch.nn.functional.one_hot(label[0].long(), 50).movedim(-1, 0).float()
    maps = grids.resample(onehot, native, working, anti_alias=False).double() * grids.inside(native, working)
    maps[0] = 1 - maps[1:].sum(0)
    best = maps[1:].max(0)
    want = torch.where(best.values >= maps[0] - 1e-6, best.indices + 1, 0)
    unsure = maps.topk(2, 0).values.diff(dim=0)[0].abs() < 1e-5
    got = grids.resample_label(label, native, working)[0]
    assert torch.equal(got[~unsure].long(), want[~unsure])
    assert unsure.float().mean() < 0.01
    assert 7 not in got
    assert not got[~grids.inside(native, working)].any()


def test_no_class_is_invented_between_two_neighbours():
    label = torch.zeros(1, 12, 8, 8, dtype=torch.uint8)
    label[:, 4:8], label[:, 8:] = 1, 3
    native = geometry(label.shape[1:], (1.0, 1.0, 1.0))
    for spacing in (0.37, 1.0, 1.9):
        got = grids.resample_label(label, native, grids.centred(native, (spacing,) * 3, (6, 6, 6)))
        assert set(got.unique().tolist()) <= {0, 1, 3}


@pytest.mark.parametrize(
    ("foreground", "winner"),
    [
        ([], 0),
        ([0.0], 0),
        ([0.4999], 0),
        ([0.5], 1),
        ([0.5 - 2e-7], 1),
        ([1.0], 1),
        ([0.4, 0.3], 1),
        ([0.3, 0.4], 2),
        ([0.35, 0.35], 1),
        ([0.25, 0.25], 0),
        ([1 / 3, 1 / 3], 1),
        ([0.2, 0.4], 2),
        ([0.0, 0.0, 0.5], 3),
    ],
)
def test_the_tie_rule(foreground, winner):
    maps = ((k, torch.tensor([p])) for k, p in enumerate(foreground, 1))
    assert decide_streamed(maps, torch.zeros(1)).tolist() == [winner]


@world
def test_a_probability_ramp_comes_back_exactly_and_outside_is_background(native):
    working = grids.centred(native, (0.9, 0.8, 2.1), (14, 12, 8))
    height = torch.tensor(positions_mm(working) @ RAMP, dtype=torch.float32)
    low, span = float(height.min()), float(height.max() - height.min())
    foreground = 0.6 * (height - low) / span
    probability = torch.stack([1 - 1.5 * foreground, foreground, foreground / 2])
    label, kept = grids.restore(probability, working, native, keep_probability=True)
    assert kept is not None
    within, seen = depth(working, native, 0), grids.inside(working, native)
    want = torch.tensor(0.6 * (positions_mm(native) @ RAMP - low) / span, dtype=torch.float32)
    assert within.sum() > 50
    assert (kept[1] - want)[within].abs().max() < 1e-5
    assert not kept[1:, ~seen].any()
    assert (kept[0, ~seen] == 1).all()
    torch.testing.assert_close(kept.sum(0), torch.ones(native.shape))
    sure = within & ((want - 0.4).abs() > 1e-4)
    assert torch.equal(label[sure] == 1, want[sure] > 0.4)
    assert not label[~seen].any()
    assert set(label.unique().tolist()) == {0, 1}


def test_restore_holds_one_slab_at_a_time_and_slabs_do_not_show(monkeypatch):
    native = geometry((20, 18, 15), (0.7, 0.7, 2.0), rotation(8, -5, 12))
    working = grids.centred(native, (1.1, 1.1, 2.4), (14, 13, 12))
    probability = torch.rand(20, *working.shape, generator=torch.Generator().manual_seed(3)).softmax(0)
    probability[3] += (torch.rand(working.shape) > 0.5).float()
    whole, _ = grids.restore(probability, working, native)
    sizes, original = [], grids.resample
    monkeypatch.setattr(grids, "resample", lambda *a, **k: (out := original(*a, **k), sizes.append(out.numel()))[0])
    monkeypatch.setattr(grids, "SLAB_VALUES", 20 * 18 * 22 * 2)
    slabbed, nothing = grids.restore(probability, working, native)
    assert nothing is None
    assert torch.equal(whole, slabbed)
    assert 0 < max(sizes) <= 19 * 20 * 18 * 2  # 19 foreground classes, two slices of the native grid
    assert len(sizes) >= 7
    assert whole.unique().numel() > 1


@pytest.mark.parametrize("shape", [(1, 8, 8, 4), (2, 8, 8, 5), (2, 8, 8)], ids=str)
def test_restore_refuses_maps_that_do_not_fit(shape):
    grid = geometry((8, 8, 4), (1, 1, 1))
    with pytest.raises(ValueError, match=r"^probability: expected .* found"):
        grids.restore(torch.zeros(shape), grid, grid)


def test_values_that_do_not_fit_the_grid_are_refused():
    grid = geometry((8, 8, 4), (1, 1, 1))
    for call in (grids.resample, grids.resample_label):
        with pytest.raises(ValueError, match=r"expected shape \(C, 8, 8, 4\), found \(1, 8, 4, 8\)"):
            call(torch.zeros(1, 8, 4, 8), grid, grid)


def test_z_score_is_numpys_inside_and_zero_outside():
    image = torch.rand(1, 30, 20, 10, generator=torch.Generator().manual_seed(0)) ** 3 * 900
    where = torch.rand(30, 20, 10, generator=torch.Generator().manual_seed(1)) > 0.3
    values = image[0][where].numpy().astype(float)
    clipped = np.clip(values, *np.percentile(values, (0.5, 99.5)))
    want = (clipped - clipped.mean()) / clipped.std()
    got = z_score(image, where, 0.5, 99.5)
    np.testing.assert_allclose(got[0][where], want, atol=1e-4)
    assert not got[0][~where].any()
    plain = z_score(image, where)
    assert abs(float(plain[0][where].std(correction=0)) - 1) < 1e-5
    assert float(plain.max()) > float(got.max())


FLAT = torch.full((1, 4, 4, 4), 100.3)
NOISE = FLAT + 4e-5 * torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))  # what interpolation makes of a constant
NAN = FLAT.clone()
NAN[0, 0, 0, 0] = torch.nan
EVERYWHERE = torch.ones(4, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize("image", [FLAT, NOISE, torch.zeros(1, 4, 4, 4), torch.full((1, 4, 4, 4), -1e30)])
@pytest.mark.parametrize("where", [EVERYWHERE, ~EVERYWHERE, torch.arange(64).reshape(4, 4, 4) == 5])
def test_an_image_without_contrast_becomes_zero(image, where):
    assert not z_score(image, where, 0.5, 99.5).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_voxel_that_is_no_number_is_refused_unless_it_is_padding(value):
    image = torch.rand(1, 4, 4, 4)
    image[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="expected finite values"):
        z_score(image, EVERYWHERE)
    got = z_score(image, torch.isfinite(image))
    assert torch.isfinite(got).all()
    assert got[0, 1, 2, 3] == 0


@pytest.mark.parametrize("keep", [False, True])
def test_several_maps_at_once_are_each_alone(keep, monkeypatch):
    random = torch.Generator().manual_seed(0)
    native = Geometry((30, 26, 11), np.diag([0.7, 0.7, 3.0, 1.0]))
    working = grids.centred(native, (1.0, 1.0, None), (16, 12, None))
    maps = [torch.softmax(3 * torch.randn(3, *working.shape, generator=random), 0) for _ in range(4)]
    monkeypatch.setattr(grids, "SLAB_VALUES", 30 * 26 * 14 * 2)  # two slices a slab
    together = grids.restore_all(maps, working, native, keep)
    monkeypatch.undo()
    for one, (label, probability) in zip(maps, together, strict=True):
        alone = grids.restore(one, working, native, keep)
        assert torch.equal(label, alone[0])
        assert (probability is None) == (not keep)
        assert not keep or torch.allclose(probability, alone[1], atol=1e-6)


@pytest.mark.parametrize("shift_mm", [(0, 0, 0), (30, -12, 20), (-25, 8, -9), (900, 0, 0)], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["parallel", "turned"])
def test_the_box_of_what_is_inside_is_found_without_looking_at_every_voxel(shift_mm, turned):
    source = geometry((20, 18, 15), (1.7, 1.7, 2.0), None, (0.0, 0.0, 0.0))
    target = geometry((31, 17, 9), (1.1, 0.9, 3.3), rotation(9, 4, -7) if turned else None, shift_mm)
    seen = grids.inside(source, target)
    box = grids._box_inside(source, target, "cpu")
    if not seen.any():
        assert shift_mm == (900, 0, 0)
        assert box is None
        return
    assert box is not None
    corner, part = box
    whole = torch.zeros_like(seen)
    whole[tuple(slice(c, c + n) for c, n in zip(corner, part.shape, strict=True))] = part
    assert torch.equal(whole, seen)
    hits = seen.nonzero()
    for axis, (low, high) in enumerate(zip(hits.amin(0).tolist(), hits.amax(0).tolist(), strict=True)):
        assert corner[axis] == max(0, low - 1)
        assert corner[axis] + part.shape[axis] == min(seen.shape[axis], high + 2)


@world
@pytest.mark.parametrize("spacing", [(0.5, 0.9, 1.4), (1.3, 2.0, 5.0)], ids=str)
def test_axis_by_axis_is_what_monai_makes_of_it(native, spacing, monkeypatch):
    """Values and field of view, from a scan to a grid inside it and beyond it, and back."""
    working = grids.centred(native, spacing, (24, 18, 12))
    image = torch.rand(2, *native.shape, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(1, *working.shape, generator=torch.Generator().manual_seed(1))
    moved, back = grids.resample(image, native, working), grids.resample(maps, working, native)
    seen = grids.inside(native, working)
    monkeypatch.setattr(grids, "_along_axes", lambda *_: None)
    torch.testing.assert_close(grids.resample(image, native, working), moved, atol=2e-4, rtol=0)
    torch.testing.assert_close(grids.resample(maps, working, native), back, atol=2e-4, rtol=0)
    assert (grids.inside(native, working) != seen).float().mean() < 1e-3  # an edge that float32 puts on the other side


def test_axes_that_are_not_the_scans_are_left_to_monai():
    native, oblique = WORLDS["plain"], geometry((10, 9, 8), (1.0, 1.2, 1.1), rotation(14, -9, 21), (-25.0, 20.0, 44.0))
    assert grids._along_axes(native, oblique) is None
    found, sure = grids.resample(ramp(native), native, oblique, anti_alias=False), depth(native, oblique, 0)
    assert sure.any()
    torch.testing.assert_close(found[0][sure], ramp(oblique)[0][sure], atol=2e-3, rtol=0)
    assert grids.inside(native, oblique).any()


@pytest.mark.parametrize("turn_deg", [0.0, 12.0])
@pytest.mark.parametrize("corner", [(9, 7, 4), (0, 0, 0), (15, 0, 6)])
def test_restore_looks_at_the_box_round_the_structures_and_loses_nothing(turn_deg, corner):
    turn, angle = np.eye(4), np.radians(turn_deg)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    working = Geometry((20, 18, 10), np.diag([1.5, 1.5, 3.0, 1.0]))
    native = Geometry((40, 44, 16), turn @ np.array([[0.7, 0, 0, 1], [0, 0.7, 0, -2], [0, 0, 2.2, -3], [0, 0, 0, 1]], float))
    generator = torch.Generator().manual_seed(3)
    small = torch.zeros(3, *working.shape)
    x, y, z = (slice(c, c + 5) for c in corner)
    small[1:, x, y, z] = torch.rand(2, *small[0, x, y, z].shape, generator=generator) * 0.6
    everywhere = small.clamp_min(1e-12)  # some of each structure in every voxel: the box is the whole grid
    label, probability = grids.restore(small, working, native, keep_probability=True)
    whole, reference = grids.restore(everywhere, working, native, keep_probability=True)
    assert label.any()
    assert torch.equal(label, whole)
    torch.testing.assert_close(probability, reference, atol=1e-5, rtol=0)
    nothing, certain = grids.restore(torch.zeros_like(small), working, native, keep_probability=True)
    assert not nothing.any()
    assert torch.equal(certain, torch.eye(3)[0].view(3, 1, 1, 1).expand_as(certain))


@pytest.mark.parametrize("turn_deg", [0.0, 12.0])
@pytest.mark.parametrize("kind", ["softmax", "votes", "hard"])
def test_many_structures_are_restored_in_their_boxes_as_all_at_once(turn_deg, kind, monkeypatch):
    """Of a network that is sure of nothing, of atlases' votes that tie, of labels that touch the border."""
    working = geometry((14, 13, 12), (1.5, 1.4, 2.0), rotation(0, 0, turn_deg))
    native = geometry((20, 18, 15), (0.8, 0.7, 1.3), origin=(-28.0, 18.0, 41.0))
    random = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 12, (4, 7, 7, 6), generator=random)
    blocks = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :14, :13, :12]
    votes = torch.stack([(blocks == c).float().mean(0) for c in range(13)])  # the last one is nowhere
    hard = torch.nn.functional.one_hot(votes.argmax(0), 13).movedim(-1, 0).float()
    maps = {"softmax": (4 * votes).softmax(0), "votes": votes, "hard": hard}[kind]
    two = [maps, maps.roll(1, 1)]
    found = [label for label, _ in grids.restore_all(two, working, native)]
    monkeypatch.setattr(grids, "MANY", 99)
    wanted = [label for label, _ in grids.restore_all(two, working, native)]
    assert len(wanted[0].unique()) > 5
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
