"""Structures that share voxels, from masks to masks: learned, segmented and scored structure by structure."""

import json

import nibabel
import numpy as np
import pytest

from oasis_monai.settings import build
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.evaluate import evaluate_model
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, TINY, merged
from tests.helpers.overlap import gland_and_lesion, write_masks, write_regions
from tests.helpers.runs import quiet, scores_of

CASES = range(5)
OWN = {"methods": ["OASIS-joint", "U-Net3D"], "n": [2], "k": 2, "network": {"unet": [4, 8]}, "save_segmentations": True}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"), CASES)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    def make(root, *more):
        where = {"data": {"root": str(root)}, "cache": str(tmp_path_factory.mktemp("cache"))}
        return build(merged({**TINY, "data": {}}, JOINT, where, *more))

    return make


def values(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def run(masks, asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    crossval(asked(masks, OWN, {"data": {"overlap": True}}), folder, quiet)
    return folder


def test_a_cross_validation_scores_every_structure_by_its_mask(run):
    scores = scores_of(run)
    assert set(scores["label"]) == {"gland", "lesion"}
    assert len(scores) == 5 * 2 * 2
    for row in scores.to_dict("records"):
        name = f"{row['case']}__{row['method']}" + (f"-{row['n']}" if row["n"] else "")
        found = values(run / "segmentations" / f"{name}_mask_{row['label']}.nii.gz") > 0
        true = gland_and_lesion(int(row["case"][1:]))[1][row["label"]]
        expected = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert row["dsc"] == pytest.approx(expected)
        assert row["reference_ml"] > 0
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["data"]["structures"] == {"gland": [1, 3], "lesion": [2, 3]}


@pytest.fixture(scope="module")
def model(masks, asked, tmp_path_factory):
    within = {"data": {"overlap": True, "include": ["p0", "p1", "p2"]}}
    return train_model(asked(masks, within), tmp_path_factory.mktemp("models") / "m", quiet)


def test_a_model_writes_a_mask_for_each_structure(model, masks, tmp_path):
    loaded = load_model(model)
    assert loaded.labels == {"gland": 1, "gland+lesion": 3}
    assert loaded.structures == ["gland", "lesion"]
    assert not segment_scans(model, masks / "p4" / "t2.nii.gz", tmp_path, quiet)
    record = json.loads((tmp_path / "t2.json").read_text())
    label = values(tmp_path / record["label"])
    assert set(np.unique(label)) <= {0, 1, 3}
    assert label.any()
    for name, members in (("gland", (1, 3)), ("lesion", (3,))):
        mask = values(tmp_path / record["masks"][name])
        np.testing.assert_array_equal(mask, np.isin(label, members))
        voxel_ml = float(np.prod(nibabel.load(tmp_path / record["label"]).header.get_zooms())) / 1000
        assert record["volume_ml"][name] == pytest.approx(mask.sum() * voxel_ml, abs=2e-3)
    assert set(record["predicted_dsc"]) == {"gland", "lesion"}


def test_what_no_training_label_has_is_scored_and_not_lost(model, masks, asked, tmp_path):
    said = []
    data = asked(masks, {"data": {"overlap": True, "include": ["p3", "p4"]}}).data
    scores = scores_of(evaluate_model(load_model(model), data, tmp_path / "out", said.append).parent)
    assert any("lesion share voxels as in no training label" in line for line in said)
    reference = {(row["case"], row["label"]): row["reference_ml"] for row in scores.to_dict("records")}
    for case in (3, 4):
        _, true, grid = gland_and_lesion(case)
        assert (true["lesion"] & ~true["gland"]).any()  # what no training case has
        for name, mask in true.items():
            assert reference[f"p{case}", name] == pytest.approx(mask.sum() * grid.voxel_ml)


def test_a_region_data_set_of_other_values_is_evaluated_by_names(model, asked, tmp_path):
    root = write_regions(tmp_path / "data", (3,), {"background": 0, "Lesion": [2, 3], "Gland": [1, 2]})
    scores = scores_of(evaluate_model(load_model(model), asked(root).data, tmp_path / "out", quiet).parent)
    _, true, grid = gland_and_lesion(3)
    for row in scores.to_dict("records"):
        assert row["reference_ml"] == pytest.approx(true[row["label"]].sum() * grid.voxel_ml)
