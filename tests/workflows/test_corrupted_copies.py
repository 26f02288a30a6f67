"""Corrupted copies of a cross-validation: what they teach predicted Dice, and that no model saw their scan."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from oasis_monai.data.io import read_volume
from oasis_monai.evaluation.quality_tables import read_calibrations, read_quality
from oasis_monai.transforms.corruptions import CORRUPTIONS, UNTOUCHED, draw_corruptions
from oasis_monai.workflows import corrupted_copies as module
from oasis_monai.workflows.corrupted_copies import methods_with_predicted_dice, num_corrupted_copies, segment_labelled
from oasis_monai.workflows.crossval import crossval
from tests.conftest import CASES, JOINT
from tests.helpers.runs import NETS, quiet


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
        expected = {(case, name) for case in group.rows["case"] for name, _ in draw_corruptions(case, 2, 0)}
        assert set(zip(group.corrupted["case"], group.corrupted["corruption"], strict=True)) == expected
        assert set(group.rows["corruption"]) == {UNTOUCHED}
    models = read_calibrations(tmp_path / "a" / "calibration.json")
    assert {model.cases for by_label in models.values() for model in by_label.values()} == {3 * CASES}
    crossval(settings(asked, dims=dims), tmp_path / "b", quiet)
    assert (tmp_path / "b" / "quality.csv").read_bytes() == (tmp_path / "a" / "quality.csv").read_bytes()


def test_folds_side_by_side_teach_the_same(settings, tmp_path, monkeypatch):
    """With learned fusion and post-processing, which the other folds decide; the parent itself segments no copy."""
    more = {"methods": ["majority", "estimate", "OASIS-joint"], "n": [2], "k": 2, "corruptions": 1, "postprocessing": "all"}
    asked = settings(JOINT, more)
    crossval(asked, tmp_path / "a", quiet)
    monkeypatch.setattr(module, "segment_labelled", None)
    crossval(replace(asked, workers=2), tmp_path / "b", quiet)
    for name in ("quality.csv", "calibration.json", "scores.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert all(len(group.corrupted) == CASES for group in read_quality(tmp_path / "b" / "quality.csv"))


def test_copies_are_made_of_what_is_predicted_only(settings, tmp_path):
    made = {"methods": ["OASIS"], "corruptions": 2}
    assert num_corrupted_copies(settings(made)) == 2
    for change in (
        {"folds": "slice"},
        {"methods": ["FwoW", "STAPLE"]},
        {"fold": 0},
        {"corruptions": 0},
        {"methods": ["U-Net2D"]},
    ):
        assert num_corrupted_copies(settings(made | change, NETS, dims=2)) == 0
    alone = {"methods": ["estimate"], "corruptions": 1}
    assert num_corrupted_copies(settings(alone, JOINT)) == 1
    assert num_corrupted_copies(settings(alone, JOINT, {"joint": {"volume_budget": 0.0}})) == 0
    both = {"methods": ["estimate", "OASIS-joint"], "joint": {"volume_budget": 0.0}}
    assert methods_with_predicted_dice(settings(JOINT, both)) == ("OASIS-joint",)
    crossval(settings({"methods": ["FwoW"], "n": [1], "k": 2, "corruptions": 2}, dims=2), tmp_path / "a", quiet)
    assert read_quality(tmp_path / "a" / "quality.csv") == []


def test_a_run_goes_on_without_a_copy_of_which_nothing_is_left(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shows_anything", lambda copy: not copy.case.endswith("3"))
    crossval(settings({"methods": ["majority"], "n": [2], "k": 2, "corruptions": 1}), tmp_path / "a", quiet)
    (group,) = read_quality(tmp_path / "a" / "quality.csv")
    assert (len(group.rows), len(group.corrupted)) == (CASES, CASES - 1)


def test_a_copy_is_segmented_by_a_model_that_never_saw_its_scan_and_scored_against_its_own_truth(
    settings, prepared, tmp_path, monkeypatch
):
    seen = {}

    def watched(segmenter, volume, *more):
        assert volume.case not in segmenter.library.cases
        found, labels, dice = segment_labelled(segmenter, volume, *more)
        (key,) = dice
        a, b = labels[key].label > 0, volume.label[0] > 0
        seen[volume.case] = volume.label, float(2 * (a & b).sum() / (a.sum() + b.sum()))
        return found, labels, dice

    monkeypatch.setattr(module, "segment_labelled", watched)
    crossval(settings({"methods": ["majority"], "n": [2], "k": 2, "corruptions": 1}), tmp_path / "a", quiet)
    (group,) = read_quality(tmp_path / "a" / "quality.csv")
    _, data = prepared()
    for case, name, dsc in group.corrupted[["case", "corruption", "dsc"]].itertuples(index=False):
        ((drawn_name, seed),) = draw_corruptions(case, 1, 0)
        assert name == drawn_name
        assert torch.equal(seen[case][0], CORRUPTIONS[name](read_volume(data.cases[case], (0, 1)), seed).label)
        assert dsc == pytest.approx(seen[case][1], abs=1e-6)
    assert len(seen) == CASES


def test_copies_are_aligned_once(settings, tmp_path, aligned):
    base = {"methods": ["majority"], "k": 2, "corruptions": 2}
    crossval(settings(base, {"n": [1, 2]}), tmp_path / "a", quiet)
    assert sum(aligned) == 2 * 3 * CASES
    first = (tmp_path / "a" / "quality.csv").read_bytes()
    crossval(settings(base, {"n": [1, 2]}), tmp_path / "b", quiet)
    assert sum(aligned) == 2 * 3 * CASES
    assert (tmp_path / "b" / "quality.csv").read_bytes() == first
    crossval(settings(base, {"n": 3}), tmp_path / "c", quiet)
    assert sum(aligned) == 3 * 3 * CASES


def test_a_copy_that_ends_the_run_takes_no_score_and_no_aligned_pair_with_it(settings, tmp_path, monkeypatch, aligned):
    asked = settings({"methods": ["OASIS"], "n": [2], "k": 2, "corruptions": 1})
    with monkeypatch.context() as patch:

        def fail(*_):
            raise MemoryError

        patch.setattr(module, "segment_labelled", fail)
        with pytest.raises(MemoryError):
            crossval(asked, tmp_path / "a", quiet)
    assert len(pd.read_csv(tmp_path / "a" / "scores.csv")["case"].unique()) == CASES
    assert len(list((tmp_path / "cache").rglob("loa.safetensors"))) == 2
    with monkeypatch.context() as patch:
        before = sum(aligned)
        patch.setattr("oasis_monai.workflows.crossval.corrupted_rows", lambda *_: [])
        crossval(asked, tmp_path / "a", quiet)
        assert sum(aligned) == before


def test_the_networks_of_a_joint_model_see_the_corrupted_scan(settings, tmp_path):
    asked = {"methods": ["estimate", "OASIS-joint"], "n": [2], "k": 2, "corruptions": 3}
    crossval(settings(asked, JOINT), tmp_path / "a", quiet)
    for group in read_quality(tmp_path / "a" / "quality.csv"):
        both = group.corrupted.merge(group.rows, on="case", suffixes=("", "_clean"))
        turned = both[both["corruption"].isin(["turned by 90 degrees", "upside down", "lost slices", "noise", "ghosts"])]
        assert (turned["networks"] != turned["networks_clean"]).any()
