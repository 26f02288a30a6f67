"""Work side by side: the same models as one after the other, errors as they were, and no orphans."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from oasis_monai.utils.errors import ConfigError, OasisError, with_case_in_errors
from oasis_monai.utils.files import write_json
from oasis_monai.utils.processes import _raise_named, run_parallel
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.crossval import crossval

pytestmark = pytest.mark.slow


def quiet(_):
    """No log."""


def weights(cache):
    return {
        path.parent.name: load_tensors(path)[0]
        for path in sorted(Path(cache).glob("models/*/*.safetensors"))
        if path.name in ("stm.safetensors", "network.safetensors")
    }


def test_side_by_side_gives_the_models_and_scores_of_one_after_the_other(settings, tmp_path):
    asked = settings({"methods": ["U-Net3D", "OASIS"], "network": {"unet": [4, 8], "dynunet": [4, 8]}, "k": 2, "browser": False})
    one = crossval(asked, tmp_path / "one", quiet)
    lines = []
    two = crossval(replace(asked, workers=2, cache=str(tmp_path / "other")), tmp_path / "two", lines.append)
    assert one.read_bytes() == two.read_bytes()
    a, b = weights(asked.cache), weights(tmp_path / "other")
    assert a.keys() == b.keys()
    assert len(a) == 4
    assert all(torch.equal(a[k][name], b[k][name]) for k in a for name in a[k])
    told = sorted(line.split(":")[0] for line in lines if line.startswith("trained"))
    assert told == [f"trained fold {fold} of 2, {network}" for fold in (1, 2) for network in ("U-Net3D", "registration network")]


def fail():
    raise ConfigError("some.key", "this", "that")


def sleep_and_write(path, seconds):
    tqdm(disable=True)  # as training does
    time.sleep(seconds)
    Path(path).write_text(str(os.getpid()))


def test_an_error_reaches_the_caller_as_it_was(tmp_path):
    ended = []
    with pytest.raises(ConfigError, match=r"some\.key: expected this, found 'that'") as caught:
        run_parallel(fail, [("a", ())], 1, lambda name, minutes: ended.append(name))
    assert caught.value.key == "some.key"
    assert ended == []


def tell(path):
    write_json(path, [os.getppid(), os.environ.get("OASIS_TOLD")])


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="workers are new interpreters")
def test_workers_of_all_calls_come_from_one_server_and_have_the_environment_of_now(tmp_path, monkeypatch):
    """So torch and MONAI are imported once, and a variable that is set between two calls is not that of the first."""
    found = []
    for value in ("one", "two"):
        monkeypatch.setenv("OASIS_TOLD", value)
        run_parallel(tell, [(value, (tmp_path / value,))], 1, lambda name, minutes: None)
        found.append(json.loads((tmp_path / value).read_text()))
    (first, one), (second, two) = found
    assert first == second != os.getpid()
    assert (one, two) == ("one", "two")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_a_case():
    with with_case_in_errors("Case03"):
        raise RuntimeError("unheard of\nand more")


KILLED = (
    "U-Net3D, fold 3: a worker was killed, probably out of memory. Lower workers and run the same command again; finished work "
    "is kept."
)
AT_A_CASE = "U-Net3D, fold 3 (while at Case03): the worker failed (RuntimeError: unheard of). Run with workers=1 to see where."


@pytest.mark.parametrize(("function", "message"), [(fail_at_a_case, AT_A_CASE), (be_killed, KILLED)])
def test_what_ends_a_worker_is_one_line_that_names_its_job(function, message):
    with pytest.raises(OasisError) as caught:
        run_parallel(function, [("U-Net3D, fold 3", ())], 2, lambda name, minutes: None)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "the worker failed (RuntimeError: DefaultCPUAllocator: can't allocate memory). Lower workers, align_batch or "
            "training.batch.",
        ),
        (OasisError("training diverged"), "training diverged"),
        (
            OSError(errno.ENOSPC, "No space left on device", "cache/x"),
            "cannot read or write cache/x: No space left on device. Free some space and run the same command again; finished "
            "work is kept.",
        ),
    ],
)
def test_every_error_of_a_job_names_the_job(error, message):
    with pytest.raises(OasisError) as caught:
        _raise_named("STM, fold 1", [], error)
    assert str(caught.value) == f"STM, fold 1: {message}"


def test_no_job_needs_no_process():
    run_parallel(fail, [], 2, lambda name, minutes: None)


def parent_of_two_jobs(tmp_path):
    """A process whose first job has ended (``started`` holds its worker's id) and whose second one sleeps before it writes."""
    script, root = tmp_path / "main.py", str(Path(__file__).resolve().parents[2])
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from tests.utils.test_processes import sleep_and_write
            from oasis_monai.utils.processes import run_parallel
            if __name__ == "__main__":
                jobs = [("quick", ({str(tmp_path / "started")!r}, 0)), ("slow", ({str(tmp_path / "slow")!r}, 5))]
                try:
                    run_parallel(sleep_and_write, jobs, 1, lambda name, minutes: None)
                except KeyboardInterrupt:
                    sys.exit("interrupted")
            """
        )
    )
    more = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, str(script)], cwd=root, env=os.environ | {"PYTHONPATH": root}, **more)
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert time.monotonic() < deadline, "the worker never started"
        time.sleep(0.1)
    return process, int((tmp_path / "started").read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_an_interrupt_ends_all_workers_at_once_and_only_the_parent_speaks(tmp_path):
    """As Ctrl-C in a terminal: the signal goes to the whole group of processes."""
    process, _ = parent_of_two_jobs(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 1
    assert not (tmp_path / "slow").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    process, worker = parent_of_two_jobs(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{worker}").exists() and "zombie" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)
    assert not (tmp_path / "slow").exists()


def note_number(folder, name):
    """A job: leaves its worker's number, and takes long enough that every worker has one."""
    from oasis_monai.utils.processes import worker_number

    Path(folder, name).write_text(str(worker_number()))
    end = time.monotonic() + 100
    while len(list(Path(folder).iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)


def test_workers_are_numbered(tmp_path):
    from oasis_monai.utils.processes import worker_number

    run_parallel(note_number, [(name, (tmp_path, name)) for name in "ab"], 2, lambda name, minutes: None)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["0", "1"]
    assert worker_number() is None
