"""Cases: every layout is found or refused in words, and a check lists all faults of a data set, the true ones only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.cases import find_cases, survey
from oasis_monai.data.formats.dispatch import VOLUMES, ending
from oasis_monai.data.types import Case
from oasis_monai.transforms.preprocessing import Preprocessing
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.check import check_cases
from tests.helpers.real import real_data
from tests.helpers.scans import write_scan

SHAPE = (16, 16, 8)
AFFINE = np.diag([-0.5, -0.5, 2.0, 1.0])


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pair(name: str, kind: str = ".mhd") -> tuple[str, str]:
    return f"{name}{kind}", f"{name}_segmentation{kind}"


def test_promise12_is_searched_recursively(tmp_path: Path) -> None:
    touch(tmp_path, *pair("training_data/Case01"), *pair("training_data/Case00"), *pair("deep/er/Case10", ".mha"))
    touch(
        tmp_path,
        "Case01.raw",
        "README.md",
        "Case1x.mhd",
        ".hidden/Case77.mhd",
        "__MACOSX/Case78.mhd",
        "training_data/._Case00.mhd",
    )
    cases = find_cases(tmp_path, "promise12")
    assert [c.id for c in cases] == ["Case00", "Case01", "Case10"]
    assert cases[0] == Case(
        "Case00", tmp_path / "training_data/Case00.mhd", tmp_path / "training_data/Case00_segmentation.mhd", centre="BIDMC"
    )


def test_promise12_numbers_that_restart_are_prefixed(tmp_path: Path) -> None:
    touch(tmp_path, *pair("training_data/Case00"), *pair("training_data/Case01"), *pair("test_data/Case00"))
    assert [c.id for c in find_cases(tmp_path, "promise12")] == [
        "test_data_Case00",
        "training_data_Case00",
        "training_data_Case01",
    ]


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    real = touch(tmp_path / "store", *pair("Case00"))
    root = tmp_path / "data"
    root.mkdir()
    (root / "training_data").symlink_to(real)
    (real / "loop").symlink_to(root)
    assert [c.id for c in find_cases(root, "promise12")] == ["Case00"]


def test_msd(tmp_path: Path) -> None:
    files = [
        "imagesTr/b_2.nii.gz",
        "labelsTr/b_2.nii.gz",
        "imagesTr/a_1_0000.nii",
        "labelsTr/a_1.nii.gz",
        "imagesTr/._b_2.nii.gz",
    ]
    touch(
        tmp_path / "Task04",
        *files,
        "imagesTr/c_0000.nii.gz",
        "labelsTr/c_0000.nii.gz",
        "labelsTr/._b_2.nii.gz",
        "imagesTs/z.nii.gz",
    )
    for root in (tmp_path, tmp_path / "Task04"):
        cases = find_cases(root, "msd")
        assert [c.id for c in cases] == ["a_1", "b_2", "c_0000"]
        assert cases[0].image.name == "a_1_0000.nii"
        assert cases[0].label == tmp_path / "Task04/labelsTr/a_1.nii.gz"


@pytest.mark.parametrize(
    ("layout", "files", "kept", "left"),
    [
        (
            "promise12",
            [*pair("Case01"), "Case 2.mhd", "a.nii.gz", "sub/case03.mha", "x.mha", "t.txt"],
            "Case01",
            r"Case 2.mhd, a.nii.gz, ",
        ),
        ("msd", ["imagesTr/a.nii", "labelsTr/a.nii", "imagesTr/sub/b.mha", "labelsTr/b.mnc"], "a", r"b.mha, b.mnc, left out"),
    ],
)
def test_scans_that_a_layout_has_no_place_for_are_told(
    tmp_path: Path, layout: str, files: list[str], kept: str, left: str
) -> None:
    touch(tmp_path, *files)
    cases, faults = (found := survey(tmp_path, layout)).cases, found.faults
    assert [case.id for case in cases] == [kept] == [case.id for case in find_cases(tmp_path, layout)]
    (fault,) = faults
    assert (fault.severity, fault.found[: len(left)]) == ("warning", left)


OTHERS = ["a.npy", "b.vtk", "c.mat", "d.nii.bz2", "e.mnc", "f.tif", "g.gipl.gz", "h.zip", "i.dcm"]
READ = ["a.nrrd", "b.mgz", "c.img", "c.hdr"]
BESIDE = ["notes.txt", "table.csv", "README", "labels.json", "a.png", ".hidden.nrrd", "a.bval"]


@pytest.mark.parametrize(
    ("layout", "kept", "places"),
    [
        ("folder", ["x.nii.gz", "y.mhd", "y.raw"], ["", "deep/er/"]),
        ("msd", ["imagesTr/x.nii", "labelsTr/x.nii"], ["imagesTr/", "labelsTr/", "imagesTr/deep/"]),
        ("promise12", [*pair("Case01"), "Case01.raw"], ["", "deep/"]),
    ],
)
def test_nothing_is_left_out_without_a_word(tmp_path: Path, layout: str, kept: list[str], places: list[str]) -> None:
    """Formats that are not read, archives, and binary files without an ending; what lies beside scans is not told of."""
    touch(tmp_path, *kept, *(place + name for place in places for name in BESIDE))
    cases, faults = (found := survey(tmp_path, layout)).cases, found.faults
    assert faults == []
    for place in places:
        for name in [*OTHERS, "IM0001", *([] if layout == "folder" else READ)]:
            if name == "i.dcm" and layout == "folder":
                continue  # a damaged DICOM file is a case, which reading refuses
            if layout == "msd" and "deep" not in place and ending(name) in VOLUMES:
                continue  # a scan like the others
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(range(200)) * 3)
            again, told = (found := survey(tmp_path, layout)).cases, found.faults
            assert again == cases
            assert [(fault.severity, fault.found) for fault in told] == [("warning", f"{name}, left out")]
            with pytest.warns(UserWarning, match=re.escape(name)):
                find_cases(tmp_path, layout)
            path.unlink()


def test_a_volume_in_a_subfolder_is_told_and_a_folder_of_others_says_what_it_holds(tmp_path: Path) -> None:
    heard: list[str] = []
    find_cases(touch(tmp_path / "a", "x.nii.gz", "sub/y.nii.gz"), "folder", lambda fault: heard.append(fault.found))
    assert heard == ["y.nii.gz, left out"]
    with pytest.raises(DataError, match=r"expected scans .*found none in .*, but v.vtk, w.mnc, left out; convert what is left"):
        find_cases(touch(tmp_path / "b", "w.mnc", "v.vtk"), "folder")


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, *pair("Case00"), "b.nii.gz", "a.b.nii", "notes.txt", "._a.nii", "sub/c.nii", "only_segmentation.nii")
    assert [c.id for c in find_cases(tmp_path, "folder")] == ["Case00", "a.b", "b", "only_segmentation"]
    assert all(c.label is None for c in find_cases(tmp_path, "folder"))
    assert find_cases(tmp_path / "b.nii.gz", "folder") == [Case("b", tmp_path / "b.nii.gz")]


REFUSED = [
    ("promise12", [], r"root: expected CaseNN\.mhd files \(layout promise12\), found none in"),
    ("promise12", ["a.nii.gz"], r"root: expected CaseNN\.mhd files \(layout promise12\), found none .*data\.layout"),
    ("msd", [], "root: expected one folder imagesTr .*found none in"),
    ("folder", [], r"input: expected scans"),
    ("msd", ["imagesTr/notes.txt"], r"root: expected imagesTr/\*"),
    ("msd", ["A/imagesTr/x.nii", "B/imagesTr/x.nii"], "one folder imagesTr .*found A, B"),
    ("promise12", ["t/Case00.mhd"], "t/Case00: label: expected one label file, found none"),
    ("promise12", ["t/Case00_segmentation.mhd"], "t/Case00: image: expected one image file, found none"),
    (
        "promise12",
        ["Case00.mhd", *pair("Case00", ".mha")],
        r"Case00: image: expected one image file, found Case00\.mha, Case00\.mhd",
    ),
    ("promise12", [*pair("a_b/Case00"), *pair("a/b/Case00")], "a_b_Case00: image: expected one image file"),
    ("msd", ["imagesTr/x.nii"], "x: label: expected one label file, found none"),
    ("msd", ["imagesTr/x.nii", "labelsTr/x.nii", "labelsTr/y.nii"], "y: image: expected one image file, found none"),
    (
        "msd",
        ["imagesTr/x.nii", "imagesTr/x.nii.gz", "labelsTr/x.nii"],
        "x: image: expected one image file, found x.nii, x.nii.gz",
    ),
    ("msd", ["imagesTr/x_0000.nii", "imagesTr/x_0001.nii", "labelsTr/x.nii"], "found x_0000.nii, x_0001.nii; .*one modality"),
    ("folder", ["x.nii", "x.mha"], "x: image: expected one image file, found x.mha, x.nii"),
]


@pytest.mark.parametrize(("layout", "files", "match"), REFUSED)
def test_refused(tmp_path: Path, layout: str, files: list[str], match: str) -> None:
    with pytest.raises(DataError, match=match):
        find_cases(touch(tmp_path, *files), layout)


def test_all_faults_of_a_layout_at_once_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_cases(touch(tmp_path, "Case00.mhd", "Case01.mhd", "Case02_segmentation.mhd", *pair("Case03")), "promise12")
    assert [(f.case, f.field) for f in caught.value.faults] == [("Case00", "label"), ("Case01", "label"), ("Case02", "image")]
    with pytest.raises(DataError, match=r"root: expected an existing folder, found none at .*absent; correct the path"):
        find_cases(tmp_path / "absent", "promise12")
    with pytest.raises(ConfigError, match=r"layout: expected one of auto, .*msd, .*promise12, .*, found 'bids'"):
        find_cases(tmp_path, "bids")


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    return path


def make(
    folder: Path, name: str, seed: int, change: Callable[[np.ndarray, np.ndarray], None] | None = None, **geometry: np.ndarray
) -> Case:
    """A scan with a box of 6 x 6 x 4 voxels as label; ``change`` edits image and label in place."""
    image = np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[5:11, 5:11, 2:6] = 1
    if change:
        change(image, label)
    return Case(name, save(folder / f"{name}.nii", image, **geometry), save(folder / f"{name}_l.nii", label, **geometry))


def stray(image: np.ndarray, label: np.ndarray) -> None:
    label[0, 0, 0] = 1


def diagonal(image: np.ndarray, label: np.ndarray) -> None:
    label[4, 4, 1] = 1  # touches the box by a corner: 26-connected


def nothing(image: np.ndarray, label: np.ndarray) -> None:
    label[:] = 0


def single(image: np.ndarray, label: np.ndarray) -> None:
    label[:] = 0
    label[3, 3, 3] = 1


def unknown(image: np.ndarray, label: np.ndarray) -> None:
    label[0, 0, 0] = 7


def constant(image: np.ndarray, label: np.ndarray) -> None:
    image[:] = 3


def broken(image: np.ndarray, label: np.ndarray) -> None:
    image[0, 0, 0] = np.nan


def scaled(x: float, y: float, z: float) -> dict[str, np.ndarray]:
    return {"affine": np.diag([x, y, z, 1.0])}


CHECKS: list[tuple[Callable[[np.ndarray, np.ndarray], None] | None, dict[str, np.ndarray], str, str]] = [
    (
        stray,
        {},
        "warning",
        "label 1: expected one connected piece, found 2, the largest of 144 and the others of 1 voxels together",
    ),
    (nothing, {}, "warning", "label: expected some foreground, found only 0"),
    (single, {}, "warning", "label 1: expected at least 10 voxels, found 1"),
    (unknown, {}, "error", r"label values: expected only 0, 1, found 7 \(1 voxels\)"),
    (constant, {}, "error", "image: expected different intensities, found 3 everywhere"),
    (broken, {}, "error", "voxels: expected finite numbers, found 1 NaN"),
    (None, scaled(0.05, 0.05, 2), "warning", "spacing: expected 0.1 to 20 mm, found 0.05 x 0.05 x 2 mm"),
    (None, scaled(1, 1, 25), "warning", "spacing: expected 0.1 to 20 mm"),
    (None, scaled(1, 2, 4), "warning", "spacing: expected square pixels in the slice, found 1 x 2 x 4 mm"),
]


@pytest.mark.parametrize(("change", "geometry", "severity", "match"), CHECKS)
def test_check(
    tmp_path: Path,
    change: Callable[[np.ndarray, np.ndarray], None] | None,
    geometry: dict[str, np.ndarray],
    severity: str,
    match: str,
) -> None:
    """The bad case stands between two good ones: one fault, its own."""
    cases = [make(tmp_path, "a", 1), make(tmp_path, "b", 2, change, **geometry), make(tmp_path, "c", 3)]
    (fault,) = [found for found in check_cases(cases, (0, 1)) if found.field != "patient"]  # n11 and n12 are nearly alike
    assert (fault.case, fault.severity) == ("b", severity)
    assert re.search(match, str(fault)), str(fault)


def test_a_data_set_without_any_structure_is_an_error(tmp_path: Path) -> None:
    cases = [make(tmp_path, name, number, nothing) for number, name in enumerate("ab")]
    errors = [fault for fault in check_cases(cases, (0, 1)) if fault.severity == "error"]
    assert [str(fault) for fault in errors] == [
        "label: expected some foreground in one case or more, found none in 2 cases; "
        "segment the structures, or correct data.labels"
    ]


@pytest.mark.parametrize(("affine", "found"), [(scaled(4, 4, 1), []), (scaled(4, 2, 1), ["4 x 2 x 1 mm"])])
def test_the_thickness_of_an_image_of_two_dimensions_is_nobodys(
    tmp_path: Path, affine: dict[str, np.ndarray], found: list
) -> None:
    random = np.random.default_rng(0)
    for name, top in (("a", 1000), ("a_seg", 2)):
        write_scan(tmp_path / f"{name}.nii", random.integers(0, top, (12, 10, 1)).astype(np.int16), affine["affine"])
    faults = check_cases([Case("a", tmp_path / "a.nii", tmp_path / "a_seg.nii")], (0, 1))
    assert [fault.found for fault in faults if fault.field == "spacing"] == found


def test_what_is_no_fault(tmp_path: Path) -> None:
    cases = [
        make(tmp_path, "a", 1, diagonal),
        make(tmp_path, "b", 2, **scaled(3, 0.5, 0.5)),
        make(tmp_path, "c", 3).without_label(),
    ]
    assert check_cases(cases, (0, 1)) == []
    assert check_cases([], (0, 1)) == []


def test_a_missing_class_is_a_warning(tmp_path: Path) -> None:
    (fault,) = check_cases([make(tmp_path, "a", 1)], (0, 1, 2))
    assert (fault.field, fault.found, fault.severity) == ("label 2", "none", "warning")


def test_the_same_scan_twice(tmp_path: Path) -> None:
    cases = [make(tmp_path, "a", 1), make(tmp_path, "b", 2), make(tmp_path, "c", 1, stray)]
    faults = [f for f in check_cases(cases, (0, 1)) if "same voxels" in f.found]
    assert [(f.found, f.severity) for f in faults] == [("the same voxels in a, c", "error")]
    faults = check_cases([c.without_label() for c in cases], (0, 1))
    assert [(f.found, f.severity) for f in faults] == [("the same voxels in a, c", "warning")]
    (fault,) = check_cases([cases[0], Case("a", cases[1].image, cases[1].label)], (0, 1))
    assert (fault.case, fault.field, fault.severity) == ("a", "id", "error")


def test_what_a_reader_of_the_files_should_know_is_a_warning(tmp_path: Path) -> None:
    """A label half a voxel aside, and a scan whose header has no orientation."""
    cases = [make(tmp_path, "a", 1), make(tmp_path, "b", 2)]
    aside = AFFINE.copy()
    aside[0, 3] += 0.25
    assert cases[0].label is not None
    save(cases[0].label, np.asarray(nibabel.load(cases[0].label, mmap=False).dataobj), aside)
    for path in (cases[1].image, cases[1].label):
        image = nibabel.load(path, mmap=False)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nibabel.save(image, path)
    faults = check_cases(cases, (0, 1))
    assert [(f.case, f.field.split()[-1], f.severity) for f in faults] == [
        ("a", "geometry", "warning"),
        ("b", "qform_code", "warning"),  # of its label the same: it is said once
    ]
    assert faults[0].found == "corners 0.25 mm apart, 0.5 voxels"


def test_volume_outlier(tmp_path: Path) -> None:
    """Volumes 10, 11, ... 19 and one ten times the median: only that one is far out, by hand (15 +- 1.4826 * 2.5 or so)."""

    def sized(count: int) -> Callable[[np.ndarray, np.ndarray], None]:
        def change(image: np.ndarray, label: np.ndarray) -> None:
            label[:] = 0
            label.reshape(-1)[:count] = 1

        return change

    cases = [make(tmp_path, f"n{i}", i, sized(10 * i)) for i in range(10, 20)] + [make(tmp_path, "big", 99, sized(1500))]
    (fault,) = [found for found in check_cases(cases, (0, 1)) if found.field != "patient"]  # n11 and n12 are nearly alike
    logs = np.log([10 * i for i in range(10, 20)] + [1500])
    z = (logs[-1] - np.median(logs)) / (1.4826 * np.median(np.abs(logs - np.median(logs))))
    assert (fault.case, fault.field, fault.severity) == ("big", "label 1", "warning")
    assert f"0.75 ml (median 0.075 ml, robust z {z:+.1f})" in fault.found
    assert check_cases(cases[4:], (0, 1)) == []  # seven cases are too few to judge


def test_a_label_that_the_field_of_view_cuts(tmp_path: Path) -> None:
    """Six voxels of half a millimetre along x round the centre, a view of 2 mm: the outer two are outside."""
    cases = [make(tmp_path, "a", 1), make(tmp_path, "b", 2).without_label()]
    wide = Preprocessing(size=(64, 64, 64), spacing_mm=(1.0, 1.0, 1.0))
    narrow = Preprocessing(size=(2, 64, 64), spacing_mm=(1.0, 1.0, 1.0))
    assert check_cases(cases, (0, 1), wide) == []
    (fault,) = check_cases(cases, (0, 1), narrow)
    assert (fault.case, fault.field, fault.severity) == ("a", "label", "warning")
    assert fault.found == "33.3% of it outside"


def test_everything_at_once(tmp_path: Path) -> None:
    """Header, geometry and content faults of several cases: none hides another, in the order of the cases."""
    cases = [make(tmp_path, name, seed) for seed, name in enumerate("abcd")]
    cases[0].image.write_bytes(b"no header")
    assert cases[1].label is not None
    save(cases[1].label, np.ones(SHAPE, np.uint8), AFFINE @ np.diag([1, 1, 1.5, 1]))
    cases[2] = make(tmp_path, "c", 2, nothing)
    cases.append(Case("e", tmp_path / "gone.nii"))
    faults = check_cases(cases, (0, 1))
    assert [f.case for f in faults] == ["a", "b", "c", "e"]
    assert [f.field for f in faults] == ["a.nii sizeof_hdr", "label geometry", "label", "gone.nii file"]
    assert "spacing off by 1 mm" in faults[1].found


def test_real_promise12_has_no_fault() -> None:
    cases = find_cases(real_data("promise12"), "promise12")
    assert len(cases) >= 30
    assert all(c.label is not None and c.label.name == f"{c.id}_segmentation.mhd" for c in cases)
    assert [str(f) for f in check_cases(cases[:6], (0, 1))] == []


def test_real_hippocampus_has_no_fault() -> None:
    cases = find_cases(real_data("hippocampus"), "msd")
    assert len(cases) >= 100
    found = check_cases(cases[:30], (0, 1, 2))
    assert [str(f) for f in found if f.field != "patient"] == []  # the sides of a person are found, see test_twins.py
    unknown = check_cases(cases[:2], (0, 1))
    assert [f.severity for f in unknown] == ["error", "error"]
    assert all("expected only 0, 1, found 2 (" in str(f) for f in unknown)
