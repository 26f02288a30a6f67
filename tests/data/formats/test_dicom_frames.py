"""An enhanced multi-frame DICOM file is the same scan as the NIfTI file of it and as another reader's, or a clear fault."""

import highdicom
import itk
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from oasis_monai.data.cases import find_cases
from oasis_monai.data.formats.dispatch import data_files
from oasis_monai.data.formats.header import flip_lps_ras
from oasis_monai.data.io import read_image
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_dicom import GRIDS, VOLUME
from tests.helpers.dicom_objects import ENHANCED_CT, ENHANCED_MR, LEGACY_CT, write_enhanced
from tests.helpers.dicom_series import kept_locale

ORDER = [3, 0, 4, 1, 2]


def scale(frame):
    """Another rescaling for each frame."""
    return 1.0 + frame / 4, 10.0 * frame - 1000


@pytest.mark.parametrize("kind", [ENHANCED_MR, ENHANCED_CT, LEGACY_CT])
@pytest.mark.parametrize("grid", GRIDS)
def test_an_enhanced_file_is_the_same_scan_as_its_nifti(tmp_path, grid, kind):
    write_enhanced(tmp_path / "in" / "all.dcm", VOLUME, GRIDS[grid], kind, ORDER, scale)
    values = np.stack([VOLUME[..., z] * scale(ORDER.index(z))[0] + scale(ORDER.index(z))[1] for z in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), GRIDS[grid]), tmp_path / "scan.nii.gz")
    (case,) = find_cases(tmp_path / "in", "folder")
    image, geometry = read_image(case.source)
    wanted, native = read_image(tmp_path / "scan.nii.gz")
    assert torch.equal(image, wanted)
    np.testing.assert_allclose(geometry.affine, native.affine, atol=1e-4)
    assert data_files(case.image) == (tmp_path / "in" / "all.dcm",)


def test_an_enhanced_file_is_what_highdicom_makes_of_it(tmp_path):
    """By position of voxels: highdicom may have the axes in another order."""
    write_enhanced(tmp_path / "all.dcm", VOLUME, GRIDS["oblique"], order=ORDER, rescale=scale)
    image, geometry = read_image(tmp_path / "all.dcm")
    other = highdicom.imread(tmp_path / "all.dcm").get_volume(apply_real_world_transform=False, apply_modality_transform=True)
    back = np.linalg.inv(geometry.affine) @ flip_lps_ras(other.affine)
    index = np.indices(other.spatial_shape).reshape(3, -1)
    place = back @ np.vstack([index, np.ones(index.shape[1])])
    np.testing.assert_allclose(place[:3], np.rint(place[:3]), atol=1e-3)
    x, y, z = np.rint(place[:3]).astype(int)
    assert np.prod(other.spatial_shape) == image.numel()
    np.testing.assert_allclose(image[0].numpy()[x, y, z], other.array.ravel(), rtol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_transfer_syntaxes(tmp_path, syntax):
    write_enhanced(tmp_path / "a.dcm", VOLUME - VOLUME.min(), GRIDS["oblique"], order=ORDER, dtype=np.uint16)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    if syntax.is_compressed:
        data.compress(syntax)
        data.save_as(tmp_path / "b.dcm")
    else:
        data.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(
            tmp_path / "b.dcm",
            data,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )
    image, geometry = read_image(tmp_path / "b.dcm")
    np.testing.assert_array_equal(image[0].numpy(), VOLUME - VOLUME.min())
    np.testing.assert_allclose(geometry.affine, GRIDS["oblique"], atol=1e-4)


def test_pixels_that_pydicom_cannot_decode_are_decoded_by_gdcm(tmp_path):
    """JPEG lossless, as archives keep scans. ITK writes the functional groups of such a file itself."""
    image = itk.image_from_array(np.ascontiguousarray(VOLUME.T))
    image.SetSpacing([1.5, 1.25, 3.0])
    image.GetMetaDataDictionary()["0008|0060"] = "MR"
    writer = itk.GDCMImageIO.New()
    writer.SetCompressionType(itk.GDCMImageIOEnums.Compression_JPEG)
    with kept_locale():
        itk.imwrite(image, str(tmp_path / "a.dcm"), imageio=writer, compression=True)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert data.file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
    for number, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        transform = pydicom.Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = *scale(number + 1), "US"
        frame.PixelValueTransformationSequence = pydicom.Sequence([transform])
    del data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    data.save_as(tmp_path / "b.dcm")
    got, _ = read_image(tmp_path / "b.dcm")
    slopes, intercepts = np.array([scale(z + 1) for z in range(5)]).T
    np.testing.assert_allclose(got[0].numpy(), VOLUME * slopes + intercepts, rtol=1e-6)


@pytest.mark.parametrize("order", ["volume by volume", "place by place"])
@pytest.mark.parametrize(
    ("sequence", "name", "values"),
    [
        ("MRDiffusionSequence", "DiffusionBValue", (800.0, 0.0, 50.0)),
        ("MREchoSequence", "EffectiveEchoTime", (30.0, 10.0, 110.0)),
        ("FrameContentSequence", "TemporalPositionIndex", (2, 3, 1)),
    ],
)
def test_volumes_of_a_file_are_channels_in_the_order_of_what_tells_them_apart(tmp_path, sequence, name, values, order):
    frames = [(v, z) for v in range(3) for z in ORDER]
    if order == "place by place":
        frames = [(v, z) for z in ORDER for v in range(3)]
    stacked = np.concatenate([VOLUME + 10 * v for v in range(3)], axis=2)
    slices = [5 * v + z for v, z in frames]
    told = [{sequence: {name: values[v]}} for v, _ in frames]
    data = write_enhanced(tmp_path / "a.dcm", stacked, GRIDS["oblique"], order=slices, groups=lambda n: told[n])
    places = write_enhanced(tmp_path / "one.dcm", VOLUME, GRIDS["oblique"]).PerFrameFunctionalGroupsSequence
    for frame, (_, z) in zip(data.PerFrameFunctionalGroupsSequence, frames, strict=True):
        frame.PlanePositionSequence = places[z].PlanePositionSequence
    data.save_as(tmp_path / "a.dcm")
    image, geometry = read_image(tmp_path / "a.dcm")
    np.testing.assert_allclose(geometry.affine, GRIDS["oblique"], atol=1e-4)
    for channel, v in enumerate(np.argsort(values)):
        np.testing.assert_array_equal(image[channel].numpy(), VOLUME + 10 * v)


def spoilt(folder, what):
    file, grid, twice = folder / "all.dcm", GRIDS["oblique"], [0, 1, 2, 3, 4] * 2
    if what == "b-values":  # one slice lacks the second
        sequence = "MRDiffusionSequence"
        write_enhanced(file, VOLUME, grid, order=twice[:-1], groups=lambda n: {sequence: {"DiffusionBValue": 800.0 * (n > 4)}})
    elif what == "phases":  # numbered on, not from 1 at every place
        phase = "FrameContentSequence"
        write_enhanced(file, VOLUME, grid, order=twice, groups=lambda n: {phase: {"TemporalPositionIndex": n}})
    elif what == "volumes":
        phase = "FrameContentSequence"
        order = [z for z in range(5) for _ in range(20)]
        write_enhanced(file, VOLUME, grid, order=order, groups=lambda n: {phase: {"TemporalPositionIndex": n % 20}})
    elif what == "missing":
        write_enhanced(file, VOLUME, grid, order=[4, 1, 0, 2])
    elif what == "one":
        write_enhanced(file, VOLUME, grid, order=[4, 4])
    elif what == "localiser":
        turned = {"PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}
        write_enhanced(file, VOLUME, grid, groups=lambda n: turned if n == 4 else {})
    elif what == "groups":
        data = write_enhanced(file, VOLUME, grid)
        data.NumberOfFrames = 6
        data.save_as(file)
    elif what == "no place":
        data = write_enhanced(file, VOLUME, grid)
        del data.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
        data.save_as(file)
    elif what == "part":
        write_enhanced(file, VOLUME, grid, InConcatenationNumber=1, InConcatenationTotalNumber=3)
    elif what == "short":
        write_enhanced(file, VOLUME, grid)
        file.write_bytes(file.read_bytes()[:-40])
    elif what == "huge":
        data = write_enhanced(file, VOLUME, grid)
        data.Rows = data.Columns = 60000
        data.save_as(file)
    elif what == "fewer pixels":
        data = write_enhanced(file, VOLUME, grid)
        data.Rows = 60
        data.save_as(file)
    elif what == "colour":
        data = write_enhanced(file, VOLUME, grid)
        data.SamplesPerPixel = 3
        data.save_as(file)


@pytest.mark.parametrize(
    ("what", "field", "found"),
    [
        ("b-values", "ImagePositionPatient", r"9 images at 5 places; they differ in DiffusionBValue \(0, 800\); .*export each"),
        ("phases", "ImagePositionPatient", r"they differ in TemporalPositionIndex \(0, 5\)"),
        ("volumes", "NumberOfFrames", "20"),
        ("missing", "ImagePositionPatient", r"6 mm between frame 4 of all.dcm and frame 1 of all.dcm \(1 missing\?\)"),
        ("one", "ImagePositionPatient", "they differ in their pixels alone"),
        ("localiser", "ImageOrientationPatient", r"another in frame 5 of all.dcm \(1 of 5 images\)"),
        ("groups", "file", "6 frames with 5 functional groups"),
        ("no place", "geometry", r"none of ImagePositionPatient in frame 3 of all.dcm \(1 of 5 images\)"),
        ("part", "InConcatenationTotalNumber", "one of 3 parts"),
        ("short", "file", "bytes that are damaged or cut short"),
        ("huge", "Columns, Rows, images", "60000 x 60000 x 5"),
        ("fewer pixels", "file", "The .*pixel data"),
        ("colour", "SamplesPerPixel", "3 values in frame 1 of all.dcm"),
    ],
)
def test_faults_are_told_in_one_line_each(tmp_path, what, field, found):
    spoilt(tmp_path, what)
    with pytest.raises(DataError, match=rf"{field}: expected .*{found}") as error:
        read_image(tmp_path / "all.dcm")
    assert len(str(error.value).splitlines()) == len(error.value.faults) == 1


def test_every_enhanced_file_of_a_series_is_a_case(tmp_path):
    for number in (1, 2):
        write_enhanced(tmp_path / "in" / f"echo{number}.dcm", VOLUME + number, GRIDS["axial"])
    found = {case.id: case for case in find_cases(tmp_path / "in", "folder")}
    assert sorted(found) == ["in_echo1", "in_echo2"]
    for number in (1, 2):
        np.testing.assert_array_equal(read_image(found[f"in_echo{number}"].source)[0][0].numpy(), VOLUME + number)
