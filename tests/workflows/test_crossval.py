"""Cross-validation: everything is scored once, on the scan's own grid, and a run explains itself."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from oasis_monai.data.folds import make_split
from oasis_monai.evaluation.case_view import load_browser
from oasis_monai.evaluation.report import write_report
from oasis_monai.segmentation.methods import ESTIMATE, METHODS, methods_that_need
from oasis_monai.tasks import run_task
from oasis_monai.utils.errors import ConfigError, DataError
from oasis_monai.workflows import prepare as prepare_module
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.model import load_model
from oasis_monai.workflows.prepare import split_of
from oasis_monai.workflows.train import train_model
from tests.conftest import CASES, JOINT, JOINT_2D, TINY_2D
from tests.helpers.runs import NETS, PLAIN, REGIONS, THREE, copied, quiet, scores_of


def test_five_folds_give_one_row_per_case_region_method_and_n_and_again_the_same(settings, tmp_path):
    asked = settings({"methods": ["FwoW", "OASIS", "STAPLE"], "n": [1, 3]})
    first = crossval(asked, tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a")
    assert len(rows) == CASES * len(REGIONS) * 3 * 2
    assert not rows.duplicated(["case", "region", "label", "method", "n"]).any()
    assert set(rows.region) == set(REGIONS)
    assert set(rows.protocol) == {"patient"}
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    fold_of = {case: fold["index"] for fold in split["folds"] for case in fold["test"]}
    assert dict(zip(rows.case, rows.fold, strict=True)) == fold_of
    assert set(rows.fold) == set(range(5))
    # a second time from what is kept, a third time from nothing
    assert crossval(asked, tmp_path / "b", quiet).read_bytes() == first.read_bytes()
    fresh = replace(asked, cache=str(tmp_path / "fresh"))
    assert crossval(fresh, tmp_path / "c", quiet).read_bytes() == first.read_bytes()
    assert len(list((tmp_path / "fresh" / "models").iterdir())) == 5
    summary = pd.read_csv(tmp_path / "a" / "summary.csv")
    mean = rows[(rows.method == "OASIS") & (rows.n == 3) & (rows.region == "whole")].dsc.mean()
    told = summary[(summary.method == "OASIS") & (summary.n == 3) & (summary.region == "whole")]
    assert told.dsc_mean.item() == pytest.approx(mean)
    assert told.cases.item() == CASES


def test_networks_are_scored_once_beside_every_n_and_trained_once(settings, tmp_path, monkeypatch):
    asked = settings(NETS, {"methods": ["U-Net3D", "FwoW", "ConvNet3D"], "n": [1, 2, 3], "k": 2})
    crossval(asked, tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a")
    counts = rows[rows.region == "whole"].groupby(["method", "n"]).case.count().to_dict()
    assert counts == {("U-Net3D", 0): 7, ("ConvNet3D", 0): 7, **{("FwoW", n): 7 for n in (1, 2, 3)}}
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 4

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("oasis_monai.training.trainer.Trainer.descend", never)
    crossval(replace(asked, methods=("U-Net3D",), n=(99,)), tmp_path / "b", quiet)  # alone it needs no STM and no n atlases
    alone = scores_of(tmp_path / "b")
    merged = alone.merge(rows, on=["case", "region", "method", "n"], suffixes=("", "_before"))
    assert len(merged) == len(alone) == 7 * len(REGIONS)
    assert (merged.dsc == merged.dsc_before).all()


def test_slice_folds_of_a_network_put_every_case_together(settings, tmp_path):
    asked = settings(NETS, {"methods": ["ConvNet2D", "FwoW"], "folds": "slice", "k": 2, "n": [1]}, dims=2)
    crossval(asked, tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a")
    assert rows[rows.region == "whole"].groupby("method").case.nunique().to_dict() == {"ConvNet2D": 7, "FwoW": 7}
    assert set(rows.fold) == {-1}


def test_interpolation_trains_nothing_and_looks_at_no_image(settings, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    base = {"methods": ["interpolation"], "folds": "slice", "k": 4, "n": [999], "data": {"root": str(data)}}
    first = crossval(settings(base, {"cache": str(tmp_path / "one")}, dims=2), tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a")
    assert not (tmp_path / "one" / "models").exists()
    assert set(zip(rows.method, rows.n, strict=True)) == {("interpolation", 0)}
    assert rows[rows.region == "whole"].dsc.mean() > 0.7  # a scan of the phantom has few slices
    for path in data.glob("*.raw"):
        if "segmentation" not in path.name:
            path.write_bytes(np.roll(np.frombuffer(path.read_bytes(), np.int16), 12345).tobytes())
    second = crossval(settings(base, {"cache": str(tmp_path / "two")}, dims=2), tmp_path / "b", quiet)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("folds", ["patient", "slice"])
def test_the_browser_keeps_what_was_segmented_and_by_which_atlases(settings, tmp_path, folds):
    methods = ["OASIS", "ConvNet2D"]
    asked = settings(
        NETS, {"methods": methods, "folds": folds, "k": 2, "n": [1, 2], "save_segmentations": True}, {"browser": True}, dims=2
    )
    crossval(asked, tmp_path / "a", quiet)
    views = load_browser({tmp_path / "a" / "browser": ""})
    assert set(views) == {f"Case{i:02d}" for i in range(CASES)}
    for case, view in views.items():
        assert set(view.results) == {"OASIS-2", "ConvNet2D"}
        x0, x1, y0, y1 = view.crop
        for name, result in view.results.items():
            loaded = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a" / "segmentations" / f"{case}__{name}.nii.gz"))
            assert np.array_equal(np.asarray(loaded.dataobj)[x0:x1, y0:y1], result)
        depth = view.reference.shape[2]
        assert [len(rows) for rows in view.atlases["OASIS-2"]] == [2] * depth
        assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in view.weights["OASIS-2"])
        own = [name == case for rows in view.atlases["OASIS-2"] for name, _, _ in rows]
        assert any(own) == (folds == "slice")
        distances = [[d for _, _, d in rows] for rows in view.atlases["OASIS-2"]]
        assert all(d == sorted(d) for d in distances)


def test_fewer_training_patients_are_fewer_atlases(settings, prepared, tmp_path):
    asked, data = prepared({"train_cases": 3})
    models = FoldModels(asked, data, split_of(asked, data), Path(asked.cache), quiet)
    assert {len(models.library(fold)) for fold in models.split.folds} == {3}
    with pytest.raises(ConfigError, match=r"^n: expected 1 to 3"):
        split_of(replace(asked, n=(4,)), data)


def test_slice_folds_are_scored_in_3d_once_all_are_trained(settings, tmp_path, aligned):
    base = {"folds": "slice", "k": 2, "data": {"include": THREE}, "methods": ["FwoW", "FWAL", "OASIS"], "n": [2]}
    crossval(settings(base, {"fold": 0}, dims=2), tmp_path / "first", quiet)
    assert len(scores_of(tmp_path / "first")) == 0
    assert json.loads((tmp_path / "first" / "run.json").read_text())["protocol"] == "slice"
    crossval(settings(base, {"fold": 1}, dims=2), tmp_path / "second", quiet)
    rows = scores_of(tmp_path / "second")
    assert len(rows) == 3 * 3 * len(REGIONS)
    assert set(rows.fold) == {-1}
    assert set(rows.protocol) == {"slice"}
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 2
    before = sum(aligned)
    whole = crossval(settings(base, dims=2), tmp_path / "whole", quiet)
    assert whole.read_bytes() == (tmp_path / "second" / "scores.csv").read_bytes()
    assert sum(aligned) == before
    # its neighbours of the same patient are what a slice is fused from: easier than honest folds
    honest = crossval(settings(base, {"folds": "patient", "methods": ["FwoW"]}, dims=2), tmp_path / "honest", quiet)
    assert (rows[(rows.method == "FwoW") & (rows.region == "whole")].dsc.mean()) > pd.read_csv(honest).query(
        "region == 'whole'"
    ).dsc.mean() + 0.05


def test_slice_folds_need_no_more_cases_than_folds(settings, tmp_path):
    asked = {"data": {"include": THREE}, "folds": "slice", "k": 5, "methods": ["majority"], "n": [1]}
    crossval(settings(asked, dims=2), tmp_path / "a", quiet)
    assert set(scores_of(tmp_path / "a").case) == set(THREE)
    assert (tmp_path / "a" / "run.json").is_file()
    assert (tmp_path / "a" / "quality.csv").is_file()


def native_affine(path):
    """RAS+ affine of a MetaImage header, read by hand."""
    lines = [line.split("=", 1) for line in path.read_text().splitlines()]
    header = {key.strip(): value.strip() for key, value in lines}
    turn, offset, spacing = (np.array(header[k].split(), float) for k in ("TransformMatrix", "Offset", "ElementSpacing"))
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(spacing) @ turn.reshape(3, 3)).T
    affine[:3, 3] = offset
    return np.diag([-1, -1, 1, 1]) @ affine, tuple(int(v) for v in header["DimSize"].split())


def test_results_come_back_on_the_scans_own_grid(settings, phantom, tmp_path):
    asked = settings({"methods": ["FwoW"], "n": [2], "k": 2, "save_segmentations": True, "save_probability": True})
    crossval(asked, tmp_path / "a", quiet)
    folder = tmp_path / "a" / "segmentations"
    assert len(list(folder.iterdir())) == 2 * CASES
    rows = scores_of(tmp_path / "a").query("region == 'whole'").set_index("case")
    for case, row in rows.iterrows():
        affine, shape = native_affine(phantom / f"{case}.mhd")
        label = nibabel.load(folder / f"{case}__FwoW-2.nii.gz")
        assert label.shape == shape
        np.testing.assert_allclose(label.affine, affine, atol=1e-4)
        mask = np.asarray(label.dataobj) == 1
        truth = np.fromfile(phantom / f"{case}_segmentation.raw", np.uint8).reshape(shape, order="F") == 1
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) == pytest.approx(row.dsc, abs=1e-9)
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        assert mask.sum() * ml == pytest.approx(row.volume_ml, rel=1e-4)
        probability = nibabel.load(folder / f"{case}__FwoW-2_probability.nii.gz")
        np.testing.assert_allclose(probability.affine, affine, atol=1e-4)
        chance = np.squeeze(np.asarray(probability.dataobj))
        assert chance.shape[:3] == shape
        chance = chance if chance.ndim == 3 else chance[..., -1]
        assert np.array_equal(chance >= 0.5 - 1e-5, mask)


def test_pictures_are_drawn_of_the_worst_and_the_best(settings, tmp_path):
    crossval(settings({"methods": ["majority", "FwoW"], "n": [1, 2], "overlays": 2, "k": 2}), tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a").query("region == 'whole' and method == 'FwoW'")
    mean = rows.groupby("case").dsc.mean()
    wanted = {f"{case}__{m}-{n}.png" for case in (mean.idxmin(), mean.idxmax()) for m in ("majority", "FwoW") for n in (1, 2)}
    found = {path.name: path.read_bytes() for path in (tmp_path / "a" / "overlays").iterdir()}
    assert set(found) == wanted
    assert all(content[:4] == b"\x89PNG" for content in found.values())


def test_a_folder_shows_the_pictures_of_its_last_run_alone(settings, tmp_path):
    """The page tells what lies in overlays and browser as the run's own."""
    folder = tmp_path / "a"
    crossval(settings({"methods": ["FwoW"], "n": [1, 2], "overlays": 2, "k": 2, "browser": True}), folder, quiet)
    assert len(list((folder / "browser").iterdir())) == CASES
    (folder / "overlays" / "mine.png").write_bytes(b"a picture of the user's")
    crossval(settings({"methods": ["FwoW"], "n": [2], "overlays": 1, "k": 2, "fold": 0, "browser": True}), folder, quiet, True)
    tested = set(scores_of(folder).case)
    assert tested
    assert {view.case for view in load_browser({folder / "browser": ""}).values()} == tested
    drawn = {path.name for path in (folder / "overlays").iterdir()} - {"mine.png"}
    assert len(drawn) == 1
    assert (folder / "overlays" / "mine.png").exists()
    assert drawn.pop().removesuffix("__FwoW-2.png") in tested
    crossval(settings({"methods": ["FwoW"], "n": [2], "overlays": 0, "k": 2, "fold": 0, "browser": False}), folder, quiet, True)
    assert not list((folder / "browser").iterdir())
    assert [path.name for path in (folder / "overlays").iterdir()] == ["mine.png"]


def test_a_run_explains_itself(settings, phantom, tmp_path):
    asked = settings({"k": 2, "seed": 5})
    crossval(asked, tmp_path / "a", quiet)
    told = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (told["task"], told["protocol"], told["folds"], told["seed"]) == ("crossval", "patient", 2, 5)
    assert told["data"]["cases"] == CASES
    assert told["settings"]["training"]["iterations"] == 4
    assert told["settings"]["n"] == [1, 2]
    assert told["versions"]["torch"] == torch.__version__
    assert told["device"].startswith("cpu")
    assert told["split_hash"] == make_split({f"Case{i:02d}": 1 for i in range(CASES)}, 2, 5).key()
    assert {"check and read", "train", "segment", "score", "pictures"} <= set(told["timings_s"])
    assert told["timings_s"]["train"] > 0


def test_two_structures_from_the_files_to_the_scores(settings, phantom_two_labels, tmp_path):
    labels = {"peripheral zone": 2, "central gland": 1}  # the order of the file's values is not the order of the classes
    data = {"root": str(phantom_two_labels), "labels": labels, "regions": ["whole"]}
    asked = settings(
        {
            "data": data,
            "methods": [*PLAIN, *methods_that_need(ESTIMATE, list(METHODS))],
            "n": [2],
            "k": 2,
            "save_segmentations": True,
        },
        JOINT,
    )
    crossval(asked, tmp_path / "a", quiet)
    rows = scores_of(tmp_path / "a")
    assert len(rows) == CASES * 2 * len([*PLAIN, *methods_that_need(ESTIMATE, list(METHODS))])
    for name, value in labels.items():
        mine = rows.query(f"label == '{name}' and method == 'FwoW'")
        assert len(mine) == CASES
        assert mine.dsc.mean() > 0.1
        for row in mine.itertuples():
            found = np.asarray(nibabel.load(tmp_path / "a" / "segmentations" / f"{row.case}__FwoW-2.nii.gz").dataobj) == value
            truth = np.fromfile(phantom_two_labels / f"{row.case}_segmentation.raw", np.uint8).reshape(found.shape, order="F")
            overlap = 2 * (found & (truth == value)).sum() / (found.sum() + (truth == value).sum())
            assert overlap == pytest.approx(row.dsc, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": [2, 6]}, r"^n: expected 1 to 5, the atlases of the smallest fold, found \[2, 6\]"),
        ({"k": 8}, r"^k: expected no more folds than cases \(7\), found 8"),
        ({"device": "cuda:77"}, "^device: expected cpu, auto, or a GPU this machine has, found 'cuda:77'"),
        ({"features": {"name": "resnet"}}, "^features.name: expected one of"),
        ({"folds": "slice"}, "^folds: expected patient where an atlas is a volume"),
        ({"methods": ["interpolation"]}, "^methods: expected methods for new scans, found 'interpolation'; set folds=slice"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(settings, tmp_path, change, match):
    with pytest.raises(ConfigError, match=match):
        crossval(settings(change), tmp_path / "a", quiet)
    assert not (tmp_path / "cache" / "models").exists()


def test_all_faults_of_a_data_set_are_told_at_once(settings, phantom, tmp_path):
    data = copied(phantom, tmp_path)
    (data / "Case01.raw").write_bytes((data / "Case01.raw").read_bytes()[:-10])
    (data / "Case04_segmentation.raw").write_bytes(b"\7" * (data / "Case04_segmentation.raw").stat().st_size)
    values = np.fromfile(data / "Case05_segmentation.raw", np.uint8)
    values[0] = 9
    values.tofile(data / "Case05_segmentation.raw")
    with pytest.raises(DataError) as error:
        crossval(settings({"data": {"root": str(data)}}), tmp_path / "a", quiet)
    assert [fault.case for fault in error.value.faults] == ["Case01", "Case04", "Case05"]
    with pytest.raises(DataError, match=r"^nix: data.include: .*no such case"):
        crossval(settings({"data": {"include": ["nix", "Case00"]}}), tmp_path / "a", quiet)


def test_what_is_wrong_with_cases_that_are_left_out_stops_nothing(settings, config, phantom, tmp_path, capsys):
    data = copied(phantom, tmp_path)
    for file in data.glob("Case05_segmentation.*"):
        file.unlink()
    four = [f"Case{i:02d}" for i in range(4)]
    whole = {"data": {"root": str(data)}}
    cut = {"data": {"root": str(data), "include": four}}
    assert [case.id for case in prepare_module.find_and_check(settings(cut), None, quiet)] == four
    for only in ([], ["Case05"]):
        with pytest.raises(DataError, match=r"^Case05: label: expected one label file"):
            prepare_module.find_and_check(settings(whole, {"data": {"include": only}}), None, quiet)
    run_task({"task": "check", **config(cut)}, tmp_path, None)
    assert capsys.readouterr().out.splitlines()[-1] == "4 cases, 0 errors, 0 warnings"


def test_a_data_set_is_checked_again_only_when_a_file_changed(settings, phantom, tmp_path, monkeypatch):
    from oasis_monai.workflows import check as checks

    data = copied(phantom, tmp_path)
    asked = settings({"data": {"root": str(data)}})
    looked = []
    whole = checks.check_cases
    monkeypatch.setattr(checks, "check_cases", lambda *a, **k: looked.append(1) or whole(*a, **k))
    for _ in range(2):
        prepare_module.find_and_check(asked, Path(asked.cache), quiet)
    assert len(looked) == 1
    (data / "extra.nii.gz").write_bytes(b"x")  # no file of a case, so its warning would come once and never again
    for _ in range(2):
        said = []
        prepare_module.find_and_check(asked, Path(asked.cache), said.append)
        assert [line.partition(":")[0] for line in said if "left out" in line] == ["warning"]
    assert len(looked) == 1
    (data / "Case03.raw").write_bytes(b"x")
    with pytest.raises(DataError, match=r"^Case03"):
        prepare_module.find_and_check(asked, Path(asked.cache), quiet)


@pytest.mark.parametrize("distance", ["l2", "zscore", "variance"])
def test_training_pairs_are_near_by_the_distance_that_is_set(prepared, monkeypatch, distance):
    from oasis_monai.training import registration as training

    asked = []
    whole = training.nearest

    def nearest(queries, library, n, distance, **more):
        asked.append((n, distance))
        return whole(queries, library, n, distance, **more)

    monkeypatch.setattr(training, "nearest", nearest)
    settings, data = prepared({"features": {"distance": distance}, "training": {"nearest_partners": 1}, "methods": ["OASIS"]})
    split = make_split(dict.fromkeys(data.targets, 1), settings.k, settings.seed)
    FoldModels(settings, data, split, Path(settings.cache), quiet).segmenter(split.folds[0])
    assert asked == [(1, distance)]


@pytest.mark.parametrize("dims", [3, 2])
def test_a_case_without_the_structure_is_scored_and_no_atlas(settings, phantom, tmp_path, dims):
    """It teaches the networks, warns, and stops nothing."""
    data = copied(phantom, tmp_path)
    empty = data / "Case02_segmentation.raw"
    empty.write_bytes(bytes(empty.stat().st_size))
    methods = ["FwoW", "OASIS-joint", f"U-Net{dims}D"]
    joint = [TINY_2D, JOINT, JOINT_2D] if dims == 2 else [JOINT]
    more = {"methods": methods, "n": [2], "k": 2, "corruptions": 2, "browser": True}
    asked = settings(*joint, NETS, {"data": {"root": str(data)}}, more)
    lines = []
    crossval(asked, tmp_path / "a", lines.append)
    assert sum("Case02: label: expected some foreground" in line for line in lines) == 1
    rows = scores_of(tmp_path / "a")
    own = rows[rows.case == "Case02"]
    assert set(own.method) == set(methods)
    assert set(own[own.region == "whole"].status) <= {"absent", "false_positive"}
    if dims == 3:
        for view in load_browser({tmp_path / "a" / "browser": ""}).values():
            chosen = [used[0] for images in view.atlases.values() for image in images for used in image]
            assert chosen
            assert "Case02" not in chosen
    train_model(replace(asked, methods=("OASIS-joint",)), tmp_path / "m", quiet)
    library = load_model(tmp_path / "m").segmenter.library
    assert ("Case02" in library.cases) is (dims == 2)
    assert write_report(tmp_path / "a").is_file()


@pytest.mark.parametrize(("more", "most"), [({}, 1), ({"folds": "slice"}, 2)])
def test_one_fold_s_atlases_are_held_at_a_time(settings, tmp_path, monkeypatch, more, most):
    """Slices of one case are tested by several folds: there all models stay."""
    import gc
    import weakref

    from oasis_monai.segmentation.segmenter import Segmenter

    alive, seen = weakref.WeakSet(), []
    real = Segmenter.__init__

    def watched(self, *how, **named):
        gc.collect()
        real(self, *how, **named)
        alive.add(self)
        seen.append(len(alive))

    monkeypatch.setattr(Segmenter, "__init__", watched)
    small = [TINY_2D] if more else []
    crossval(settings(*small, {"methods": ["FwoW"], "n": [1], "k": 2, "corruptions": 2}, more), tmp_path / "a", quiet)
    assert max(seen) == most
