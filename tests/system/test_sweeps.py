"""A sweep by parallel jobs: joblib and submitit give what one job after the other gives, and a job that fails is told."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from oasis_monai import tasks
from oasis_monai.evaluation import report
from oasis_monai.evaluation import scores as tables
from oasis_monai.utils import files
from oasis_monai.utils.files import locked, write_text
from oasis_monai.workflows import crossval
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
    done = sweep("fold=7,0,1", *words, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error: fold: expected null (all) or 0 to 1, found 7" in done.stderr
    scores = tables.read_scores(tmp_path / "sweep" / "scores.csv")
    assert set(scores["fold"]) == {0, 1}


def test_a_sweep_over_what_no_column_tells_ends_with_a_page_a_job(words, tmp_path):
    done = sweep(*words, "preprocessing.intensity=zscore,local", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: the jobs of sweep are not joined: " in done.stdout
    assert len(list((tmp_path / "sweep").glob("*/report.html"))) == 2


@pytest.mark.parametrize("slow", ["join", "page"])
def test_jobs_that_end_at_once_leave_the_whole_sweep(settings, tmp_path, monkeypatch, slow):
    """Job 1 gets its scores when job 0 has read those there are, and job 0 writes what it made of them as late as it can."""
    made = settings({"k": 2, "methods": ["FwoW"], "browser": False})
    whole = crossval.crossval(made, tmp_path / "whole", lambda _: None)
    head, *rows = whole.read_text().splitlines()
    reading, arrived, this = threading.Event(), threading.Event(), threading.local()

    def scored(settings, run_dir):
        if run_dir.name == "1":
            assert reading.wait(60)
        own = [row for row in rows if row.split(",")[1] == run_dir.name]
        write_text(run_dir / "scores.csv", "\n".join([head, *own]) + "\n")
        return run_dir / "scores.csv"

    def late():
        """Hold up the first job until the second has joined or, as it should, come to a lock."""
        if this.number == "1":
            return False
        reading.set()
        assert arrived.wait(60)
        return True

    @contextlib.contextmanager
    def lock(folder):
        if this.number == "1":
            arrived.set()
        with locked(folder):
            yield

    join, page = tables.join_scores, report.write_report

    def slow_join(paths):
        result = join(paths)
        late()
        return result

    def slow_page(folder):
        path = page(folder)
        text = path.read_text()
        if folder == tmp_path / "sweep" and late():
            write_text(path, text)
        return path

    monkeypatch.setattr(files, "locked", lock)
    monkeypatch.setattr(tasks, "_settings", lambda _: made)
    monkeypatch.setattr(crossval, "crossval", scored)
    monkeypatch.setattr(tables, "join_scores", slow_join if slow == "join" else join)
    monkeypatch.setattr(report, "write_report", slow_page if slow == "page" else page)

    def job(number):
        this.number = number
        tasks._crossval({}, {}, tmp_path / "sweep" / number, tmp_path / "sweep")
        if number == "1":
            arrived.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job, number) for number in "01"]:
            done.result()
    sweep = tmp_path / "sweep"
    assert (sweep / "scores.csv").read_bytes() == whole.read_bytes()
    tables.write_summary(tmp_path / "summary.csv", tables.summarise(tables.read_scores(whole)))
    assert (sweep / "summary.csv").read_bytes() == (tmp_path / "summary.csv").read_bytes()
    before = (sweep / "report.html").read_bytes()
    assert page(sweep).read_bytes() == before
