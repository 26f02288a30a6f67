"""Scans corrupted on purpose: the truth stays where the anatomy is, and what they teach the predicted DSC."""

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai import corrupted as module
from oasis_monai.corruptions import CORRUPTIONS, UNTOUCHED, drawn, left
from oasis_monai.crossval import crossval
from oasis_monai.quality_tables import read_calibrations, read_quality
from oasis_monai.types import Geometry, Volume
from tests.conftest import CASES, JOINT
from tests.runs import quiet


def scan(floor: float) -> Volume:
    label = torch.zeros(1, 40, 30, 12, dtype=torch.uint8)
    label[:, 8:20, 8:22, 2:8] = 1
    return Volume("a", floor + 50 + 100 * label.float(), label, Geometry((40, 30, 12), np.diag([0.5, 0.8, 3.0, 1.0])))


@pytest.mark.parametrize("floor", [0.0, -1000.0], ids=["mr", "ct"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_scan_keeps_its_truth_where_the_anatomy_is(name, floor):
    volume = scan(floor)
    image, label = volume.image.clone(), volume.label.clone()
    made = CORRUPTIONS[name](volume, 7)
    assert torch.equal(volume.image, image)
    assert torch.equal(volume.label, label)
    assert type(made.image) is type(made.label) is torch.Tensor
    assert (made.image.dtype, made.label.dtype) == (torch.float32, torch.uint8)
    assert torch.isfinite(made.image).all()
    assert tuple(made.image.shape[1:]) == tuple(made.label.shape[1:]) == made.geometry.shape
    assert name == "wrong voxel size" or not torch.equal(made.image, image)
    inside, outside = made.image[made.label == 1].mean(), made.image[made.label == 0].mean()
    assert inside - outside < -90 if name == "inverted" else inside - outside > 40  # of 100
    moved = name.startswith("turned") or name == "upside down"
    assert torch.equal(made.label, label) is not moved
    assert float(made.label.sum()) == pytest.approx(float(label.sum()), rel=0.05)
    assert torch.equal(made.image, CORRUPTIONS[name](volume, 7).image)


def test_a_turned_patient_keeps_the_size_in_mm():
    made = CORRUPTIONS["turned by 90 degrees"](scan(0), 0)
    assert made.geometry.spacing_mm == pytest.approx((0.8, 0.5, 3.0))
    assert CORRUPTIONS["wrong voxel size"](scan(0), 0).geometry.spacing_mm == pytest.approx((0.75, 1.2, 3.0))


def test_an_unlabelled_scan_is_not_turned():
    volume = scan(0)
    with pytest.raises(ValueError, match="a: only a labelled scan"):
        CORRUPTIONS["upside down"](Volume("a", volume.image, None, volume.geometry), 0)


def test_a_copy_of_which_nothing_is_left_is_told():
    one = Volume("a", torch.rand(1, 8, 8, 1) + 1, torch.ones(1, 8, 8, 1, dtype=torch.uint8), Geometry((8, 8, 1), np.eye(4)))
    assert not left(CORRUPTIONS["lost slices"](one, 0))
    assert left(CORRUPTIONS["lost slices"](one, 1))
    corner = Volume("a", torch.rand(1, 40, 8, 2), torch.zeros(1, 40, 8, 2, dtype=torch.uint8), Geometry((40, 8, 2), np.eye(4)))
    corner.label[:, 0, 0] = 1
    assert left(corner)
    assert not left(CORRUPTIONS["turned by 20 degrees"](corner, 1)) or not left(CORRUPTIONS["turned by 20 degrees"](corner, 0))


def test_every_case_draws_its_own_and_always_the_same():
    one = {f"Case{i:02d}": drawn(f"Case{i:02d}", 3, 0) for i in range(40)}
    assert all(len({name for name, _ in names}) == 3 for names in one.values())
    assert {name for names in one.values() for name, _ in names} == set(CORRUPTIONS)
    assert len({seed for names in one.values() for _, seed in names}) == 120
    assert one["Case07"] == drawn("Case07", 3, 0) != drawn("Case07", 3, 1)
    assert drawn("Case07", 0, 0) == []


@pytest.mark.parametrize("dims", [3, 2])
def test_a_cross_validation_predicts_its_corrupted_copies(settings, tmp_path, dims):
    asked = {"methods": ["FwoW", "STAPLE", "majority", "OASIS"], "n": [1, 2], "k": 2, "corruptions": 2}
    crossval(settings(asked, dims=dims), tmp_path / "a", quiet)
    scores = pd.read_csv(tmp_path / "a" / "scores.csv")
    assert len(scores[scores.region == "whole"]) == CASES * 4 * 2  # copies are no scores
    groups = read_quality(tmp_path / "a" / "quality.csv")
    assert {(g.method, g.n) for g in groups} == {(m, n) for m in ("majority", "OASIS") for n in (1, 2)}
    for group in groups:
        assert len(group.rows) == CASES
        assert len(group.corrupted) == 2 * CASES
        expected = {(case, name) for case in group.rows["case"] for name, _ in drawn(case, 2, 0)}
        assert set(zip(group.corrupted["case"], group.corrupted["corruption"], strict=True)) == expected
        assert set(group.rows["corruption"]) == {UNTOUCHED}
    models = read_calibrations(tmp_path / "a" / "calibration.json")
    assert {model.cases for by_label in models.values() for model in by_label.values()} == {3 * CASES}
    crossval(settings(asked, dims=dims), tmp_path / "b", quiet)
    assert (tmp_path / "b" / "quality.csv").read_bytes() == (tmp_path / "a" / "quality.csv").read_bytes()


def test_copies_are_made_of_what_is_predicted_only(settings, tmp_path):
    for asked, method in (({"corruptions": 0}, "OASIS"), ({"folds": "slice"}, "OASIS"), ({}, "FwoW")):
        folder = tmp_path / f"{method}{len(asked)}{asked.get('folds')}"
        crossval(settings({"methods": [method], "n": [1], "k": 2, "corruptions": 2} | asked, dims=2), folder, quiet)
        assert all(len(group.corrupted) == 0 for group in read_quality(folder / "quality.csv"))


def test_a_run_goes_on_without_a_copy_of_which_nothing_is_left(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "left", lambda copy: not copy.case.endswith("3"))
    crossval(settings({"methods": ["majority"], "n": [2], "k": 2, "corruptions": 1}), tmp_path / "a", quiet)
    (group,) = read_quality(tmp_path / "a" / "quality.csv")
    assert (len(group.rows), len(group.corrupted)) == (CASES, CASES - 1)


def test_the_networks_of_a_joint_model_see_the_corrupted_scan(settings, tmp_path):
    asked = {"methods": ["estimate", "OASIS-joint"], "n": [2], "k": 2, "corruptions": 3}
    crossval(settings(asked, JOINT), tmp_path / "a", quiet)
    for group in read_quality(tmp_path / "a" / "quality.csv"):
        both = group.corrupted.merge(group.rows, on="case", suffixes=("", "_clean"))
        turned = both[both["corruption"].isin(["turned by 90 degrees", "upside down", "lost slices", "noise", "ghosts"])]
        assert (turned["networks"] != turned["networks_clean"]).any()
