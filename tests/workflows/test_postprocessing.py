"""Post-processing in a cross-validation and in a model: decided on other folds, told, and the same in every file."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

import oasis_monai
from oasis_monai.data.phantom import make_phantom
from oasis_monai.evaluation.case_view import load_browser
from oasis_monai.evaluation.postprocessing import chosen, decisions_of, read_decisions
from oasis_monai.evaluation.report import write_report
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import digest
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.segment import segment_scans
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES
from tests.helpers.runs import quiet, scores_of

UNCHANGED = CaseResult.restore
EVERY = tuple(f"Case{i:02d}" for i in range(CASES))
VOXELS = 2 * 1 * 2
"""Of the piece in the corner."""


def corner(shape, spacing_mm):
    """Where nothing else is; the model does not see it."""
    return slice(0, 2), slice(0, 1), slice(0, 2)


def in_view(shape, spacing_mm):
    """36 mm behind the centre of a scan, away from the structure, and in the view of the model."""
    x, y, z = (n // 2 for n in shape)
    y = round(y - 36 / spacing_mm[1])
    return slice(x - 2, x + 2), slice(y, y + 2), slice(z - 2, z + 2)


@pytest.fixture(autouse=True)
def one_piece(monkeypatch):
    """Whatever a method of this tiny data set finds is in one piece without holes, but for what a test plants."""
    restore = CaseResult.restore

    def whole(self, keep_probability=False):
        found = restore(self, keep_probability)
        for one in found.values():
            pieces, count = ndimage.label(one.label.numpy(), np.ones((3, 3, 3)))
            largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:])
            one.label[:] = torch.from_numpy(ndimage.binary_fill_holes(largest))
            if one.probability is not None:
                one.probability[:] = torch.stack([one.label == 0, one.label == 1])
        return found

    monkeypatch.setattr(CaseResult, "restore", whole)


def plant(monkeypatch, *cases, place=corner):
    """Have every method find a second piece in these cases' scans (none: of all scans)."""
    restore = CaseResult.restore

    def planted(self, keep_probability=False):
        found = restore(self, keep_probability)
        for one in found.values():
            if not cases or one.case in cases:
                where = place(one.geometry.shape, one.geometry.spacing_mm)
                one.label[where] = 1
                if one.probability is not None:
                    one.probability[:, *where] = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
        return found

    monkeypatch.setattr(CaseResult, "restore", planted)


def pieces_of(label):
    return ndimage.label(np.asarray(label) > 0, np.ones((3, 3, 3)))[1]


@pytest.fixture
def asked(settings):
    """The settings of a run without training."""
    return lambda *more, dims=3: settings({"methods": ["FwoW"], "n": [1], "browser": True}, *more, dims=dims)


@pytest.mark.parametrize("dims", [3, 2])
def test_a_piece_that_all_results_have_is_removed_everywhere(asked, tmp_path, monkeypatch, dims):
    kept = {"save_segmentations": True, "save_probability": True}
    clean = scores_of(crossval(asked(kept, dims=dims), tmp_path / "clean", quiet).parent)
    plant(monkeypatch)
    planted = scores_of(crossval(asked(kept, {"postprocessing": "none"}, dims=dims), tmp_path / "none", quiet).parent)
    assert not (tmp_path / "none" / "postprocessing.json").exists()
    said = []
    found = scores_of(crossval(asked(kept, dims=dims), tmp_path / "auto", said.append).parent)
    key = ["case", "region", "label", "method", "n"]
    assert found[key].equals(planted[key])
    whole = found["region"] == "whole"
    assert (found.dsc[whole] >= planted.dsc[whole]).all()
    pd.testing.assert_frame_equal(found, clean)
    assert any("post-processing of FwoW-1: remove_pieces of prostate helps (" in line for line in said)
    assert any("post-processing of FwoW-1" in note for note in json.loads((tmp_path / "auto" / "run.json").read_text())["notes"])
    assert "remove_pieces of prostate helps" in write_report(tmp_path / "auto").read_text()
    views = load_browser({tmp_path / "auto" / "browser": ""})
    for case in EVERY:
        for name, cleaned in (("none", False), ("auto", True)):
            folder = tmp_path / name / "segmentations"
            image = nibabel.load(folder / f"{case}__FwoW-1.nii.gz")
            label, where = np.asarray(image.dataobj), corner(image.shape, image.header.get_zooms())
            probability = nibabel.load(folder / f"{case}__FwoW-1_probability.nii.gz").get_fdata()
            assert (pieces_of(label) == 1) == cleaned
            assert set(probability[where][..., 1].ravel()) == ({0} if cleaned else {0.75})
        before = nibabel.load(tmp_path / "clean" / "segmentations" / f"{case}__FwoW-1_probability.nii.gz").get_fdata()
        assert np.array_equal(probability, before)
        assert views[case].outside["FwoW-1"] == 0
        assert pieces_of(views[case].results["FwoW-1"]) == 1
    told = json.loads((tmp_path / "auto" / "postprocessing.json").read_text())
    assert told["asked"] == "auto"
    assert told["done_in_folds"] == {fold: {"FwoW-1": {"prostate": ["remove_pieces"]}} for fold in "01234"}
    decision = decisions_of(told["decisions"])["FwoW-1"]["prostate"]["remove_pieces"]
    assert (decision.chosen, decision.patients, decision.worse) == (True, CASES, 0)
    assert decision.better == decision.changed == (found.dsc > planted.dsc)[whole].sum() >= CASES - 1
    gain = (found.dsc[whole].to_numpy() - planted.dsc[whole].to_numpy()).mean()
    assert decision.mean_gain == pytest.approx(gain, abs=1e-5)


def test_a_fold_is_decided_by_the_others_alone(asked, tmp_path, monkeypatch):
    split = asked()
    crossval(split, tmp_path / "clean", quiet)
    folds = json.loads((tmp_path / "clean" / "split.json").read_text())["folds"]
    own = [sorted(fold["test"]) for fold in folds]
    plant(monkeypatch, *own[0])
    crossval(split, tmp_path / "a", quiet)
    told = json.loads((tmp_path / "a" / "postprocessing.json").read_text())
    done = {fold: {"FwoW-1": {} if fold == "0" else {"prostate": ["remove_pieces"]}} for fold in "01234"}
    assert told["done_in_folds"] == done
    assert chosen(decisions_of(told["decisions"])["FwoW-1"]) == {"prostate": ("remove_pieces",)}
    planted = crossval(replace(split, postprocessing="none"), tmp_path / "none", quiet)
    assert planted.read_bytes() == (tmp_path / "a" / "scores.csv").read_bytes()  # its own pieces stay
    everything = scores_of(crossval(replace(split, postprocessing="all"), tmp_path / "all", quiet).parent)
    pd.testing.assert_frame_equal(everything, scores_of(tmp_path / "clean"))


def test_each_structure_is_decided_by_itself(settings, phantom_two_labels, tmp_path, monkeypatch):
    data = {"root": str(phantom_two_labels), "labels": {"central": 1, "peripheral": 2}, "regions": ["whole"]}
    base = settings({"methods": ["FwoW"], "n": [1], "data": data})
    monkeypatch.setattr(CaseResult, "restore", UNCHANGED)
    planted = CaseResult.restore

    def in_second(self, keep_probability=False):
        found = planted(self, keep_probability)
        for one in found.values():
            one.label[:2, :2, :2] = 2
        return found

    monkeypatch.setattr(CaseResult, "restore", in_second)
    before = scores_of(crossval(replace(base, postprocessing="none"), tmp_path / "none", quiet).parent)
    told = scores_of(crossval(base, tmp_path / "auto", quiet).parent)
    decided = json.loads((tmp_path / "auto" / "postprocessing.json").read_text())
    by_structure = decisions_of(decided["decisions"])["FwoW-1"]
    assert by_structure["peripheral"]["remove_pieces"].chosen
    done = {name for choice in decided["done_in_folds"].values() for name in choice["FwoW-1"]}
    assert "peripheral" in done
    for name in ("central", "peripheral"):
        gain = told[told.label == name].dsc - before[before.label == name].dsc
        assert (gain.mean() > 0) == (name in done)
        assert (gain == 0).all() or name in done


def test_where_others_do_not_exist_nothing_is_decided(asked, settings, tmp_path, monkeypatch):
    plant(monkeypatch)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "postprocessing.json").write_text("of a run with all folds")
    crossval(asked({"fold": 0}), tmp_path / "one", quiet)
    assert not (tmp_path / "one" / "postprocessing.json").exists()
    slices = asked({"folds": "slice"}, dims=2)
    first = crossval(slices, tmp_path / "slices", quiet)
    assert not (tmp_path / "slices" / "postprocessing.json").exists()
    assert first.read_bytes() == crossval(replace(slices, postprocessing="none"), tmp_path / "b", quiet).read_bytes()
    with pytest.raises(ConfigError, match=r"^postprocessing: expected auto or none where folds=slice, found 'all'"):
        replace(slices, postprocessing="all")
    with pytest.raises(ConfigError, match=r"^postprocessing: expected one of auto, none, all, found 'some'"):
        settings({"postprocessing": "some"})
    assert not list(Path(slices.cache).glob("postprocessing/*"))


def test_corrupted_copies_are_treated_alike(settings, tmp_path, monkeypatch):
    base = settings({"methods": ["majority"], "n": [2], "corruptions": 1})
    crossval(base, tmp_path / "clean", quiet)
    plant(monkeypatch)
    crossval(base, tmp_path / "auto", quiet)
    crossval(replace(base, postprocessing="none"), tmp_path / "none", quiet)
    clean, auto, none = (pd.read_csv(tmp_path / name / "quality.csv") for name in ("clean", "auto", "none"))
    assert (auto.corruption != "none").any()
    assert set(zip(auto.case, auto.corruption, strict=True)) == set(zip(none.case, none.corruption, strict=True))
    assert auto.dsc.to_numpy() == pytest.approx(clean.dsc.to_numpy(), abs=1e-6)
    assert (auto.dsc > none.dsc).all()
    assert auto[["networks", "atlases"]].equals(clean[["networks", "atlases"]])  # compared before


@pytest.fixture
def model(settings, tmp_path, monkeypatch):
    """A model that a cross-validation decided for, its settings, and a scan in which it finds a second piece."""
    base = settings({"methods": ["OASIS"], "n": [2]})
    with monkeypatch.context() as patch:
        plant(patch)
        crossval(base, tmp_path / "run", quiet)
    return train_model(base, tmp_path / "model", quiet), base


def test_a_model_takes_the_decision_of_all_folds_and_tells_what_it_did(model, tmp_path, monkeypatch):
    folder, base = model
    (kept,) = Path(base.cache).glob("postprocessing/*.json")
    record = json.loads((folder / "model.json").read_text())
    assert decisions_of(record["postprocessing"]) == read_decisions(kept)
    assert set(record["atlases"]["Case00"]["anatomy"]) == {"prostate"}
    loaded = load_model(folder, "cpu")
    known = loaded.anatomy.structures["prostate"]
    volumes = [entry["volume_ml"]["prostate"] for entry in record["atlases"].values()]
    assert (known.labels, known.most_pieces) == (CASES, 1)
    assert known.volume_ml == pytest.approx((min(volumes), max(volumes)), abs=1e-3)
    scan = make_phantom(CASES + 1, size="tiny")
    clean = loaded.segment(scan.image, affine=scan.affine, n=2)
    assert clean.postprocessed == ()
    plant(monkeypatch)
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    found = {mode: loaded.segment(scan.image, affine=scan.affine, n=2, postprocessing=mode) for mode in ("auto", "none", "all")}
    for mode in ("auto", "all"):
        assert torch.equal(found[mode].label, clean.label)
        assert torch.equal(found[mode].probability.argmax(0), clean.label.long())
        (change,) = found[mode].postprocessed
        assert (change.structure, change.operation, change.parts) == ("prostate", "remove_pieces", 1)
        assert change.volume_ml == pytest.approx(VOXELS * voxel_ml)
        assert found[mode].volume_ml == clean.volume_ml
        assert "pieces" not in [flag.name for flag in found[mode].flags]
        assert found[mode].to_json()["postprocessed"] == [change.to_json()]
    assert pieces_of(found["none"].label) == 2
    assert pieces_of(loaded.segment(scan.image, affine=scan.affine, n=1).label) == 2  # nobody has tried n=1
    with pytest.raises(ConfigError, match=r"^postprocessing: expected one of auto, none, all"):
        loaded.segment(scan.image, affine=scan.affine, postprocessing="some")


def test_files_tell_it_and_a_model_of_before_knows_nothing(model, phantom, tmp_path, monkeypatch):
    folder, _ = model
    plant(monkeypatch, place=in_view)
    scan, said = str(phantom / "Case00.mhd"), []
    assert segment_scans(folder, scan, tmp_path / "o", said.append, n=2) == []
    told = json.loads((tmp_path / "o" / "Case00.json").read_text())
    assert [change["operation"] for change in told["postprocessed"]] == ["remove_pieces"]
    assert "postprocessing" not in told["asked"]
    assert "1 piece of prostate removed (" in "".join(said)
    segment_scans(folder, scan, tmp_path / "o", quiet, n=2, postprocessing="none")
    told = json.loads((tmp_path / "o" / "Case00.json").read_text())
    assert (told["asked"]["postprocessing"], told["postprocessed"]) == ("none", [])
    texts = {flag["name"]: flag["text"] for flag in told["flags"]}
    assert texts["pieces"].startswith("prostate in 2 pieces (")
    record = json.loads((folder / "model.json").read_text())
    for entry in record["atlases"].values():
        del entry["anatomy"]
    del record["postprocessing"]
    del record["settings"]["postprocessing"]  # a model of before
    record["checksums"]["settings"] = digest(record["settings"])
    (folder / "model.json").write_text(json.dumps(record))
    before = load_model(folder, "cpu")
    assert before.anatomy is None
    result = before.segment(scan, n=2)
    assert pieces_of(result.label) == 2
    assert "pieces" not in [flag.name for flag in result.flags]
    with pytest.raises(ConfigError, match=r"^postprocessing: expected auto or none for this model"):
        segment_scans(folder, scan, tmp_path / "o2", quiet, n=2, postprocessing="all")


def test_an_evaluation_scores_what_the_model_gives(model, phantom, tmp_path, monkeypatch):
    folder, base = model
    plant(monkeypatch)
    options = {"data": {"root": str(phantom), "layout": "promise12", "labels": {"prostate": 1}, "include": list(EVERY[:2])}}
    options |= {"n": 2, "overlays": 0, "browser": False, "cache": base.cache, "training_cases": True}
    mean = {}
    for mode in ("auto", "none"):
        mean[mode] = oasis_monai.evaluate(folder, tmp_path / mode, postprocessing=mode, **options).scores.dsc.mean()
    assert mean["auto"] > mean["none"]
