"""A model in memory: the same label from a path, a MetaTensor and an array, on the grid of what was given."""

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation

import oasis_monai
from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.formats.header import flip_lps_ras
from oasis_monai.data.io import read_image
from oasis_monai.data.phantom import make_phantom, write_phantom
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.utils.errors import ConfigError, DataError, OasisError
from tests.conftest import CASES, JOINT, TINY, merged

VALUE = 5
"""Of the structure in label files: another than its class."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a joint model."""
    base = tmp_path_factory.mktemp("trained")
    write_phantom(base / "data", cases=CASES, size="tiny")
    for path in (base / "data").glob("*_segmentation.raw"):
        path.write_bytes(path.read_bytes().replace(b"\1", bytes([VALUE])))
    data = {"data": {"root": str(base / "data"), "labels": {"gland": VALUE}}, "cache": str(base / "cache")}
    oasis_monai.train(base / "model", merged(TINY, JOINT, data, {"n": 2, "methods": None}))
    return base / "model"


@pytest.fixture(scope="module")
def model(trained):
    return oasis_monai.load_model(trained, device="cpu")


@pytest.fixture(scope="module")
def scan():
    """A scan the model has not seen: ``image`` (x, y, z) int16 and ``affine``."""
    return make_phantom(CASES + 1, size="tiny")


@pytest.fixture(scope="module")
def label(model, scan):
    """What the model makes of it."""
    found = model.segment(scan.image, affine=scan.affine, n=3).label
    assert 20 < int((found == VALUE).sum()) < found.numel() / 2
    return found


def meta_tensor(scan, **meta):
    return MetaTensor(torch.tensor(scan.image, dtype=torch.float32)[None], affine=torch.tensor(scan.affine), meta=meta)


def strided(array):
    """The same voxels, as a view of every other voxel of a larger array."""
    larger = np.zeros([2 * n for n in array.shape], array.dtype)
    larger[::2, ::2, ::2] = array
    return larger[::2, ::2, ::2]


def read_only(array):
    array = array.astype(np.float32)
    array.setflags(write=False)
    return array


KINDS = {
    "not contiguous": strided,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "Fortran": np.asfortranarray,
    "big-endian int16": lambda a: a.astype(">i2"),
    "big-endian float32": lambda a: a.astype(">f4"),
    **{kind: lambda a, kind=kind: a.astype(kind) for kind in ("uint16", "int32", "uint64", "float64", "longdouble")},
    "read-only": read_only,
    "with a channel": lambda a: a[None],
    "tensor int16": torch.tensor,
    "tensor with a gradient": lambda a: torch.tensor(a, dtype=torch.float64, requires_grad=True),
    "tensor permuted": lambda a: torch.tensor(a.transpose(2, 1, 0).copy()).permute(2, 1, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind_give_one_label_and_stay_as_they_are(model, scan, label, kind):
    given = KINDS[kind](scan.image)
    before = given.clone() if torch.is_tensor(given) else given.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.segment(given, affine=scan.affine, n=3)
    assert torch.equal(found.label, label)
    assert bool((given == before).all())


@pytest.mark.parametrize("kind", [np.asarray, lambda a: a.tolist(), lambda a: torch.tensor(a, requires_grad=True)])
def test_affines_of_every_kind(model, scan, label, kind):
    assert torch.equal(model.segment(scan.image, affine=kind(scan.affine), n=3).label, label)


def test_masks_are_images_as_well(model, scan):
    bright = scan.image > np.median(scan.image)
    one, two = (model.segment(array, affine=scan.affine, n=2).label for array in (bright, bright.astype(np.uint8)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nii", "Aufnahme 3 (größer).nii.gz", "前列腺.mha"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_gives_the_label_of_its_array(model, scan, label, tmp_path, name, kind):
    path = tmp_path / name
    write_array(path, scan.image, Geometry(scan.image.shape, scan.affine))
    if ".nii" in name:  # an affine is float32 there
        label = model.segment(scan.image, affine=nibabel.load(path).affine, n=3).label
    found = model.segment(kind(path), n=3)
    assert torch.equal(found.label, label)
    assert found.case == name.partition(".")[0]
    assert model.segment(path, n=1, method="FwoW", case="mine").case == "mine"


def test_a_meta_tensor_that_monai_read_gives_the_label_of_its_file(model, scan, tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_array(path, scan.image, Geometry(scan.image.shape, scan.affine))
    image = LoadImage(ensure_channel_first=True)(path)
    label = model.segment(path, n=3).label
    assert torch.equal(model.segment(image, n=3).label, label)
    assert torch.equal(model.segment(image[0], n=3).label, label)
    for key in [key for key in image.meta if key not in ("affine", "space")]:  # pixdim and all the others
        del image.meta[key]
    assert torch.equal(model.segment(image, n=3).label, label)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL", "IAL"])
def test_a_meta_tensor_in_any_axis_order_gets_the_label_on_its_own_grid(model, scan, label, axes):
    turned = Orientation(axcodes=axes, labels=None)(meta_tensor(scan))
    found = model.segment(turned, n=3)
    assert found.label.shape == turned.shape[1:] == found.geometry.shape
    np.testing.assert_allclose(found.geometry.affine, turned.affine.numpy())
    back = Orientation(axcodes="LPS", labels=None)(MetaTensor(found.label[None].float(), affine=turned.affine))
    wanted = Orientation(axcodes="LPS", labels=None)(MetaTensor(label[None].float(), affine=torch.tensor(scan.affine)))
    # interpolation sums in the order of the axes: a voxel at equal odds may fall to the other side
    assert int((back != wanted).sum()) <= 2


def test_a_meta_tensor_in_the_frame_of_itk_is_turned_to_ras(model, scan, label):
    image = meta_tensor(scan, space="LPS")
    image.affine = torch.tensor(flip_lps_ras(scan.affine))
    found = model.segment(image, n=3)
    assert torch.equal(found.label, label)
    np.testing.assert_allclose(found.geometry.affine, scan.affine)


def test_a_volume_in_memory(model, scan, label):
    grid = Geometry(scan.image.shape, scan.affine)
    volume = Volume("mine", torch.tensor(scan.image, dtype=torch.float32)[None], None, grid)
    assert torch.equal(model.segment(volume, n=3).label, label)


@pytest.mark.parametrize("part", [np.s_[20:21], np.s_[:, 20:21]])
def test_a_scan_of_one_slice_gets_a_label_of_one_slice(model, scan, part):
    thin = scan.image[part]
    result = model.segment(thin, affine=scan.affine, n=2)
    assert result.label.shape == thin.shape
    assert set(result.label.unique().tolist()) <= {0, VALUE}


def test_a_scan_that_lies_between_the_slices_of_the_working_grid_is_refused(model, scan):
    with pytest.raises(DataError, match=r"one value everywhere; the model sees \(32, 32, 8\) voxels of \(2.5, 2.5, 8.0\) mm"):
        model.segment(scan.image[:, :, 7:8], affine=scan.affine, n=2)


def test_what_a_result_tells(model, scan, label, tmp_path):
    result = model.segment(scan.image, affine=scan.affine, n=3)
    assert result.method == ("OASIS-joint", 3)
    assert result.case == "array"
    assert result.label.dtype == torch.uint8
    assert torch.equal(result.label, VALUE * result.classes)
    assert result.probability.shape == (2, *scan.image.shape)
    torch.testing.assert_close(result.probability.sum(0), torch.ones(scan.image.shape))
    assert list(result.predicted_dice) == list(result.volume_ml) == list(model.labels) == ["gland"]
    assert 0 <= result.predicted_dice["gland"] <= 1
    assert not result.calibrated
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    assert result.volume_ml["gland"] == pytest.approx(float((label == VALUE).sum()) * voxel_ml, abs=0.001)
    assert len({atlas.case for atlas in result.atlases}) == 3
    assert sum(atlas.weight for atlas in result.atlases) == pytest.approx(1, abs=1e-5)
    distances = [atlas.distance for atlas in result.atlases]
    assert distances == sorted(distances)
    assert all(flag.name and flag.text for flag in result.flags)
    assert result.is_atlas is None
    for name in ("label.nii.gz", "label.mha", "deep/er/label.mhd"):
        assert result.save(tmp_path / name) == tmp_path / name
        written, grid = read_image(tmp_path / name)
        assert torch.equal(written[0], label.float())
        np.testing.assert_allclose(grid.affine, scan.affine, atol=1e-4)
    result.save(str(tmp_path / "x.nii"), probability=tmp_path / "p.nii.gz")
    assert nibabel.load(tmp_path / "p.nii.gz").shape == (*scan.image.shape, 2)
    written = json.loads(result.save_report(tmp_path / "report.json").read_text())
    assert written["volume_ml"] == result.volume_ml
    with pytest.raises(ConfigError, match="dcm"):
        result.save(tmp_path / "label.dcm")
    assert repr(result).startswith("ScanResult(array, OASIS-joint of 3 atlases, predicted Dice gland 0.")
    assert repr(model) == f"Model({model.folder}, {CASES} atlases, {{'gland': {VALUE}}}, cpu)"


def test_an_atlas_itself_is_known(model, trained):
    assert model.segment(trained.parent / "data/Case02.mhd", n=2).is_atlas == "Case02"


def test_the_defaults_suit_the_model(model, scan):
    result = model.segment(scan.image, affine=scan.affine)
    assert result.method == ("OASIS-joint", 6)
    assert model.segment(scan.image, affine=scan.affine, n=np.int64(2), method="majority").method == ("majority", 2)


GRID = np.diag([2.0, 2.0, 4.0, 1.0])
NOISE = np.random.default_rng(0).normal(size=(32, 32, 8))


def spoilt(value):
    array = NOISE.copy()
    array[3, 3, 3] = value
    return array


@pytest.mark.parametrize(
    ("image", "affine", "match"),
    [
        (NOISE, None, r"^array: affine: expected \(4, 4\), .*found none"),
        (NOISE, np.eye(3), "affine: expected an invertible"),
        (NOISE, np.diag([2.0, 2.0, 0.0, 1.0]), "affine: expected an invertible"),
        (NOISE, GRID * np.nan, "affine: expected an invertible"),
        (NOISE, GRID.T + np.eye(4, k=-3), "affine: expected .* last row is 0 0 0 1"),
        (NOISE, "x", "affine: expected an invertible .*found x"),
        (NOISE, [[1], [1, 2]], "affine: expected an invertible"),
        (NOISE, GRID @ [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "affine: expected orthonormal axes"),
        (spoilt(np.nan), GRID, "scan: expected finite voxels"),
        (spoilt(np.inf), GRID, "scan: expected finite voxels"),
        (spoilt(1e300), GRID, "scan: expected finite voxels"),
        (np.ones((32, 32, 8)), GRID, "image: expected different intensities in the field of view"),
        (NOISE[:1, :1, :1], GRID, "image: expected different intensities in the field of view"),
        (NOISE[0], GRID, r"scan: expected an array .*found \(32, 8\)"),
        (np.stack([NOISE, NOISE]), GRID, r"channels: expected the model.s 1, found 2"),
        (NOISE[None, None], GRID, "scan: expected an array"),
        (NOISE[:0], GRID, "scan: expected an array"),
        (NOISE.astype(complex), GRID, "scan: expected real numbers, found complex128"),
        (torch.tensor(NOISE.astype(complex)), GRID, "scan: expected real numbers, found torch.complex128"),
        (NOISE.astype(object), GRID, "scan: expected real numbers, found object"),
        (NOISE.astype(str), GRID, "scan: expected real numbers"),
        (NOISE.tolist(), GRID, "scan: expected a path, a MetaTensor or an array, found list"),
        (None, None, "scan: expected a path, a MetaTensor or an array, found NoneType"),
        ("no_such_scan.mhd", None, "expected an existing folder, found none at no_such_scan.mhd"),
        ("no_such_scan.mhd", GRID, "^no_such_scan.mhd: affine: expected none beside a file"),
    ],
)
def test_a_scan_that_cannot_be_used_is_refused_in_one_line(model, image, affine, match):
    with pytest.raises(DataError, match=match) as caught:
        model.segment(image, affine=affine, n=2)
    assert len(str(caught.value).splitlines()) == 1


def test_a_meta_tensor_without_an_affine_is_refused(model, scan):
    image = meta_tensor(scan)
    del image.meta["affine"]
    with pytest.raises(DataError, match=r"affine: expected \(4, 4\), .*found none"):
        model.segment(image, n=2)
    assert model.segment(image, affine=scan.affine, n=2).label.any()


def test_a_folder_of_several_scans_is_refused(model, trained):
    with pytest.raises(DataError, match=f"expected one scan, found {CASES} scans; .*oasis_monai.segment"):
        model.segment(trained.parent / "data")


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"method": "Oasis"}, "^methods: expected one or more of .*found .*Oasis"),
        ({"method": "interpolation"}, "^methods: expected a method for new scans"),
        ({"n": CASES + 1}, f"^n: expected 1 to {CASES}, the model's atlases, found {CASES + 1}"),
        ({"n": 0}, "^n: expected 1 to"),
        ({"n": 2.5}, "^n: expected a whole number, found 2.5"),
        ({"n": True}, "^n: expected a whole number"),
        ({"n": "2"}, "^n: expected a whole number"),
        ({"n": [1, 2]}, "^n: expected a whole number"),
    ],
)
def test_a_choice_the_model_cannot_serve_is_refused(model, choice, match):
    with pytest.raises(ConfigError, match=match):
        model.segment(NOISE, affine=GRID, **choice)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", None])
def test_a_device_that_is_absent_is_refused(trained, device):
    with pytest.raises(ConfigError, match=r"^device: expected cpu, auto, or a GPU this machine has"):
        oasis_monai.load_model(trained, device=device)


@pytest.mark.parametrize("device", ["auto", torch.device("cpu")])
def test_devices_may_be_named_in_torchs_ways(trained, device):
    assert oasis_monai.load_model(str(trained), device=device).labels == {"gland": VALUE}


@pytest.mark.parametrize("batch", [0, -1, 1.5])
def test_a_batch_that_cannot_work_is_refused(trained, batch):
    with pytest.raises(ConfigError, match=r"^batch: expected"):
        oasis_monai.load_model(trained, batch=batch)


@pytest.mark.parametrize("folder", ["nothing", "", "data", "data/Case00.mhd"])
def test_a_folder_that_is_no_model_is_refused(trained, folder):
    with pytest.raises(OasisError, match=r"^model: expected a folder written by"):
        oasis_monai.load_model(trained.parent / folder)


def test_segmenting_leaves_torch_as_it_was(model, scan):
    threads, tiny = torch.get_num_threads(), torch.tensor(1e-40)
    model.segment(scan.image, affine=scan.affine, n=1)
    assert torch.get_num_threads() == threads
    assert float(tiny * 1) > 0


def test_nothing_is_printed(trained, scan, tmp_path, capfd):
    model = oasis_monai.load_model(trained)
    model.segment(scan.image, affine=scan.affine, n=2).save(tmp_path / "label.nii.gz")
    with pytest.raises(DataError):
        model.segment(NOISE)
    assert capfd.readouterr() == ("", "")
