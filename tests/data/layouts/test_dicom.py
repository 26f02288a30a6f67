"""Cases of DICOM series: names that tell them to a person, or that tell nobody; each with the label that refers to it."""

import re

import numpy as np
import pytest

from oasis_monai.data.cases import find_cases
from oasis_monai.data.formats.dicom_labels import labels_of, names_for, values_of_names
from oasis_monai.data.formats.dispatch import data_files
from oasis_monai.data.io import read_volume
from oasis_monai.data.layouts.dicom import labelled_cases, series_cases
from oasis_monai.data.settings import DataSettings
from oasis_monai.utils.errors import ConfigError, DataError
from tests.data.formats.test_dicom import GRIDS, VOLUME, affine
from tests.data.formats.test_dicom_seg import MASK
from tests.helpers.dicom_objects import write_enhanced, write_rtstruct
from tests.helpers.dicom_segments import write_seg
from tests.helpers.dicom_series import write_series


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def named(root, anonymous=False):
    return {case.id: case for case in series_cases(root, files(root), anonymous)}


def scan(root, name, series, patient="", description="", **more):
    tags = {"patient": patient, "SeriesDescription": description, **more}
    write_enhanced(root / name, VOLUME, affine(), series=series, **tags)


def test_a_case_is_named_by_patient_then_by_what_tells_its_series_apart(tmp_path):
    scan(tmp_path, "x/1.dcm", "1.2.1", "MRN 00/17", "T2 tse (tra)")
    scan(tmp_path, "x/2.dcm", "1.2.2", "MRN 00/17", "ADC/b=50,800")
    scan(tmp_path, "y/1.dcm", "1.2.3", "Müller^Anna", "T2 tse (tra)")
    scan(tmp_path, "a/pre/1.dcm", "1.2.4", "P4", "T2")
    scan(tmp_path, "a/post/1.dcm", "1.2.5", "P4", "T2")
    scan(tmp_path, "b/1.dcm", "1.2.6", "P5", "T2", SeriesNumber=4)
    scan(tmp_path, "b/2.dcm", "1.2.7", "P5", "T2", SeriesNumber=12)
    scan(tmp_path, "c/1.dcm", "1.2.840.1", "P6")
    scan(tmp_path, "c/2.dcm", "1.2.840.2", "P6")
    scan(tmp_path, "carla/1.dcm", "1.2.8")
    scan(tmp_path, "dora/1.dcm", "1.2.9", "Anonymous")
    scan(tmp_path, "e/1.dcm", "1.3.1", "../../etc/..")
    found = named(tmp_path)
    assert set(found) == {
        *("MRN_00_17_T2_tse_tra", "MRN_00_17_ADC_b_50_800", "Müller_Anna", "P4_pre", "P4_post", "P5_4", "P5_12"),
        *("P6_1", "P6_2", "carla", "dora", "etc"),
    }
    assert found["P5_4"].patient == found["P5_12"].patient == "P5"
    assert found["MRN_00_17_T2_tse_tra"].patient == "MRN 00/17"
    assert found["carla"].patient == "carla"
    for name in found:
        assert (tmp_path / name).resolve().parent == tmp_path


def test_one_file_of_a_series_is_called_as_its_folder_is(tmp_path):
    write_series(tmp_path / "Doe_Jane", VOLUME, affine(), series="1.2.1", **{"0010|0020": "MRN 17"})
    for anonymous in (False, True):
        data = DataSettings(anonymous=anonymous)
        ids = {
            case.id
            for root in (tmp_path, tmp_path / "Doe_Jane", tmp_path / "Doe_Jane" / "001.dcm")
            for case in find_cases(root, data=data, labelled=False)
        }
        assert len(ids) == 1
        assert (ids == {"MRN_17"}) is not anonymous
        assert "Doe" not in ids.pop()


def test_ids_that_differ_in_signs_or_case_alone_stay_apart(tmp_path):
    for number, patient in enumerate(("a/b", "a b", "A_b"), 1):
        scan(tmp_path, f"{number}.dcm", f"1.2.{number}", patient)
    found = named(tmp_path)
    assert len({name.casefold() for name in found}) == 3
    assert len({case.patient for case in found.values()}) == 3


def test_anonymous_cases_tell_nothing_of_a_person(tmp_path):
    told = {"StudyDate": "20240229", "PatientName": "Doe^Jane", "PatientBirthDate": "19700101"}
    for number, patient in enumerate(("S123456", "S123456", "Q99"), 1):
        scan(tmp_path, f"Doe_Jane_{patient}/{number}/a.dcm", f"1.2.{number}", patient, "T2 of Jane 20240229", **told)
    rois = {"a": [np.array([(0, 0, 100), (-9, 0, 100), (-9, -9, 100)])]}
    for number in (1, 2):
        write_rtstruct(tmp_path / f"Doe_{number}.dcm", rois, "1.2.1", "S123456")
    write_rtstruct(tmp_path / "Doe_lost.dcm", rois, "1.2.77", "S123456")
    found = named(tmp_path, anonymous=True)
    faults = []
    labelled_cases(tmp_path, files(tmp_path), faults, anonymous=True)
    assert len(found) == len(faults) == 3
    for name, case in found.items():
        assert re.fullmatch(r"case_[0-9a-f]{10}", name)
        assert re.fullmatch(r"patient_[0-9a-f]{10}", case.patient)
    assert sorted([case.patient for case in found.values()].count(case.patient) for case in found.values()) == [1, 2, 2]
    for text in [*found, *(case.patient for case in found.values()), *map(str, faults)]:
        for word in ("Doe", "Jane", "123456", "Q99", "2024", "1970"):
            assert word not in text
    first = {case.image: case.id for case in found.values()}
    scan(tmp_path, "more/a.dcm", "1.2.0", "another")
    assert first.items() <= {case.image: case.id for case in named(tmp_path, anonymous=True).values()}.items()


def square(z, low, high):
    """Voxels low..high along x and y of slice z of a scan, as a contour half a voxel round them."""
    a, b = low - 0.5, high + 0.5
    corners = np.array([(a, a, z, 1), (b, a, z, 1), (b, b, z, 1), (a, b, z, 1)])
    return (corners @ affine().T)[:, :3]


@pytest.fixture
def study(tmp_path):
    """Three patients: contours with numbers of their own each, and scans without."""
    write_series(tmp_path / "1" / "t2", VOLUME, affine(), series="1.2.1", **{"0010|0020": "A"})
    write_rtstruct(tmp_path / "1" / "rt.dcm", {"Prostate": [square(2, 1, 4)], "Body": [square(2, 0, 5)]}, "1.2.1", "A")
    scan(tmp_path, "2/t2.dcm", "1.2.2", "B")
    write_rtstruct(tmp_path / "2" / "RS", {"BODY": [square(3, 0, 5)], "prostate": [square(3, 2, 3)]}, "1.2.2", "B")
    scan(tmp_path, "2/adc.dcm", "1.2.3", "B", "ADC")
    return tmp_path


def test_contours_are_the_labels_of_the_series_they_refer_to(study):
    """By name, whatever the numbers: Prostate is the first structure of one file and the second of the other."""
    faults = []
    cases, values = labelled_cases(study, files(study), faults)
    assert {case.id: case.label.name for case in cases} == {"A": "rt.dcm", "B": "RS"}
    assert values == {"Body": 1, "Prostate": 2}
    (left,) = faults
    assert (left.severity, "B_ADC" in left.found) == ("warning", True)
    for case, low, high, z in zip(cases, (1, 2), (4, 3), (2, 3), strict=True):
        volume = read_volume(case, [0, values["Prostate"]])
        wanted = np.zeros(VOLUME.shape)
        wanted[low : high + 1, low : high + 1, z] = 1
        np.testing.assert_array_equal(volume.label[0].numpy(), wanted)
        assert data_files(case.label) == (case.label,)
        with pytest.raises(DataError, match=r"(?i)body and prostate"):
            read_volume(case, [0, 1, 2])


def test_labels_are_chosen_by_name_else_by_value():
    found = {"Body": 1, "Prostate": 2}
    assert names_for(found, {"background": 0, "PROSTATE": 1}) == (("Prostate", 1),)
    assert names_for(found, {"gland": 2}) == (("Prostate", 2),)
    with pytest.raises(ConfigError, match=r"data.labels.tumour.*Body, Prostate"):
        names_for(found, {"tumour": 7})


def test_a_segmentation_with_its_image_is_a_case_with_a_label(tmp_path):
    write_enhanced(tmp_path / "t2.dcm", VOLUME, GRIDS["oblique"], patient="P")
    write_seg(tmp_path / "seg.dcm", tmp_path / "t2.dcm", MASK)
    faults = []
    (case,), values = labelled_cases(tmp_path, files(tmp_path), faults)
    assert (case.id, case.patient, values, faults) == ("P", "P", {"Prostate": 1, "Tumour": 2, "Cyst": 3}, [])
    np.testing.assert_array_equal(read_volume(case, [0, 1, 2, 3]).label[0].numpy(), MASK)
    np.testing.assert_array_equal(read_volume(case, [0, 2]).label[0].numpy(), MASK == 2)
    assert labels_of("1.2.3.4", files(tmp_path)) == [tmp_path / "seg.dcm"]
    assert values_of_names([tmp_path / "seg.dcm", tmp_path / "t2.dcm"]) == values
    assert [c.label for c in series_cases(tmp_path, files(tmp_path))] == [None]


def test_a_label_that_names_no_series_is_of_its_frame_of_reference(tmp_path):
    scan(tmp_path, "t2.dcm", "1.2.1")
    write_rtstruct(tmp_path / "rt.dcm", {"a": [square(1, 0, 5)]}, references=False)
    assert labels_of("1.2.1", files(tmp_path)) == []
    (case,), _ = labelled_cases(tmp_path, files(tmp_path), [])
    assert case.label == tmp_path / "rt.dcm"


def test_what_is_amiss_with_labels_is_told(tmp_path):
    rois = {"a": [square(1, 0, 5)]}
    scan(tmp_path, "t2.dcm", "1.2.1", "A")
    faults = []
    labelled_cases(tmp_path, files(tmp_path), faults)
    assert "add the DICOM SEG or RTSTRUCT" in str(faults[0])
    for name, series in (("one", "1.2.1"), ("two", "1.2.1"), ("lost", "1.2.9")):
        write_rtstruct(tmp_path / f"{name}.dcm", rois, series)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "one.dcm").read_bytes()[:-9])
    faults = []
    assert labelled_cases(tmp_path, files(tmp_path), faults) == ([], {})
    text = [str(fault) for fault in faults]
    assert len(text) == 3
    assert "A: label: expected one DICOM SEG or RTSTRUCT, found one.dcm, two.dcm; keep one" in text
    assert any("cut.dcm: file: expected a whole DICOM" in line for line in text)
    assert any("1 of other series, such as lost.dcm" in line for line in text)
