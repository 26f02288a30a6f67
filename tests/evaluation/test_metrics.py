"""Metrics against MONAI, ITK, a per-point loop, an analytic world, and a table of empty and thin masks."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest

from oasis_monai.evaluation import metrics
from oasis_monai.evaluation.metrics import image_diagonal_mm, region_slices, score_case, surface_distances
from oasis_monai.utils.errors import ConfigError, DataError
from tests.helpers.real import real_data

SPACING = (0.625, 0.75, 3.0)
DISTANCES = ("hd_mm", "hd95_mm", "abd_mm")
THIRDS = ("apex", "mid", "base")


def ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1).astype(np.uint8)


def box(shape, *bounds):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(low, high) for low, high in bounds)] = 1
    return mask


def blobs(seed, shape=(12, 11, 9)):
    """Two masks that overlap in part, ragged, with holes, islands and voxels on the image border."""
    rng = np.random.default_rng(seed)
    core = ellipsoid(shape, (5, 5, 4), (5, 5, 4))
    masks = [(core ^ (rng.random(shape) < 0.08)).astype(np.uint8) for _ in range(2)]
    return np.roll(masks[0], (1, 0, 1), (0, 1, 2)), masks[1]


def score(result, reference, spacing=SPACING, **options):
    return {row.region: row for row in score_case(result, reference, spacing, ["prostate"], **options)}


def loop_metrics(result, reference, spacing, regions):
    """HD, 95HD and ABD from their definitions, a point at a time, for each region's range of slices."""

    def surface(mask):
        def inside(p):
            return all(0 <= i < n for i, n in zip(p, mask.shape, strict=True)) and mask[p]

        steps = [tuple(s if a == axis else 0 for a in range(3)) for axis in range(3) for s in (-1, 1)]
        voxels = itertools.product(*map(range, mask.shape))
        return [p for p in voxels if mask[p] and not all(inside(tuple(np.add(p, s))) for s in steps)]

    def directed(start, end):
        ends = np.multiply(end, spacing).tolist()
        return [
            (p[2], min(math.dist(at, q) for q in ends)) for p, at in zip(start, np.multiply(start, spacing).tolist(), strict=True)
        ]

    def percentile(values, q):
        values, at = sorted(values), (len(values) - 1) * q
        low = math.floor(at)
        return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    p, r = surface(result), surface(reference)
    all_there, all_back = directed(p, r), directed(r, p)
    found = []
    for slices in regions:
        there, back = ([mm for z, mm in side if z in slices] for side in (all_there, all_back))
        both = there + back
        found.append((max(both), max(percentile(there, 0.95), percentile(back, 0.95)), sum(both) / len(both)))
    return found


def monai_metrics(result, reference, spacing):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

    p, r = (torch.from_numpy(np.ascontiguousarray(m))[None, None].float() for m in (result, reference))
    options = {"include_background": True, "spacing": spacing}
    return {
        "dsc": compute_dice(p, r).item(),
        "hd_mm": compute_hausdorff_distance(p, r, **options).item(),
        "hd95_mm": compute_hausdorff_distance(p, r, percentile=95, **options).item(),
        "abd_mm": compute_average_surface_distance(p, r, symmetric=True, **options).item(),
    }


PAIRS = {
    "blobs": blobs(0),
    "ellipsoids": (ellipsoid((40, 36, 14), (21, 18, 7), (12, 9, 5)), ellipsoid((40, 36, 14), (17, 15, 5), (10, 11, 4))),
    "touching the border": (box((12, 12, 6), (0, 7), (3, 12), (0, 6)), box((12, 12, 6), (2, 12), (0, 8), (1, 6))),
    "apart, in far corners": (box((60, 60, 9), (0, 3), (0, 2), (0, 2)), box((60, 60, 9), (57, 60), (58, 60), (6, 9))),
    "single voxels": (box((9, 9, 9), (1, 2), (1, 2), (1, 2)), box((9, 9, 9), (7, 8), (5, 6), (2, 3))),
    "full image": (np.ones((8, 7, 6), np.uint8), box((8, 7, 6), (2, 5), (2, 5), (2, 5))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_whole_equals_monai(name):
    found = score(*PAIRS[name])["whole"]
    for metric, value in monai_metrics(*PAIRS[name], SPACING).items():
        assert getattr(found, metric) == pytest.approx(value, abs=1e-4), metric


@pytest.mark.parametrize("axis", range(3))
def test_an_image_of_one_slice_has_a_contour_and_no_faces_above_and_below(axis):
    """As MONAI measures an image of two dimensions; the slice may lie along any axis."""
    flat = [ellipsoid((40, 36, 1), centre, radii) for centre, radii in (((21, 18, 0), (12, 9, 5)), ((17, 15, 0), (10, 11, 4)))]
    spacing = np.insert(SPACING[:2], axis, SPACING[2])
    found = score(*(np.moveaxis(mask, 2, axis) for mask in flat), spacing)["whole"]
    wanted = monai_metrics(*(mask[..., 0] for mask in flat), SPACING[:2])
    for metric, value in wanted.items():
        assert getattr(found, metric) == pytest.approx(value, abs=1e-4), metric
    assert found.abd_mm > 1.5  # were all voxels surface, most of them would be 0 mm from the other


@pytest.mark.parametrize("seed", range(3))
def test_every_region_equals_the_loop(seed):
    result, reference = blobs(seed)
    rows, bounds = score(result, reference), region_slices(reference.sum((0, 1)))
    ranges = [range(bounds[region].start, bounds[region].stop) for region in rows]
    loops = loop_metrics(result, reference, SPACING, ranges)
    for row, slices, loop in zip(rows.values(), ranges, loops, strict=True):
        assert [getattr(row, d) for d in DISTANCES] == pytest.approx(loop, abs=1e-9)
        p, r = result[:, :, slices].astype(bool), reference[:, :, slices].astype(bool)
        assert row.dsc == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
        assert row.rvd_percent == pytest.approx(100 * (int(p.sum()) - int(r.sum())) / r.sum())
        assert row.arvd_percent == abs(row.rvd_percent)
        assert (row.volume_ml, row.reference_ml) == pytest.approx(
            (p.sum() * 0.625 * 0.75 * 3 / 1000, r.sum() * 0.625 * 0.75 * 3 / 1000)
        )


def itk_hausdorff(result, reference, spacing):
    import itk

    # The class itself: asking itk for the template first loads every module it depends on, five times as long.
    from itk.itkHausdorffDistanceImageFilterPython import itkHausdorffDistanceImageFilterIF3IF3 as HausdorffFilter

    images = []
    for mask in (result, reference):
        image = itk.image_from_array(np.ascontiguousarray(mask.T).astype(np.float32))
        image.SetSpacing(spacing)
        images.append(image)
    measure = HausdorffFilter.New()
    measure.SetInput1(images[0])
    measure.SetInput2(images[1])
    measure.Update()
    return measure.GetHausdorffDistance()


def test_hd_equals_itk_where_no_surface_lies_inside_the_other_mask():
    # ITK measures from every voxel of one mask to the other *mask*, zero where they overlap; we measure surface to surface.
    # The two agree when the farthest point lies outside the other mask, as for solid masks of like size.
    for name in ("ellipsoids", "touching the border", "apart, in far corners", "single voxels"):
        assert score(*PAIRS[name])["whole"].hd_mm == pytest.approx(itk_hausdorff(*PAIRS[name], SPACING), abs=1e-4), name
    # A hole is an inner surface: 7 mm from the outer one, while none of its voxels is over 3 mm from the holed mask.
    solid = box((23, 23, 23), (1, 22), (1, 22), (1, 22))
    holed = solid & ~box((23, 23, 23), (9, 14), (9, 14), (9, 14)) & 1
    assert score(holed, solid, (1, 1, 1))["whole"].hd_mm == pytest.approx(7)
    assert itk_hausdorff(holed, solid, (1, 1, 1)) == pytest.approx(3)


def test_both_ways_to_the_nearest_point_give_the_same_distances(monkeypatch):
    for name in ("blobs", "ellipsoids", "apart, in far corners"):
        found = []
        for rate in (0, 10**9):  # always the tree, always the transform
            monkeypatch.setattr(metrics, "_VOXELS_PER_POINT", rate)
            found.append(surface_distances(*(m.astype(bool) for m in PAIRS[name]), SPACING))
        np.testing.assert_allclose(found[0].result_mm, found[1].result_mm, atol=1e-9)
        np.testing.assert_allclose(found[0].reference_mm, found[1].reference_mm, atol=1e-9)


@pytest.mark.parametrize(("axis", "step"), [(0, 4), (1, 3), (2, 1), (2, 2)])
def test_a_box_shifted_along_an_axis_has_that_hausdorff_distance(axis, step):
    reference = box((30, 30, 14), (8, 20), (6, 18), (3, 9))
    result = np.roll(reference, step, axis)
    row = score(result, reference)["whole"]
    assert row.hd_mm == pytest.approx(step * SPACING[axis])
    side = (12, 12, 6)[axis]
    assert row.dsc == pytest.approx((side - step) / side)
    assert (row.rvd_percent, row.arvd_percent) == (0, 0)
    assert row.reference_ml == row.volume_ml == pytest.approx(12 * 12 * 6 * math.prod(SPACING) / 1000)


def test_concentric_balls_are_the_difference_of_their_radii_apart_everywhere():
    grid, spacing = (61, 61, 41), (1.0, 1.0, 1.5)
    big, small = (ellipsoid(grid, (30, 30, 20), (r, r, r / 1.5)) for r in (28, 20))
    for row in score(big, small, spacing).values():
        assert row.abd_mm == pytest.approx(8, abs=0.5)
        assert row.hd95_mm == pytest.approx(8, abs=1)
        assert row.hd_mm == pytest.approx(8, abs=1.5)
    assert score(big, small, spacing)["whole"].rvd_percent == pytest.approx(100 * ((28 / 20) ** 3 - 1), rel=0.02)


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (1, (0, 1, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (1, 2, 1)),
        (5, (2, 1, 2)),
        (7, (2, 3, 2)),
        (8, (3, 2, 3)),
        (24, (8, 8, 8)),
    ],
)
def test_apex_and_base_are_equal_thirds_and_take_what_overshoots(slices, expected):
    counts = np.zeros(slices + 7, int)
    counts[3 : 3 + slices] = 5
    found = region_slices(counts)
    apex, mid, base = (found[r].stop - found[r].start for r in THIRDS)
    assert (apex - 3, mid, base - 4) == expected
    assert [*range(slices + 7)[found["apex"]], *range(slices + 7)[found["mid"]], *range(slices + 7)[found["base"]]] == list(
        range(slices + 7)
    )


def test_low_slices_are_the_apex():
    reference = box((10, 10, 20), (3, 7), (3, 7), (4, 13))
    result = reference.copy()
    result[:, :, 4:7] = 0
    result[4:6, 4:6, 4:7] = 1  # worse in the lowest, that is most inferior, third only
    rows = score(result, reference)
    assert rows["apex"].dsc == pytest.approx(2 * 4 / (4 + 16))
    assert rows["mid"].dsc == rows["base"].dsc == 1


def test_overshoot_is_charged_to_its_end_and_cuts_make_no_surface():
    reference = box((20, 20, 20), (5, 15), (5, 15), (4, 13))
    result = box((20, 20, 20), (5, 15), (5, 15), (4, 16))  # three slices too many beyond the base
    rows = score(result, reference, (1, 1, 2))
    for region in ("apex", "mid"):  # a mask cut at the region's border would show a face there
        assert astuple(rows[region])[3:9] == (1, 0, 0, 0, 0, 0)
    assert rows["base"].hd_mm == rows["whole"].hd_mm == 6
    assert rows["base"].rvd_percent == pytest.approx(100)
    assert rows["whole"].rvd_percent == pytest.approx(100 / 3)


def test_regions_add_up_to_the_whole():
    for seed in range(3):
        rows = score(*blobs(seed))
        whole, thirds = rows["whole"], [rows[r] for r in THIRDS]
        assert whole.hd_mm == max(r.hd_mm for r in thirds)
        for field in ("volume_ml", "reference_ml"):
            assert getattr(whole, field) == pytest.approx(sum(getattr(r, field) for r in thirds))
        overlap = sum(r.dsc * (r.volume_ml + r.reference_ml) for r in thirds)
        assert whole.dsc == pytest.approx(overlap / (whole.volume_ml + whole.reference_ml))


@pytest.mark.parametrize("name", PAIRS)
def test_identity_swap_and_scale(name):
    result, reference = PAIRS[name]
    for row in score(reference, reference).values():
        if row.status == "ok":
            assert astuple(row)[3:9] == (1, 0, 0, 0, 0, 0)
    here, there = score(result, reference)["whole"], score(reference, result)["whole"]
    assert (here.dsc, here.hd_mm, here.hd95_mm) == (there.dsc, there.hd_mm, there.hd95_mm)
    assert here.abd_mm == pytest.approx(there.abd_mm)
    assert (1 + here.rvd_percent / 100) * (1 + there.rvd_percent / 100) == pytest.approx(1)
    doubled = score(result, reference, [2 * s for s in SPACING])
    for region, row in score(result, reference).items():
        twice = doubled[region]
        np.testing.assert_equal((twice.status, twice.dsc, twice.rvd_percent), (row.status, row.dsc, row.rvd_percent))
        assert [getattr(twice, d) for d in DISTANCES] == pytest.approx([2 * getattr(row, d) for d in DISTANCES], nan_ok=True)
        assert twice.volume_ml == pytest.approx(8 * row.volume_ml)


def test_a_larger_grid_changes_nothing_but_the_diagonal():
    result, reference = blobs(1)
    padded = [np.pad(m, ((5, 0), (2, 9), (3, 4))) for m in (result, reference)]
    # Slices beyond the grid are empty, so padding may move no voxel to another region either.
    for small, large in zip(score(result, reference).values(), score(*padded).values(), strict=True):
        assert astuple(small) == pytest.approx(astuple(large))


EMPTY = np.zeros((12, 10, 8), np.uint8)
FULL = np.ones((12, 10, 8), np.uint8)
BODY = box(EMPTY.shape, (2, 9), (2, 8), (1, 7))
VOXEL = box(EMPTY.shape, (5, 6), (5, 6), (4, 5))
ONE_SLICE = box(EMPTY.shape, (2, 9), (2, 8), (3, 4))
TWO_SLICES = box(EMPTY.shape, (2, 9), (2, 8), (3, 5))
HALF = BODY & box(EMPTY.shape, (0, 12), (0, 10), (4, 8))
GAP = BODY & ~box(EMPTY.shape, (0, 12), (0, 10), (3, 5)) & 1


@pytest.mark.parametrize(
    ("result", "reference", "statuses"),  # whole, apex, mid, base
    [
        (EMPTY, EMPTY, "absent absent absent absent"),
        (EMPTY, BODY, "miss miss miss miss"),
        (BODY, EMPTY, "false_positive false_positive false_positive false_positive"),
        (np.roll(VOXEL, 3, 2), EMPTY, "false_positive absent false_positive absent"),
        (VOXEL, VOXEL, "ok absent ok absent"),
        (VOXEL, BODY, "ok miss ok miss"),
        (ONE_SLICE, ONE_SLICE, "ok absent ok absent"),
        (TWO_SLICES, ONE_SLICE, "ok absent ok false_positive"),
        (ONE_SLICE, TWO_SLICES, "ok ok absent miss"),
        (TWO_SLICES, TWO_SLICES, "ok ok absent ok"),
        (HALF, BODY, "ok miss ok ok"),
        (BODY, GAP, "ok ok false_positive ok"),
        (GAP, BODY, "ok ok miss ok"),
        (FULL, FULL, "ok ok ok ok"),
        (FULL, BODY, "ok ok ok ok"),
        (EMPTY, FULL, "miss miss miss miss"),
    ],
)
def test_empty_and_thin_masks(result, reference, statuses):
    diagonal, nan = math.hypot(12 * 0.625, 10 * 0.75, 8 * 3.0), math.nan
    rows = score(result, reference)
    assert " ".join(row.status for row in rows.values()) == statuses
    for row in rows.values():
        values = astuple(row)[3:9]
        if row.status == "miss":
            assert values == pytest.approx((0, -100, 100, diagonal, diagonal, diagonal))
            assert row.reference_ml > 0 == row.volume_ml
        elif row.status == "false_positive":
            assert values == pytest.approx((0, nan, nan, diagonal, diagonal, diagonal), nan_ok=True)
            assert row.volume_ml > 0 == row.reference_ml
        elif row.status == "absent":
            assert values == pytest.approx((nan,) * 6, nan_ok=True)
            assert row.volume_ml == row.reference_ml == 0
        else:
            assert np.isfinite(values).all()
            assert max(values[3:]) < diagonal


def test_a_miss_is_worse_than_the_farthest_misplacement():
    first, last = EMPTY.copy(), EMPTY.copy()
    first[0, 0, 0] = last[-1, -1, -1] = 1
    assert score(first, last)["whole"].hd_mm < score(EMPTY, last)["whole"].hd_mm == image_diagonal_mm(EMPTY.shape, SPACING)


def test_each_class_is_scored_as_if_alone():
    rng = np.random.default_rng(4)
    shape, names = (40, 40, 30), [f"part {i}" for i in range(1, 9)]
    reference, result = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for index in range(1, 8):  # 8 stays absent; 3 is missed; 5 is a false positive
        centre = rng.integers(6, 24, 3)
        if index != 5:
            reference[ellipsoid(shape, centre, (5, 4, 4)) > 0] = index
        if index != 3:
            result[ellipsoid(shape, centre + np.array([1, 2, 1]), (5, 5, 4)) > 0] = index
    rows = score_case(result, reference, SPACING, names, regions=("base", "whole"))
    assert [(r.label, r.region) for r in rows] == [(n, r) for n in names for r in ("base", "whole")]
    for row in rows:
        index = names.index(row.label) + 1
        alone = score((result == index).astype(np.uint8), (reference == index).astype(np.uint8))[row.region]
        np.testing.assert_equal(astuple(row)[1:], astuple(alone)[1:])
    assert [r.status for r in rows[1::2]] == ["ok", "ok", "miss", "ok", "false_positive", "ok", "ok", "absent"]


def test_memory_order_and_integer_type_do_not_matter_and_the_input_stays():
    result, reference = blobs(2)
    expected, before = score(result, reference), result.copy()
    assert score(np.asfortranarray(result), np.ascontiguousarray(reference.T).T) == expected
    assert score(result.astype(np.int64), reference.astype(bool)) == expected
    assert (result == before).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"result": BODY[:, :, 1:]},
            DataError,
            r"case07: result: expected the reference's shape \(12, 10, 8\), found \(12, 10, 7\)",
        ),
        (
            {"result": BODY[None]},
            DataError,
            r"case07: result: expected an \(x, y, z\) array of integer class indices, found shape \(1, 12",
        ),
        ({"reference": BODY.astype(float)}, DataError, r"case07: reference: .* of float64; .*not probabilities"),
        ({"result": BODY * 3}, DataError, r"case07: result: expected class indices 0..1, found values 0..3"),
        ({"reference": -BODY.astype(np.int16)}, DataError, r"case07: reference: expected class indices 0..1, found values -1..0"),
        ({"result": BODY[:0], "reference": BODY[:0]}, DataError, r"found shape \(0, 10, 8\)"),
        ({"spacing_mm": (1, 1)}, DataError, r"case07: spacing_mm: expected three positive numbers in mm, found \[1.0, 1.0\]"),
        ({"spacing_mm": (1, 0, 1)}, DataError, r"spacing_mm: .*found \[1.0, 0.0, 1.0\]"),
        ({"spacing_mm": (1, math.nan, 1)}, DataError, r"spacing_mm: .*nan"),
        ({"class_names": []}, ConfigError, r"class_names: expected 1 to 254 different names"),
        ({"class_names": "prostate"}, ConfigError, r"class_names: .*found 'prostate'"),
        ({"class_names": ["a", "a"]}, ConfigError, r"class_names"),
        ({"regions": ("whole", "tip")}, ConfigError, r"regions: expected one or several of whole, apex, mid, base"),
        ({"regions": ()}, ConfigError, r"regions"),
    ],
)
def test_bad_input(change, error, match):
    options = {"result": BODY, "reference": BODY, "spacing_mm": SPACING, "class_names": ["prostate"], "case": "case07"} | change
    with pytest.raises(error, match=match):
        score_case(**options)


def test_all_faults_come_at_once():
    with pytest.raises(DataError) as caught:
        score_case(BODY[1:] * 2, BODY, (1, 1, -1), ["prostate"], case="case07")
    assert [fault.field for fault in caught.value.faults] == ["result", "result", "spacing_mm"]


@pytest.mark.parametrize(("case", "shift"), [("Case17", (1, 0, 0)), ("Case25", (2, -1, 1))])
def test_shifted_real_masks_equal_monai(case, shift):
    mask = real_data("promise12") / f"{case}_segmentation.mhd"
    header = dict(line.split(" = ") for line in mask.read_text().splitlines())
    size, spacing = ([float(n) for n in header[key].split()] for key in ("DimSize", "ElementSpacing"))
    reference = np.fromfile(mask.with_suffix(".raw"), np.uint8).reshape([int(n) for n in size[::-1]]).T
    row = score(np.roll(reference, shift, (0, 1, 2)), reference, spacing)["whole"]
    for metric, value in monai_metrics(np.roll(reference, shift, (0, 1, 2)), reference, spacing).items():
        assert getattr(row, metric) == pytest.approx(value, abs=1e-4), metric
    assert row.hd_mm <= math.hypot(*(s * k for s, k in zip(spacing, shift, strict=True))) + 1e-9
    assert row.rvd_percent == 0


# --- what nobody labelled


@pytest.mark.parametrize("seed", range(3))
def test_ignored_voxels_are_left_out_of_both_masks(seed):
    result, reference = blobs(seed)
    unknown = np.random.default_rng(seed).random(result.shape) < 0.3
    want = score(np.where(unknown, 0, result), np.where(unknown, 0, reference))
    for garbage in (result, 1 - result, np.zeros_like(result)):
        got = score(np.where(unknown, garbage, result), np.where(unknown, 255, reference))
        assert got == want


def test_a_case_without_any_label_is_absent():
    result, reference = blobs(0)
    rows = score(result, np.full_like(reference, 255))
    assert {row.status for row in rows.values()} == {"absent"}


def test_only_a_reference_may_be_ignored():
    result, reference = blobs(0)
    with pytest.raises(DataError, match="result: expected class indices"):
        score(np.where(result, 255, 0), reference)
    with pytest.raises(DataError, match=r"reference: expected class indices 0\.\.1, found values 0\.\.7"):
        score(result, np.where(reference, 7, 255 * result))


@pytest.mark.parametrize("shape", [(12, 11, 9), (12, 11, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_surface_dice_is_monais_at_every_tolerance_on_uneven_voxels_and_in_one_slice(seed, shape):
    """MONAI gets an image of two dimensions where there is one slice."""
    import torch
    from monai.metrics import compute_surface_dice

    result, reference = (mask[: shape[0], : shape[1], 4 : 4 + shape[2]] for mask in blobs(seed, (12, 11, 14)))
    one_hot = [torch.from_numpy(np.stack([mask == 0, mask == 1])[None].astype(np.float32)) for mask in (result, reference)]
    flat = [mask[..., 0] for mask in one_hot] if shape[2] == 1 else one_hot
    for tolerance in (0.0, 0.7, 1.5, 3.0, 30.0):
        found = score(result, reference, tolerance_mm={"prostate": tolerance})["whole"]
        wanted = compute_surface_dice(*flat, [tolerance + 1e-6], spacing=SPACING[: flat[0].ndim - 2])
        assert found.nsd == pytest.approx(float(wanted), abs=1e-6)
        assert found.tolerance_mm == tolerance
    assert found.nsd == 1
    assert score(result, reference)["whole"].tolerance_mm == 2.0


def test_the_surface_dice_of_a_region_counts_its_own_points_and_a_distance_of_the_very_tolerance_is_within_it():
    reference = box((20, 20, 9), (5, 15), (5, 15), (0, 9))
    result = reference.copy()
    result[..., 6:] = np.roll(reference[..., 6:], 5, 0)  # the base is 5 voxels of 0.4 mm aside
    spacing = (0.4, 0.4, 50.0)
    exact, less = (score(result, reference, spacing, tolerance_mm={"prostate": mm}) for mm in (2.0, 1.99))
    assert [exact[region].nsd for region in ("whole", "apex", "mid", "base")] == [1, 1, 1, 1]
    assert (less["apex"].nsd, less["mid"].nsd) == (1, 1)
    assert 0 < less["base"].nsd < 1
    assert less["base"].nsd < less["whole"].nsd < 1


def test_an_empty_mask_has_no_surface_dice_or_that_of_a_miss_and_pieces_are_of_the_whole_alone():
    mask, empty = box((8, 8, 9), (1, 3), (1, 3), (0, 9)), np.zeros((8, 8, 9), np.uint8)
    two = mask | box((8, 8, 9), (5, 7), (5, 7), (0, 9))
    assert (score(empty, mask)["whole"].nsd, score(mask, empty)["whole"].nsd) == (0, 0)
    assert math.isnan(score(empty, empty)["whole"].nsd)
    rows = score(mask, two)
    pieces = ("reference_pieces", "found_pieces", "missed_pieces", "false_pieces")
    assert [getattr(rows["whole"], name) for name in pieces] == [2, 1, 1, 0]
    assert [getattr(rows["apex"], name) for name in pieces] == [None] * 4


def test_structures_of_several_classes_are_scored_as_masks_of_their_own():
    """A class that neither structure has, as of voxels shared in a new way, counts in neither."""
    random = np.random.default_rng(0)
    result, reference = (random.integers(0, 6, (12, 11, 7)).astype(np.uint8) for _ in range(2))
    reference[0, 0] = 255
    members = {"gland": (1, 3), "lesion": (2, 3, 4)}
    rows = score_case(result, reference, (1.0, 1.5, 2.0), list(members), structures=tuple(members.values()))
    for name, own in members.items():
        one, other = (np.isin(a, own).astype(np.uint8) for a in (result, reference))
        other[0, 0] = 255
        alone = score_case(one, other, (1.0, 1.5, 2.0), [name])
        assert [row for row in rows if row.label == name] == alone
