"""Which jobs of a sweep are one cross-validation, and what the sweep's folder shows where they are several."""

import json

import pandas as pd
import pytest

from oasis_monai.evaluation.scores import read_scores, write_scores
from oasis_monai.workflows.sweep import join_jobs
from tests.helpers.study_rows import CASES, row

pytestmark = pytest.mark.fast
SETTINGS = {"n": [6], "fold": None, "methods": ["FWAL"], "seed": 0, "k": 5, "training": {"lr": 0.1}, "data": {"root": "a"}}


@pytest.fixture
def job(tmp_path):
    """Function: write the folder of a job, as a run leaves it: two cases by one method."""

    def write(name, cases=CASES[:2], dsc=0.8, content="x", swept=(), method="FWAL", n=6, **changes):
        folder = tmp_path / str(name)
        folder.mkdir()
        write_scores(folder / "scores.csv", [row(case, method, n, dsc) for case in cases])
        record = {"settings": SETTINGS | changes, "data_digest": content, "swept": dict(swept)}
        (folder / "run.json").write_text(json.dumps(record))

    return write


def test_jobs_that_differ_in_n_fold_and_methods_are_one(tmp_path, job):
    job(0, CASES[:2], fold=0)
    job(1, CASES[2:4], fold=1)
    job(2, CASES[:2], n=3, fold=0)
    job(3, CASES[:2], method="FwoW", methods=["FwoW"], fold=0)
    joined = join_jobs(tmp_path, ("fold", "n", "methods"))
    assert joined.path == tmp_path / "scores.csv"
    assert len(read_scores(joined.path)) == 8
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"data": {"root": "b"}}, "data.root"),
        ({"content": "y"}, "data_digest"),  # scans that were changed between two jobs
        ({"training": {"lr": 0.2}}, "training.lr"),
        ({"train_cases": 4}, "train_cases"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_jobs_that_differ_in_anything_else_are_not_averaged(tmp_path, job, change, key):
    """Other cases, other folds: nothing in the rows contradicts."""
    job(0, CASES[:2], 0.9)
    assert join_jobs(tmp_path).whole
    for name in ("report.html", "sweep.csv"):
        (tmp_path / name).write_text("of the first job")
    job(1, CASES[2:4], 0.5, **change)
    joined = join_jobs(tmp_path)
    assert joined.keys == (key,)
    assert {path.name for path in tmp_path.glob("*.*")} == {"sweep.csv"}
    table = pd.read_csv(joined.path)
    assert list(table["dsc_mean"]) == [0.9, 0.5]
    assert list(table["jobs"]) == [0, 1]
    assert table[key].nunique() + table[key].isna().any() == 2


def test_folds_are_joined_within_each_value_of_what_else_is_swept(tmp_path, job):
    for name, (seed, fold) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        swept = {"seed": str(seed), "fold": str(fold)}
        job(name, CASES[2 * fold : 2 * fold + 2], 0.6 + 0.2 * fold + 0.1 * seed, seed=seed, fold=fold, swept=swept)
    table = pd.read_csv(join_jobs(tmp_path, ("seed", "fold")).path)
    assert list(table["seed"]) == [0, 1]
    assert list(table["jobs"]) == ["0 1", "2 3"]
    assert list(table["cases"]) == [4, 4]
    assert list(table["dsc_mean"]) == pytest.approx([0.7, 0.8])


def test_one_job_of_a_sweep_over_seeds_is_not_the_sweep(tmp_path, job):
    job(0, swept={"seed": "0"})
    joined = join_jobs(tmp_path, ("seed",))
    assert [path.name for path in tmp_path.glob("*.csv")] == ["sweep.csv"]
    assert joined.keys == ("seed",)


def test_a_preset_is_told_by_its_name(tmp_path, job):
    job(0, swept={"loss": "default"}, loss={"gamma": 0.1})
    job(1, swept={"loss": "eq1"}, loss={"gamma": 0.01})
    assert join_jobs(tmp_path, ("loss",)).keys == ("loss",)
    assert list(pd.read_csv(tmp_path / "sweep.csv")["loss"]) == ["default", "eq1"]


def test_the_same_settings_with_other_scores_are_told_and_not_joined(tmp_path, job):
    job(0, dsc=0.9)
    job(1, dsc=0.8)
    joined = join_jobs(tmp_path)
    assert joined.conflict.startswith("Case00: dsc of FWAL-6 prostate whole")
    assert list(pd.read_csv(tmp_path / "sweep.csv")["dsc_mean"]) == [0.9, 0.8]
    assert not (tmp_path / "scores.csv").exists()


def test_no_job_has_scores(tmp_path):
    assert join_jobs(tmp_path) is None
