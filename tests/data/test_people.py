"""Whom a case is of: what would let one person onto both sides of a split is told, and stops the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oasis_monai.data.cases import survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.utils.errors import ConfigError


def listed(root: Path, *lines: str, columns: str) -> Path:
    """A table of the images a, b, c ... with their own labels, and these further cells."""
    for name in "abcd":
        for file in (root / f"{name}.nii", root / f"{name}_seg.nii"):
            file.touch()
    text = "\n".join([f"image,label,{columns}", *(f"{n}.nii,{n}_seg.nii,{line}" for n, line in zip("abcd", lines, strict=False))])
    path = root / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def errors(path: Path, **settings: object) -> list[str]:
    return [str(fault) for fault in survey(path, data=DataSettings(**settings)).faults if fault.severity == "error"]  # type: ignore[arg-type]


def test_a_patient_in_training_and_test_is_told(tmp_path: Path) -> None:
    path = listed(tmp_path, "Anna,train", "Anna,test", "Berta,", "Carl,test", columns="patient,split")
    (fault,) = survey(path).faults
    assert fault.severity == "warning"
    assert str(fault).startswith(
        "a: patient Anna: expected one split, found a: train, b: test; put all scans of a patient in one"
    )
    assert survey(listed(tmp_path, "Anna,train", "Anna,", "Berta,test", columns="patient,split")).faults == []


def test_only_labelled_cases_need_a_patient(tmp_path: Path) -> None:
    for name in ("a", "a_seg", "b", "b_seg", "new"):
        (tmp_path / f"{name}.nii").touch()
    cases = [
        {"image": "a.nii", "label": "a_seg.nii", "patient": "Anna"},
        {"image": "b.nii", "label": "b_seg.nii", "patient": "Berta"},
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": cases, "test": [{"image": "new.nii"}]}))
    assert errors(path) == []
    del cases[1]["patient"]
    path.write_text(json.dumps({"training": cases, "test": [{"image": "new.nii"}]}))
    (error,) = errors(path)
    assert "a patient of every case, found none of b" in error


@pytest.mark.parametrize(("one", "other"), [("P01", "p01"), ("P 01", "P01"), ("Zoë", "Zoe\u0308"), ("Anna  B", "anna b")])
def test_names_spelled_in_two_ways_are_refused(tmp_path: Path, one: str, other: str) -> None:
    (line,) = errors(listed(tmp_path, one, other, "P2", columns="patient"))
    assert "patient: expected names of a patient that differ by more than capitals and blanks" in line
    assert repr(one.split()[0])[:-1] in line
    assert errors(listed(tmp_path, "P1", "P01", "P1", columns="patient")) == []
    assert "names of a centre" in errors(listed(tmp_path, one, other, "P2", columns="site"))[0]


def test_a_case_without_patient_among_those_that_have_one_is_refused(tmp_path: Path) -> None:
    (line,) = errors(listed(tmp_path, "P1", "", "P2", columns="patient"))
    assert "column patient: expected a patient of every case, found none of b" in line
    assert errors(listed(tmp_path, "", "", columns="patient")) == []  # nobody says anything
    assert errors(listed(tmp_path, "HK", "", columns="centre")) == []


def test_pairs_need_numbers_from_one(tmp_path: Path) -> None:
    for name in ("x_000", "x_001", "y"):
        for file in (tmp_path / f"{name}.nii", tmp_path / f"{name}_seg.nii"):
            file.touch()
    (line,) = errors(tmp_path, patient="consecutive_pairs")
    assert "found nothing of x_000, y" in line


def test_a_case_that_fits_two_centres_is_refused(tmp_path: Path) -> None:
    (line,) = errors(listed(tmp_path, "1", "2", columns="note"), centre={"HK": "^a", "UCL": "[ab]"})
    assert "a: data.centre: expected one centre of a case, found HK and UCL" in line


def test_a_label_of_two_patients_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, "P1", "P2", "P2", columns="patient")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("b_seg", "./a_seg"), encoding="utf-8")
    (line,) = errors(path)
    assert "b: label: expected a file of its own, found a_seg.nii, as a has" in line
    path.write_text(text.replace("c_seg", "b_seg"), encoding="utf-8")
    assert errors(path) == []  # two scans of one patient may share a label


def test_channels_that_repeat_or_are_of_another_patient_are_refused(tmp_path: Path) -> None:
    listed(tmp_path, columns="x")
    path = tmp_path / "channels.csv"
    path.write_text("T2,ADC,label\na.nii,d.nii,a_seg.nii\nb.nii,./b.nii,b_seg.nii\nc.nii,d.nii,c_seg.nii\n", encoding="utf-8")
    twice, shared = errors(path)
    assert "b: image: expected another file for each channel, found b.nii twice" in twice
    assert "c: image: expected a file of its own, found d.nii, as a has" in shared
    assert errors(path, channels=("T2",)) == []


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.patient: .* found 'mnr'; .* or name one of image, label, mrn"):
        errors(listed(tmp_path, "1", columns="mrn"), patient="mnr")
