"""Sets of structures that share voxels, read from masks, segments and contours."""

from dataclasses import replace

import numpy as np
import pytest

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.found import find_data
from oasis_monai.data.io import read_volume
from oasis_monai.data.overlap import classes_of, classes_of_sets, name_of_set, sets_of_values, too_many
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Geometry
from oasis_monai.utils.errors import ConfigError, DataError
from tests.helpers.overlap import gland_and_lesion, write_masks, write_regions

GRID = Geometry((6, 5, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
NAMES = ("gland", "lesion", "urethra")


def masks_of(case, data):
    """Every structure of a case as a mask, from the classes that were read."""
    label = read_volume(case, data.label_values, data.ignore).label[0].numpy()
    return {name: np.isin(label, own) for name, own in data.scored.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"), range(4))


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    return write_regions(tmp_path_factory.mktemp("regions"), range(4))


@pytest.mark.parametrize("form", ["folders", "templates", "table", "nnunet"])
def test_masks_come_back_as_they_were_written_in_every_form(folder, regions, tmp_path, form):
    parts = {"gland": "{case}/gland_seg.nii.gz", "lesion": "{case}/lesion_seg.nii.gz"}
    table = [
        "id,image,G,L",
        *(f"p{i},{folder}/p{i}/t2.nii.gz," + ",".join(f"{folder}/p{i}/{n}_seg.nii.gz" for n in parts) for i in range(4)),
    ]
    (tmp_path / "cases.csv").write_text("\n".join(table))
    data = {
        "folders": DataSettings(root=str(folder), overlap=True),
        "templates": DataSettings(root=str(folder), image="{case}/t2.nii.gz", label=parts),
        "table": DataSettings(root=str(tmp_path / "cases.csv"), label={"gland": "g", "lesion": "L"}),
        "nnunet": DataSettings(root=str(regions)),
    }[form]
    found = find_data(data)
    assert not [fault for fault in found.faults if fault.severity == "error"]
    assert [case.id for case in found.cases] == ["p0", "p1", "p2", "p3"]
    for number, case in enumerate(found.cases):
        true = gland_and_lesion(number)[1]
        made = masks_of(case, found.data)
        for name, mask in true.items():
            np.testing.assert_array_equal(made[name], mask)


def test_only_sets_that_occur_are_classes(folder):
    some = find_data(DataSettings(root=str(folder), overlap=True, include=("p0", "p1")))
    assert dict(some.data.labels) == {"gland": 1, "gland+lesion": 3}
    every = find_data(DataSettings(root=str(folder), overlap=True))
    assert dict(every.data.labels) == {"gland": 1, "lesion": 2, "gland+lesion": 3}
    new = replace(every.cases[3], structures=some.cases[0].structures)
    with pytest.raises(DataError, match=r"p3: gland_seg.nii.gz label: expected structures .* found lesion \(\d+ voxels\)"):
        read_volume(new, some.data.label_values)


def test_what_was_found_is_kept_until_a_file_changes(folder, tmp_path, monkeypatch):
    asked = DataSettings(root=str(folder), overlap=True)
    first = find_data(asked, tmp_path).data
    monkeypatch.setattr("oasis_monai.data.overlap.read_sets", None)  # nothing is read again
    assert find_data(asked, tmp_path).data == first


def test_values_of_the_same_structures_are_one_class(tmp_path):
    root = write_regions(tmp_path, (3,), {"background": 0, "either": [1, 2, 3], "lesion": [2, 3]})
    found = find_data(DataSettings(root=str(root)))
    assert dict(found.data.labels) == {"either": 1, "either+lesion": 2}
    true = gland_and_lesion(3)[1]
    made = masks_of(found.cases[0], found.data)
    np.testing.assert_array_equal(made["either"], true["gland"] | true["lesion"])
    np.testing.assert_array_equal(made["lesion"], true["lesion"])
    assert read_volume(found.cases[0], found.data.label_values).label.max() == 2


def test_voxels_that_nobody_labelled_in_one_mask_are_unlabelled(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    one, other = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    one[:3], other[2:4], other[5] = 1, 7, 9
    for name, array in (("t2", np.random.default_rng(0).random(GRID.shape, np.float32)), ("a_seg", one), ("b_seg", other)):
        write_array(folder / f"{name}.nii.gz", array, GRID)
    found = find_data(DataSettings(root=str(tmp_path), overlap=True, ignore=9))
    label = read_volume(found.cases[0], found.data.label_values, 9).label[0, :, 0, 0]
    assert label.tolist() == [1, 1, 3, 2, 0, 255]
    with pytest.raises(DataError, match=r"b_seg.nii.gz mask: expected one value, that of b, found 7, 9"):
        read_volume(found.cases[0], found.data.label_values)


def test_a_missing_mask_is_told_with_what_to_do(tmp_path):
    write_masks(tmp_path, range(2))
    (tmp_path / "p1" / "lesion_seg.nii.gz").unlink()
    found = find_data(DataSettings(root=str(tmp_path), overlap=True))
    assert [str(fault) for fault in found.faults] == [
        "p1: label: expected a mask for each of gland, lesion, found gland_seg.nii.gz; add that of lesion (all 0 where the"
        " scan has none), or keep one"
    ]
    alone = find_data(DataSettings(root=str(tmp_path)))
    assert "add data.overlap=true if these are masks" in str(alone.faults[0])


def test_numbers_of_classes_are_those_of_structures_then_of_what_they_share():
    every = [1, 2, 3, 4, 6, 7]
    made = classes_of_sets(NAMES, every)
    for bits in every:  # read back: the one value that is in all of these structures and in no other
        inside = [set(made[name]) for number, name in enumerate(NAMES) if bits >> number & 1]
        outside = [set(made[name]) for number, name in enumerate(NAMES) if not bits >> number & 1]
        (value,) = set.intersection(*inside) - set().union(*outside)
        assert sets_of_values(made)[value] == bits
        assert classes_of(made)[name_of_set(bits, NAMES)] == value
    assert made["gland"][0] == 1
    assert made["urethra"] == (3, 5, 6)


def test_too_many_ways_of_sharing_voxels_are_one_line():
    names = [f"s{i}" for i in range(9)]
    assert too_many(names, range(1, 255)) is None
    assert "at most 254 combinations of structures, found 255 combinations of 9 structures" in str(too_many(names, range(1, 256)))
    assert "at most 62 structures" in str(too_many(["s"] * 63, []))


def test_structures_have_to_fit_the_labels():
    with pytest.raises(ConfigError, match=r"data.structures: expected the values of data.labels"):
        DataSettings(labels={"a": 1, "b": 2}, structures={"a": (1,)})
    with pytest.raises(ConfigError, match=r"data.structures: expected names with lists"):
        DataSettings(structures={"a": (1, 1)})
