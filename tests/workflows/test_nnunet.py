"""Hand over to nnU-Net: what its files say, and that its own evaluation agrees with ours."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.folds import make_split
from oasis_monai.data.formats.dispatch import write_array
from oasis_monai.data.found import find_data
from oasis_monai.data.settings import DataSettings
from oasis_monai.data.types import Geometry
from oasis_monai.settings import build
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.nnunet import export_nnunet
from oasis_monai.workflows.nnunet.dataset import consecutive_labels, names_of_channels, region_order
from oasis_monai.workflows.nnunet.results import counts
from tests.conftest import TINY, TINY_2D, merged
from tests.helpers.overlap import gland_and_lesion
from tests.helpers.runs import copied, quiet, scores_of

VALUES = {0: 0, 2: 1, 5: 2, 7: 3, 9: 4}
"""Value in the data set's label files -> that of nnU-Net: gland, both, lesion, nobody labelled."""
SETS = {"gland": (1, 2), "lesion": (2, 3)}
TURN = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -3], [0, 0, 1, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two persons with two scans each and one with one; regions, values with gaps, slices nobody labelled, an oblique grid."""
    folder = tmp_path_factory.mktemp("source")
    names = ["p0a", "p0b", "p1a", "p1b", "p2a"]
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for number, name in enumerate(names):
        image, masks, grid = gland_and_lesion(number)
        grid = Geometry(grid.shape, TURN @ grid.affine)
        label = np.where(masks["lesion"], np.where(masks["gland"], 5, 7), 2 * masks["gland"]).astype(np.uint8)
        label[..., -3:] = 9 if name.endswith("b") else 0
        write_array(folder / "imagesTr" / f"{name}_0000.nii.gz", image, grid)
        write_array(folder / "labelsTr" / f"{name}.nii.gz", label, grid)
    labels = {"background": 0, "gland": [2, 5], "lesion": [5, 7], "ignore": 9}
    about = {"channel_names": {"0": "T2"}, "labels": labels, "file_ending": ".nii.gz", "name": "two zones"}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory):
    own = {"methods": ["OASIS"], "n": [1], "k": 3, "save_segmentations": True, "training": {"iterations": 2}}
    where = {"data": {"root": str(data), "patient": r"^(p\d)"}, "cache": str(tmp_path_factory.mktemp("cache"))}
    return build(merged({**TINY, "data": {}}, where, own))


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    crossval(settings, folder, quiet)
    return folder


@pytest.fixture(scope="module")
def output(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nnunet")
    export_nnunet(folder, results=run, log=quiet)
    return folder


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def folders(output, name="Dataset501_two_zones"):
    return [output / part / name for part in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]


def test_scans_and_labels_keep_their_grid_and_labels_have_no_gap(data, output):
    raw = folders(output)[0]
    content = json.loads((raw / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "gland": [1, 2], "lesion": [2, 3], "ignore": 4}
    assert content["regions_class_order"] == [1, 3]
    assert (content["channel_names"], content["file_ending"], content["numTraining"]) == ({"0": "T2"}, ".nii.gz", 5)
    assert len(list((raw / "imagesTr").iterdir())) == len(list((raw / "labelsTr").iterdir())) == 5
    for path in sorted((data / "labelsTr").iterdir()):
        made = nibabel.load(raw / "labelsTr" / path.name)
        np.testing.assert_array_equal(voxels(raw / "labelsTr" / path.name), np.vectorize(VALUES.get)(voxels(path)))
        image = f"{path.name[:3]}_0000.nii.gz"
        np.testing.assert_array_equal(voxels(raw / "imagesTr" / image), voxels(data / "imagesTr" / image))
        for one in (made, nibabel.load(raw / "imagesTr" / image)):
            np.testing.assert_allclose(one.affine, nibabel.load(path).affine, atol=1e-6)


def test_folds_are_those_of_the_run_and_keep_patients_together(run, output):
    splits = json.loads((folders(output)[1] / "splits_final.json").read_text())
    folds = json.loads((run / "split.json").read_text())["folds"]
    assert splits == [{"train": sorted(fold["train"]), "val": sorted(fold["test"])} for fold in folds]
    for split in splits:
        assert not {case[:2] for case in split["train"]} & {case[:2] for case in split["val"]}
    assert sorted(case for split in splits for case in split["val"]) == ["p0a", "p0b", "p1a", "p1b", "p2a"]


def test_results_lie_where_nnunet_looks_for_them_and_have_the_same_dice(data, run, output):
    raw, preprocessed, results = folders(output)
    model = results / "OasisMonai__OASIS__3d_n1"
    assert json.loads((model / "dataset.json").read_text()) == json.loads((raw / "dataset.json").read_text())
    plans = json.loads((model / "plans.json").read_text())
    assert plans == json.loads((preprocessed / "OASIS.json").read_text())
    assert (plans["dataset_name"], list(plans["configurations"])) == (raw.name, ["3d_n1"])
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    scores = scores_of(run).query("region == 'whole'").set_index(["case", "label"])["dsc"]
    for number, split in enumerate(splits):
        folder = model / f"fold_{number}" / "validation"
        assert sorted(path.name for path in folder.iterdir()) == [*(f"{case}.nii.gz" for case in split["val"]), "summary.json"]
        summary = json.loads((folder / "summary.json").read_text())
        for case, told in zip(split["val"], summary["metric_per_case"], strict=True):
            found, saved = voxels(folder / f"{case}.nii.gz"), voxels(run / "segmentations" / f"{case}__OASIS-1.nii.gz")
            np.testing.assert_array_equal(found, np.vectorize(VALUES.get)(saved))
            truth = voxels(data / "labelsTr" / f"{case}.nii.gz")
            for name, own, values in (("gland", (1, 2), (2, 5)), ("lesion", (2, 3), (5, 7))):
                one, other = np.isin(found, own) & (truth != 9), np.isin(truth, values)
                dice = 2 * (one & other).sum() / (one.sum() + other.sum())
                assert told["metrics"][str(own)]["Dice"] == pytest.approx(dice) == pytest.approx(scores[case, name])
            assert Path(told["prediction_file"]).is_file()
            assert Path(told["reference_file"]) == raw / "labelsTr" / f"{case}.nii.gz"
        mean = np.mean([case["metrics"]["(2, 3)"]["Dice"] for case in summary["metric_per_case"]])
        assert summary["mean"]["(2, 3)"]["Dice"] == pytest.approx(mean)
        np.testing.assert_array_equal(
            voxels(preprocessed / "gt_segmentations" / "p0b.nii.gz"), voxels(raw / "labelsTr" / "p0b.nii.gz")
        )


def test_what_was_written_is_read_back_with_the_same_folds(run, output):
    found = find_data(DataSettings(root=str(folders(output)[0]), patient=r"^(p\d)"), part="all")
    assert (found.data.layout, found.data.ignore, dict(found.data.structures)) == ("nnunet", 4, SETS)
    assert [fault.field for fault in found.faults] == ["dataset.json regions_class_order"]  # both is neither of the two there
    split = make_split({case.id: 1 for case in found.cases}, 5, 0, "file", cases=found.cases)
    folds = json.loads((run / "split.json").read_text())["folds"]
    assert [sorted(fold.test) for fold in split.folds] == [sorted(fold["test"]) for fold in folds]


NNUNET = """
import json, os, sys
from pathlib import Path
from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2, load_summary_json
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

if __name__ == "__main__":
    raw, preprocessed, model, told = map(Path, sys.argv[1:])
    verify_dataset_integrity(str(raw), 1)
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    for number in range(len(splits)):
        folder = model / f"fold_{number}" / "validation"
        paths = raw / "labelsTr", folder, model / "dataset.json", model / "plans.json", told / f"{number}.json"
        compute_metrics_on_folder2(*map(str, paths), num_processes=1, chill=True)
        assert json.loads((told / f"{number}.json").read_text()) == json.loads((folder / "summary.json").read_text())
    own = {"trainer": "OasisMonai", "plans": "OASIS", "configuration": "3d_n1"}
    best = find_best_configuration(501, [own], allow_ensembling=False, num_processes=1, folds=tuple(range(len(splits))))
    merged = model / "crossval_results_folds_0_1_2" / "summary.json"
    assert len(load_summary_json(str(merged))["metric_per_case"]) == 5
    print(best["all_results"]["OasisMonai__OASIS__3d_n1"])
"""


@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnunetv2 is not installed: pip install nnunetv2")
def test_nnunet_itself_checks_the_data_and_computes_the_same_dice(run, output, tmp_path):
    copy = Path(shutil.copytree(output, tmp_path / "copy"))  # it writes beside the results
    export_nnunet(copy, results=run, overwrite=True, log=quiet)
    raw, preprocessed, results = folders(copy)
    (tmp_path / "ask.py").write_text(NNUNET)
    (tmp_path / "told").mkdir()
    where = {f"nnUNet_{part}": str(copy / f"nnUNet_{part}") for part in ("raw", "preprocessed", "results")}
    words = [tmp_path / "ask.py", raw, preprocessed, results / "OasisMonai__OASIS__3d_n1", tmp_path / "told"]
    done = subprocess.run([sys.executable, *words], env={**os.environ, **where}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    scores = scores_of(run).query("region == 'whole'")
    assert float(done.stdout.split()[-1]) == pytest.approx(scores.groupby("label")["dsc"].mean().mean())


@pytest.fixture
def already(run, output, tmp_path):
    """(a run of a data set that is nnU-Net's, the same cases and folds; that data set)."""
    raw = Path(shutil.copytree(folders(output)[0], tmp_path / "raw" / "Dataset007_Zones"))
    made = copied(run, tmp_path)
    record = json.loads((made / "run.json").read_text())
    labels = {"gland": 1, "gland+lesion": 2, "lesion": 3}
    record["settings"]["data"] |= {"root": str(raw), "labels": labels, "structures": SETS, "ignore": 4}
    (made / "run.json").write_text(json.dumps(record))
    for path in folders(output)[2].rglob("validation/*.nii.gz"):
        shutil.copyfile(path, made / "segmentations" / f"{path.name[:3]}__OASIS-1.nii.gz")
    return made, raw


def test_a_data_set_that_is_nnunets_stays_where_it_is(already, tmp_path):
    made, raw = already
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    done = export_nnunet(tmp_path / "out", results=made, log=quiet)
    assert (done.name, done.raw) == ("Dataset007_Zones", raw)
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out" / "nnUNet_raw").exists()
    (model,) = done.models
    assert (model / "dataset.json").read_bytes() == (raw / "dataset.json").read_bytes()
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert all(Path(case["reference_file"]).parent == raw / "labelsTr" for case in summary["metric_per_case"])


def test_folds_that_are_there_stay_and_others_are_refused(already, tmp_path):
    made, _ = already
    path = tmp_path / "out" / "nnUNet_preprocessed" / "Dataset007_Zones" / "splits_final.json"
    path.parent.mkdir(parents=True)
    folds = json.loads((made / "split.json").read_text())["folds"]
    same = json.dumps([{"train": sorted(fold["train"])[::-1], "val": sorted(fold["test"])[::-1]} for fold in folds])
    path.write_text(same)
    export_nnunet(tmp_path / "out", results=made, log=quiet)
    assert path.read_text() == same
    path.write_text(json.dumps(json.loads(same)[::-1]))
    with pytest.raises(
        ConfigError, match=r"output: expected no other folds .*splits_final.json'; cross-validate with folds=file"
    ):
        export_nnunet(tmp_path / "out", results=made, log=quiet)
    export_nnunet(tmp_path / "out", results=made, overwrite=True, log=quiet)
    assert json.loads(path.read_text())[0] == {side: sorted(own) for side, own in json.loads(same)[0].items()}


def test_without_a_run_it_is_the_data_and_the_folds_a_run_would_make(settings, run, output, tmp_path):
    done = export_nnunet(tmp_path, settings, log=quiet)
    assert done.models == ()
    assert not (tmp_path / "nnUNet_results").exists()
    assert done.splits.read_bytes() == (folders(output)[1] / "splits_final.json").read_bytes()
    assert "gland+lesion" in done.notes[0]
    before = (done.raw / "labelsTr" / "p0a.nii.gz").stat().st_mtime_ns
    export_nnunet(tmp_path, replace(settings, k=2), overwrite=True, log=quiet)
    assert (done.raw / "labelsTr" / "p0a.nii.gz").stat().st_mtime_ns == before, "the same data is not written again"
    assert len(json.loads((done.raw / "splits_final.json").read_text())) == 2


def test_what_cannot_be_exported_is_refused_in_one_line(settings, run, output, data, tmp_path):
    with pytest.raises(ConfigError, match=r"results: expected a folder with split.json"):
        export_nnunet(tmp_path, results=tmp_path, log=quiet)
    with pytest.raises(ConfigError, match=r"nnunet.dataset: expected a name such as Dataset501_Prostate, found 'Prostate'"):
        export_nnunet(tmp_path, settings, dataset="Prostate", log=quiet)
    with pytest.raises(ConfigError, match=r"a number other than that of Dataset501_two_zones"):
        export_nnunet(output, settings, dataset="Dataset501_other", log=quiet)
    with pytest.raises(ConfigError, match=r"expected a folder without results of that name"):
        export_nnunet(output, results=run, log=quiet)
    with pytest.raises(ConfigError, match=r"results: expected a run with results of these methods"):
        export_nnunet(tmp_path, results=run, methods=["STAPLE"], log=quiet)
    with pytest.raises(ConfigError, match=r"folds: expected patient, centre or file"):
        export_nnunet(tmp_path, build(merged(TINY, TINY_2D, {"folds": "slice"})), log=quiet)
    fewer = replace(settings, data=replace(settings.data, include=("p0a", "p1a", "p2a")))
    with pytest.raises(ConfigError, match=r"expected a folder without another data set of that name"):
        export_nnunet(tmp_path / "else", _exported(settings, tmp_path / "else") and fewer, overwrite=False, log=quiet)
    made = copied(run, tmp_path)
    (made / "segmentations" / "p1a__OASIS-1.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"1 of 5 label files are not there, .*; start .* save_segmentations=true"):
        export_nnunet(tmp_path / "out", results=made, log=quiet)
    assert not (tmp_path / "out").exists()


def _exported(settings, output):
    """Something of that name, so that its folds are no reason to refuse."""
    done = export_nnunet(output, settings, log=quiet)
    done.splits.unlink()
    return True


def test_results_of_other_labels_are_refused(run, data, settings, tmp_path):
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    path = moved / "labelsTr" / "p1a.nii.gz"
    label = voxels(path).copy()
    label[tuple(np.argwhere(label == 2)[0])] = 0
    write_array(path, label, Geometry(label.shape, nibabel.load(path).affine))
    elsewhere = replace(settings, data=replace(settings.data, root=str(moved)))
    with pytest.raises(DataError, match=r"p1a__OASIS-1.nii.gz gland: expected DSC 0.\d+ as in scores.csv, found 0.\d+"):
        export_nnunet(tmp_path / "out", elsewhere, run, log=quiet)


def test_jobs_of_a_sweep_are_one_model_and_the_same_result_twice_is_refused(run, tmp_path):
    sweep = tmp_path / "sweep"
    for number in (0, 1, 2):
        job = Path(shutil.copytree(run, sweep / str(number)))
        scores = scores_of(run)
        scores[scores["fold"] == number].to_csv(job / "scores.csv", index=False)
    done = export_nnunet(tmp_path / "out", results=sweep, log=quiet)
    assert sorted(path.name for path in done.models[0].glob("fold_*")) == ["fold_0", "fold_1", "fold_2"]
    shutil.copyfile(run / "scores.csv", sweep / "1" / "scores.csv")
    with pytest.raises(ConfigError, match=r"results: expected one result of each case and method"):
        export_nnunet(tmp_path / "again", results=sweep, log=quiet)


def painted(bits, order):
    """As nnU-Net: one region over the other."""
    value = 0
    for number, own in enumerate(order):
        if bits >> number & 1:
            value = own
    return value


def test_regions_that_contain_one_another_come_back_as_their_values():
    nested = {"core": (2, 3), "whole": (1, 2, 3), "enhancing": (3,)}
    data = DataSettings(labels={"whole": 1, "core+whole": 2, "core+whole+enhancing": 3}, structures=nested)
    labels = consecutive_labels(data)
    assert list(labels.named) == ["background", "whole", "core", "enhancing"]
    assert (labels.order, labels.lost) == ((1, 2, 3), ())
    for value in (1, 2, 3):
        bits = sum(1 << i for i, name in enumerate(("whole", "core", "enhancing")) if value in nested[name])
        assert painted(bits, labels.order) == value
    assert region_order({"gland": (1, 3), "lesion": (2, 3)}) == (1, 2)
    apart = DataSettings(labels={"a": 4, "b": 9}, ignore=12)
    assert consecutive_labels(apart).named == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    with pytest.raises(ConfigError, match=r"data.labels: expected names other than background and ignore, found 'ignore'"):
        consecutive_labels(DataSettings(labels={"ignore": 4}))


def test_counts_of_empty_structures_and_of_voxels_nobody_labelled():
    reference, result = np.array([[[0, 1, 1, 4]]]), np.array([[[1, 1, 0, 1]]])
    found = counts(reference, result, (1,), 4)
    assert (found["TP"], found["FP"], found["FN"], found["TN"], found["n_pred"], found["n_ref"]) == (1, 1, 1, 0, 2, 2)
    assert (found["Dice"], found["IoU"]) == (0.5, 1 / 3)
    assert counts(reference, result, (1,), None)["FP"] == 2
    nothing = counts(reference, result, (2,), 4)
    assert math.isnan(nothing["Dice"])
    assert (nothing["TN"], nothing["n_ref"]) == (3, 0)


def test_a_channel_with_a_window_is_called_ct(settings):
    ct = replace(settings, preprocessing=replace(settings.preprocessing, intensity="window", window=(-160.0, 240.0)))
    assert names_of_channels(ct, 1) == ["CT"]
    assert names_of_channels(settings, 1) == ["image"]
