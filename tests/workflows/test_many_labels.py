"""Fifty structures, of values with gaps, most cases without some of them: nothing is invented, lost or renumbered on the way."""

import json
import shutil

import monai.bundle
import numpy as np
import pytest

from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.io import read_image
from oasis_monai.data.types import Geometry
from oasis_monai.settings import build
from oasis_monai.utils.errors import DataError
from oasis_monai.workflows.bundle import write_bundle
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.library import add_atlas, remove_atlas
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, TINY, merged
from tests.helpers.runs import quiet, scores_of

VALUES = [3 * number + 7 for number in range(50)]
VALUES[-1] = 255  # what IGNORE is within the program is a value like others in a file
RARE = VALUES[::7]
"""In one case alone, each."""
SHAPE = (30, 30, 9)
GRID = Geometry(SHAPE, np.diag([2.5, 2.5, 8.0, 1.0]))
CASES = 5


def brain(case):
    """A label of boxes beside each other, and an image of it."""
    random = np.random.default_rng(case)
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = random.integers(0, 2, 3)
    for number, value in enumerate(VALUES):
        if value in RARE and RARE.index(value) % CASES != case:
            continue
        i, j, k = number % 5, number // 5 % 5, number // 25
        label[3 + x + 5 * i :, 3 + y + 5 * j :, 1 + z + 3 * k :][:5, :5, :3] = value
    image = label.astype(np.float32) + random.normal(0, 5, SHAPE).astype(np.float32)
    return image, label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fifty")
    for case in range(CASES):
        image, label = brain(case)
        write_array(root / f"c{case}.nii.gz", image, GRID)
        write_array(root / f"c{case}_segmentation.nii.gz", label, GRID)
    return root


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    """Function: settings; the structures come from the files."""

    def make(*more):
        own = {"data": {"root": str(folder)}, "cache": str(tmp_path_factory.mktemp("cache")), "browser": False}
        methods = {"methods": ["majority", "OASIS-joint"], "n": [3]}
        return build(merged({**TINY, "data": {}}, JOINT, own, methods, *more))

    return make


@pytest.fixture(scope="module")
def model(asked, tmp_path_factory):
    settings = asked({"data": {"include": ["c0", "c1", "c2", "c3"]}})
    return train_model(settings, tmp_path_factory.mktemp("models") / "fifty", quiet)


def dice(found, truth, value):
    one, other = found == value, truth == value
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def is_right(found):
    """Values of the data set, each where it belongs, and all but the rare ones."""
    _, truth = brain(4)
    assert set(np.unique(found)) <= {0, *VALUES}
    scores = [dice(found, truth, value) for value in VALUES if value not in RARE]
    assert min(scores) > 0.3
    assert np.mean(scores) > 0.6


def label_of(folder):
    (path,) = folder.glob("c4_segmentation*")
    return read_image(path)[0][0].numpy().astype(int)


def test_folds_score_every_structure_by_its_value(asked, tmp_path):
    said = []
    crossval(asked({"k": 2, "n": [2]}), tmp_path / "run", said.append)
    scores = scores_of(tmp_path / "run").query("method == 'majority'")
    assert set(scores.label) == {f"label_{value}" for value in VALUES}
    usual = scores[~scores.label.isin([f"label_{value}" for value in RARE])]
    assert usual.groupby("label").dsc.mean().min() > 0.3
    (line,) = (line for line in said if "c0: label" in line)  # one of each case, not one of each structure
    assert line.endswith(
        "c0: label: expected some voxels of each, found none of 28, 49, 70, 91, 133, 255; check that they are absent"
    )


def test_a_new_scan_gets_the_values_of_the_files_and_the_bundle_says_the_same(model, folder, tmp_path):
    scan, said = folder / "c4.nii.gz", []
    assert segment_scans(model, scan, tmp_path / "seg", n=3, method="majority", log=said.append) == []
    found = label_of(tmp_path / "seg")
    is_right(found)
    assert max(map(len, said)) < 3000  # it can be read
    assert sum(said[-3].count(word) for word in ("structures", "case", "label_")) == 2  # the table's head: no column for each
    assert " of 49 " in said[-2]
    told = json.loads((tmp_path / "seg" / "c4.json").read_text())
    assert set(told["volume_ml"]) == {f"label_{value}" for value in VALUES if value != 91}
    for value in VALUES:
        if value != 91:
            assert told["volume_ml"][f"label_{value}"] == pytest.approx(0.05 * (found == value).sum())
    bundle = write_bundle(model, tmp_path / "bundle", 3, "majority", log=quiet)
    names = {
        part: str(bundle / "configs" / f"{name}.json") for part, name in (("meta_file", "metadata"), ("config_file", "inference"))
    }
    monai.bundle.run(**names, bundle_root=str(bundle), dataset_dir=str(scan), output_dir=str(tmp_path / "run"))
    np.testing.assert_array_equal(label_of(tmp_path / "run"), found)


def test_a_case_is_added_by_its_values_and_what_is_unknown_is_named(model, folder, tmp_path):
    own = shutil.copytree(model, tmp_path / "model")
    with pytest.raises(DataError, match=r"found 91 \(75 voxels\)"):
        add_atlas(own, folder / "c4.nii.gz", folder / "c4_segmentation.nii.gz", log=quiet)
    _, label = brain(4)
    label[label == 91] = 0
    write_array(tmp_path / "c4_label.nii.gz", label, GRID)
    add_atlas(own, folder / "c4.nii.gz", tmp_path / "c4_label.nii.gz", log=quiet)
    loaded = load_model(own)
    there = np.array(loaded.settings.data.label_values)[loaded.segmenter.library.label_of("c4").numpy()]
    assert set(np.unique(there)) == set(np.unique(label))
    remove_atlas(own, "c4", log=quiet)
    assert len(load_model(own).segmenter.library) == CASES - 1
