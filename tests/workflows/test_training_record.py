"""What a run shows of its trainings: while they run, and beside its results."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from oasis_monai.data.folds import Fold
from oasis_monai.evaluation.report import write_report
from oasis_monai.training import tracking as tracking_module
from oasis_monai.utils.errors import ConfigError
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.prepare import split_of
from oasis_monai.workflows.run_record import refuse_other_results, run_record
from oasis_monai.workflows.train import train_model
from oasis_monai.workflows.training_record import held_out, keep_histories, tracking_of
from tests.helpers.runs import NETS, quiet


def test_a_run_shows_its_trainings_and_keeps_their_histories_and_its_results_are_the_same(settings, tmp_path):
    asked = settings(NETS, {"methods": ["ConvNet3D", "OASIS"], "k": 2, "n": [2], "fold": 1})
    plain = crossval(replace(asked, cache=str(tmp_path / "plain")), tmp_path / "plain run", quiet)
    said = []
    watched = replace(asked, tracking="tensorboard", cache=str(tmp_path / "watched"))
    assert crossval(watched, tmp_path / "a", said.append).read_bytes() == plain.read_bytes()
    assert [line for line in said if line.startswith("watch")] == [f"watch: tensorboard --logdir {tmp_path / 'a' / 'tracking'}"]
    names = ["fold2-ConvNet3D", "fold2-registration_network"]
    assert sorted(p.name for p in (tmp_path / "a" / "tracking").iterdir()) == names
    assert all(list((tmp_path / "a" / "tracking" / name).glob("events*")) for name in names)
    for run, columns in (("a", {"validation_dice"}), ("plain run", set())):
        kept = sorted((tmp_path / run / "training").iterdir())
        assert [p.stem for p in kept] == names
        for path in kept:
            history = pd.read_csv(path)
            assert list(history["step"]) == [1, 2, 3, 4]
            assert set(history) & {"validation_dice"} == columns
    # from the cache: nothing is trained or told, and the page has the curves all the same
    said.clear()
    again = crossval(replace(watched, tracking="none"), tmp_path / "b", said.append).parent
    assert not [line for line in said if line.startswith("watch")]
    assert not (again / "tracking").exists()
    for name in names:
        assert (again / "training" / f"{name}.csv").read_bytes() == (tmp_path / "a" / "training" / f"{name}.csv").read_bytes()
    page = write_report(again).read_text()
    assert "held-out Dice, %" in page
    assert "held-out Dice, %" not in write_report(tmp_path / "plain run").read_text()


def test_train_has_no_case_to_validate_on(settings, tmp_path):
    asked = settings({"tracking": "tensorboard"})
    said = []
    model = train_model(asked, tmp_path / "model", said.append)
    assert f"watch: tensorboard --logdir {model / 'tracking'}" in said
    assert list((model / "tracking" / "registration_network").glob("events*"))
    assert "validation_dice" not in pd.read_csv(model / "training" / "registration_network.csv")


def test_tracking_is_in_no_name_and_may_change_when_a_run_is_started_again(prepared, settings, tmp_path):
    asked, data = prepared({})
    split, other = split_of(asked, data), replace(asked, tracking="tensorboard")
    folders = [FoldModels(one, data, split, Path(one.cache), quiet).folder(split.folds[0]) for one in (asked, other)]
    assert folders[0] == folders[1]
    assert "tracking" not in replace(asked, tracking="auto").to_json()  # the record of such a run is what it was before
    (tmp_path / "run.json").write_text(json.dumps(run_record("crossval", other, split, 7, {})))
    (tmp_path / "scores.csv").write_text("")
    refuse_other_results(tmp_path, asked.to_json(), "run_dir")


def test_held_out_images_are_of_test_cases_and_the_same_for_all_networks(prepared):
    asked, data = prepared({})
    for fold in split_of(asked, data).folds:
        images = held_out(data.library, fold, asked.seed)
        assert set(images.cases) <= set(fold.test)
        assert not set(images.cases) & set(fold.train)
        assert images.cases == held_out(data.library, fold, asked.seed).cases
    everyone = Fold(0, {}, {case: (0,) for case in data.cases})
    chosen = {held_out(data.library, everyone, seed).cases for seed in range(8)}
    assert {len(set(cases)) for cases in chosen} == {4}
    assert len(chosen) > 1
    assert held_out(data.library, everyone, 0, range(len(data.library))) is None
    assert held_out(replace(data.library, structures=((1,),)), everyone, 0) is None  # structures that share voxels
    assert held_out(data.library, Fold(0, everyone.test, {}), 0) is None


def test_where_mlflow_keeps_its_runs(settings, tmp_path, monkeypatch):
    asked = settings({"tracking": "mlflow", "data": {"name": "prostates"}})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = tracking_of(asked, tmp_path / "run")
    assert own.uri == f"sqlite:///{Path(asked.cache).resolve() / 'mlflow.db'}"
    assert (own.experiment, own.params["training.lr"], own.folder) == ("prostates", "0.005", tmp_path / "run" / "tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_of(asked, tmp_path / "run").uri == "http://tracking:5000"
    assert pickle.loads(pickle.dumps(own)) == own  # it goes to the processes that train
    assert tracking_of(replace(asked, tracking="none"), tmp_path) is None
    monkeypatch.setattr(tracking_module, "installed", lambda package: False)
    with pytest.raises(ConfigError, match="pip install"):
        crossval(asked, tmp_path / "run", quiet)
    with pytest.raises(ConfigError, match=r"^tracking: expected one of"):
        replace(asked, tracking="wandb")


def test_histories_of_parts_have_names_of_their_own(tmp_path):
    for part in (".", "member1"):
        (tmp_path / "cache" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / part / "history.csv").write_text(part)
    (tmp_path / "run" / "training").mkdir(parents=True)
    (tmp_path / "run" / "training" / "stale.csv").write_text("of a run before")
    keep_histories(tmp_path / "run", [("fold1-slice_network", tmp_path / "cache"), ("", tmp_path)])
    found = {path.name: path.read_text() for path in (tmp_path / "run" / "training").iterdir()}
    assert found == {
        "fold1-slice_network.csv": ".",
        "fold1-slice_network-member1.csv": "member1",
        "cache.csv": ".",
        "cache-member1.csv": "member1",
    }
