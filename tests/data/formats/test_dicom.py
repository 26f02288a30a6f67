"""A DICOM series is the same scan as the NIfTI file of it, or a clear fault: never a scan at another place."""

import shutil

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from oasis_monai.data.cases import find_cases
from oasis_monai.data.formats.dicom import is_dicom, read_series
from oasis_monai.data.formats.dispatch import data_files, read_header
from oasis_monai.data.formats.header import Faults
from oasis_monai.data.io import read_image
from oasis_monai.transforms import LoadVolume
from oasis_monai.utils.errors import DataError
from oasis_monai.workflows.bundle import scans_in
from tests.helpers.dicom_objects import write_enhanced
from tests.helpers.dicom_series import CAPTURE, CT, MR, write_series, write_slice

VOLUME = np.random.default_rng(0).integers(-500, 1500, (7, 6, 5)).astype(np.int16)


def turned(*degrees):
    """Rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [a for a in range(3) if a != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix


def affine(rotation=None, spacing=(1.5, 1.25, 3.0), origin=(-20.5, 31.25, 100.0)):
    """RAS affine whose axes run to the left, to the back and up before the rotation, as DICOM's do in an axial scan."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag([-1.0, -1.0, 1.0]) * spacing
    matrix[:3, 3] = origin
    return matrix


def only(folder):
    (case,) = find_cases(folder, "folder")
    return case


GRIDS = {
    "axial": affine(),
    "oblique": affine(turned(12, -7, 20)),
    "sagittal": affine(turned(0, 90, 0)),
    "coronal oblique": affine(turned(80, 5, 3)),
    "upside down": affine(turned(180, 0, 0)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", [MR, CT])
def test_a_series_is_the_same_scan_as_its_nifti(tmp_path, grid, kind):
    write_series(tmp_path / "scan", VOLUME, GRIDS[grid], kind=kind)
    nibabel.save(nibabel.Nifti1Image(VOLUME, GRIDS[grid]), tmp_path / "scan.nii.gz")
    image, geometry = read_image(only(tmp_path / "scan").image)
    wanted, native = read_image(tmp_path / "scan.nii.gz")
    assert torch.equal(image, wanted)
    np.testing.assert_allclose(geometry.affine, native.affine, atol=1e-4)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_slices_are_sorted_by_position_and_not_by_name(tmp_path, order):
    write_series(tmp_path / "mixed", VOLUME, GRIDS["oblique"], order=order)
    image, geometry = read_image(only(tmp_path / "mixed").image)
    np.testing.assert_array_equal(image[0].numpy(), VOLUME)
    np.testing.assert_allclose(geometry.affine, GRIDS["oblique"], atol=1e-4)
    files = data_files(only(tmp_path / "mixed").image)
    assert [int(f.name[:3]) for f in files] == [order.index(z) for z in range(5)]


def test_a_stack_whose_slices_run_against_their_normal_comes_back_in_place(tmp_path):
    """Left-handed in the file's order: voxels may come in another order, each at its own place."""
    backwards = GRIDS["oblique"].copy()
    backwards[:3, 2] *= -1
    write_series(tmp_path / "s", VOLUME, backwards)
    image, geometry = read_image(only(tmp_path / "s").image)
    np.testing.assert_array_equal(image[0].numpy(), VOLUME[..., ::-1])
    np.testing.assert_allclose(geometry.affine @ [1, 2, 0, 1], backwards @ [1, 2, 4, 1], atol=1e-4)


def test_rescaling_is_applied_to_every_slice(tmp_path):
    for z in range(3):
        place = affine(origin=(0, 0, 3.0 * z))
        scale = {"0028|1052": "-1000", "0028|1053": f"{z + 1}"}
        write_slice(tmp_path / f"{z}.dcm", VOLUME[..., z] * (z + 1) - 1000, place, CT, **scale)
    image, _ = read_image(only(tmp_path).image)
    np.testing.assert_allclose(image[0].numpy(), VOLUME[..., :3] * np.arange(1, 4) - 1000)
    header = read_header(only(tmp_path).image)
    assert header.shape == (7, 6, 3)
    assert len(header.files) == 3


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_compressed_slices(tmp_path, kind):
    import itk

    volume = np.random.default_rng(1).integers(-500, 1500, (32, 33, 3)).astype(np.int16)  # GDCM writes no smaller JPEG 2000
    write_series(tmp_path / "s", volume, GRIDS["oblique"], compression=getattr(itk.GDCMImageIOEnums, f"Compression_{kind}"))
    syntax = pydicom.dcmread(tmp_path / "s" / "000.dcm").file_meta.TransferSyntaxUID
    assert syntax.is_compressed
    np.testing.assert_array_equal(read_image(only(tmp_path / "s").image)[0][0].numpy(), volume)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_byte_orders_and_value_representations(tmp_path, syntax):
    """Also without the preamble, as old programs write them: then the name must end in .dcm."""
    write_series(tmp_path / "s", VOLUME, GRIDS["oblique"])
    for file in sorted((tmp_path / "s").iterdir()):
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian:
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian, "force_encoding": True}
        pydicom.dcmwrite(file, data, **encoding)
        if syntax == ImplicitVRLittleEndian:
            del data.file_meta
            data.preamble = None
            pydicom.dcmwrite(file, data, implicit_vr=True, little_endian=True, force_encoding=True)
            assert file.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_image(only(tmp_path / "s").image)[0][0].numpy(), VOLUME)


def test_files_without_an_ending_and_several_series_folders(tmp_path):
    for name in ("anna", "berta"):
        write_series(tmp_path / "in" / name, VOLUME, affine(), name="IM{:04d}", series=f"1.2.{name == 'anna':d}")
    write_series(tmp_path / "in" / "both" / "deep", VOLUME, affine(), series="1.2.77.1")
    write_series(tmp_path / "in" / "both" / "deep", VOLUME + 1, affine(), name="b{}", series="1.2.78.1")
    write_series(tmp_path / "in" / "more" / "anna", VOLUME, affine(), series="1.2.9")
    (tmp_path / "in" / "anna" / "notes.txt").write_text("no scan")
    (tmp_path / "in" / "anna" / ".DS_Store").write_bytes(b"\0" * 200)
    nibabel.save(nibabel.Nifti1Image(VOLUME, affine()), tmp_path / "in" / "carla.nii.gz")
    found = {case.id: case.image for case in find_cases(tmp_path / "in", "folder")}
    assert list(found) == ["anna", "berta", "carla", "deep_77.1", "deep_78.1", "more_anna"]
    assert float(read_image(found["deep_78.1"])[0].sum() - read_image(found["deep_77.1"])[0].sum()) == VOLUME.size
    (case,) = find_cases(tmp_path / "in" / "berta" / "IM0002", "folder")
    assert (case.id, read_image(case.image)[1].shape) == ("berta", (7, 6, 5))


def test_a_name_never_leaves_the_folder(tmp_path):
    for number, series in enumerate(("1.2./../../x", "1.2.3")):
        write_series(tmp_path / "s", VOLUME, affine(), name=f"{number}-{{}}.dcm", series=series)
    assert all("/" not in case.id and ".." not in case.id for case in find_cases(tmp_path / "s", "folder"))
    assert len(find_cases(tmp_path / "s", "folder")) == 2


def put_tag(file, tag, value):
    """A tag of an image of GDCM's (implicit little endian), before the next larger one of its own."""
    data = file.read_bytes()
    at = data.index(b"\x20\x00\x0d\x00")  # StudyInstanceUID follows group 18
    file.write_bytes(data[:at] + tag + len(value).to_bytes(4, "little") + value + data[at:])


def spoilt(folder, what):
    grid = GRIDS["oblique"]
    if what == "missing":
        write_series(folder, VOLUME, grid, skip=(2,))
    elif what == "second missing":
        write_series(folder, VOLUME, grid, skip=(1,))
    elif what == "uneven":
        write_series(folder, VOLUME, grid, shift=lambda z: z + 0.3 * (z > 2))
    elif what == "twice":
        write_series(folder, VOLUME, grid)
        write_series(folder, VOLUME + 1, grid, name="again{}.dcm")
    elif what == "echoes":
        for echo in (1, 2):
            tags = {"0018|0081": "10" if echo == 1 else "80", "0018|0086": str(echo)}
            write_series(folder, VOLUME + echo, grid, name=f"{echo}-{{}}.dcm", **tags)
    elif what == "b-values":  # one of the b-values was left out of one slice
        for number, skip in ((0, (1,)), (800, ())):
            value = np.float64(number).tobytes()
            write_series(folder, VOLUME + number, grid, name=f"{number}-{{}}.dcm", skip=skip)
            for file in folder.glob(f"{number}-*.dcm"):
                put_tag(file, b"\x18\x00\x87\x90", value)
    elif what == "capture":
        write_series(folder, VOLUME, grid, kind=CAPTURE)
    elif what == "frames":
        write_enhanced(folder / "all.dcm", VOLUME, grid)
        data = pydicom.dcmread(folder / "all.dcm")
        del data.PerFrameFunctionalGroupsSequence
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MR
        data.save_as(folder / "all.dcm")
    elif what == "no position":
        write_series(folder, VOLUME, grid)
        for file in folder.iterdir():  # GDCM would write a position of 0: the tag becomes one that nobody knows
            file.write_bytes(file.read_bytes().replace(b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"))
    elif what == "one":
        write_series(folder, VOLUME[..., :1], grid)
    elif what == "sheared":
        write_series(folder, VOLUME, np.array(grid) + np.outer([0, 1, 0, 0], [0, 0, 0.5, 0]))
    elif what == "turned":
        write_series(folder, VOLUME, grid, skip=(4,))
        write_series(folder, VOLUME, GRIDS["axial"], skip=(0, 1, 2, 3))
    elif what == "sizes":
        write_series(folder, VOLUME, grid, skip=(4,))
        write_series(folder, VOLUME[:5], grid, skip=(0, 1, 2, 3))
    elif what == "pixels":
        write_series(folder, VOLUME, grid, skip=(4,))
        write_series(folder, VOLUME, affine(turned(12, -7, 20), spacing=(2.0, 2.0, 3.0)), skip=(0, 1, 2, 3))
    elif what == "short":
        write_series(folder, VOLUME, grid)
        last = folder / "004.dcm"
        last.write_bytes(last.read_bytes()[:-20])
    elif what == "words":
        write_series(folder, VOLUME, grid)
        for file in folder.iterdir():  # NumberOfFrames before Rows, in the implicit little endian that GDCM writes
            rows, frames = b"\x28\x00\x10\x00", b"\x28\x00\x08\x00\x04\x00\x00\x001.5 "
            file.write_bytes(file.read_bytes().replace(rows, frames + rows, 1))
    elif what == "garbage":
        folder.mkdir()
        (folder / "a.dcm").write_bytes(bytes(range(256)) * 4)
    elif what == "claims":
        folder.mkdir()
        (folder / "a").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))


@pytest.mark.parametrize(
    ("what", "field", "found"),
    [
        ("missing", "ImagePositionPatient", r"6 mm between 001.dcm and 003.dcm \(1 missing\?\), others 3 mm"),
        ("second missing", "ImagePositionPatient", r"6 mm between 000.dcm and 002.dcm \(1 missing\?\)"),
        ("uneven", "ImagePositionPatient", "3.9 mm between 002.dcm and 003.dcm, others 3 mm"),
        ("twice", "ImagePositionPatient", "0 mm apart, 10 images at 5 places; they differ in their pixels alone; keep one image"),
        (
            "echoes",
            "ImagePositionPatient",
            r"they differ in EchoTime \(10, 80\) and EchoNumbers \(1, 2\); .*EchoTime",
        ),
        ("b-values", "ImagePositionPatient", r"they differ in DiffusionBValue \(0, 800\)"),
        ("capture", "SOPClassUID", r"a secondary capture: 000.dcm \(5 of 5 images\)"),
        ("frames", "NumberOfFrames", "5 in all.dcm"),
        ("no position", "geometry", r"none of ImagePositionPatient in 000.dcm \(5 of 5 images\)"),
        ("one", "series", "1"),
        ("sheared", "ImageOrientationPatient, ImagePositionPatient", "a deviation of 0.1"),
        ("turned", "ImageOrientationPatient", r"another in 004.dcm \(1 of 5 images\)"),
        ("sizes", "Columns, Rows", r"5 x 6 in 004.dcm \(1 of 5 images\)"),
        ("pixels", "PixelSpacing", r"another in 004.dcm"),
        ("short", "files", "1 that GDCM cannot read, such as 004.dcm"),
        ("words", "file", r"no whole number in NumberOfFrames \(.*'1.5'\)"),
        ("garbage", "file", "1024 bytes that are damaged or cut short"),
        ("claims", "file", "332 bytes with a damaged file meta information"),
    ],
)
def test_faults_are_told_in_one_line_each(tmp_path, what, field, found):
    spoilt(tmp_path / "s", what)
    case = only(tmp_path / "s")
    with pytest.raises(DataError, match=rf"{field}: expected .*{found}") as error:
        read_image(case.image)
    assert len(str(error.value).splitlines()) == len(error.value.faults) == 1


SPREAD = {  # slice -> folder
    "halves": lambda z: "1" if z < 3 else "2",
    "every second": lambda z: f"part{z % 2}",
    "deep": lambda z: ("x/y/1", "x/2", "x/2", "3", "3")[z],
    "root and below": lambda z: "." if z % 2 else "more",
}


@pytest.mark.parametrize("spread", SPREAD)
def test_a_series_over_several_folders_is_one_scan(tmp_path, spread):
    """However it is given: as the folder, as one of its files, as what was found, to MONAI."""
    for z in range(5):
        write_series(tmp_path / "in" / SPREAD[spread](z), VOLUME, GRIDS["oblique"], skip=set(range(5)) - {z})
    write_series(tmp_path / "in" / "other", VOLUME + 1, GRIDS["oblique"], series="1.2.9")
    found = {case.id: case for case in find_cases(tmp_path / "in", "folder")}
    assert sorted(found) == ["in", "other"]
    case = found["in"]
    for source in (case.source, case.image, str(case.image)):
        image, geometry = read_image(source)
        np.testing.assert_array_equal(image[0].numpy(), VOLUME)
        np.testing.assert_allclose(geometry.affine, GRIDS["oblique"], atol=1e-4)
        assert len(data_files(source)) == 5
    np.testing.assert_array_equal(LoadVolume()(scans_in(str(tmp_path / "in"))[0]["image"])[0], VOLUME)
    shutil.rmtree(case.source[-1].parent)
    with pytest.raises(DataError):
        read_image(case.source)


def test_folders_of_one_uid_that_hold_other_scans_stay_apart(tmp_path):
    """Echoes in a folder each; patients to whom a program gave one UID; a screen shot."""
    write_series(tmp_path / "a", VOLUME, affine(), **{"0018|0081": "10"})
    write_series(tmp_path / "b", VOLUME + 1, affine(), **{"0018|0081": "80"})
    write_series(tmp_path / "c", VOLUME + 2, affine(origin=(0, 0, 500)), **{"0010|0020": "another"})
    write_series(tmp_path / "d", VOLUME + 3, affine(spacing=(1, 1, 3), origin=(0, 0, 900)))
    found = {case.id: case for case in find_cases(tmp_path, "folder")}
    assert sorted(found) == ["a", "another", "b", "d"]  # the third says whose it is
    for number, name in enumerate(("a", "b", "another", "d")):
        np.testing.assert_array_equal(read_image(found[name].image)[0][0].numpy(), VOLUME + number)


def test_echoes_of_two_folders_each_are_two_scans(tmp_path):
    for echo in (0, 1):
        for half, skip in (("p", (3, 4)), ("q", (0, 1, 2))):
            write_series(tmp_path / "in" / f"{half}{echo}", VOLUME + echo, affine(), skip=skip)
    found = find_cases(tmp_path / "in", "folder")
    assert [case.id for case in found] == ["in_p0", "in_p1"]
    for echo, case in enumerate(found):
        np.testing.assert_array_equal(read_image(case.source)[0][0].numpy(), VOLUME + echo)


@pytest.mark.parametrize("how", ["bytes", "another UID", "a copy of the folder"])
def test_an_image_that_is_there_twice_is_taken_once_and_told(tmp_path, how):
    write_series(tmp_path / "s", VOLUME, affine())
    first = tmp_path / "s" / "001.dcm"
    if how == "bytes":
        shutil.copy(first, tmp_path / "s" / "001 copy.dcm")
    elif how == "another UID":
        write_series(tmp_path / "s", VOLUME, affine(), name="x{}.dcm", skip=(0, 2, 3, 4), **{"0020|0013": "77"})
        assert first.read_bytes() != (tmp_path / "s" / "x1.dcm").read_bytes()
    else:
        shutil.copytree(tmp_path / "s", tmp_path / "s again")
    (case,) = find_cases(tmp_path, "folder")
    image, _ = read_image(case.source)
    np.testing.assert_array_equal(image[0].numpy(), VOLUME)
    (note,) = read_header(case.source).notes
    count = {"a copy of the folder": "5 of 10"}.get(how, "1 of 6")
    assert (note.severity, note.field) == ("warning", "files")
    assert f"again as 00{'0' if count == '5 of 10' else '1'}" in note.found
    assert f"({count} files)" in note.found


def test_reports_and_plans_beside_the_images_are_passed_over(tmp_path):
    write_series(tmp_path / "s", VOLUME, affine())
    whole = (tmp_path / "s" / "000.dcm").read_bytes()
    report = whole.replace(MR.encode() + b"\0", b"1.2.840.10008.5.1.4.1.1.88.11", 1)
    start = report.index(b"\x02\x00\x02\x00UI") + 6
    report = report[:start] + (29).to_bytes(2, "little") + report[start + 2 :]
    (tmp_path / "s" / "report").write_bytes(report)
    assert not is_dicom(tmp_path / "s" / "report")
    assert read_image(only(tmp_path / "s").image)[1].shape == (7, 6, 5)


def test_a_changed_file_is_read_again(tmp_path):
    write_series(tmp_path / "s", VOLUME, affine())
    case = only(tmp_path / "s")
    read_header(case.image)
    shutil.rmtree(tmp_path / "s")
    write_series(tmp_path / "s", VOLUME, affine(origin=(1, 2, 3)))
    assert read_header(case.image).affine[:3, 3] == pytest.approx([1, 2, 3])
    (tmp_path / "s" / "000.dcm").unlink()
    faults = Faults(case.image)
    assert read_series(case.image, faults) is None
    assert "No such file" in str(faults.all[0])
