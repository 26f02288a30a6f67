"""Jobs by submitit's local executor: told one by one, no more at a time than asked for, and one that fails or is killed named."""

import os
import signal
import time
from pathlib import Path

import pytest

from oasis_monai.utils import cluster as module
from oasis_monai.utils.cluster import Cluster, run_jobs
from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError

pytest.importorskip("submitit", reason="needs pip install .[submitit]")


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.05)
    return Cluster("local", jobs=2, timeout_min=2, cpus_per_task=1, folder=tmp_path / "jobs")


def work(folder, name):
    """Leave a file with when it began and ended."""
    began = time.time()
    time.sleep(0.3)
    Path(folder, name).write_text(f"{began} {time.time()}")


def fail(kind):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    errors = {
        "data": DataError(Fault("Case07", "image", "numbers", "none", "correct it")),
        "own": OasisError("the loss is no longer finite"),
        "other": ZeroDivisionError("division by zero"),
    }
    raise errors[kind]


@pytest.mark.slow
def test_all_jobs_are_done_no_more_at_a_time_than_asked_for(local, tmp_path):
    told = []
    names = ["a", "b", "c"]
    run_jobs(work, [(name, (str(tmp_path), name)) for name in names], 7, lambda *ended: told.append(ended), cluster=local)
    assert sorted(name for name, _ in told) == names
    assert all(0.3 / 60 <= minutes < 1 for _, minutes in told)
    began, ended = zip(*(map(float, (tmp_path / name).read_text().split()) for name in names), strict=True)
    assert sum(a <= began[2] < b for a, b in zip(began[:2], ended[:2], strict=True)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("data", DataError, "^Case07: image: expected numbers"),
        ("own", OasisError, "^fold 1: the loss is no longer finite$"),
        ("other", OasisError, r"^fold 1: the worker failed \(ZeroDivisionError: division by zero\)"),
        ("killed", OasisError, "^fold 1: the job ended without a result"),
    ],
)
def test_a_job_that_fails_is_named(local, kind, error, says):
    with pytest.raises(error, match=says):
        run_jobs(fail, [("fold 1", (kind,))], 1, lambda *_: pytest.fail("told as done"), cluster=local)


def test_without_a_cluster_jobs_are_processes_of_this_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "run_parallel", lambda *given: asked.append(given))
    run_jobs(work, [("a", ())], 3, print, ["torch"])
    assert asked == [(work, [("a", ())], 3, print, ["torch"])]


def test_no_jobs_need_no_cluster(local, tmp_path):
    run_jobs(work, [], 1, print, cluster=local)
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("executor", "ssh"), ("jobs", 0), ("timeout_min", 0), ("cpus_per_task", 0), ("gpus_per_node", -1)]
)
def test_what_cannot_work_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"cluster\.{key}: expected"):
        Cluster(**{"executor": "local", key: value})


def test_an_option_that_submitit_does_not_know_is_refused(local, tmp_path):
    wrong = Cluster("local", options={"slurm_partion": "gpu"}, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"cluster\.options: expected options of submitit"):
        run_jobs(work, [("a", ())], 1, print, cluster=wrong)


def test_submitit_has_to_be_there(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"cluster: expected null, as submitit is not installed"):
        Cluster("local")
