"""Several channels: of one file, or of several files of a case, on one grid."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.io import read_image, read_volume
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_headers import RAW, line
from tests.data.test_io import by_itk
from tests.data.test_labels import AFFINE, SHAPE, VOXELS, nifti


def test_a_4d_file(tmp_path: Path) -> None:
    """By nibabel with the volumes last, by ITK's vectors with a dimension of one before them."""
    several = np.stack([VOXELS, 2 * VOXELS, VOXELS - 1], -1)
    for shape in ((*SHAPE, 3), (*SHAPE, 1, 3), (*SHAPE, 3, 1)):
        path = nifti(tmp_path / "x.nii.gz", several.reshape(shape))
        image, grid = read_image(path)
        assert read_header(path).channels == 3
        np.testing.assert_array_equal(image.numpy(), np.moveaxis(several, -1, 0))
        np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-5)
    one = nifti(tmp_path / "one.nii.gz", several[..., :1])
    assert read_image(one)[0].shape == (1, *SHAPE)


def test_a_vector_metaimage(tmp_path: Path) -> None:
    values = np.frombuffer(RAW, "<i2")
    (tmp_path / "scan.raw").write_bytes(np.stack([values, -values], -1).tobytes())  # each voxel's together
    (tmp_path / "x.mhd").write_text(line("ElementNumberOfChannels", "2"))
    image, _ = read_image(tmp_path / "x.mhd")
    grey = values.reshape(4, 3, 2, order="F")
    np.testing.assert_array_equal(image.numpy(), np.stack([grey, -grey]))
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(by_itk(tmp_path / "x.mhd")[0], -1, 0))


def three(folder: Path, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Case:
    """T2, two volumes of diffusion in one file, and a third image on a grid of its own."""
    t2 = nifti(folder / "t2.nii", VOXELS)
    dwi = nifti(folder / "dwi.nii", np.stack([VOXELS + 1, VOXELS + 2], -1))
    third = nifti(folder / "adc.nii", (VOXELS + 3) if shape == SHAPE else np.ones(shape, np.int16), affine)
    label = nifti(folder / "l.nii", (VOXELS > 0).astype(np.uint8))
    return Case("p7", t2, label, channels=((dwi,), (third,)))


def test_images_of_a_case_follow_each_other(tmp_path: Path) -> None:
    case = three(tmp_path)
    volume = read_volume(case, (0, 1))
    np.testing.assert_array_equal(volume.image.numpy(), np.stack([VOXELS + k for k in range(4)]))
    assert volume.notes == ()
    for take in ((0,), (3, 1), (0, 1, 2, 3)):
        chosen = read_volume(Case(case.id, case.image, case.label, channels=case.channels, take=take), (0, 1))
        np.testing.assert_array_equal(chosen.image.numpy(), np.stack([VOXELS + k for k in take]))
    with pytest.raises(
        DataError, match=r"p7: channels: expected those to take, found 4 \(0 to 3\), not 4; correct data.channels"
    ):
        read_volume(Case(case.id, case.image, case.label, channels=case.channels, take=(0, 4)), (0, 1))


def test_a_turned_channel_is_put_in_order(tmp_path: Path) -> None:
    case = three(tmp_path)
    image = nibabel.Nifti1Image(VOXELS + 3, AFFINE)
    nibabel.save(image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), tmp_path / "adc.nii")
    assert nibabel.load(tmp_path / "adc.nii").shape != SHAPE
    np.testing.assert_array_equal(read_volume(case, (0, 1)).image[3].numpy(), VOXELS + 3)


def test_a_channel_on_another_grid(tmp_path: Path) -> None:
    aside = AFFINE.copy()
    aside[0, 3] += 0.9
    match = (
        r"^p7: image 3 \(adc\.nii\) geometry: expected the first image's grid, found origin off by 0\.9 mm: up to 3 voxels; resa"
    )
    with pytest.raises(DataError, match=match):
        read_volume(three(tmp_path, aside), (0, 1))
    with pytest.raises(
        DataError, match=r"image 3 \(adc\.nii\) geometry: .* shape 4 x 5 x 6 against 4 x 5 x 7; resample the image"
    ):
        read_volume(three(tmp_path, shape=(4, 5, 7)), (0, 1))
    aside[0, 3] -= 0.75
    (note,) = read_volume(three(tmp_path, aside), (0, 1)).notes
    assert (note.field, note.severity) == ("image 3 (adc.nii) geometry", "warning")
    assert "0.5 voxels" in note.found


def test_faults_of_all_images_at_once(tmp_path: Path) -> None:
    case = three(tmp_path)
    bad = np.stack([VOXELS, VOXELS], -1).astype(np.float32)
    bad[0, 0, 0, 1] = np.nan
    nifti(tmp_path / "dwi.nii", bad)
    (tmp_path / "adc.nii").unlink()
    nifti(tmp_path / "l.nii", np.full(SHAPE, 4, np.uint8))
    with pytest.raises(DataError) as caught:
        read_volume(case, (0, 1))
    assert [fault.field for fault in caught.value.faults] == ["dwi.nii voxels", "adc.nii file", "l.nii label values"]
    assert caught.value.faults[0].found == "1 NaN or infinite in channel 1"
