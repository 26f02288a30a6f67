"""The two preprocessing settings, their configuration errors, what they do to a scan, and the cache."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.transforms import preprocessing as preprocess
from oasis_monai.transforms.preprocessing import PreprocessCache, Preprocessing, label_lost, restore, view_faults
from oasis_monai.utils.errors import ConfigError
from tests.data.formats.test_dicom import affine
from tests.helpers.dicom_objects import write_enhanced, write_rtstruct
from tests.helpers.real import real_data
from tests.transforms.test_spatial import WORLDS, depth, dice, ellipsoid, geometry, middle_mm, positions_mm, random_label

PAPER = Preprocessing("paper", 2, (24, 40))
FLAT = Preprocessing("physical", 2, (16, 18), (1.3, 1.1), "zscore")
SOLID = Preprocessing("physical", 3, (16, 18, 8), (1.3, 1.1, 2.9), "zscore")
NAMES_OF_ONE_CHANNEL = {"c4456eb0a59d0c75cf834ceb68ac101281303a47.image", "f2789a87d420f4dbfbcb08e0288f7a9aaab10909.label"}
"""Of case ``a`` under ``SOLID``, as they were before scans had several channels."""
settings = pytest.mark.parametrize("setting", [PAPER, FLAT, SOLID], ids=["paper", "physical 2D", "physical 3D"])
world = pytest.mark.parametrize("native", WORLDS.values(), ids=WORLDS)


def volume(native, seed=0, classes=3):
    image = 900 * torch.rand(1, *native.shape, generator=torch.Generator().manual_seed(seed)) ** 2
    return Volume(f"case{seed}", image, random_label(native.shape, classes, seed), native)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "papr"}, r"^preprocessing\.name: expected 'paper' or 'physical', found 'papr'"),
        ({"name": None}, r"^preprocessing\.name"),
        ({"name": "paper", "spatial_dims": 3}, r"^preprocessing\.name: .* found 'paper'; set preprocessing\.name=physical"),
        ({"name": "paper", "spatial_dims": 2, "spacing_mm": (1.0, 1.0)}, r"^preprocessing\.spacing_mm: .*only resizes"),
        ({"spatial_dims": 4}, r"^preprocessing\.spatial_dims: expected 2 or 3, found 4"),
        ({"spatial_dims": True}, r"^preprocessing\.spatial_dims"),
        ({"size": (80, 80)}, r"^preprocessing\.size: expected 3 values, each a whole number above 0, found \(80, 80\)"),
        ({"size": (80, 80, 32, 1)}, r"^preprocessing\.size"),
        ({"size": (80, 80, 0)}, r"^preprocessing\.size"),
        ({"size": (80, 80, -32)}, r"^preprocessing\.size"),
        ({"size": (80, 80, 32.5)}, r"^preprocessing\.size"),
        ({"size": (80, 80, True)}, r"^preprocessing\.size"),
        ({"size": "808"}, r"^preprocessing\.size"),
        ({"size": 80}, r"^preprocessing\.size"),
        ({"spatial_dims": 2, "size": (80, 80, 32)}, r"^preprocessing\.size: expected 2 values"),
        ({"spacing_mm": (1.25, 1.25)}, r"^preprocessing\.spacing_mm: expected 3 values, each a number of mm above 0"),
        ({"spacing_mm": (1.25, 1.25, 0.0)}, r"^preprocessing\.spacing_mm"),
        ({"spacing_mm": (1.25, float("nan"), 3.0)}, r"^preprocessing\.spacing_mm"),
        ({"spacing_mm": (1.25, float("inf"), 3.0)}, r"^preprocessing\.spacing_mm"),
        ({"spacing_mm": ("1.25", 1.25, 3.0)}, r"^preprocessing\.spacing_mm"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_names_its_key(arguments, match):
    with pytest.raises(ConfigError, match=match):
        Preprocessing(**arguments)


def test_defaults_and_lists():
    assert Preprocessing() == Preprocessing("physical", 3, [96, 96, 32], [1, 1, 3], "local")
    assert Preprocessing(spatial_dims=2) == Preprocessing("physical", 2, [96, 96], [1, 1], "local")
    assert Preprocessing("paper", 2).size == (320, 320)
    assert (Preprocessing("paper", 2).spacing_mm, Preprocessing("paper", 2).intensity) == (None, "zscore")
    assert hash(Preprocessing(size=[64, 64, 16])) == hash(Preprocessing(size=(64, 64, 16)))


@pytest.mark.parametrize(
    ("size", "divisor", "nearest"),
    [
        ((80, 84, 32), (16, 16, 16), r"\(80, 80, 32\) or \(80, 96, 32\)"),
        ((8, 80, 32), (16, 16, 16), r"the nearest that work are \(16, 80, 32\)$"),
        ((80, 80, 30), (16, 16, 4), r"\(80, 80, 28\) or \(80, 80, 32\)"),
    ],
)
def test_sizes_are_checked_against_the_networks_divisor(size, divisor, nearest):
    setting = Preprocessing(size=size)
    with pytest.raises(ConfigError, match=nearest) as caught:
        setting.check_divisor(divisor)
    assert caught.value.key == "preprocessing.size"
    setting.check_divisor((4, 4, 2))


@settings
@world
@pytest.mark.parametrize("lying", ["coronal", "sagittal"])
def test_other_slices_are_those_of_the_turned_patient(setting, native, lying):
    """As if the scan's own axes had been called by the names of the axes that its slices take."""
    scan, axes = volume(native), list(preprocess.grids.SLICE_AXES[lying])
    turned = dataclasses.replace(setting, slice_axis=lying)
    got = turned.apply(scan)
    if np.abs(native.affine[:3, :3]).max(0).sum() == np.abs(native.affine[:3, :3]).sum():  # the axes are the world's
        affine = native.affine.copy()
        affine[:3] = affine[axes]
        expected = setting.apply(dataclasses.replace(scan, geometry=Geometry(native.shape, affine)))
        assert torch.equal(got.image, expected.image)
        assert torch.equal(got.label, expected.label)
    assert got.image.shape[1:3] == setting.size[:2]
    own = preprocess.grids.closest_ras(native)
    if setting.spatial_dims == 2:
        assert got.image.shape[3] == own.shape[axes[2]]
    back = restore(torch.nn.functional.one_hot(got.label[0].long(), 3).movedim(-1, 0).float(), got.geometry, native)
    seen = depth(got.geometry, native, 1.0)
    assert dice(back.label[seen] > 0, scan.label[0][seen] > 0) > 0.6


def test_axial_slices_are_in_no_name():
    assert "slice_axis" not in preprocess.without_absent(Preprocessing())
    assert preprocess.without_absent(Preprocessing(slice_axis="coronal"))["slice_axis"] == "coronal"
    with pytest.raises(ConfigError, match=r"slice_axis: expected one of \['axial', 'coronal', 'sagittal'\], found 'oblique'"):
        Preprocessing(slice_axis="oblique")


@settings
@world
def test_a_scan_comes_normalised_and_in_place(setting, native):
    scan = volume(native)
    before = scan.image.clone(), scan.label.clone()
    got = setting.apply(scan)
    own = preprocess.grids.closest_ras(native)
    assert got.geometry.shape == (*setting.size, *own.shape[len(setting.size) :])
    assert got.image.shape == got.label.shape == (1, *got.geometry.shape)
    assert (got.image.dtype, got.label.dtype, got.native) == (torch.float32, torch.uint8, native)
    assert torch.equal(scan.image, before[0])
    assert torch.equal(scan.label, before[1])
    within = depth(native, got.geometry, -0.5)
    values = got.image[0][within].double()
    assert abs(float(values.mean())) < 1e-4
    assert abs(float(values.std(correction=0)) - 1) < 1e-4
    assert not got.image[0][~within].any()
    assert not got.label[0][~within].any()
    without = setting.apply(dataclasses.replace(scan, label=None))
    assert without.label is None
    assert torch.equal(without.image, got.image)


@world
def test_the_paper_clips_nothing_and_the_physical_setting_clips_outliers(native):
    scan = volume(native)
    spiked = scan.image.clone()
    spiked[0, native.shape[0] // 2, native.shape[1] // 2, native.shape[2] // 2] = 1e5
    scan = dataclasses.replace(scan, image=spiked)
    assert Preprocessing("paper", 2, native.shape[:2]).apply(scan).image.max() > 10
    assert SOLID.apply(scan).image.max() < 5


@world
def test_anatomy_stays_where_it_is_in_mm(native):
    truth = ellipsoid(native, middle_mm(native) + np.array([1.0, -2.0, 1.5]), np.array([7.0, 5.0, 8.0]))
    scan = Volume("a", truth.float() * 100, truth, native)
    for setting in (Preprocessing("paper", 2, (40, 44)), Preprocessing(size=(40, 40, 24), spacing_mm=(0.8, 0.8, 1.5))):
        got = setting.apply(scan)
        centre = positions_mm(got.geometry)[got.label[0].numpy() > 0].mean(0)
        np.testing.assert_allclose(centre, positions_mm(native)[truth[0].numpy() > 0].mean(0), atol=0.25)
        seen = got.image[0] > got.image[0].float().mean() + 1  # the image went the same way as the label
        assert dice(seen, got.label[0] > 0) > 0.8


@pytest.mark.parametrize("setting", [PAPER, FLAT], ids=["paper", "physical"])
@pytest.mark.parametrize("name", ["anisotropic", "oblique"])
def test_in_two_dimensions_a_slice_stays_a_slice(setting, name):
    native = WORLDS[name]
    scan = volume(native)
    changed = scan.image.clone()
    changed[..., 4] = 450
    ours, theirs = (preprocess.grids.resample(i, native, setting.working_geometry(native)) for i in (scan.image, changed))
    flip = native.affine[2, 2] < 0
    differs = (ours - theirs).abs().amax(dim=(0, 1, 2)) > 1e-2
    assert differs.nonzero().flatten().tolist() == [native.shape[2] - 1 - 4 if flip else 4]


@settings
def test_a_constant_scan_becomes_zero(setting):
    native = WORLDS["oblique"]
    got = setting.apply(Volume("a", torch.full((1, *native.shape), 100.3), None, native))
    assert not got.image.any()


def test_a_scan_with_nan_is_refused():
    native = WORLDS["plain"]
    with pytest.raises(ValueError, match="finite"):
        SOLID.apply(Volume("a", torch.full((1, *native.shape), torch.nan), None, native))


@settings
@world
def test_labels_come_back_on_the_native_grid(setting, native):
    truth = ellipsoid(native, middle_mm(native), np.array([8.0, 6.0, 9.0]))
    fine = {"paper": (60, 60), "physical": (40, 40)}[setting.name]
    size, spacing = (*fine, 30)[: setting.spatial_dims], (0.6, 0.6, 1.2)[: setting.spatial_dims]
    setting = dataclasses.replace(setting, size=size, spacing_mm=None if setting.name == "paper" else spacing)
    made = setting.apply(Volume("a", truth.float(), truth, native))
    onehot = torch.cat([made.label == 0, made.label == 1]).float()
    back = restore(onehot, made.geometry, made.native, keep_probability=True, case="a")
    assert dice(back.label > 0, truth[0] > 0) > 0.96
    assert (back.case, back.geometry, back.label.dtype) == ("a", native, torch.uint8)
    assert torch.equal(back.label > 0, back.probability[1] >= 0.5)


@pytest.mark.parametrize(
    ("box", "in_plane_mm", "lost"),
    [
        (np.s_[:, 15:17, 12:15, 3:6], 1.0, 0.0),
        (np.s_[:, 0:2, 0:2, 0:2], 1.0, 1.0),
        (np.s_[:, :, 12, 4], 1.0, 6 / 30),  # 24 of its 30 voxels of 1 mm lie in the 24 mm field of view
        (np.s_[:, 0:0], 1.0, 0.0),
        (np.s_[:, 14, 12, 4], 3.0, 1.0),  # seen, but too small to survive 3 mm voxels
    ],
)
def test_label_lost_is_the_fraction_cut_away(box, in_plane_mm, lost):
    native = geometry((30, 26, 9), (1.0, 1.0, 4.0))
    label = torch.zeros(1, *native.shape, dtype=torch.uint8)
    label[box] = 1
    scan = Volume("a", torch.rand(1, *native.shape), label, native)
    made = Preprocessing(size=(int(24 / in_plane_mm), 4, 4), spacing_mm=(in_plane_mm, in_plane_mm, 4.0)).apply(scan)
    assert label_lost(scan, made) == pytest.approx(lost)
    assert label_lost(dataclasses.replace(scan, label=None), dataclasses.replace(made, label=None)) == 0


@pytest.fixture
def world_on_disk(tmp_path, monkeypatch):
    """Two cases whose `files` are real bytes and whose reading is counted."""
    reads, hashes = [], []

    def read_volume(case, label_values, ignore=None):
        reads.append((case.id, case.label is not None))
        scan = volume(WORLDS["oblique"], seed=case.image.read_bytes()[0])
        return dataclasses.replace(scan, case=case.id, label=scan.label if case.label else None)

    original = preprocess.file_digest
    monkeypatch.setattr(preprocess.volumes, "read_volume", read_volume)
    monkeypatch.setattr(preprocess.headers, "data_files", lambda path: (path, path.with_suffix(".raw")))
    monkeypatch.setattr(preprocess, "file_digest", lambda *files: (hashes.append(files), original(*files))[1])
    for name in ("a", "b", "a_label", "b_label"):
        (tmp_path / f"{name}.mhd").write_bytes(name.encode())
        (tmp_path / f"{name}.raw").write_bytes(b"voxels of " + name.encode())
    cases = [Case(n, tmp_path / f"{n}.mhd", tmp_path / f"{n}_label.mhd") for n in ("a", "b")]
    return cases, tmp_path / "cache", reads, hashes


def same(one, other):
    for name in ("image", "label"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and a.dtype == b.dtype)
    for name in ("geometry", "native"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.shape == b.shape
        assert np.array_equal(a.affine, b.affine)
    assert one.case == other.case


def test_a_cached_case_is_the_case_and_is_read_once(world_on_disk):
    cases, folder, reads, hashes = world_on_disk
    fresh = [PreprocessCache(None, SOLID, (0, 1, 2)).get(c) for c in cases]
    reads.clear()
    cache = PreprocessCache(folder, SOLID, (0, 1, 2))
    for _ in range(3):
        for case, want in zip(cases, fresh, strict=True):
            same(cache.get(case), want)
    assert reads == [("a", True), ("b", True)]
    assert len(hashes) == 4  # every scan's bytes once, whatever the number of calls
    later = PreprocessCache(folder, SOLID, (0, 1, 2))
    same(later.get(cases[0]), fresh[0])
    assert len(reads) == 2
    assert later.lost == {"a": cache.lost["a"]}
    assert cache.lost["a"] > 0


def test_a_target_shares_its_image_and_carries_no_label(world_on_disk):
    cases, folder, reads, _ = world_on_disk
    cache = PreprocessCache(folder, SOLID, (0, 1, 2))
    want = cache.get(cases[0])
    target = cache.get(cases[0].without_label())
    same(target, dataclasses.replace(want, label=None))
    assert reads == [("a", True)]
    other = PreprocessCache(folder, SOLID, (0, 1, 2))
    assert other.get(cases[1].without_label()).label is None
    assert other.get(cases[1]).label is not None
    assert reads == [("a", True), ("b", False), ("b", True)]
    assert other.lost.keys() == {"b"}


def test_other_bytes_settings_or_label_values_are_other_entries(world_on_disk, monkeypatch):
    cases, folder, reads, _ = world_on_disk
    case = cases[0]

    def reads_of(setting=SOLID, values=(0, 1, 2), cache=None):
        before = len(reads)
        (cache or PreprocessCache(folder, setting, values)).get(case)
        return len(reads) - before

    kept = PreprocessCache(folder, SOLID, (0, 1, 2))
    assert [reads_of(cache=kept), reads_of()] == [1, 0]
    assert [reads_of(dataclasses.replace(SOLID, size=(16, 18, 12))), reads_of(values=(0, 2, 1)), reads_of(PAPER)] == [1, 1, 1]
    for path in (case.image.with_suffix(".raw"), case.label.with_suffix(".raw")):
        path.write_bytes(path.read_bytes() + b" changed")
        assert [reads_of(cache=kept), reads_of(), reads_of(cache=kept)] == [1, 0, 0]
    os.utime(case.image)  # a new time, the same bytes
    assert reads_of(cache=kept) == 0
    monkeypatch.setattr(preprocess, "PREPROCESS_VERSION", -1)
    assert [reads_of(), reads_of()] == [1, 0]


@pytest.mark.parametrize("ending", ["image", "label"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_made_anew(world_on_disk, ending, damage):
    cases, folder, reads, _ = world_on_disk
    want = PreprocessCache(folder, SOLID, (0, 1, 2)).get(cases[0])
    (entry,) = folder.glob(f"*.{ending}")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    entry.write_bytes(
        {"flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "cut": whole[:middle], "empty": b""}[damage]
    )
    same(PreprocessCache(folder, SOLID, (0, 1, 2)).get(cases[0]), want)
    assert entry.read_bytes() == whole
    assert len(reads) == 2


def test_cut_labels_are_warned_of(world_on_disk):
    cases, folder, _, _ = world_on_disk
    cache = PreprocessCache(folder, SOLID, (0, 1, 2))
    for case in cases:
        cache.get(case)
    faults = cache.faults()
    assert [f.case for f in faults] == ["a", "b"]
    assert {f.severity for f in faults} == {"warning"}
    assert f"{cache.lost['a']:.1%} of it outside" in str(faults[0])
    assert [f.case for f in view_faults({"c": 0.02, "d": 0.01, "b": 0.5})] == ["b", "c"]


def test_a_real_prostate_with_an_odd_number_of_slices_keeps_its_volume(tmp_path):
    """23 slices of 3 mm into 32 of 3 mm: centred on the half voxel, the label used to grow by 12.5 %."""
    folder = real_data("promise12")
    case = Case("Case28", folder / "Case28.mhd", folder / "Case28_segmentation.mhd")
    fine = Preprocessing(size=(80, 80, 32), spacing_mm=(1.25, 1.25, 3.0))
    cache = PreprocessCache(tmp_path, fine, (0, 1))
    made = cache.get(case)
    same(PreprocessCache(tmp_path, fine, (0, 1)).get(case), made)
    truth = preprocess.volumes.read_volume(case, (0, 1)).label[0]
    back = restore(torch.cat([made.label == 0, made.label == 1]).float(), made.geometry, made.native).label
    assert dice(back > 0, truth > 0) > 0.98
    assert abs(float(back.sum()) / float(truth.sum()) - 1) < 0.01
    assert cache.lost == {"Case28": 0}


def test_geometries_survive_the_cache_to_the_last_bit(world_on_disk):
    cases, folder, _, _ = world_on_disk
    PreprocessCache(folder, SOLID, (0, 1)).get(cases[0])
    got = PreprocessCache(folder, SOLID, (0, 1)).get(cases[0])
    assert isinstance(got.geometry, Geometry)
    assert got.geometry.affine.dtype == np.float64
    assert np.array_equal(got.native.affine, WORLDS["oblique"].affine)
    assert all(type(n) is int for n in (*got.geometry.shape, *got.native.shape))


# --- several channels, windows, what nobody labelled


@pytest.mark.parametrize(
    "more", [{}, {"intensity": "local"}, {"window": (100, 600)}, {"intensity": "window", "window": (0, 500)}]
)
@world
def test_every_channel_is_preprocessed_as_if_it_were_alone(native, more):
    setting = dataclasses.replace(SOLID, **more)
    one, other = volume(native, 1), volume(native, 2)
    other = dataclasses.replace(other, image=1000 - 0.2 * other.image)
    both = setting.apply(dataclasses.replace(one, image=torch.cat([one.image, other.image])))
    assert both.image.shape == (2, *SOLID.size)
    for channel, alone in enumerate((one, other)):
        torch.testing.assert_close(both.image[channel], setting.apply(alone).image[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("intensity", ["zscore", "local", "window"])
def test_what_lies_beyond_the_window_changes_nothing(intensity):
    """Metal and air of CT: not even their neighbours feel them."""
    scan = volume(WORLDS["oblique"])
    metal = dataclasses.replace(scan, image=torch.where(scan.image > 600, 30 * scan.image, scan.image))
    setting = dataclasses.replace(SOLID, intensity=intensity, window=(0, 600))
    assert torch.equal(setting.apply(scan).image, setting.apply(metal).image)
    plain = dataclasses.replace(SOLID, intensity="zscore")
    assert not torch.allclose(plain.apply(scan).image, plain.apply(metal).image, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"window": (3, 1)}, r"^preprocessing\.window: expected \[low, high\] with low below high"),
        ({"window": 5}, r"^preprocessing\.window"),
        ({"intensity": "window"}, r"^preprocessing\.window: expected \[low, high\] where intensity is window, found None"),
    ],
)
def test_a_window_that_cannot_be_names_its_key(arguments, match):
    with pytest.raises(ConfigError, match=match):
        Preprocessing(**arguments)
    assert Preprocessing(window=[[-160, 240], None]).window == ((-160.0, 240.0), None)


def test_windows_for_other_channels_are_refused():
    with pytest.raises(ConfigError, match=r"^preprocessing\.window: expected 1, one per channel"):
        dataclasses.replace(SOLID, window=((0, 1), None)).apply(volume(WORLDS["oblique"]))


def test_the_name_of_a_cached_scan_of_one_channel_is_what_it_always_was(world_on_disk):
    cases, folder, _, _ = world_on_disk
    PreprocessCache(folder, SOLID, (0, 1, 2)).get(cases[0])
    names = {path.name for path in folder.iterdir()}
    assert names == NAMES_OF_ONE_CHANNEL


def test_other_channels_windows_or_ignored_values_are_other_entries(world_on_disk):
    cases, folder, reads, _ = world_on_disk
    a, b = cases
    several = dataclasses.replace(a, channels=((b.image,),))
    kinds = [a, several, dataclasses.replace(several, take=(1,)), dataclasses.replace(several, take=(0,))]
    kinds.append(dataclasses.replace(b, id="a", label=a.label, channels=((a.image,),)))  # the other order
    for kind in kinds:
        PreprocessCache(folder, SOLID, (0, 1, 2)).get(kind)
    assert len(reads) == len(kinds)
    for more in (
        PreprocessCache(folder, dataclasses.replace(SOLID, window=(0, 1)), (0, 1, 2)),
        PreprocessCache(folder, SOLID, (0, 1, 2), 9),
    ):
        more.get(a)
        more.get(a)
    assert len(reads) == len(kinds) + 2
    changed = PreprocessCache(folder, SOLID, (0, 1, 2))
    b.image.write_bytes(b.image.read_bytes() + b"!")
    changed.get(several)
    assert len(reads) == len(kinds) + 3


def test_ignored_voxels_are_no_part_of_what_is_lost(world_on_disk):
    scan = volume(WORLDS["oblique"])
    small = dataclasses.replace(SOLID, size=(4, 4, 4))
    only = dataclasses.replace(scan, label=torch.full_like(scan.label, 255))
    assert label_lost(only, small.apply(only)) == 0
    assert label_lost(scan, small.apply(scan)) > 0


def test_another_structure_of_a_label_that_names_them_is_another_label(tmp_path):
    """The file and the value are the same: only the name differs."""
    grid = affine()
    corners = np.array([(0, 0), (5, 0), (5, 4), (0, 4)])
    rings = {
        name: [(np.insert(corners + shift, 2, 2, axis=1) @ grid[:3, :3].T) + grid[:3, 3]] for name, shift in (("a", 0), ("b", 1))
    }
    write_enhanced(tmp_path / "image.dcm", np.arange(8 * 8 * 4).reshape(8, 8, 4), grid)
    write_rtstruct(tmp_path / "rt.dcm", rings)
    whole = Preprocessing("physical", 3, (8, 8, 4), (1.5, 1.25, 3.0))
    cases = [Case("x", tmp_path / "image.dcm", tmp_path / "rt.dcm", names=((name, 1),)) for name in ("a", "b")]
    for _ in range(2):  # the second time out of the cache
        one, other = (PreprocessCache(tmp_path / "cache", whole, (0, 1)).get(case).label for case in cases)
        assert one.sum() == other.sum() > 0
        assert not torch.equal(one, other)
