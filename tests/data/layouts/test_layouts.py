"""Every layout: what is found in it, how it is recognised, and the one line that says what is wrong."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from oasis_monai.data.cases import LAYOUTS, find_cases, recognise, survey
from oasis_monai.data.settings import LAYOUTS as NAMES
from oasis_monai.data.settings import DataSettings
from oasis_monai.utils.errors import ConfigError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path, layout: str = "auto", **data) -> dict[str, tuple]:
    """Id -> (names of its images, name of its label), of a root without a fault."""
    cases = find_cases(root, layout, lambda fault: None, DataSettings(**data))
    return {case.id: ([own[0].name for own in case.sources], case.label and case.label.name) for case in cases}


def errors(root: Path, layout: str = "auto", labelled: bool = True, **data) -> list[str]:
    told = survey(root, layout, DataSettings(**data), labelled).faults
    return [str(fault) for fault in told if fault.severity == "error"]


PAIRS = [f"images/p{i:02d}_t2.nii.gz" for i in range(12)] + [f"labels/p{i:02d}_gland.nii.gz" for i in range(12)]
FOLDERS = [f"p{i}/{name}.nii.gz" for i in range(3) for name in ("t2", "adc", "seg")]
RECOGNISED = [
    ("promise12", ["a/Case00.mhd", "a/Case00_segmentation.mhd"], {"Case00": (["Case00.mhd"], "Case00_segmentation.mhd")}),
    ("msd", ["T/imagesTr/a.nii.gz", "T/labelsTr/a.nii.gz"], {"a": (["a.nii.gz"], "a.nii.gz")}),
    (
        "nnunet",
        ["imagesTr/a_0000.mha", "imagesTr/a_0001.mha", "labelsTr/a.mha"],
        {"a": (["a_0000.mha", "a_0001.mha"], "a.mha")},
    ),
    ("paired_folders", PAIRS, {f"p{i:02d}": ([f"p{i:02d}_t2.nii.gz"], f"p{i:02d}_gland.nii.gz") for i in range(12)}),
    (
        "paired_folders",
        ["img/t2_7.nii", "img/t2_8.nii", "mask/m_7.nii", "mask/m_8.nii"],
        {"7": (["t2_7.nii"], "m_7.nii"), "8": (["t2_8.nii"], "m_8.nii")},
    ),
    ("paired_folders", ["Scans/only.nii", "Segmentations/one.nii"], {"only": (["only.nii"], "one.nii")}),
    (
        "paired_folders",
        [f"{folder}/{name}.nii" for folder in ("t2", "adc", "labels") for name in ("x", "y")],
        {"x": (["x.nii", "x.nii"], "x.nii"), "y": (["y.nii", "y.nii"], "y.nii")},
    ),
    ("case_folders", FOLDERS, {f"p{i}": (["adc.nii.gz", "t2.nii.gz"], "seg.nii.gz") for i in range(3)}),
    (
        "case_folders",
        ["B_1/B_1_flair.nii", "B_1/B_1_seg.nii", "B_2/B_2_flair.nii", "B_2/B_2_seg.nii"],
        {f"B_{i}": ([f"B_{i}_flair.nii"], f"B_{i}_seg.nii") for i in (1, 2)},
    ),
    (
        "case_folders",
        ["u/s1/scan 9.nii", "u/s1/scan 9-label.nii", "u/s2/w.nii", "u/s2/mask.nii"],
        {"s1": (["scan 9.nii"], "scan 9-label.nii"), "s2": (["w.nii"], "mask.nii")},
    ),
    ("paired_files", ["a.nii", "a_seg.nii", "b.nii", "b_seg.nii"], {n: ([f"{n}.nii"], f"{n}_seg.nii") for n in "ab"}),
    (
        "paired_files",
        [f"{n}_{part}.nii" for n in ("anna", "berta") for part in ("t2", "dwi", "mask")],
        {n: ([f"{n}_dwi.nii", f"{n}_t2.nii"], f"{n}_mask.nii") for n in ("anna", "berta")},
    ),
]


@pytest.mark.parametrize(("layout", "files", "want"), RECOGNISED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_layout_is_recognised_and_can_be_named(tmp_path: Path, layout: str, files: list[str], want: dict) -> None:
    touch(tmp_path, *files, "README.md", ".hidden/a.nii", "__MACOSX/b_seg.nii", "._c.nii")
    assert recognise(tmp_path).name == layout
    assert survey(tmp_path).layout == layout
    assert found(tmp_path) == found(tmp_path, layout) == want


def test_every_name_of_a_layout_has_one() -> None:
    assert {"auto", *LAYOUTS} == set(NAMES)


def test_two_layouts_at_once_are_named_and_the_user_chooses(tmp_path: Path) -> None:
    touch(tmp_path, "Case00.mhd", "Case00_segmentation.mhd", "imagesTr/a.nii", "labelsTr/a.nii")
    with pytest.raises(ConfigError, match=r"data.layout: .*signs of promise12 \(.*\) and msd \(.*\)'; choose by"):
        survey(tmp_path)
    assert list(found(tmp_path, "msd")) == ["a"]
    with pytest.raises(
        ConfigError, match=r"data.root: expected labelled scans in one of the layouts promise12, msd, .*data.image"
    ):
        survey(touch(tmp_path / "other", "x.nii", "y.nii"))
    with pytest.raises(ConfigError, match=r"data.root: expected a folder, or a .csv, .tsv or .json file"):
        survey(touch(tmp_path, "x.nii") / "x.nii")


WRONG = [
    (["images/a_t2.nii", "images/b_t2.nii", "labels/a_s.nii"], {}, "b_t2: label: expected one label file, found none"),
    (["images/a.nii", "labels/a.nii", "labels/b.nii"], {}, "b: image: expected one image file, found none"),
    (["images/a.nii", "images/a.mha", "labels/a.nii"], {}, "a: image: expected one image file, found a.mha, a.nii"),
    (
        ["t2/x.nii", "t2/y.nii", "adc/x.nii", "adc/z.nii", "seg/x.nii", "seg/y.nii"],
        {},
        r"z: label: .*\ny: image: expected one image of",
    ),
    ([*FOLDERS[:-2], "p2/seg.nii.gz"], {}, r"p2: image: expected one of each image: adc, t2, found t2.nii.gz"),
    ([*FOLDERS, "p3/t2.nii.gz", "p3/adc.nii.gz"], {}, "p3: label: expected one label file in its folder, found none"),
    ([*FOLDERS, "p0/roi.nii.gz"], {}, r"^label: expected one label in a case's folder, found roi, seg.*data.label="),
    (
        ["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "imagesTr/b_0001.nii", "labelsTr/a.nii", "labelsTr/b.nii"],
        {},
        r"b: image: expected b_0000, b_0001, found b_0001.nii \(without 0\)",
    ),
    (["imagesTr/a_0000.nii", "imagesTr/a_0001.nii"], {}, "a: label: expected one label file, found none"),
]


@pytest.mark.parametrize(("files", "data", "match"), WRONG)
def test_what_is_wrong_with_a_case_is_one_line(tmp_path: Path, files: list[str], data: dict, match: str) -> None:
    told = errors(touch(tmp_path, *files), **data)
    assert len(told) == 1 + match.startswith("z"), told
    assert re.search(match, "\n".join(told)), told


def test_an_image_of_few_cases_is_left_out_aloud_and_can_be_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, *FOLDERS, "p1/dwi.nii.gz")
    heard: list[str] = []
    cases = find_cases(tmp_path, "auto", lambda fault: heard.append(str(fault)))
    assert len(cases) == 3
    assert [line.partition("found ")[2] for line in heard] == [
        "dwi, left out; choose by data.channels=[...] if it should be used"
    ]
    assert errors(tmp_path, channels=["dwi"]) == [
        f"p{i}: image: expected one of each image: dwi, found adc.nii.gz, t2.nii.gz; add what is missing, or choose others by"
        " data.channels"
        for i in (0, 2)
    ]


@pytest.mark.parametrize(
    ("files", "asked", "names"),
    [
        (FOLDERS, ["T2"], ["t2.nii.gz"]),
        (FOLDERS, ["t2", "adc"], ["t2.nii.gz", "adc.nii.gz"]),
        (["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii"], ["1"], ["a_0001.nii"]),
        ([f"{folder}/{name}.nii" for folder in ("t2", "adc", "labels") for name in ("x", "y")], ["t2"], ["x.nii"]),
    ],
)
def test_channels_are_chosen_by_name_or_number(tmp_path: Path, files: list[str], asked: list[str], names: list[str]) -> None:
    touch(tmp_path, *files)
    first = next(iter(found(tmp_path, channels=asked).values()))
    assert first[0] == names
    told = survey(tmp_path, data=DataSettings(channels=asked))
    assert (len(told.channels), told.cut) == (len(asked), True)
    with pytest.raises(ConfigError, match=r"data.channels: expected some of .*, found 'pet'"):
        survey(tmp_path, data=DataSettings(channels=["pet"]))


def test_nnunet_by_its_dataset_json_with_folds_and_a_test_part(tmp_path: Path) -> None:
    files = [
        f"images{part}/{name}_000{c}.mha" for part, name in (("Tr", "a"), ("Tr", "b"), ("Ts", "c"), ("Ts", "a")) for c in (0, 1)
    ]
    touch(tmp_path, *files, "labelsTr/a.mha", "labelsTr/b.mha", "labelsTs/c.mha", "labelsTs/a.mha", "imagesTr/x.nii.gz")
    content = {
        "channel_names": {"1": "ADC", "0": "T2"},
        "labels": {"background": 0, "zone": 2, "gland": 1, "ignore": 3},
        "file_ending": ".mha",
        "numTraining": 2,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]))
    for root in (tmp_path, tmp_path / "dataset.json"):
        told = survey(root)
        assert (told.layout, told.channels, told.ignore) == ("nnunet", ("T2", "ADC"), 3)
        assert dict(told.labels) == {"gland": 1, "zone": 2}
        assert {case.id: (case.fold, case.split) for case in told.cases} == {
            "a": (0, ""),
            "b": (1, ""),
            "c": (None, "test"),
            "test_a": (None, "test"),
        }
        assert [fault.found for fault in told.faults] == ["x.nii.gz, left out"]
    (tmp_path / "splits_final.json").write_text(json.dumps([{"val": ["a"]}, {"val": ["a", "gone"]}]))
    told = survey(tmp_path)
    assert [str(fault)[:60] for fault in told.faults if "splits" in fault.field] == [
        "a: splits_final.json: expected one fold that tests it, found",
        "splits_final.json: expected ids of the data set, found gone;",
    ]


def test_a_case_of_nnunet_that_every_fold_trains_with_and_none_tests_is_told_so(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{name}_0000.nii.gz" for name in "abcd"), *(f"labelsTr/{name}.nii.gz" for name in "abcd"))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2"}, "labels": {"background": 0, "gland": 1}}))
    folds = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["c", "a", "d"], "val": ["b"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    told = survey(tmp_path)
    assert {case.id: (case.fold, case.split) for case in told.cases} == {
        "a": (0, ""),
        "b": (1, ""),
        "c": (None, "train"),
        "d": (None, ""),
    }
    assert not told.faults
    (tmp_path / "splits_final.json").write_text(json.dumps([{**folds[0], "train": ["c"]}, folds[1]]))
    (fault,) = survey(tmp_path).faults
    assert (fault.severity, fault.found) == ("warning", "1 in neither part of fold 0, such as b")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "dataset.json: expected JSON in UTF-8, found Expecting"),
        ("[1]", "dataset.json: expected a JSON object, found list"),
        ('{"labels": {"a": 1, "b": 1}}', "dataset.json labels: .* twice"),
        ('{"labels": {"a": "x"}}', "dataset.json labels: "),
        ('{"labels": {"a": true}}', "dataset.json labels: "),
        ('{"labels": {"a": 65536}}', "dataset.json labels: "),
        ('{"labels": 3}', "dataset.json labels: "),
        ('{"modality": {"x": "MR"}}', "dataset.json channel_names: "),
    ],
)
def test_a_dataset_json_that_cannot_be_understood_is_a_warning(tmp_path: Path, content: str, match: str) -> None:
    touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.warns(UserWarning, match=match):
        cases = find_cases(tmp_path)
    assert [case.id for case in cases] == ["a"]
    assert (dict(survey(tmp_path).labels), survey(tmp_path).channels) == ({}, ())


def test_msd_s_dataset_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    content = {"name": "Prostate", "modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (tmp_path / "dataset.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    told = survey(tmp_path)
    assert (told.layout, told.name, told.channels, told.cut) == ("msd", "Prostate", ("T2", "ADC"), False)
    assert dict(told.labels) == {"PZ": 1, "TZ": 2}


def test_links_are_followed_but_a_thousand_files_stay_fast(tmp_path: Path) -> None:
    store = tmp_path / "store"
    touch(store, *(f"images/s{i:04d}_t2.nii.gz" for i in range(500)), *(f"labels/s{i:04d}_zone.nii.gz" for i in range(500)))
    (tmp_path / "linked").symlink_to(store)
    begin = time.monotonic()
    cases = find_cases(tmp_path / "linked")
    assert time.monotonic() - begin < 5
    assert len(cases) == 500
    assert all(case.label.name == f"{case.id}_zone.nii.gz" for case in cases if case.label)


def test_scans_to_segment_come_in_the_same_forms(tmp_path: Path) -> None:
    def ids(root: Path, **data) -> list[str]:
        return [case.id for case in find_cases(root, "auto", data=DataSettings(**data), labelled=False)]

    touch(tmp_path / "a", "x.nii", "y.mha", "y_segmentation.mha")
    assert ids(tmp_path / "a") == ["x", "y"]
    assert ids(tmp_path / "a/x.nii") == ["x"]
    touch(tmp_path / "nn", "imagesTr/t_0000.nii", "labelsTr/t.nii", "imagesTs/u_0000.nii", "imagesTs/u_0001.nii")
    (case,) = find_cases(tmp_path / "nn", labelled=False)
    assert (case.id, len(case.sources), case.label) == ("u", 2, None)
    assert ids(tmp_path / "nn/imagesTs") == ["u"]
    touch(tmp_path / "c", "p1/t2.nii", "p2/t2.nii")
    assert ids(tmp_path / "c") == ["p1", "p2"]
    assert ids(tmp_path / "c", image="{patient}/t2.nii") == ["p1", "p2"]
    (tmp_path / "l.csv").write_text("image,label\na/x.nii,gone.nii\nc/p1/t2.nii,\n")
    assert ids(tmp_path / "l.csv") == ["t2", "x"]
    (tmp_path / "l.json").write_text(json.dumps({"training": [{"image": "a/x.nii", "label": "no"}], "test": ["a/y.mha"]}))
    assert ids(tmp_path / "l.json") == ["y"]


def test_of_a_labelled_data_set_its_images_are_segmented(tmp_path: Path) -> None:
    """Never its labels, and no folder of images as one case of many channels."""
    touch(tmp_path / "m", "imagesTr/a.nii", "imagesTr/b.nii", "labelsTr/a.nii", "labelsTr/b.nii")
    touch(tmp_path / "n", "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    touch(tmp_path / "p", "images/a.mgz", "images/b.mgz", "labels/a.mgz", "labels/b.mgz")
    named = {root: find_cases(tmp_path / root, labelled=False) for root in "mnp"}
    assert {root: [case.id for case in cases] for root, cases in named.items()} == {"m": ["a", "b"], "n": ["a"], "p": ["a", "b"]}
    assert [len(case.sources) for cases in named.values() for case in cases] == [1, 1, 2, 1, 1]
    assert {source[0].parent.name for cases in named.values() for case in cases for source in case.sources} == {
        *("imagesTr", "images"),
    }


def patients(root: Path, **data) -> dict[str, str]:
    return {case.id: case.patient for case in survey(root, data=DataSettings(**data)).cases}


def test_visits_in_a_folder_of_a_person_are_that_persons(tmp_path: Path) -> None:
    days = [("p1", "visit1"), ("p1", "visit2"), ("p2", "2020-01-02"), ("p3", "visit1")]
    touch(tmp_path, *(f"{who}/{day}/{kind}.nii" for who, day in days for kind in ("t2", "seg")))
    assert sorted(patients(tmp_path).values()) == ["p1", "p1", "p2", "p3"]
    (fault,) = survey(tmp_path).faults
    assert (fault.severity, fault.found) == ("warning", "several cases in p1, taken for one person's")
    assert len(set(patients(tmp_path, patient="(.+)").values())) == 4
    assert survey(tmp_path, data=DataSettings(patient="(.+)")).faults == []


def test_folders_of_centres_are_no_persons(tmp_path: Path) -> None:
    touch(tmp_path / "flat", *(f"{place}/c{n}/{kind}.nii" for place in ("HK", "UCL") for n in range(4) for kind in ("t2", "seg")))
    assert len(set(patients(tmp_path / "flat").values())) == 8
    deep = [(place, f"c{n}", day) for place in ("HK", "UCL") for n in range(4) for day in ("a", "b")]
    touch(tmp_path / "deep", *(f"{'/'.join(parts)}/{kind}.nii" for parts in deep for kind in ("t2", "seg")))
    assert set(patients(tmp_path / "deep").values()) == {f"{place}_c{n}" for place in ("HK", "UCL") for n in range(4)}


def test_a_pipe_among_the_scans_is_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/a{n}.nii" for folder in ("images", "labels") for n in range(2)))
    os.mkfifo(tmp_path / "images" / "pipe")
    os.mkfifo(tmp_path / "images" / "b.nii")
    assert list(found(tmp_path)) == ["a0", "a1"]
