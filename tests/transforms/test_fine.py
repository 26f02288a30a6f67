"""The fine grid: where its voxels lie, what a scan is on it, and what the cache keeps of it."""

import dataclasses

import nibabel
import numpy as np
import pytest
import torch

from oasis_monai.data.types import Case
from oasis_monai.transforms import preprocessing as preprocess
from oasis_monai.transforms.fine import coarsened, refined
from oasis_monai.transforms.preprocessing import PreprocessCache, Preprocessing
from oasis_monai.transforms.views import View, scaled
from oasis_monai.utils.errors import ConfigError
from tests.transforms.test_preprocessing import volume
from tests.transforms.test_spatial import WORLDS, positions_mm, world

FACTOR = (3, 2, 2)
BOTH = Preprocessing("physical", 3, (16, 18, 8), (1.2, 1.4, 3.0), "zscore", fine_factor=FACTOR)
SCAN = volume(WORLDS["anisotropic"])
FINE = Preprocessing("physical", 3, (48, 36, 16), (0.4, 0.7, 1.5), "zscore")


@world
def test_a_working_voxel_lies_in_the_middle_of_its_fine_ones(native):
    working = BOTH.working_geometry(native)
    fine = refined(working, FACTOR)
    assert fine.shape == (48, 36, 16)
    blocks = positions_mm(fine).reshape(16, 3, 18, 2, 8, 2, 3).mean((1, 3, 5))
    np.testing.assert_allclose(blocks, positions_mm(working), atol=1e-9)
    np.testing.assert_allclose(coarsened(fine, FACTOR).affine, working.affine, atol=1e-9)
    with pytest.raises(ValueError, match=r"multiples of \(5, 2, 2\), found \(48, 36, 16\)"):
        coarsened(fine, (5, 2, 2))


@world
def test_on_the_fine_grid_a_scan_is_what_a_setting_of_such_voxels_makes_of_it(native):
    scan = volume(native)
    got, wanted = BOTH.apply(scan).fine, FINE.apply(scan)
    np.testing.assert_allclose(got.geometry.affine, wanted.geometry.affine, atol=1e-9)
    assert torch.equal(got.label, wanted.label)
    torch.testing.assert_close(got.image.float(), wanted.image, atol=5e-3, rtol=1e-3)  # float16
    assert got.image.dtype == torch.float16


def test_the_fine_grid_follows_a_moved_grid_and_a_view():
    seen = BOTH.apply(SCAN, (2, -1, 1), View("larger", scaled(2.0)))
    blocks = positions_mm(seen.fine.geometry).reshape(16, 3, 18, 2, 8, 2, 3).mean((1, 3, 5))
    np.testing.assert_allclose(blocks, positions_mm(seen.geometry), atol=1e-9)
    assert seen.fine.geometry.spacing_mm == pytest.approx((0.2, 0.35, 0.75))


def test_without_a_factor_there_is_no_fine_grid_and_no_name_knows_of_one():
    assert dataclasses.replace(BOTH, fine_factor=None).apply(SCAN).fine is None
    assert "fine_factor" not in preprocess.without_absent(Preprocessing())
    assert preprocess.without_absent(BOTH)["fine_factor"] == FACTOR


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"fine_factor": (2, 2)}, r"^preprocessing\.fine_factor: expected 3 values, each a whole number above 0"),
        ({"fine_factor": (2, 2, 0)}, r"^preprocessing\.fine_factor"),
        ({"fine_factor": (2, 2, 1.5)}, r"^preprocessing\.fine_factor"),
        ({"fine_factor": (99, 99, 99)}, r"^preprocessing\.fine_factor: expected at most 268,435,456 voxels"),
        ({"fine_factor": (2, 2), "spatial_dims": 2}, r"^preprocessing\.fine_factor: expected null where spatial_dims is 2"),
    ],
    ids=str,
)
def test_a_factor_that_cannot_work_names_its_key(more, match):
    with pytest.raises(ConfigError, match=match):
        Preprocessing(**more)


def test_a_target_has_no_label_on_any_grid():
    labelled = BOTH.apply(SCAN)
    bare = labelled.without_label()
    assert labelled.fine.label is not None
    assert bare.label is None
    assert bare.fine.label is None
    assert torch.equal(bare.fine.image, labelled.fine.image)


def test_the_cache_gives_the_fine_grid_again_and_makes_a_damaged_one_anew(tmp_path):
    for name, voxels in (("image", SCAN.image[0]), ("label", SCAN.label[0] > 0)):
        array = voxels.numpy().astype(np.float32 if name == "image" else np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, SCAN.geometry.affine), tmp_path / f"{name}.nii.gz")
    case = Case("one", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    first = PreprocessCache(tmp_path / "cache", BOTH, (0, 1)).get(case)
    target = PreprocessCache(tmp_path / "cache", BOTH, (0, 1)).get(case.without_label())
    assert target.fine.label is None
    (label,) = (tmp_path / "cache").glob("*.label_fine")
    for damage in (None, label):
        if damage is not None:
            damaged = damage.read_bytes()[:-1] + b"\7"
            damage.unlink()  # what was read from the file before keeps its own
            damage.write_bytes(damaged)
        again = PreprocessCache(tmp_path / "cache", BOTH, (0, 1)).get(case)
        for one in (again.fine, target.fine):
            assert torch.equal(one.image, first.fine.image)
            assert np.array_equal(one.geometry.affine, first.fine.geometry.affine)
        assert torch.equal(again.fine.label, first.fine.label)
    wanted = PreprocessCache(None, BOTH, (0, 1)).get(case)
    assert torch.equal(again.fine.label, wanted.fine.label)
    assert torch.equal(again.fine.image, wanted.fine.image)
