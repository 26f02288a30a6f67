"""What a data set's own files complete: patients, centres, channels, names and values of structures, known public sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.cases import survey
from oasis_monai.data.found import FoundData, find_data, is_complete
from oasis_monai.data.io import read_volume
from oasis_monai.data.label_names import values_in
from oasis_monai.data.label_tables import read_table
from oasis_monai.data.settings import DataSettings
from oasis_monai.utils.errors import ConfigError, DataError
from tests.data.layouts.test_layouts import touch
from tests.helpers.real import real_data


def write(root: Path, name: str, *values: int) -> Path:
    """A scan and its label with these values, in the layout of MSD."""
    label = np.zeros((6, 5, 4), np.uint16)
    label[0, : len(values), 0] = values
    for folder, array in (("imagesTr", np.ones((6, 5, 4), np.float32)), ("labelsTr", label)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / folder / f"{name}.nii.gz")
    return root


def complete(root: Path, **more) -> FoundData:
    return find_data(DataSettings(root=str(root), **more))


def patients(root: Path, rule: str) -> dict[str, str]:
    return {case.id: case.patient for case in survey(root, data=DataSettings(patient=rule)).cases}


def test_values_are_found_and_have_names(tmp_path: Path) -> None:
    write(write(tmp_path / "prostates", "a", 1, 4), "b", 300)
    found = complete(tmp_path / "prostates")
    assert dict(found.data.labels) == {"label_1": 1, "label_4": 4, "label_300": 300}
    assert (found.data.name, found.data.layout, found.data.regions) == ("prostates", "msd", ("whole",))
    assert found.said == (
        f"data: {tmp_path / 'prostates'}: imagesTr and labelsTr, as the Medical Segmentation Decathlon has them (layout msd)",
        "data: labels {label_1: 1, label_4: 4, label_300: 300}, from the values in the label files",
    )
    assert is_complete(found.data)
    assert not is_complete(DataSettings(root="x"))
    assert dict(complete(tmp_path / "prostates", ignore=300, background=(4,)).data.labels) == {"label_1": 1}


def test_labels_without_a_structure_are_told(tmp_path: Path) -> None:
    faults = complete(write(tmp_path, "a")).faults
    assert [str(fault).partition(";")[0] for fault in faults] == [
        "label: expected values of structures, 1 to 65535, found only 0 in all label files"
    ]


def test_why_no_structure_is_found_is_told(tmp_path: Path) -> None:
    def with_label(name: str, label: np.ndarray) -> list[str]:
        root = write(tmp_path / name, "a")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / "labelsTr/a.nii.gz")
        return [str(fault) for fault in complete(root).faults]

    (line,) = with_label("large", np.full((6, 5, 4), 70_000, np.int32))
    assert "expected values of structures, 1 to 65535, found only 0, 70000 in all label files" in line
    (line,) = with_label("probability", np.full((6, 5, 4), 0.7, np.float32))
    assert line.startswith("a: label: expected whole numbers")


def test_255_beside_others_may_be_what_nobody_labelled(tmp_path: Path) -> None:
    root = write(tmp_path, "a", 1, 255)
    assert "if 255 means that nobody labelled a voxel: data.ignore=255" in complete(root).said[-1]
    assert "255" not in complete(root, ignore=255).said[-1]
    assert "ignore" not in complete(write(tmp_path / "mask", "a", 255)).said[-1]


def test_label_files_are_read_once_while_they_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write(tmp_path / "d", "a", 2), tmp_path / "cache"
    cases = survey(root).cases
    assert values_in(cases, cache) == [0, 2]
    with monkeypatch.context() as patch:
        patch.setattr("oasis_monai.data.labels.find_label_values", lambda path: pytest.fail("read again"))
        assert values_in(cases, cache) == [0, 2]
    write(root, "a", 2, 3)
    assert values_in(cases, cache) == [0, 2, 3]


SNAP = """# ITK-SnAP Label Description File
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "Pars major"
    4     0  255    0        1  1  1    "cyst"
"""
LUT = "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n1 Pars_major 1 2 3 0\n4 cyst 4 5 6 0\n9 other 1 1 1 0\n"
TABLES = [
    ("labels.txt", SNAP),
    ("FreeSurferColorLUT.txt", LUT),
    ("dseg.tsv", "index\tname\tabbreviation\n0\tbackground\tb\n1\tPars major\tpm\n4\tcyst\tc\n"),
    ("labels.csv", "value;name\n1;Pars major\n4;cyst\n"),
    ("labels.csv", "Pars major,1\ncyst,4\n"),
    ("labels.json", '{"Pars major": 1, "cyst": 4}'),
    ("Labels.json", '{"labels": {"1": "Pars major", "4": "cyst"}}'),
    ("labels.txt", "1: Pars major\n4: cyst\n"),
    ("labels.txt", "Pars major = 1\ncyst = 4\n"),
]


@pytest.mark.parametrize(("name", "text"), TABLES)
def test_a_table_beside_the_labels_names_them(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "a", 1, 4)
    (tmp_path / name).write_text(text)
    found = complete(tmp_path)
    assert {key.replace("_", " "): value for key, value in found.data.labels.items()} == {"Pars major": 1, "cyst": 4}
    assert found.said[-1].endswith(f"from {name}")


@pytest.mark.parametrize("text", ["", "readme of the labels\n", "1 a\nsome words\n", "\x00"])
def test_what_is_no_table_of_names_is_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    faults = []
    assert read_table(tmp_path / "labels.txt", faults) == {}
    assert [(fault.severity, fault.field) for fault in faults] == [("warning", "labels.txt")]


def test_a_dataset_json_names_structures_and_fewer_of_them_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "a", 1, 2, 3)
    (tmp_path / "dataset.json").write_text('{"name": "Pelvis", "labels": {"background": 0, "gland": 1, "cyst": 2, "ignore": 3}}')
    found = complete(tmp_path)
    assert (found.data.name, dict(found.data.labels), found.data.ignore) == ("Pelvis", {"gland": 1, "cyst": 2}, 3)
    chosen = complete(tmp_path, labels={"prostate": 1})
    assert (dict(chosen.data.labels), chosen.data.background) == ({"prostate": 1}, (2,))
    assert chosen.said[-1] == "data: cyst count as background, as data.labels leaves them out"
    (case,) = complete(tmp_path, labels={"prostate": 1}, background=(3,)).cases
    assert read_volume(case, (0, 1)).label.unique().tolist() == [0, 1]
    (tmp_path / "dataset.json").unlink()
    (case,) = complete(tmp_path, labels={"prostate": 1}).cases
    with pytest.raises(DataError, match="label"):  # of a value that nobody names nobody knows what it is
        read_volume(case, (0, 1))


def test_regions_are_structures_of_several_labels(tmp_path: Path) -> None:
    write(tmp_path, "a", 1, 2)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2}}')
    found = complete(tmp_path)
    assert found.faults == []
    assert dict(found.data.labels) == {"whole": 1, "whole+core": 2}
    assert (found.data.structures, found.data.scored) == ({"whole": (1, 2), "core": (2,)}, {"whole": (1, 2), "core": (2,)})
    assert find_data(found.data).data == found.data  # complete: nothing changes
    chosen = complete(tmp_path, labels={"rim": 1, "core": 2})
    assert (dict(chosen.data.labels), chosen.data.structures, chosen.faults) == ({"rim": 1, "core": 2}, {}, [])


def test_an_order_of_regions_that_contradicts_the_labels_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a", 1, 2)
    regions = '{"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": %s}'
    (tmp_path / "dataset.json").write_text(regions % "[1, 2]")
    assert complete(tmp_path).faults == []
    (tmp_path / "dataset.json").write_text(regions % "[2, 1]")
    told = [str(fault) for fault in complete(tmp_path).faults]
    assert len(told) == 2
    assert told[0].startswith("dataset.json regions_class_order: expected 1, found 2;")


def test_channels_of_one_file_are_taken_by_name_or_number(tmp_path: Path) -> None:
    write(tmp_path, "a", 1)
    with pytest.raises(ConfigError, match=r"data.channels: expected numbers"):
        complete(tmp_path, channels=("ADC",))
    assert complete(tmp_path, channels=("1",)).cases[0].take == (1,)
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T2", "1": "ADC"}}')
    assert complete(tmp_path).data.channels == ("T2", "ADC")
    found = complete(tmp_path, channels=("adc",))
    assert (found.data.channels, found.cases[0].take) == (("ADC",), (1,))


def test_the_patient_is_a_part_of_the_id_or_of_the_path(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"imagesTr/{n}.nii" for n in ("p1_a", "p1_b", "p2_a")),
        *(f"labelsTr/{n}.nii" for n in ("p1_a", "p1_b", "p2_a")),
    )
    assert patients(tmp_path, r"^(p\d+)_") == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"}
    assert patients(tmp_path, "") == {"p1_a": "p1_a", "p1_b": "p1_b", "p2_a": "p2_a"}
    touch(tmp_path / "c", *(f"u{p}/day{d}/{k}.nii" for p in (1, 2) for d in (1, 2) for k in ("t2", "seg")))
    assert set(patients(tmp_path / "c", "^([^/]+)/").values()) == {"u1", "u2"}
    told = survey(tmp_path, data=DataSettings(patient=r"^(p1)_")).faults
    assert [str(fault) for fault in told] == [
        "data.patient: expected one that says the patient of every case, found nothing of p2_a; correct data.patient=^(p1)_"
    ]
    for wrong in ("(", "p.", "(p)(.)"):
        with pytest.raises(ConfigError, match=r"data.patient: expected a regular expression with one group"):
            patients(tmp_path, wrong)


def test_consecutive_numbers_are_one_person(tmp_path: Path) -> None:
    names = [f"hippocampus_{number:03d}" for number in (1, 2, 3, 6, 7, 8)]
    touch(tmp_path, *(f"{folder}/{name}.nii.gz" for folder in ("imagesTr", "labelsTr") for name in names))
    want = ["001-002", "001-002", "003-004", "005-006", "007-008", "007-008"]
    assert list(patients(tmp_path, "consecutive_pairs").values()) == [f"hippocampus_{pair}" for pair in want]
    found = complete(tmp_path)  # recognised by its names
    assert [case.patient for case in found.cases] == [f"hippocampus_{pair}" for pair in want]
    assert (found.data.name, dict(found.data.labels)) == ("hippocampus", {"anterior": 1, "posterior": 2})
    assert "recognised as hippocampus" in found.said[1]
    own = survey(tmp_path, data=DataSettings(name="mine")).cases
    assert [case.patient for case in own] == names


def test_the_centre_is_a_part_of_the_id_or_one_of_a_map(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{name}.nii" for folder in ("imagesTr", "labelsTr") for name in ("HK_1", "UCL_2")))

    def centres(rule) -> list[str]:
        return [case.centre for case in survey(tmp_path, data=DataSettings(centre=rule)).cases]

    assert centres("") == ["", ""]
    assert centres(r"^([A-Z]+)_") == ["HK", "UCL"]
    assert centres({"Hong Kong": "^HK", "London": r"_2$"}) == ["Hong Kong", "London"]
    told = survey(tmp_path, data=DataSettings(centre={"x": "^HK"})).faults
    assert "found nothing of UCL_2" in str(told[0])


def promise12(root: Path, count: int = 50) -> Path:
    return touch(root, *(f"training_data/Case{i:02d}{part}.mhd" for i in range(count) for part in ("", "_segmentation")))


CENTRES = {"BIDMC": [0, *range(2, 13)], "UCL": [1, *range(26, 38)], "RUNMC": list(range(13, 26)), "HK": list(range(38, 50))}


def test_promise12_is_recognised_with_its_four_centres(tmp_path: Path) -> None:
    found = complete(promise12(tmp_path))
    assert (found.data.name, found.data.regions, found.data.source) == (
        "PROMISE12",
        ("whole", "apex", "mid", "base"),
        "promise12",
    )
    for centre, numbers in CENTRES.items():
        assert [case.id for case in found.cases if case.centre == centre] == [f"Case{i:02d}" for i in numbers]
    assert sum(map(len, CENTRES.values())) == len(found.cases) == 50


def test_who_names_files_so_and_says_otherwise_is_believed(tmp_path: Path) -> None:
    promise12(tmp_path, 3)
    assert complete(tmp_path, labels={"liver": 2}).data.name == tmp_path.name
    assert complete(tmp_path, name="mine", labels={"prostate": 1}).cases[0].centre == ""


def test_the_phantom_tells_itself_apart(phantom: Path, phantom_two_labels: Path) -> None:
    found = complete(phantom)
    assert (found.data.name, dict(found.data.labels), found.cases[0].centre) == ("phantom", {"prostate": 1}, "")
    assert dict(complete(phantom_two_labels).data.labels) == {"label_1": 1, "label_2": 2}


def test_cases_of_a_test_part_are_for_evaluation(tmp_path: Path) -> None:
    write(tmp_path, "a", 1)
    touch(tmp_path, "imagesTs/t.nii.gz", "labelsTs/t.nii.gz")
    data = DataSettings(root=str(tmp_path))
    assert [case.id for case in find_data(data).cases] == ["a"]
    assert find_data(data).said[1] == "data: 1 cases that the data set keeps for testing are not used here"
    assert [case.id for case in find_data(data, part="test").cases] == ["t"]
    assert [case.id for case in find_data(data, part="all").cases] == ["a", "t"]


def test_real_sets_need_nothing_but_their_folder() -> None:
    found = complete(real_data("promise12"))
    assert found.data.name == "PROMISE12"
    assert {case.centre for case in found.cases} == set(CENTRES)
    found = complete(real_data("hippocampus"))
    assert found.data.name == "hippocampus"
    assert len({case.patient for case in found.cases}) == len(found.cases) - 52
    assert dict(
        find_data(DataSettings(root=str(real_data("hippocampus")), name="x", include=("hippocampus_001",))).data.labels
    ) == {
        "label_1": 1,
        "label_2": 2,
    }


def test_json_keeps_the_settings(tmp_path: Path) -> None:
    from oasis_monai.utils.config import make_group, plain

    data = complete(promise12(tmp_path, 2)).data
    assert make_group(DataSettings, json.loads(json.dumps(plain(data))), "data") == data


def test_segments_and_dicom_labels_name_their_structures(tmp_path: Path) -> None:
    """Files of one data set may number the same structures differently: names count."""
    nrrd = pytest.importorskip("nrrd")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name, order in (("a", ("gland", "cyst")), ("b", ("cyst", "gland"))):
        label = np.zeros((6, 5, 4), np.uint8)
        label[0], label[1] = 1, 2
        header = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
        nrrd.write(str(tmp_path / f"images/{name}.nrrd"), np.ones((6, 5, 4), np.float32), header)
        for number, structure in enumerate(order):
            told = {"ID": structure, "Name": structure, "LabelValue": str(number + 1), "Layer": "0"}
            header |= {f"Segment{number}_{key}": value for key, value in told.items()}
        nrrd.write(str(tmp_path / f"labels/{name}.seg.nrrd"), label, header)
    found = complete(tmp_path)
    assert found.faults == []
    assert dict(found.data.labels) == {"cyst": 1, "gland": 2}
    first, second = (read_volume(case, found.data.label_values).label[0] for case in found.cases)
    assert (int(first[0, 0, 0]), int(second[0, 0, 0])) == (2, 1)
    (only, _) = complete(tmp_path, labels={"gland": 1}).cases
    assert [int(v) for v in read_volume(only, (0, 1)).label[0, :2, 0, 0]] == [1, 0]
