"""Transforms as other projects use them: both forms, Compose, bundles by name, next to what MONAI has."""

import copy
import inspect
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, SaveImaged, Transform

from oasis_monai import transforms
from oasis_monai.data.types import Volume
from oasis_monai.transforms import (
    ClipWindow,
    ClipWindowd,
    InPlaneResize,
    InPlaneResized,
    LoadVolume,
    LoadVolumed,
    LocalZScore,
    LocalZScored,
    OneHotLabels,
    OneHotLabelsd,
    PhysicalFieldOfView,
    PhysicalFieldOfViewd,
    RestoreToGrid,
    RestoreToGridd,
    RobustZScore,
    RobustZScored,
    SaveVolume,
    SaveVolumed,
    ScaleWindow,
    ScaleWindowd,
)
from oasis_monai.transforms import spatial as grids
from oasis_monai.transforms.intensity import z_score
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.errors import DataError
from tests.transforms.test_spatial import WORLDS, dice, ellipsoid, middle_mm, random_label

NATIVE = WORLDS["oblique"]
SPACING, SIZE = (1.3, 1.1, 2.9), (16, 18, 14)
NAN = float("nan")


def scan(channels=1, seed=0):
    values = 900 * torch.rand(channels, *NATIVE.shape, generator=torch.Generator().manual_seed(seed)) ** 2
    return MetaTensor(
        values, affine=torch.tensor(NATIVE.affine), meta={"filename_or_obj": "a.mhd", "centre": 3, "coil": {"endorectal": True}}
    )


def label(classes=3):
    return MetaTensor(
        random_label(NATIVE.shape, classes), affine=torch.tensor(NATIVE.affine), meta={"centre": 3, "coil": {"endorectal": True}}
    )


def probability():
    working = PhysicalFieldOfView(SPACING, SIZE)(scan())
    maps = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(5)).softmax(0)
    return MetaTensor(maps, meta=working.meta)


FAMILY = {
    "z-score": (RobustZScore(1, 98), RobustZScored("x", 1, 98), scan),
    "z-score padding": (RobustZScore(padding=0), RobustZScored("x", padding=0), scan),
    "local z-score": (LocalZScore(3.0), LocalZScored("x", 3.0), lambda: scan(2)),
    "field of view": (PhysicalFieldOfView(SPACING, SIZE), PhysicalFieldOfViewd("x", SPACING, SIZE), lambda: scan(2)),
    "field of view in plane": (
        PhysicalFieldOfView(SPACING[:2], SIZE[:2], padding=-7, anti_alias=False),
        PhysicalFieldOfViewd("x", SPACING[:2], SIZE[:2], padding=-7, anti_alias=False),
        scan,
    ),
    "field of view label": (PhysicalFieldOfView(SPACING, SIZE, True), PhysicalFieldOfViewd("x", SPACING, SIZE, True), label),
    "resize": (InPlaneResize((40, 24)), InPlaneResized("x", (40, 24)), scan),
    "resize label": (InPlaneResize((40, 24), label=True), InPlaneResized("x", (40, 24), label=True), label),
    "restore": (RestoreToGrid(), RestoreToGridd("x"), probability),
    "restore probability": (RestoreToGrid(threshold=False), RestoreToGridd("x", threshold=False), probability),
    "one-hot": (OneHotLabels((0, 1, 2)), OneHotLabelsd("x", (0, 1, 2)), label),
    "indices": (OneHotLabels((2, 1, 0), one_hot=False), OneHotLabelsd("x", (2, 1, 0), one_hot=False), label),
}
family = pytest.mark.parametrize(("array", "dictionary", "make"), FAMILY.values(), ids=FAMILY)


@family
def test_dictionary_is_array_the_input_stays_and_metadata_is_kept(array, dictionary, make):
    data = make()
    kept, meta = data.as_tensor().clone(), copy.deepcopy(data.meta)
    got, mapped = array(data), dictionary({"x": data, "other": 1})
    assert torch.equal(got.as_tensor(), mapped["x"].as_tensor())
    assert got.dtype == mapped["x"].dtype
    assert mapped["other"] == 1
    assert torch.equal(data.as_tensor(), kept)
    assert data.meta.keys() == meta.keys()
    assert torch.equal(data.affine, meta["affine"])
    for result in (got, mapped["x"]):
        assert result.meta["centre"] == 3
        assert result.meta["coil"] == {"endorectal": True}
        torch.testing.assert_close(result.affine, mapped["x"].affine)
    got.zero_()  # no memory is shared with the input
    got.meta["coil"]["endorectal"] = False
    assert torch.equal(data.as_tensor(), kept)
    assert data.meta["coil"]["endorectal"]


@family
def test_forms_are_monais(array, dictionary, make):
    assert isinstance(array, Transform)
    assert isinstance(dictionary, MapTransform)
    assert array.backend == dictionary.backend
    twice = type(dictionary).__name__[:-1]
    assert getattr(transforms, f"{twice}D") is getattr(transforms, f"{twice}Dict") is type(dictionary)
    wanted = list(inspect.signature(type(array).__init__).parameters)[1:]
    offered = list(inspect.signature(type(dictionary).__init__).parameters)[1:]
    assert [p for p in offered if p not in ("keys", "reference_keys", "allow_missing_keys")] == wanted
    assert make() is not None


@family
def test_missing_keys_are_an_error_or_left_alone(array, dictionary, make):
    with pytest.raises(KeyError):
        dictionary({"y": make()})
    lenient = copy.copy(dictionary)
    lenient.allow_missing_keys = True
    assert lenient({"z": 1}) == {"z": 1}


def test_every_transform_is_exported_and_importable_by_name():
    assert len(transforms.__all__) == 40
    for name in transforms.__all__:
        assert callable(getattr(transforms, name))


def test_a_pipeline_of_transforms_is_the_preprocessing():
    """One idea, one home: other projects get voxel for voxel what the physical and the paper setting make."""
    image, truth = scan(), label()
    volume = Volume("a", image.as_tensor(), truth.as_tensor(), NATIVE)
    for setting, first in (
        (
            Preprocessing("physical", 3, SIZE, SPACING, "zscore"),
            PhysicalFieldOfViewd(["i", "l"], SPACING, SIZE, (False, True), NAN),
        ),
        (
            Preprocessing("physical", 2, SIZE[:2], SPACING[:2], "zscore"),
            PhysicalFieldOfViewd(["i", "l"], SPACING[:2], SIZE[:2], (False, True), NAN),
        ),
        (
            Preprocessing("physical", 3, SIZE, SPACING, "local", 4.0),
            PhysicalFieldOfViewd(["i", "l"], SPACING, SIZE, (False, True), NAN),
        ),
        (Preprocessing("paper", 2, (40, 24)), InPlaneResized(["i", "l"], (40, 24), (False, True))),
        (
            Preprocessing("physical", 3, SIZE, SPACING, "window", window=(100, 500)),
            PhysicalFieldOfViewd(["i", "l"], SPACING, SIZE, (False, True), NAN),
        ),
        (
            Preprocessing("physical", 3, SIZE, SPACING, "zscore", window=(100, 500)),
            PhysicalFieldOfViewd(["i", "l"], SPACING, SIZE, (False, True), NAN),
        ),
    ):
        z_score = RobustZScored("i", 0, 100) if setting.name == "paper" else RobustZScored("i", padding=NAN)
        z_score = LocalZScored("i", 4.0, padding=NAN) if setting.intensity == "local" else z_score
        z_score = ScaleWindowd("i", setting.window, padding=NAN) if setting.intensity == "window" else z_score
        clip = [] if setting.window is None else [ClipWindowd("i", setting.window)]
        got, want = Compose([*clip, first, z_score])({"i": image, "l": truth}), setting.apply(volume)
        assert torch.equal(got["i"].as_tensor(), want.image)
        assert torch.equal(got["l"].as_tensor(), want.label)
        np.testing.assert_array_equal(got["i"].affine.numpy(), want.geometry.affine)
        np.testing.assert_array_equal(got["i"].meta["original_affine"].numpy(), NATIVE.affine)
        assert tuple(got["i"].meta["spatial_shape"]) == NATIVE.shape


def test_a_bundle_finds_them_by_name():
    name = "oasis_monai.transforms."
    steps = [
        {
            "_target_": name + "PhysicalFieldOfViewd",
            "keys": ["i", "l"],
            "spacing_mm": [1.3, 1.1, None],
            "size": [16, 18, None],
            "label": [False, True],
        },
        {"_target_": name + "RobustZScoreD", "keys": "i", "padding": 0},
        {"_target_": name + "OneHotLabelsDict", "keys": "l", "label_values": [0, 1, 2]},
        {"_target_": name + "RestoreToGridd", "keys": "l", "reference_keys": "i"},
    ]
    parser = ConfigParser(json.loads(json.dumps({"pre": {"_target_": "Compose", "transforms": steps}})))
    got = parser.get_parsed_content("pre")({"i": scan(), "l": label()})
    assert got["l"].shape == (1, *NATIVE.shape)
    seen = grids.inside(grids.centred(NATIVE, (1.3, 1.1, None), (16, 18, None)), NATIVE)
    same = got["l"].as_tensor()[0][seen] == label().as_tensor()[0][seen]
    assert same.float().mean() > 0.9
    np.testing.assert_array_equal(got["l"].affine.numpy(), NATIVE.affine)


def test_z_score_tells_padding_from_dark_voxels():
    values = torch.rand(1, 10, 10, 10) + 5
    padded = values.clone()
    padded[:, :4] = 0
    want = z_score(padded, padded != 0, 0.5, 99.5)
    assert torch.equal(RobustZScore(padding=0)(padded), want)
    assert not torch.equal(RobustZScore()(padded), want)
    padded[:, :4] = torch.nan
    assert torch.equal(RobustZScore(padding=NAN)(padded.numpy()).as_tensor(), want)


@pytest.mark.parametrize(
    ("values", "padding"),
    [
        (torch.full((1, 3, 3, 3), 5.0), None),
        (torch.zeros(1, 3, 3, 3), 0),
        (torch.full((1, 3, 3, 3), torch.nan), NAN),
        (torch.ones(1, 1, 1, 1), None),
    ],
)
def test_z_score_of_nothing_is_zero(values, padding):
    got = RobustZScore(padding=padding)(values)
    assert got.shape == values.shape
    assert not got.any()


def test_restore_finds_the_files_grid_or_the_references():
    truth = ellipsoid(NATIVE, middle_mm(NATIVE), np.array([6.0, 5.0, 9.0]))
    native = MetaTensor(truth, affine=torch.tensor(NATIVE.affine))
    working = PhysicalFieldOfView((0.6, 0.7, 1.8), (32, 28, 20), label=True)(native)
    onehot = OneHotLabels((0, 1))(working)
    by_meta = RestoreToGrid()(onehot)
    by_reference = RestoreToGridd("p", "r")({"p": onehot, "r": native})["p"]
    for got in (by_meta, by_reference):
        assert dice(got.as_tensor() > 0, truth > 0) > 0.97
        np.testing.assert_array_equal(got.affine.numpy(), NATIVE.affine)
    stays = RestoreToGrid(original=False)(onehot)
    assert torch.equal(stays.as_tensor(), working.as_tensor())
    soft = RestoreToGrid(threshold=False)(onehot)
    assert soft.shape == (2, *NATIVE.shape)
    assert torch.equal(soft.as_tensor()[1] >= 0.5 - 1e-6, by_meta.as_tensor()[0] > 0)


def test_one_hot_of_arbitrary_values():
    values = torch.tensor([[[-5, 500, 20, 20]]])
    onehot = OneHotLabels((20, -5, 500))(values)
    assert onehot.as_tensor().tolist() == [[[0, 0, 1, 1]], [[1, 0, 0, 0]], [[0, 1, 0, 0]]]
    indices = OneHotLabels((20, -5, 500), one_hot=False)(values.float())
    assert indices.as_tensor().tolist() == [[[1, 2, 0, 0]]]
    assert indices.dtype == torch.uint8


def test_loading_checks_the_header_and_keeps_the_geometry(tmp_path):
    import nibabel

    values = np.arange(np.prod(NATIVE.shape), dtype=np.float32).reshape(NATIVE.shape)
    path = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(values, NATIVE.affine)
    nibabel.save(image, path)
    got, mapped = LoadVolume()(path), LoadVolumed("x")({"x": str(path)})["x"]
    for loaded in (got, mapped):
        np.testing.assert_array_equal(loaded.as_tensor()[0].numpy(), values)
        np.testing.assert_allclose(loaded.affine.numpy(), NATIVE.affine, atol=1e-5)
        np.testing.assert_array_equal(loaded.meta["original_affine"].numpy(), loaded.affine.numpy())
        assert loaded.meta["filename_or_obj"] == str(path)
        assert tuple(loaded.meta["spatial_shape"]) == NATIVE.shape
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DataError, match=r"^a\.nii\.gz: "):
        LoadVolume()(path)
    with pytest.raises(DataError, match="gone"):
        LoadVolumed("x")({"x": tmp_path / "gone.mhd"})


PLAIN = torch.zeros(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: RobustZScore(60, 40), r"percentiles: expected 0 <= lower < upper <= 100, found lower=60, upper=40"),
        (lambda: RobustZScored("x", -1, 40), "percentiles"),
        (lambda: RobustZScore(0, 101), "percentiles"),
        (lambda: RobustZScore()(torch.full((1, 2, 2, 2), torch.nan)), "finite"),
        (lambda: PhysicalFieldOfView((1, 1), (4,)), "size: expected 2 or 3 values, each above 0 or None"),
        (lambda: PhysicalFieldOfView((1, 0, 1), (4, 4, 4)), "spacing_mm: expected"),
        (lambda: PhysicalFieldOfView((1, NAN, 1), (4, 4, 4)), "spacing_mm: expected"),
        (lambda: PhysicalFieldOfViewd("x", (1, 1, 1), (4, -4, 4)), "size: expected"),
        (
            lambda: PhysicalFieldOfView((1, 1, 1), (4, 4, 4))(PLAIN),
            r"expected a MetaTensor \(C, x, y, z\).*found Tensor of shape",
        ),
        (lambda: PhysicalFieldOfView((1, 1, 1), (4, 4, 4))(MetaTensor(PLAIN[0])), "expected a MetaTensor"),
        (lambda: InPlaneResize((4, 4, 4)), "size: expected 2 numbers of voxels"),
        (lambda: InPlaneResize((4, 0)), "size"),
        (lambda: InPlaneResize((4, 4))(PLAIN), "expected a MetaTensor"),
        (lambda: RestoreToGrid()(PLAIN), "expected a MetaTensor"),
        (lambda: RestoreToGrid()(MetaTensor(PLAIN[:1])), "probability: expected 2 or more classes"),
        (lambda: RestoreToGrid()(MetaTensor(PLAIN), PLAIN), "expected a MetaTensor"),
        (lambda: OneHotLabels((0,)), "label_values: expected 2 to 256 distinct values"),
        (lambda: OneHotLabels((0, 1, 1)), "label_values"),
        (lambda: OneHotLabels((0, 1))(torch.tensor([[0, 1, 2, 7]])), r"label: expected only \[0, 1\], found \[2, 7\]"),
    ],
)
def test_what_cannot_work_says_so(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_monais_own_ways_differ_as_the_docstrings_say():
    """Should MONAI mend one of these, ours can go."""
    from monai.transforms import MapLabelValue, Resize

    flat = MetaTensor(torch.full((1, 40, 40, 4), 100.0))
    assert float(Resize((10, 10, 4), mode="trilinear", anti_aliasing=True)(flat).min()) < 90
    assert float((InPlaneResize((10, 10))(flat) - 100).abs().max()) < 1e-3
    assert 7 in MapLabelValue([0, 1], [1, 0])(np.array([[0, 1, 7]]))


ORDERS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def stored(path, shape, order, signs, codes=(1, 1), offset=0.0):
    """A NIfTI scan whose array axis k runs along axis ``order[k]`` of the world; the sform is ``offset`` mm aside."""
    values = np.random.default_rng(0).integers(0, 500, shape).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[:3, 3] = [10, -20, 30]
    for axis, mm in enumerate((1.0, 1.5, 3.0)):
        affine[order[axis], axis] = signs[axis] * mm
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, codes[1])
    affine[0, 3] += offset
    image.set_sform(affine, codes[0])
    nibabel.save(image, path)
    return values, affine


@pytest.mark.parametrize("saver", ["ours", "MONAI's"])
@pytest.mark.parametrize("shape", [(9, 8, 5), (9, 8, 1), (1, 8, 5)])
def test_every_order_of_axes_comes_back_as_it_was_stored(tmp_path, saver, shape):
    """All 48, through a Compose of the transforms; MONAI's SaveImage leaves out a last axis of one voxel unless told not to."""
    if saver == "ours":
        save = SaveVolumed(["image", "pred"], tmp_path / "out", ("same", "pred"))
    else:
        more = {"resample": False, "separate_folder": False, "print_log": False, "squeeze_end_dims": False}
        save = [
            SaveImaged(key, output_dir=tmp_path / "out", output_postfix=postfix, **more)
            for key, postfix in (("image", "same"), ("pred", "pred"))
        ]
    steps = Compose([
        LoadVolumed("image"),
        lambda d: {**d, "pred": d["image"]},
        PhysicalFieldOfViewd("pred", (2.0, 2.0, 2.0), (20, 20, 20)),
        lambda d: {**d, "pred": torch.cat([1 - d["pred"] / 500, d["pred"] / 500])},
        RestoreToGridd("pred"),
        *(save if isinstance(save, list) else [save]),
    ])  # fmt: skip
    for order, signs in ORDERS:
        values, affine = stored(tmp_path / "scan.nii.gz", shape, order, signs)
        done = steps({"image": tmp_path / "scan.nii.gz"})
        for postfix, wanted in (("same", values), ("pred", done["pred"][0].numpy())):
            found = nibabel.load(tmp_path / "out" / f"scan_{postfix}.nii.gz")
            assert found.shape[:3] == wanted.shape == shape
            np.testing.assert_array_equal(np.asarray(found.dataobj).reshape(shape), wanted)
            np.testing.assert_allclose(found.affine, affine, atol=1e-4)


def test_a_saved_result_lies_where_each_program_shows_the_scan(tmp_path):
    import itk

    def origin(path):
        image = itk.imread(str(path))
        return list(image.GetOrigin())

    stored(tmp_path / "scan.nii", (9, 8, 5), (0, 1, 2), (-1, -1, 1), (2, 1), 15.0)
    image = LoadVolume()(tmp_path / "scan.nii")
    SaveVolume(tmp_path, "seg")(image)
    SaveVolume(tmp_path, "", ".mha")(image, "other name")
    for name in ("scan_seg.nii.gz", "other name.mha"):
        np.testing.assert_allclose(origin(tmp_path / name), origin(tmp_path / "scan.nii"), atol=1e-4)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "scan_seg.nii.gz").affine, nibabel.load(tmp_path / "scan.nii").affine)
    moved = PhysicalFieldOfView((2.0, 2.0, 2.0), (6, 6, 6))(image)  # another grid: nothing of the file's header holds for it
    SaveVolume(tmp_path, "moved")(moved)
    np.testing.assert_allclose(nibabel.load(tmp_path / "scan_moved.nii.gz").affine, moved.affine, atol=1e-4)
    with pytest.raises(ValueError, match="name: expected one"):
        SaveVolume(tmp_path)(MetaTensor(torch.zeros(1, 2, 2, 2)))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([True, False], "uint8"), ([0, 255], "uint8"), ([-1, 3], "int16"), ([0, 70000], "int32"), ([0.5, 1.0], "float32")],
)
def test_saved_values_stay_what_they_are(tmp_path, values, dtype):
    from oasis_monai.data.formats.dispatch import read_header

    image = MetaTensor(torch.tensor(values).reshape(1, 2, 1, 1), meta={"filename_or_obj": "gone/a.b.nii.gz"})
    assert SaveVolume(tmp_path)(image) is image
    path = Path(tmp_path / "a.b_segmentation.nii.gz")
    assert read_header(path).dtype == dtype
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).ravel(), np.array(values, dtype))


def test_ignored_values_are_in_no_class():
    some = torch.tensor([[0, 7, 9, 4]])
    assert OneHotLabels([0, 4, 7], one_hot=False, ignore=9)(some).tolist() == [[0, 2, 255, 1]]
    assert OneHotLabels([0, 4, 7], ignore=9)(some).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match="found \\[9\\]"):
        OneHotLabels([0, 4, 7])(some)


def test_every_channel_is_scored_by_itself():
    image = torch.cat([torch.rand(1, 8, 8, 4), 1000 * torch.rand(1, 8, 8, 4)])
    scored = RobustZScore(0, 100)(image)
    for channel in scored:
        assert float(channel.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(ScaleWindow([None, (0, 500)], 0, 100)(image)[0], scored[0])
    assert float(ClipWindow([None, (0, 500)])(image)[1].max()) == 500
