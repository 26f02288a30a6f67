"""Learned fusion in a cross-validation and in a model: of other folds, written down, and used by everything that fuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.segmentation.learned_fusion import fit_learned_fusion, fusions_of, plain_fusions, read_fusions
from oasis_monai.segmentation.pipeline import Scan, segment_case
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.utils.errors import OasisError
from oasis_monai.workflows import cross_fusion
from oasis_monai.workflows.bundle.network import OasisNetwork, network_arguments
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT, JOINT_2D
from tests.helpers.runs import quiet, scores_of

JOINT_RUN = {"methods": ["estimate", "OASIS-joint"], "n": [1, 3], "k": 3}


@pytest.fixture
def fits(monkeypatch):
    """The (patients, learned) of every fit of a run."""
    made = []

    def noted(samples):
        learned = fit_learned_fusion(samples)
        made.append(({patient for patient, _ in samples}, learned))
        return learned

    monkeypatch.setattr(cross_fusion, "fit_learned_fusion", noted)
    return made


@pytest.fixture
def used(monkeypatch):
    """case -> the fusions by which it was fused last."""
    seen, fuse = {}, Segmenter.__call__

    def noted(self, target, *args, **kwargs):
        seen[target.case] = dict(self.fusions)
        return fuse(self, target, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "__call__", noted)
    return seen


def test_a_fold_fuses_by_what_the_others_teach(settings, tmp_path, fits, used):
    lines = []
    asked = settings(JOINT, JOINT_RUN)
    crossval(asked, tmp_path / "a", lines.append)
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    told = json.loads((tmp_path / "a" / "fusion.json").read_text())
    testing = {number: set(fold["test"]) for number, fold in enumerate(split["folds"])}
    everyone = set().union(*testing.values())
    for number, cases in testing.items():
        own = fusions_of(told["in_folds"][str(number)])
        assert set(own) == {1, 3}
        for case in cases:
            assert plain_fusions(used[case]) == plain_fusions(own)
        others = [learned.to_json() for patients, learned in fits if patients == everyone - cases]
        assert [own[n].to_json() for n in (1, 3)] == others
    assert [learned.to_json() for patients, learned in fits if patients == everyone] == [*told["weights"].values()]
    assert sum("fusion of OASIS-joint-3: weights slice network" in line for line in lines) == 1


def test_only_oasis_joint_changes_and_fixed_is_as_before(settings, tmp_path):
    crossval(settings(JOINT, JOINT_RUN), tmp_path / "a", quiet)
    crossval(settings(JOINT, JOINT_RUN, {"joint": {"fusion": "fixed"}}), tmp_path / "b", quiet)
    assert not (tmp_path / "b" / "fusion.json").exists()
    learned, fixed = (scores_of(tmp_path / name).set_index(["case", "method", "n", "region"]).dsc for name in "ab")
    same = learned.index.get_level_values("method") == "estimate"
    assert learned[same].equals(fixed[same])
    assert not learned[~same].equals(fixed[~same])


def test_one_fold_alone_or_no_networks_learn_nothing(settings, tmp_path, fits):
    crossval(settings(JOINT, JOINT_RUN, {"fold": 0}), tmp_path / "a", quiet)
    crossval(settings({"methods": ["OASIS"], "n": [1]}), tmp_path / "b", quiet)
    assert not fits
    assert not list(tmp_path.glob("*/fusion.json"))


def test_slices_learn_from_the_slices_of_other_folds(settings, tmp_path, fits):
    asked = settings(JOINT, JOINT_2D, JOINT_RUN, {"folds": "slice", "n": [2]}, dims=2)
    crossval(asked, tmp_path / "a", quiet)
    told = json.loads((tmp_path / "a" / "fusion.json").read_text())
    assert set(told["in_folds"]) == {"0", "1", "2"}
    assert all(len(learned["2"]["networks"]) == 1 for learned in told["in_folds"].values())
    assert not list((tmp_path / "cache").glob("fusion/*"))  # a new scan has no labelled slices


def test_a_model_fuses_as_the_cross_validation_of_the_same_settings_found(settings, tmp_path):
    asked = settings(JOINT, JOINT_RUN)
    crossval(asked, tmp_path / "a", quiet)
    told = json.loads((tmp_path / "a" / "fusion.json").read_text())
    (kept,) = (tmp_path / "cache" / "fusion").glob("*.json")
    assert json.loads(kept.read_text()) == told["weights"]
    train_model(asked, tmp_path / "model", quiet)
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    assert record["fusion"] == told["weights"]
    model = load_model(tmp_path / "model")
    assert model.segmenter.fusions == read_fusions(kept)
    # the network of a bundle makes of a scan what the model makes of it, by the same weights
    target = model.segmenter.library.images[0].float()
    grid = Geometry(tuple(target.shape[1:]), np.eye(4))
    scan = Scan(Preprocessed("", target, None, grid, grid))
    by_model = segment_case(model.segmenter, scan, model.embed, ("OASIS-joint",), (3,)).results["OASIS-joint", 3].probability
    network = OasisNetwork(**network_arguments(model.settings, model.segmenter, "OASIS-joint", 3, 8)).eval()
    network.fill(model.segmenter, model.embed)
    by_bundle = network(target[None])[0]
    torch.testing.assert_close(by_bundle, by_model, atol=1e-4, rtol=0)
    model.segmenter.fusions = {}
    without = OasisNetwork(**network_arguments(model.settings, model.segmenter, "OASIS-joint", 3, 8)).eval()
    without.fill(model.segmenter, model.embed)
    assert without.fusions == {}
    assert not torch.allclose(by_bundle, without(target[None])[0], atol=1e-3)
    # damaged weights are told
    record["fusion"] = {"3": "half"}
    (tmp_path / "model" / "model.json").write_text(json.dumps(record))
    with pytest.raises(OasisError, match=r"fusion: expected number of atlases -> weights"):
        load_model(tmp_path / "model")


def test_a_model_of_before_and_one_with_fixed_fusion_have_no_pools(settings, tmp_path):
    asked = settings(JOINT, JOINT_RUN)
    crossval(asked, tmp_path / "a", quiet)
    train_model(replace(asked, joint=replace(asked.joint, fusion="fixed")), tmp_path / "fixed", quiet)
    assert not load_model(tmp_path / "fixed").segmenter.fusions
    train_model(asked, tmp_path / "model", quiet)
    file = tmp_path / "model" / "model.json"
    record = json.loads(file.read_text())
    del record["fusion"]
    file.write_text(json.dumps(record))
    assert not load_model(tmp_path / "model").segmenter.fusions
