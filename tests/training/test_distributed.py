"""One network by several processes: the weights one process trains, one end for all, and one line when a process is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from oasis_monai.networks.losses import RegistrationLoss
from oasis_monai.networks.registration import RegistrationSettings
from oasis_monai.networks.segmentation import NetworkSettings
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.training import distributed
from oasis_monai.training import slices as estimation
from oasis_monai.training.registration import train_registration
from oasis_monai.training.segmentation import train_segmentation
from oasis_monai.training.slices import train_slice_network
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.utils.device import has_fast_bfloat16
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.tensor_files import load_tensors
from tests.conftest import overrides
from tests.helpers.command import CONTEXT, run
from tests.training import test_registration as test_training
from tests.training import test_slices as test_estimator

pytestmark = pytest.mark.slow

SHORT = TrainingSettings(iterations=6, minutes=None, lr=5e-3, batch=2, checkpoint_minutes=1e-12)
STM = RegistrationSettings(channels=(4, 8), field_stride=(1,), joint=False)
NETWORKS = NetworkSettings(convnet=(4, 8), unet=(4, 8))


def stm(folder, batch=2, settings=STM, loss=None, **more):
    training = replace(SHORT, batch=batch, **more)
    return train_registration(
        FitContext(test_training.discs(), (1.0, 1.0), training, 3, folder, progress=False), settings, loss or RegistrationLoss()
    )


def joint_stm(folder):
    library = test_estimator.discs(2)
    library = library.with_estimates(0.1 + 0.8 * (library.labels == 1).float())
    training = replace(SHORT, batch=3)
    return train_registration(
        FitContext(library, (1.0, 1.0), training, 3, folder, progress=False), replace(STM, joint=True), RegistrationLoss()
    )


def slice_net(folder):
    settings = JointSettings(decoder=(8, 8, 8, 8), slices_per_step=5, atlases=2, volume_budget=0.0)
    training = replace(SHORT, iterations=12)  # half the budget is this network's
    with pytest.MonkeyPatch.context() as patch:  # in bfloat16 a sum of two parts is not the whole to 1e-4
        patch.setattr(estimation, "use_bfloat16", lambda device, asked: False)
        return train_slice_network(
            FitContext(test_estimator.discs(2), (1.0, 1.0), training, 3, folder, name="slice network", progress=False), settings
        )


def network(folder, name="U-Net2D", batch=2):
    training, library = replace(SHORT, batch=batch), test_training.discs()
    if name.endswith("3D"):
        library = test_estimator.discs(3)
    return train_segmentation(
        FitContext(library, (1.0,) * library.spatial_dims, training, 3, folder, progress=False), name, NETWORKS
    )


TRAININGS = {
    "STM": stm,
    "STM, images that do not divide": lambda folder: stm(folder, batch=3),
    "STM, one image": lambda folder: stm(folder, batch=1),
    "STM, eq. 4 as a sum": lambda folder: stm(folder, loss=RegistrationLoss(smooth="sum")),
    "STM, local NCC": lambda folder: stm(folder, loss=RegistrationLoss(similarity="local_ncc")),
    "STM, batch statistics": lambda folder: stm(folder, settings=replace(STM, affine=True, channels=(4, 8, 8))),
    "joint STM": joint_stm,
    "slice network": slice_net,
    "volume network": lambda folder: network(folder, "U-Net3D"),
    "deep supervision": lambda folder: network(folder, "ConvNet2D", 3),
}


def train_all(folder):
    for name, training in TRAININGS.items():
        training(folder / name)


def train_for_a_while(folder):
    stm(folder, iterations=None, minutes=0.02)


def train_long(folder):
    stm(folder, iterations=100_000)


def train_to_nan(folder):
    stm(folder, loss=test_training.Poisoned())


def member(rank, port, work, folder, size):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sys.stderr = open(folder / f"err{rank}", "w", buffering=1)  # noqa: SIM115
    steps, start = [], distributed.ProcessGroup._share_weights

    def counted(self, model):
        steps.append(1)
        (folder / f"steps{rank}").write_text(str(len(steps)))
        start(self, model)

    distributed.ProcessGroup._share_weights = counted
    try:
        with distributed.joined() as team:
            if team.is_main:
                work(folder)
            else:
                team.serve()
    except OasisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Processes:
    """``work(folder)`` led by the first of so many processes."""

    def __init__(self, work, folder, size=2):
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.all = [CONTEXT.Process(target=member, args=(rank, port, work, folder, size), daemon=True) for rank in range(size)]
        for process in self.all:
            process.start()

    def wait(self, seconds=400):
        end = time.monotonic() + seconds
        for process in self.all:
            process.join(max(0, end - time.monotonic()))
            assert process.exitcode is not None, f"still running after {seconds} s"
        return [process.exitcode for process in self.all]

    def errors(self, rank):
        return (self.folder / f"err{rank}").read_text()

    def in_training(self, steps=3):
        """Wait until the second process has begun its third step."""
        end, told = time.monotonic() + 400, self.folder / "steps1"
        while not told.exists() or int(told.read_text() or 0) < steps:
            assert time.monotonic() < end
            assert all(process.is_alive() for process in self.all)
            time.sleep(0.05)


def telling(weights):
    """Weights but for the biases of convolutions: most stand before a normalisation, which takes them out again, so that their
    gradient is rounding error, of which Adam makes steps of its usual size."""
    return {name: value.double() for name, value in weights.items() if not name.endswith("conv.bias")}


def apart(a, b):
    """Norm of the difference over the norm, of the worst tensor. One that began at zero has made a few steps of Adam only, of a
    size that does not depend on the gradient's, so that rounding shows in it: what is smaller than 0.2 counts as 0.2."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).norm()) / max(float(a[k].norm()), 0.2) for k in a)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    processes = Processes(train_all, tmp_path_factory.mktemp("two"))
    assert processes.wait() == [0, 0], processes.errors(0) + processes.errors(1)
    return processes.folder


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_the_weights_of_one(by_two, tmp_path, name):
    TRAININGS[name](tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    (one, meta), (two, meta_two) = load_tensors(path), load_tensors(by_two / name / path.name)
    assert meta_two["step"] == meta["step"] == SHORT.iterations
    assert apart(telling(one), telling(two)) < 1e-4
    for row, row_two in zip(meta["history"], meta_two["history"], strict=True):
        assert row_two == pytest.approx(row | {"seconds": row_two["seconds"]}, rel=1e-4, abs=2e-5)


def test_every_network_but_the_one_of_batch_statistics_was_helped(by_two):
    """Ten trainings, of which one is the first process's alone."""
    assert int((by_two / "steps1").read_text()) == SHORT.iterations * (len(TRAININGS) - 1)


def test_a_budget_in_minutes_ends_every_process_at_one_step(tmp_path):
    processes = Processes(train_for_a_while, tmp_path / "a")
    assert processes.wait() == [0, 0], processes.errors(0) + processes.errors(1)
    meta = load_tensors(tmp_path / "a" / "stm.safetensors")[1]
    assert meta["done"]
    assert 1.2 <= meta["seconds"] < 5
    assert int((tmp_path / "a" / "steps0").read_text()) == int((tmp_path / "a" / "steps1").read_text()) == meta["step"] > 1


def test_training_goes_on_from_a_checkpoint(by_two, tmp_path):
    """What one process began two may end."""
    with pytest.MonkeyPatch.context() as patch:
        test_training.die_before(patch, 4)
        with pytest.raises(test_training.Killed):
            stm(tmp_path / "a")
    processes = Processes(stm, tmp_path / "a")
    assert processes.wait() == [0, 0], processes.errors(0) + processes.errors(1)
    assert int((tmp_path / "a" / "steps1").read_text()) == 2
    one, two = (load_tensors(folder / "stm.safetensors")[0] for folder in (tmp_path / "a", by_two / "STM"))
    assert apart(telling(one), telling(two)) < 1e-4


def test_what_ends_the_first_process_ends_all(tmp_path):
    processes = Processes(train_to_nan, tmp_path / "a")
    assert processes.wait() == [2, 0]
    assert "training diverged at step" in processes.errors(0)
    assert processes.errors(1) == ""
    assert load_tensors(tmp_path / "a" / "stm.safetensors")[1]["step"] == 2  # the last good checkpoint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_the_others_end_with_one_line(tmp_path, victim):
    processes = Processes(train_long, tmp_path / "a", size=3)
    processes.in_training()
    os.kill(processes.all[victim].pid, signal.SIGKILL)
    codes = processes.wait(200)
    assert codes == [-signal.SIGKILL if rank == victim else 2 for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        (line,) = processes.errors(rank).splitlines()
        assert line.startswith(f"error: torchrun: process {rank} stops because another of the 3 processes has ended")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_leader_that_waits_for_a_stopped_process_can_be_terminated(tmp_path):
    processes = Processes(train_long, tmp_path / "a")
    processes.in_training()
    leader, helper = processes.all
    os.kill(helper.pid, signal.SIGSTOP)
    try:
        time.sleep(2)  # by now the leader waits for it
        os.kill(leader.pid, signal.SIGTERM)
        leader.join(60)
        assert leader.exitcode == 128 + signal.SIGTERM
        assert processes.errors(0).splitlines() == [distributed.TERMINATED]
    finally:
        os.kill(helper.pid, signal.SIGKILL)


def test_rows_are_dealt_once():
    for size in (1, 2, 3, 5):
        for batch in range(1, 8):
            dealt = [distributed.ProcessGroup(rank, size).own_rows(batch) for rank in range(size)]
            assert [row for own in dealt for row in range(batch)[own]] == list(range(batch))
    assert distributed.SingleProcess().own_rows(3) == slice(0, 3)


def test_a_gpu_by_name_is_refused(config, monkeypatch):
    from oasis_monai.tasks import run_task

    monkeypatch.setattr(distributed, "_team", distributed.ProcessGroup(0, 2))
    with pytest.raises(ConfigError, match=r"^device: expected cuda or auto under torchrun .*, found 'cuda:1'; set device=cuda$"):
        run_task(config({"device": "cuda:1"}) | {"task": "crossval"}, Path(), None)


def test_torchrun_with_the_command_line(config, tmp_path):
    words = overrides(config({"k": 2, "fold": 0, "n": 1, "methods": ["FWAL"]}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]  # what the script `torchrun` is
    done = subprocess.run(
        [*torchrun, "-m", "oasis_monai", *words, "cache=two-cache", "hydra.run.dir=two"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1  # one process speaks
    alone = run(*words, "cache=one-cache", "hydra.run.dir=one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    one, two = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=0.1)  # rounding moves single voxels, and a distance by one of them
    weights = [load_tensors(next((tmp_path / f"{n}-cache").glob("models/*/stm.safetensors")))[0] for n in ("one", "two")]
    # in bfloat16, in which volumes are registered on CPUs made for it, a sum of two parts is not the whole to 1e-4
    assert apart(*map(telling, weights)) < (2e-2 if has_fast_bfloat16() else 1e-4)


def test_side_by_side_and_together_is_too_much(config, monkeypatch):
    from oasis_monai.tasks import run_task

    monkeypatch.setattr(distributed, "_team", distributed.ProcessGroup(0, 2))
    with pytest.raises(ConfigError, match=r"^workers: expected 1 under torchrun"):
        run_task(config({"workers": 2}) | {"task": "crossval"}, Path(), None)
    with pytest.raises(
        ConfigError, match=r"^task: expected crossval or train under torchrun, found 'study'; run it without torchrun"
    ):
        run_task(config() | {"task": "study", "study": {"arms": {"a": {}}}}, Path(), None)
