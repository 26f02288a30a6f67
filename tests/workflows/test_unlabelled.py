"""Scans without labels are found and checked, labelled by the model, trained with, and told; those that are tested never are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.phantom import write_phantom
from oasis_monai.settings import build
from oasis_monai.training.trainer import Trainer
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows import self_trained_folds, self_training
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.evaluate import evaluate_model
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.prepare import split_of
from oasis_monai.workflows.self_trained_folds import SELF_TRAINED, models_for
from oasis_monai.workflows.study import check_study, plan
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT, JOINT_2D, TINY, TINY_2D, merged
from tests.helpers.runs import copied, pixels, quiet
from tests.helpers.scans import write_scan

LABELLED = [f"Case{i:02d}" for i in range(3)]
OTHERS = [f"unlabelled-{case}" for case in LABELLED]
QUICK = {
    "self_training": {"least_agreement": 0.0, "iterations": 2, "rounds": 1},
    "training": {"iterations": 2, "checkpoint_minutes": 0},
}
PARTS = ("stm.safetensors", "estimator.safetensors", "volume.safetensors")
KINDS = {"joint": [JOINT], "joint slices": [JOINT, TINY_2D, JOINT_2D], "plain": []}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folder of three scans without labels, of other people than the phantom's."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("unlabelled")
    write_phantom(made, cases=3, seed=5, size="tiny")
    for path in made.glob("Case??.*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture
def asked(phantom, scans, tmp_path):
    """Function: settings of a training with three labelled scans and three without."""

    def make(*more, **own):
        data = {"data": {"root": str(phantom), "include": LABELLED}, "cache": str(tmp_path / "cache"), "unlabelled": str(scans)}
        return build(merged(TINY, data, QUICK, *more, own))

    return make


def record(folder):
    return json.loads((folder / "model.json").read_text())


def networks(folder):
    return {name: (folder / name).read_bytes() for name in PARTS if (folder / name).exists()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_trained_on_with_scans_without_labels_and_says_so(asked, tmp_path, kind):
    settings, said = asked(*KINDS[kind]), []
    alone = train_model(replace(settings, unlabelled=None), tmp_path / "alone", quiet)
    model = train_model(settings, tmp_path / "model", said.append)
    told, before = record(model), record(alone)
    assert told["cases"] == told["trained_on"] == LABELLED
    assert told["unlabelled"]["training"] == {"iterations": 2, "minutes": None}
    (only,) = told["unlabelled"]["folds"]["0"]
    assert only["kept"] == 3
    assert [one["case"] for one in only["scans"]] == OTHERS  # ids are only files' names
    assert all(0 <= one["agreement"] <= 1 and not one["refused"] for one in only["scans"])
    assert any("3 of 3 unlabelled scans" in line for line in said)
    assert not {"unlabelled", "self_training"} & set(before["settings"])
    assert "unlabelled" not in before
    # the labelled cases are the atlases, as before, and every network has learned
    ours, theirs = (load_model(one).segmenter.library for one in (model, alone))
    assert ours.cases == theirs.cases
    assert torch.equal(ours.labels, theirs.labels)
    for name, content in networks(alone).items():
        assert (model / name).read_bytes() != content
    if kind == "joint":  # with the estimates of the networks that it has
        estimator = load_model(model).segmenter.estimator.without_views()
        torch.testing.assert_close(ours.estimates[0].float(), estimator.volume(ours.images[0])[1:], atol=2e-3, rtol=0)
    # given again, nothing is trained or segmented
    spent = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "models").rglob("*.safetensors")}
    assert networks(train_model(settings, tmp_path / "again", quiet)) == networks(model)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "models").rglob("*.safetensors")} == spent


def test_scans_that_networks_have_seen_without_labels_are_no_test_of_them(asked, scans, phantom, tmp_path):
    model = train_model(asked(), tmp_path / "model", quiet)
    tests = tmp_path / "tests"
    write_phantom(tests, cases=3, seed=5, size="tiny")  # the same scans, with labels
    for path in phantom.glob("Case05*"):
        shutil.copy(path, tests / path.name)
    data = replace(asked().data, root=str(tests), include=())
    evaluate_model(load_model(model), data, tmp_path / "scores", quiet, options=asked())
    left_out = json.loads((tmp_path / "scores" / "run.json").read_text())["left_out"]
    assert left_out == dict(zip(LABELLED, OTHERS, strict=True))


def some_scans(tmp_path, scans, phantom, what):
    """A folder of scans that cannot be used."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in scans.glob("Case01.*"):
        shutil.copy(path, folder / path.name)
    if what == "none":
        for path in folder.iterdir():
            path.unlink()
    elif what == "labelled":
        for path in phantom.glob("Case01.*"):
            shutil.copy(path, folder / path.name.replace("Case01", "other"))
        (folder / "other.mhd").write_text((phantom / "Case01.mhd").read_text().replace("Case01", "other"))
    elif what == "channels":
        write_scan(folder / "two.nii.gz", np.random.default_rng(0).random((8, 8, 4, 2)).astype("f4"), np.eye(4))
    elif what == "flat":
        raw = folder / "Case01.raw"
        raw.write_bytes(bytes(raw.stat().st_size))
    elif what == "absent":
        return tmp_path / "absent"
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "unlabelled: "),
        ("absent", "unlabelled: "),
        (
            "labelled",
            "other: unlabelled: image: expected a scan that is no labelled case, found the voxels of Case01, a",
        ),
        (
            "channels",
            "two: unlabelled: channels: expected 1 as the labelled cases have (image), found 2; give",
        ),
        ("flat", "unlabelled-Case01: unlabelled: image: expected different intensities in the field of view, found one value"),
    ],
)
def test_scans_that_cannot_be_used_are_one_clear_line_and_leave_nothing(asked, tmp_path, scans, phantom, what, message):
    folder = some_scans(tmp_path, scans, phantom, what)
    with pytest.raises((DataError, ConfigError)) as raised:
        train_model(asked(unlabelled=str(folder)), tmp_path / "model", quiet)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "model").exists() or not list((tmp_path / "model").iterdir())
    assert not (tmp_path / "cache" / "models").exists()  # it is told before anything is trained


def test_a_scan_that_is_there_twice_counts_once(asked, tmp_path, scans):
    folder = Path(shutil.copytree(scans, tmp_path / "scans"))
    for path in scans.glob("Case02.*"):
        shutil.copy(path, folder / path.name.replace("Case02", "again"))
    (folder / "again.mhd").write_text((scans / "Case02.mhd").read_text().replace("Case02", "again"))
    said = []
    told = record(train_model(asked(unlabelled=str(folder)), tmp_path / "model", said.append))
    (only,) = told["unlabelled"]["folds"]["0"]
    assert len(only["scans"]) == 3
    assert sum("is left out, as it is the same scan as" in line for line in said) == 1


def test_where_the_parts_agree_on_no_scan_the_model_stays_as_it_was(asked, tmp_path):
    wary = {"self_training": {"least_agreement": 1.0, "rounds": 2}}
    alone = train_model(asked(unlabelled=None), tmp_path / "alone", quiet)
    said = []
    model = train_model(asked(wary), tmp_path / "model", said.append)
    assert networks(model) == networks(alone)
    (only,) = record(model)["unlabelled"]["folds"]["0"]
    assert only["kept"] == 0
    assert {one["refused"] for one in only["scans"]} == {"agreement below 1"}
    assert any("0 of 3 unlabelled scans" in line for line in said)


class Killed(BaseException):
    """What no code expects."""


def test_it_goes_on_after_a_kill_and_ends_as_one_that_was_not(asked, tmp_path, monkeypatch):
    two = {"self_training": {"rounds": 2, "iterations": 4}}
    whole = networks(train_model(asked(JOINT, two, cache=str(tmp_path / "other")), tmp_path / "whole", quiet))
    labelled, made, steps, descend = [], self_training.Labeller.make_label, [], Trainer.descend

    def labels(self, bare):
        labelled.append(bare.id)
        if len(labelled) in (2, 6):  # in the first round, and in the second
            raise Killed
        return made(self, bare)

    def steps_down(self, loss):
        steps.append(1)
        if len(steps) == 9:  # of the 6 steps of the training before, in the first round
            raise Killed
        descend(self, loss)

    monkeypatch.setattr(self_training.Labeller, "make_label", labels)
    monkeypatch.setattr(Trainer, "descend", steps_down)
    for _ in range(3):
        with pytest.raises(Killed):
            train_model(asked(JOINT, two), tmp_path / "model", quiet)
        assert not (tmp_path / "model" / "model.json").exists()
    assert networks(train_model(asked(JOINT, two), tmp_path / "model", quiet)) == whole
    assert len(labelled) == 2 * 3 + 2  # each scan once a round, but for the two at which it was killed


FOLD = {"data": {"include": []}, "unlabelled": "rest", "train_cases": 2, "fold": 1, "k": 3, "n": [2], "save_segmentations": True}


def test_in_a_cross_validation_the_rest_of_the_training_side_is_used_without_labels(asked, phantom, tmp_path, monkeypatch):
    """Labels of the rest, and all of the test cases but their own scans, reach no network; the networks before are those of a run
    without unlabelled scans."""
    used = []
    whole = self_trained_folds.self_train

    def spied(segmenter, settings, scans, *more):
        used.append(dict(scans))
        return whole(segmenter, settings, scans, *more)

    monkeypatch.setattr(self_trained_folds, "self_train", spied)
    data = copied(phantom, tmp_path)
    settings = asked(JOINT, FOLD, {"data": {"root": str(data)}, "methods": ["OASIS-joint"]})
    crossval(replace(settings, unlabelled=None), tmp_path / "alone", quiet)
    assert not used
    before = {path.name for path in (tmp_path / "cache" / "models").iterdir()}
    crossval(settings, tmp_path / "a", quiet)
    (rest,) = used
    split = json.loads((tmp_path / "a" / "split.json").read_text())["folds"][1]
    assert set(rest) == {f"Case{i:02d}" for i in range(CASES)} - set(split["train"]) - set(split["test"])
    assert len(rest) >= 2
    assert all(case.label is None for case in rest.values())
    assert len({path.name for path in (tmp_path / "cache" / "models").iterdir()} - before) == 1
    told = json.loads((tmp_path / "a" / "run.json").read_text())["unlabelled"]["folds"]
    assert [one["case"] for one in told["1"][0]["scans"]] == sorted(rest)
    for number, case in enumerate((*sorted(rest), *split["test"])):
        path = data / f"{case}_segmentation.raw"
        garbage = np.random.default_rng(number).random(path.stat().st_size) < 0.5
        path.write_bytes(garbage.astype(np.uint8).tobytes())
    crossval(replace(settings, cache=str(tmp_path / "two")), tmp_path / "b", quiet)
    one, other = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    # two steps move no voxel over the edge, but what the networks say of one another
    agreed = [pd.read_csv(tmp_path / run / "quality.csv")["networks"].tolist() for run in ("a", "alone")]
    assert agreed[0] != agreed[1]


def test_no_scan_of_a_patient_who_is_tested_is_ever_used(asked, phantom, scans, tmp_path):
    folder = Path(shutil.copytree(scans, tmp_path / "scans"))
    people = {"data": {"root": str(phantom), "include": [], "patient": r"(Case\d\d)"}}
    for path in scans.glob("Case00.*"):  # another scan of somebody who is tested
        shutil.copy(path, folder / path.name.replace("Case00", "Case04_later"))
    (folder / "Case04_later.mhd").write_text((scans / "Case00.mhd").read_text().replace("Case00", "Case04_later"))
    for path in scans.glob("Case00.*"):
        (folder / path.name).unlink()
    settings = asked(people, FOLD | {"unlabelled": str(folder), "train_cases": None, "data": {}}, {"methods": ["OASIS"]})
    with pytest.raises(DataError, match=r"Case04_later: unlabelled: patient: expected scans of patients who are not"):
        crossval(settings, tmp_path / "run", quiet)
    assert not (tmp_path / "cache" / "models").exists()


def test_what_a_model_learned_on_top_is_not_predicted_by_a_cross_validation_without_it(asked, prepared):
    """The calibration of a cross-validation with other scans, or none, has another name; that of no scans has the old one."""
    from oasis_monai.workflows.fold_models import calibration_path

    settings, dataset = prepared()
    with_scans = replace(settings, unlabelled="x")
    pools = [replace(dataset, pool_scans=pool) for pool in ({}, {"a": "1"}, {"a": "2"})]
    paths = [calibration_path(settings, dataset), *(calibration_path(with_scans, pool) for pool in pools)]
    assert len(set(paths)) == 4
    assert calibration_path(settings, pools[1]) == paths[0]


def test_a_learning_curve_compares_arms_with_and_without_unlabelled_scans(config):
    arms = {"volumes": {"settings": {"methods": ["OASIS"]}}, "more": {"base": "volumes", "suffix": " + unlabelled"}}
    learning = {"arms": {"volumes": {}, "more": {"unlabelled": "rest"}}, "train_cases": [2], "folds": [0], "main": "OASIS"}
    jobs = plan(check_study({"arms": arms, "learning": learning, "main": "OASIS"}), config({"n": 2}))
    found = {job.name: (job.settings.unlabelled, job.settings.train_cases, job.method("OASIS")) for job in jobs}
    assert found["learning-more-002-0"] == ("rest", 2, "OASIS + unlabelled")
    assert found["learning-volumes-002-0"] == (None, 2, "OASIS")
    assert found["learning-more-all-0"] == (None, None, "OASIS + unlabelled")  # nobody is left out


def test_settings_that_cannot_work_are_named_and_those_without_are_what_they_were(settings):
    for wrong, message in (
        ({"unlabelled": "rest"}, "unlabelled: expected a folder, or rest where train_cases leaves some patients out"),
        ({"unlabelled": ""}, "unlabelled: expected a folder of scans"),
        ({"self_training": {"views": "some"}}, "self_training.views: expected one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings(wrong)
    with pytest.raises(ConfigError, match="unlabelled: expected null where folds=slice"):
        settings({"unlabelled": "scans", "folds": "slice"}, dims=2)
    plain, given = settings(), settings({"unlabelled": "scans", "self_training": {"rounds": 2}})
    assert not {"unlabelled", "self_training"} & set(plain.to_json())
    assert build(given.to_json()) == given
    assert build(plain.to_json()) == plain
    for network in ("registration", "slices", "volume", "U-Net3D"):
        assert given.identity(network) == plain.identity(network)  # the networks before are the same


def test_methods_that_use_no_trained_network_train_nothing(asked, prepared):
    settings, dataset = prepared({"train_cases": 2, "unlabelled": "rest", "methods": ["FwoW"]})
    models = models_for(settings, dataset, split_of(settings, dataset), Path(settings.cache), quiet)
    assert models.needed() == []
    joint = replace(models, settings=replace(settings, methods=("OASIS",)))
    assert joint.needed()[-1] == SELF_TRAINED
    assert type(models_for(replace(settings, unlabelled=None), dataset, models.split, models.cache, quiet)) is FoldModels
