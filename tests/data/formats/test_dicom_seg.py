"""Segments come to lie on the image where highdicom, which wrote them, says; by their places, not by their order."""

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from oasis_monai.data.formats.dicom_labels import dicom_label_names, read_dicom_label
from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.formats.header import flip_lps_ras
from oasis_monai.data.overlap import find_sets, read_sets
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_dicom import GRIDS, VOLUME, affine
from tests.helpers.dicom_objects import write_enhanced
from tests.helpers.dicom_segments import KINDS, write_seg

MASK = np.zeros(VOLUME.shape, np.uint8)
MASK[1:4, 1:5, 1:3] = 1
MASK[4:6, 2:4, 2:4] = 2
MASK[0, 0, 3] = 3


@pytest.fixture
def scan(tmp_path):
    write_enhanced(tmp_path / "image.dcm", VOLUME, GRIDS["oblique"], order=[3, 0, 4, 1, 2], patient="p")
    return tmp_path / "image.dcm"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", ["axial", "oblique", "sagittal"])
def test_segments_lie_where_they_were_drawn(tmp_path, kind, grid):
    """7 x 6 pixels: frames of bits do not end with a byte. Empty frames are not in the file."""
    write_enhanced(tmp_path / "image.dcm", VOLUME, GRIDS[grid], order=[3, 0, 4, 1, 2], patient="p")
    write_seg(tmp_path / "seg.dcm", tmp_path / "image.dcm", MASK, kind)
    assert dicom_label_names(tmp_path / "seg.dcm") == {"Prostate": 1, "Tumour": 2, "Cyst": 3}
    label, notes = read_dicom_label(tmp_path / "seg.dcm", read_header(tmp_path / "image.dcm").geometry)
    np.testing.assert_array_equal(label, MASK)
    assert [note.found for note in notes] == (["FRACTIONAL"] if kind == "fractions" else [])


def test_segments_are_those_that_highdicom_reads(tmp_path, scan):
    write_seg(tmp_path / "seg.dcm", scan, MASK)
    geometry = read_header(scan).geometry
    label, _ = read_dicom_label(tmp_path / "seg.dcm", geometry)
    other = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    index = np.argwhere(other.array)
    place = np.linalg.inv(geometry.affine) @ flip_lps_ras(other.affine) @ np.vstack([index.T, np.ones(len(index))])
    again = np.zeros_like(MASK)
    again[tuple(np.rint(place[:3]).astype(int))] = other.array[tuple(index.T)]
    np.testing.assert_array_equal(label, again)


def test_the_order_of_frames_does_not_count(tmp_path, scan):
    write_seg(tmp_path / "seg.dcm", scan, MASK, "label map")
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    frames, groups = data.pixel_array, list(data.PerFrameFunctionalGroupsSequence)
    order = np.random.default_rng(0).permutation(len(groups))
    data.PixelData = frames[order].tobytes()
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence([groups[i] for i in order])
    data.save_as(tmp_path / "mixed.dcm")
    np.testing.assert_array_equal(read_dicom_label(tmp_path / "mixed.dcm", read_header(scan).geometry)[0], MASK)


def test_an_image_with_its_axes_in_another_order(tmp_path, scan):
    write_seg(tmp_path / "seg.dcm", scan, MASK)
    geometry = read_header(scan).geometry
    moved = Geometry((5, 7, 6), geometry.affine[:, [2, 0, 1, 3]])
    np.testing.assert_array_equal(read_dicom_label(tmp_path / "seg.dcm", moved)[0], MASK.transpose(2, 0, 1))


def test_compressed_fractions_from_a_half_on(tmp_path, scan):
    soft = np.zeros((*VOLUME.shape, 1))
    soft[2, 2, 2], soft[3, 2, 2], soft[4, 2, 2] = 0.4, 0.6, 1.0
    more = {"syntax": RLELossless, "max_fractional_value": 200}
    write_seg(tmp_path / "seg.dcm", scan, soft, "fractions", ("Prostate",), **more)
    label, (note,) = read_dicom_label(tmp_path / "seg.dcm", read_header(scan).geometry)
    np.testing.assert_array_equal(label, soft[..., 0] > 0.5)
    assert note.severity == "warning"


def test_overlapping_segments_are_one_line_and_a_choice_of_them_is_read(tmp_path, scan):
    both = np.stack([MASK > 0, MASK == 1], axis=-1).astype(np.uint8)
    write_seg(tmp_path / "seg.dcm", scan, both, names=("whole gland", "Zone"))
    geometry = read_header(scan).geometry
    with pytest.raises(DataError, match=r"whole gland and Zone in 24 voxels; choose structures .* data.labels") as error:
        read_dicom_label(tmp_path / "seg.dcm", geometry)
    assert len(str(error.value).splitlines()) == 1
    np.testing.assert_array_equal(read_dicom_label(tmp_path / "seg.dcm", geometry, {"Whole  Gland": 5})[0], 5 * (MASK > 0))
    assert read_dicom_label(tmp_path / "seg.dcm", geometry, {"kidney": 1})[0].max() == 0


def test_overlapping_segments_are_kept_apart_where_they_may_overlap(tmp_path, scan):
    both = np.stack([MASK > 0, MASK == 1], axis=-1).astype(np.uint8)
    write_seg(tmp_path / "seg.dcm", scan, both, names=("whole gland", "Zone"))
    case = Case("x", scan, tmp_path / "seg.dcm", overlapping=True)
    sets, notes = read_sets(case, read_header(scan).geometry, ["zone", "Whole Gland"])  # in another order, and spelling
    np.testing.assert_array_equal(sets, 2 * (MASK > 0) + (MASK == 1))
    assert notes == []
    found = find_sets([case], ["zone", "Whole Gland"], None, None)
    assert found == [2, 3]
    _, (note,) = read_sets(case, read_header(scan).geometry, ["kidney"])
    assert "expected one of the structures" in str(note)


def test_a_label_a_little_aside_is_told_and_one_elsewhere_refused(tmp_path, scan):
    write_seg(tmp_path / "seg.dcm", scan, MASK)
    geometry = read_header(scan).geometry
    shifted = geometry.affine.copy()
    shifted[:3, 3] += 0.3 * geometry.affine[:3, 0]
    label, (note,) = read_dicom_label(tmp_path / "seg.dcm", Geometry(geometry.shape, shifted))
    np.testing.assert_array_equal(label, MASK)
    assert "0.3 voxels aside" in note.found
    for other, found in (
        (Geometry(geometry.shape, affine()), "aside, or with other pixels"),
        (Geometry((3, 3, 3), geometry.affine), "voxels outside it"),
        (Geometry(geometry.shape, geometry.affine @ np.diag([2.0, 1, 1, 1])), "aside, or with other pixels"),
        (Geometry(geometry.shape, geometry.affine @ np.diag([1.0, 1, 2, 1])), "several frames for one slice"),
    ):
        with pytest.raises(DataError, match=found) as error:
            read_dicom_label(tmp_path / "seg.dcm", other)
        assert len(str(error.value).splitlines()) == 1
