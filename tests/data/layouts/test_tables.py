"""Tables, data lists and templates: what a line, an entry or a name says of a case, and where exactly one is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from oasis_monai.data.cases import find_cases, survey
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.check import check_cases
from tests.data.layouts.test_layouts import errors, found, touch
from tests.helpers.scans import write_scan


def table(root: Path, text: str, name: str = "list.csv") -> Path:
    touch(root, "i/a.nii", "i/b.nii", "i/c.nii", "l/a.nii", "l/b.nii", "l/c.nii", "i/größe 1,2.nii")
    path = root / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_a_table_says_all_there_is_to_know_of_a_case(tmp_path: Path) -> None:
    lines = ["x,i/a.nii,l/a.nii,P1,HK,0,train", "y,i/b.nii,l/b.nii,P1,,1.0,", "z,i/c.nii,,P2,UCL,,test"]
    text = "\n".join(["id,image,label,patient,Center,fold,split", *lines])
    path = table(tmp_path, text)
    x, y, z = survey(path).cases
    assert x == Case("x", tmp_path / "i/a.nii", tmp_path / "l/a.nii", patient="P1", centre="HK", fold=0, split="train")
    assert (y.patient, y.centre, y.fold, y.split) == ("P1", "", 1, "")
    assert (z.patient, z.centre, z.fold, z.split, z.label) == ("P2", "UCL", None, "test", None)
    assert survey(path).faults == []


SAME = [
    "image,label\ni/a.nii,l/a.nii\ni/b.nii,l/b.nii\n",
    "\ufeffimage;label\r\ni/a.nii;l/a.nii\r\ni/b.nii;l/b.nii\r\n",
    "image\tlabel\ni/a.nii\tl/a.nii\n\n\ni/b.nii\tl/b.nii",
    '"image", "label"\n"i/a.nii", "l/a.nii"\n"i/b.nii", "l/b.nii"\n',
    'note,Mask,IMG\n,l/a.nii,i/a.nii\n"x, y",l/b.nii,i/b.nii\n',
    "image,label,\ni/a.nii,l/a.nii,\ni/b.nii,l/b.nii,\n".replace(",\n", "\n"),
]


@pytest.mark.parametrize("text", SAME)
def test_tables_of_every_program_are_read(tmp_path: Path, text: str) -> None:
    assert found(table(tmp_path, text)) == {name: ([f"{name}.nii"], f"{name}.nii") for name in "ab"}


def test_a_column_for_each_channel(tmp_path: Path) -> None:
    path = table(tmp_path, "T2,age,ADC,label\ni/a.nii,61,i/b.nii,l/a.nii\n")
    assert found(path) == {"a": (["a.nii", "b.nii"], "a.nii")}
    assert survey(path).channels == ("T2", "ADC")
    assert found(path, channels=["ADC"]) == {"b": (["b.nii"], "a.nii")}
    assert found(path, image={"x": "adc"}) == {"b": (["b.nii"], "a.nii")}
    assert found(path, image=("ADC", "T2"), label="LABEL") == {"b": (["b.nii", "a.nii"], "a.nii")}
    with pytest.raises(ConfigError, match=r"data.image: expected some of the columns T2, age, ADC, label, found 'DWI'"):
        survey(path, data=DataSettings(image="DWI"))
    with pytest.raises(ConfigError, match=r"data.label: expected one of the columns T2"):
        survey(path, data=DataSettings(label="seg"))
    with pytest.raises(ConfigError, match=r"data.channels: expected some of T2, ADC, found 'DWI'"):
        survey(path, data=DataSettings(channels=["DWI"]))


def test_names_of_a_table_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{who}/{day}/t2.nii" for who in ("p1", "p2") for day in ("d1", "d2")), "m.nii")
    path = table(tmp_path, "image,label\np1/d1/t2.nii,l/a.nii\np2/d1/t2.nii,l/b.nii\np2/d2/t2.nii,m.nii\n")
    assert list(found(path)) == ["p1_d1_t2", "p2_d1_t2", "p2_d2_t2"]
    assert list(found(table(tmp_path, "image,label\np1/d1/t2.nii,l/a.nii\np1/d2/t2.nii,m.nii\n"))) == ["d1", "d2"]


def test_paths_of_one_s_own_table_may_lead_anywhere(tmp_path: Path) -> None:
    touch(tmp_path / "far", "a.nii", "b.nii")
    path = table(tmp_path / "near", f"image,label\n{tmp_path}/far/a.nii,../far/b.nii\n")
    assert found(path) == {"a": (["a.nii"], "b.nii")}


WRONG = [
    ("image,label\ni/a.nii,\n", r"^list.csv line 2, column label: expected a file, found an empty cell; give the file"),
    (
        "image,label\ni/a.nii,l/a.nii\ni/gone.nii,l/b.nii\n",
        r"^list.csv line 3, column image: expected .*none at i/gone.nii",
    ),
    ("image,label\ni/a.nii,i\n", r"^list.csv line 2, column label: .* the folder i without one DICOM series"),
    (
        "image,label,fold\ni/a.nii,l/a.nii,one\n",
        r"^list.csv line 2, column fold: expected a whole number .*, found one",
    ),
    ("image,label,fold\ni/a.nii,l/a.nii,-1\n", r"^list.csv line 2, column fold: "),
    ("image,label,split\ni/a.nii,l/a.nii,holdout\n", r"^list.csv line 2, column split: expected train or test, found holdout"),
    (
        "image,label\n\ni/a.nii,l/a.nii,x\n",
        r"^list.csv line 3, after column label: expected 2 cells, one for each column, found 3, .*'x'",
    ),
    ("image,label\ni/a.nii\n", r"^list.csv line 2, column label: expected 2 cells, one for each column, found 1"),
    (
        "id,image,label\nx,i/a.nii,l/a.nii\nx,i/b.nii,l/b.nii\n",
        r"^list.csv line 3, column id: expected another id .*, found x as in line 2",
    ),
    (
        "id,image,label\nx,i/a.nii,l/a.nii\ny,i/a.nii,l/b.nii\n",
        r"^list.csv line 3, column image: expected each image once, found a.nii as in",
    ),
    (
        'image,label,note\ni/a.nii,l/a.nii,\n"i/b.nii,l/b.nii,\ni/c.nii,l/c.nii,\n',
        r"^list.csv line 3, column image: expected 3 cells, .*found 1, and a quote that does not end; remove the quote",
    ),
    (
        'image,label\n"i/a.nii","l/a.nii\n"i/b.nii",l/b.nii\n',
        r"^list.csv line 2, column label: expected 2 cells, .*found 3, and a quote that does not end; remove the quote",
    ),
    ('note,image,label\n5" coil,i/gone.nii,l/a.nii\n', r"^list.csv line 2, column image: .* none at i/gone.nii"),
    ('note,image,label\n"two\nlines",i/gone.nii,l/a.nii\n', r"^list.csv line 2, column image: .* none at i/gone.nii"),
    ("id,image,label\n,i/a.nii,l/a.nii\n", r"^list.csv line 2, column id: expected an id, found an empty cell"),
]


@pytest.mark.parametrize(("text", "match"), WRONG)
def test_a_wrong_line_is_told_by_its_number_and_column(tmp_path: Path, text: str, match: str) -> None:
    (told,) = errors(table(tmp_path, text))
    assert re.search(match, told), told


def test_a_column_that_looks_like_a_known_one_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label,Patients,age,side\ni/a.nii,l/a.nii,P1,61,L\n")
    (told,) = map(str, survey(path).faults)
    assert told.startswith("list.csv line 1, column Patients: expected a name such as patient, found Patients, which is not used")
    assert survey(table(tmp_path, "image,label,Patients,patient\ni/a.nii,l/a.nii,P1,P1\n")).faults == []


def test_what_is_wrong_within_a_file_is_told_by_the_line_that_names_it(tmp_path: Path) -> None:
    """Only reading the files shows it."""
    random = np.random.default_rng(0)
    for name, shape in {"a": (4, 5, 6), "b": (4, 5, 6), "small": (3, 5, 6)}.items():
        write_scan(tmp_path / f"{name}.nii.gz", random.integers(0, 2, shape).astype(np.int16), np.eye(4))
    write_scan(tmp_path / "flat.nii.gz", np.ones((4, 5, 6), np.int16), np.eye(4))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:60])
    lines = ["a.nii.gz,b.nii.gz,small.nii.gz", "b.nii.gz,small.nii.gz,cut.nii.gz", "flat.nii.gz,a.nii.gz,a.nii.gz"]
    (tmp_path / "list.csv").write_text("\n".join(["T2,ADC,label", *lines]))
    told = [str(fault) for fault in check_cases(survey(tmp_path / "list.csv").cases, (0, 1)) if fault.severity == "error"]
    entries = [dict(zip(("image", "label"), (line.split(",")[:2], line.split(",")[2]), strict=True)) for line in lines]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    again = [str(fault) for fault in check_cases(survey(tmp_path / "list.json").cases, (0, 1)) if fault.severity == "error"]
    places = ["a: list.csv line 2, column label", "b: list.csv line 3, column ADC", "b: list.csv line 3, column label"]
    places.append("flat: list.csv line 4, column T2")
    assert [fault.split(": label geometry")[0].split(": image")[0].split(": cut")[0] for fault in told] == places
    assert [fault.split(":")[1] for fault in again] == [
        *(" list.json training[0].label", " list.json training[1].image", " list.json training[1].label"),
        " list.json training[2].image",
    ]


BROKEN = [
    (b"", r"list.csv line 1: expected a header that names each column once, found nothing"),
    (b"image,image\n", r"list.csv line 1: .*found 'image' twice"),
    (b"image,\n", r"list.csv line 1: .*a column without a name"),
    (b"image,label\n\xff\xfe\n", r"list.csv: expected text in UTF-8, found another byte in line 2"),
    (b"label\nl/a.nii\n", r"list.csv line 1: expected a column image, or one for each channel, found label"),
    (b"image\ni/a.nii\n", r"list.csv line 1: expected a column label, found image; add it"),
    (b'image,label\n"' + b"x" * 200000 + b'",y\n', r"list.csv line 2: expected cells of a table, found field larger"),
]


@pytest.mark.parametrize(("content", "match"), BROKEN)
def test_what_is_no_table_is_one_line(tmp_path: Path, content: bytes, match: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        survey(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"root: expected a CSV or TSV file \(layout table\), found the folder"):
        survey(tmp_path, "table")


def test_a_table_without_a_case_says_so(tmp_path: Path) -> None:
    assert errors(table(tmp_path, "image,label\n")) == [
        f"root: expected lines with an image (and its label) (layout table), found none in {tmp_path / 'list.csv'};"
        " correct root or data.layout"
    ]


def test_a_data_list_of_monai(tmp_path: Path) -> None:
    touch(tmp_path, *(f"i/{name}.nii" for name in "abcd"), *(f"l/{name}.nii" for name in "abcd"))
    content = {
        "name": "mine",
        "labels": {"0": "background", "1": "gland"},
        "training": [
            {"image": "./i/a.nii", "label": "l/a.nii", "fold": 0, "patient": 7, "site": "HK"},
            {"image": ["i/b.nii", "i/c.nii"], "label": ["l/b.nii"], "fold": 1, "id": "bee"},
        ],
        "validation": [],
        "test": ["i/d.nii"],
    }
    path = tmp_path / "list.json"
    path.write_text(json.dumps({**content, "training": content["training"][:1]}))
    told = survey(path)
    assert (told.layout, told.name, dict(told.labels)) == ("datalist", "mine", {"gland": 1})
    a, d = told.cases
    assert a == Case("a", tmp_path / "i/a.nii", tmp_path / "l/a.nii", patient="7", centre="HK", fold=0)
    assert (d.id, d.split, d.label) == ("d", "test", None)
    path.write_text(json.dumps({**content, "training": content["training"][1:], "test": []}))
    (bee,) = survey(path).cases
    assert ([own[0].name for own in bee.sources], bee.fold, bee.id) == (["b.nii", "c.nii"], 1, "bee")
    assert survey(path).channels == ("0", "1")
    assert [own[0].name for own in survey(path, data=DataSettings(channels=["1"])).cases[0].sources] == ["c.nii"]


ENTRIES = [
    (
        {"image": "/etc/passwd", "label": "l/a.nii"},
        r"training\[0\].image: expected a path inside the list's own folder, found /",
    ),
    ({"image": "i/../../x.nii", "label": "l/a.nii"}, r"training\[0\].image: expected a path inside the list's own folder"),
    ({"image": "i/gone.nii", "label": "l/a.nii"}, r"training\[0\].image: expected a file, found none at i/gone.nii"),
    ({"image": "i/a.nii"}, r"training\[0\].label: expected a path, found none"),
    ({"image": "i/a.nii", "label": 3}, r"training\[0\].label: expected a path, found 3"),
    ({"image": "i/a.nii", "label": "l/a.nii", "fold": "1"}, r"training\[0\].fold: expected a whole number"),
    ({"image": "i/a.nii", "label": "l/a.nii", "fold": True}, r"training\[0\].fold: expected a whole number"),
    (7, r"training\[0\]: expected \{.*found 7"),
]


@pytest.mark.parametrize(("entry", "match"), ENTRIES)
def test_a_wrong_entry_is_told_by_its_place(tmp_path: Path, entry: object, match: str) -> None:
    touch(tmp_path, "i/a.nii", "l/a.nii")
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    (told,) = errors(tmp_path / "list.json")
    assert re.search(match, told), told


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "list.json: expected JSON in UTF-8, found Expecting"),
        ("[" * 100000, "list.json: expected JSON in UTF-8"),
        ('{"numTraining": 3}', "list.json: expected a list training, .*found numTraining"),
        ("[]", "list.json: expected a list training"),
    ],
)
def test_what_is_no_data_list_is_one_line(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=match):
        survey(tmp_path / "list.json")


def test_any_names_by_templates(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{p}/{s}_{k}.nii" for p in ("p1", "p2") for s in ("a", "b") for k in ("t2", "adc", "seg")), "p1/notes.txt")
    image, label = "{patient}/{scan}_t2.nii", "{patient}/{scan}_seg.nii"
    cases = find_cases(tmp_path, data=DataSettings(image=image, label=label))
    assert [(case.id, case.patient) for case in cases] == [(f"p{i}_{s}", f"p{i}") for i in (1, 2) for s in "ab"]
    two = DataSettings(image={"T2": image, "ADC": "{patient}/{scan}_adc.nii"}, label=label)
    told = survey(tmp_path, data=two)
    assert (told.layout, told.channels, [own[0].name for own in told.cases[0].sources]) == (
        "templates",
        ("T2", "ADC"),
        ["a_t2.nii", "a_adc.nii"],
    )
    assert [
        own[0].name
        for own in survey(tmp_path, data=DataSettings(image=two.image, label=label, channels=["adc"])).cases[0].sources
    ] == ["a_adc.nii"]
    (tmp_path / "p2/b_adc.nii").unlink()
    assert errors(tmp_path, image=two.image, label=label)[0].startswith(
        "p2_b: image ADC: expected one file {patient}/{scan}_adc.nii"
    )
    (tmp_path / "p2/b_seg.nii").unlink()
    assert errors(tmp_path, image=image, label=label) == [
        "p2_b: label: expected one file {patient}/{scan}_seg.nii, found none; add it, or correct the template"
    ]


def test_parts_of_a_template_say_centre_fold_and_split_and_may_repeat(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(
            f"{c}/f{f}/{s}/x{i}/x{i}{k}.nii"
            for i, (c, f, s) in enumerate([("A", 0, "train"), ("B", 1, "test")])
            for k in ("", "_m")
        ),
    )
    one, two = find_cases(
        tmp_path, data=DataSettings(image="{centre}/f{fold}/{split}/{id}/{id}.nii", label="*/*/*/{id}/{id}_m.nii")
    )
    assert (one.id, one.centre, one.fold, one.split) == ("x0", "A", 0, "train")
    assert (two.id, two.centre, two.fold, two.split, two.label and two.label.name) == ("x1", "B", 1, "test", "x1_m.nii")


def test_templates_that_fit_too_much_or_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a/t2.nii", "a/seg1.nii", "a/seg2.nii", "b/seg1.nii")
    assert errors(tmp_path, image="{id}/t2.nii", label="{id}/seg?.nii") == [
        "a: label: expected one file {id}/seg?.nii, found seg1.nii, seg2.nii; make the template fit one of them",
        "seg1.nii: image: expected one file {id}/t2.nii, found none; add the image, correct the template, or remove the label",
    ]
    (told,) = errors(tmp_path, image="{id}/flair.nii", label="{id}/flair_seg.nii")
    assert told.startswith("root: expected files that fit the template data.image (layout templates), found none in")
    for image, match in (
        ("t2.nii", "a template with parts in braces"),
        ("{id/t2.nii", "parts in braces"),
        ("*/t2.nii", "a part in braces"),
    ):
        with pytest.raises(ConfigError, match=rf"data.image: expected {match}"):
            survey(tmp_path, data=DataSettings(image=image, label="{id}/seg1.nii"))
    with pytest.raises(ConfigError, match=r"data.label: expected a template"):
        survey(tmp_path, data=DataSettings(image="{id}/t2.nii"))


def test_a_template_of_one_s_own_may_lead_anywhere(tmp_path: Path) -> None:
    touch(tmp_path, "far/a.nii", "near/a_seg.nii")
    data = DataSettings(image=f"{tmp_path}/far/{{id}}.nii", label="{id}_seg.nii")
    assert [case.image for case in find_cases(tmp_path / "near", data=data)] == [tmp_path / "far/a.nii"]
    data = DataSettings(image="../far/{id}.nii", label="{id}_seg.nii")
    assert [case.id for case in find_cases(tmp_path / "near", data=data)] == ["a"]


def test_an_image_is_there_once_however_its_path_is_written(tmp_path: Path) -> None:
    path = table(tmp_path, f"id,image,label\nx,i/a.nii,l/a.nii\ny,{tmp_path}/i/../i/a.nii,l/b.nii\n")
    assert errors(path) == [
        "list.csv line 3, column image: expected each image once, found a.nii as in line 2; remove one of the lines"
    ]


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "a\\b", "..", ".x", "a\x07b", "ä" * 76])
def test_ids_that_lead_out_of_the_output_are_refused(tmp_path: Path, name: str) -> None:
    table(tmp_path, "")
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"id": name, "image": "i/a.nii", "label": "l/a.nii"}]}), encoding="utf-8")
    (line,) = errors(path)
    assert "id: expected a name without / and" in line
    path.write_text(json.dumps({"training": [{"id": "ä %20 {b} 'c'", "image": "i/a.nii", "label": "l/a.nii"}]}))
    assert errors(path) == []


def test_a_split_of_a_template_is_train_or_test(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/{kind}/a{n}.nii" for n, part in enumerate(("Train", "val", "TEST")) for kind in "il"))
    templates = {"image": "{split}/i/{id}.nii", "label": "{split}/l/{id}.nii"}
    assert [case.split for case in survey(tmp_path, data=DataSettings(**templates)).cases] == ["train", "train", "test"]
    touch(tmp_path, "heldout/i/a9.nii", "heldout/l/a9.nii")
    assert "a9: split: expected train or test, found heldout" in errors(tmp_path, **templates)[0]


def test_patients_of_a_data_list_may_be_numbers_of_any_kind(tmp_path: Path) -> None:
    table(tmp_path, "")
    path = tmp_path / "list.json"
    entries = [
        {"image": f"i/{name}.nii", "label": f"l/{name}.nii", "patient": who}
        for name, who in zip("abc", (7.0, 7, "8"), strict=True)
    ]
    path.write_text(json.dumps({"training": entries}), encoding="utf-8")
    assert [case.patient for case in survey(path).cases] == ["7", "7", "8"]
    path.write_text(json.dumps({"training": [*entries[:2], {**entries[2], "patient": float("nan")}]}), encoding="utf-8")
    assert "expected a patient of every case, found none of c" in errors(path)[0]
