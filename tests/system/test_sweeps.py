"""A sweep by parallel jobs: joblib and submitit give what one job after the other gives, and a job that fails is told."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from oasis_monai.evaluation import scores as tables
from tests.conftest import overrides
from tests.helpers.command import run

JOINED = ("scores.csv", "summary.csv", "report.html")
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


def sweep(*words, cwd):
    """The command line in a process of its own: what it launches are children, which the tests' fork server may not have."""
    return subprocess.run(
        [sys.executable, "-m", "oasis_monai", "-m", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def words(config):
    return overrides(config({"k": 2, "n": 1, "methods": ["FwoW", "FWAL"]}))


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Where the serial sweep's results are kept between the launchers' tests."""
    return tmp_path_factory.mktemp("serial")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_parallel_jobs_join_the_scores_of_serial_ones_and_one_that_fails_is_named(words, serial, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher", reason=f"needs pip install .[{launcher}]")
    own = [word for word in words if not word.startswith("cache=")]
    if not (serial / "sweep").exists():
        done = run("-m", "fold=0,1", *own, "cache=cache", "hydra.sweep.dir=sweep", cwd=serial)
        assert done.code == 0, done.err
    done = sweep("fold=7,0,1", *own, "cache=cache", *LAUNCHERS[launcher], cwd=tmp_path)  # into a folder named by the time
    assert done.returncode != 0
    head, line, hint = [line for line in done.stderr.splitlines() if line][-3:]
    assert hint.startswith("Set the environment variable HYDRA_FULL_ERROR=1")
    assert head.startswith("Error executing job with overrides: ['fold=7'")
    assert line == "error: fold: expected null (all) or 0 to 1, found 7; change it in the configuration"
    assert "Traceback" not in done.stderr
    (joined,) = (tmp_path / "outputs" / "sweeps").glob("*/*")
    for name in JOINED:
        assert (joined / name).read_bytes() == (serial / "sweep" / name).read_bytes(), name
    assert len(list((tmp_path / "cache" / "models").glob("*/stm.safetensors"))) == 2
    command = json.loads((joined / "2" / "run.json").read_text())["command"]
    assert command.startswith("oasis-monai fold=1 data.name=phantom")


def test_a_serial_sweep_goes_on_after_a_job_that_fails_and_joins_the_others(words, tmp_path):
    done = run("-m", "fold=7,0,1", *words, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.code != 0
    assert "Traceback" not in done.err
    assert "error: fold: expected null (all) or 0 to 1, found 7" in done.err
    scores = tables.read_scores(tmp_path / "sweep" / "scores.csv")
    assert set(scores["fold"]) == {0, 1}


@pytest.mark.parametrize(
    ("swept", "column", "values"),
    [
        (["preprocessing.intensity=zscore,local"], "preprocessing.intensity", ["zscore", "local"]),
        (["seed=0,1", "fold=0"], "seed", ["0", "1"]),  # other folds, but no case is in two of them
        (["loss=default,eq1"], "loss", ["default", "eq1"]),
    ],
)
def test_a_sweep_over_what_no_column_tells_has_no_common_mean(words, tmp_path, swept, column, values):
    done = run("-m", *words, *swept, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"note: the jobs differ in {column}, so each value has rows of its own there" in done.out
    sweep = tmp_path / "sweep"
    assert sorted(path.name for path in sweep.iterdir() if path.name[0] != ".") == ["0", "1", "multirun.yaml", "sweep.csv"]
    table = pd.read_csv(sweep / "sweep.csv", dtype=str).query("region == 'whole' and method == 'FwoW'")
    assert list(table[column]) == values
    for job, mean in zip(table["jobs"], table["dsc_mean"], strict=True):
        own = tables.summarise(tables.read_scores(sweep / job / "scores.csv")).query("region == 'whole' and method == 'FwoW'")
        assert float(mean) == own["dsc_mean"].item()
    assert len(list(sweep.glob("*/report.html"))) == 2


def test_when_the_first_job_alone_has_scores_the_folder_of_such_a_sweep_does_not_show_them_as_its_own(words, tmp_path):
    done = run("-m", *words, "k=2,99", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.code != 0
    assert [path.name for path in (tmp_path / "sweep").glob("*.csv")] == ["sweep.csv"]
    assert not (tmp_path / "sweep" / "report.html").exists()


def test_a_sweep_into_the_folder_of_a_run_is_refused(words, tmp_path):
    assert run(*words, "fold=0", "hydra.run.dir=r", cwd=tmp_path).code == 0
    before = (tmp_path / "r" / "scores.csv").read_bytes()
    done = run("-m", *words, "fold=0,1", "hydra.sweep.dir=r", cwd=tmp_path)
    assert "error: hydra.sweep.dir: expected a folder for a sweep, found 'r with the results of a run'; give another" in done.err
    assert (tmp_path / "r" / "scores.csv").read_bytes() == before
