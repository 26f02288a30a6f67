"""The training loop on a (pretend) GPU: it looks at the losses every 50 steps, and minutes become a number of steps."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oasis_monai.training import calibration, compilation
from oasis_monai.training import trainer as fitting
from oasis_monai.training.trainer import Trainer, TrainingSettings, fit, generator
from oasis_monai.utils.errors import OasisError
from oasis_monai.utils.tensor_files import load_tensors
from tests.helpers.pretend_device import pretend_device

LONG = TrainingSettings(iterations=120, minutes=None, lr=0.1, checkpoint_minutes=1e6)


class Line(Trainer):
    """Fits a line; step ``bad`` has no finite loss, and step ``killed`` is never made."""

    terms = ("loss", "again")

    def __init__(self, device, settings=LONG, bad=None, killed=None):
        torch.manual_seed(0)
        self.model, self.settings = nn.Linear(2, 1).to(device), settings
        self.bad, self.killed, self.made = bad, killed, 0
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)
        self.device = torch.device(device)
        self.hold()

    def hold(self):
        self.x = torch.rand(8, 2, generator=generator(0, 0)).to(self.device)

    def step(self, number):
        if number == self.killed:
            raise KeyboardInterrupt
        self.made += 1
        loss = (self.team.forward(self.runs, self.x) - self.x.sum(1, keepdim=True)).square().mean()
        loss = loss * (math.inf if number == self.bad else 1)
        self.descend(loss)
        return torch.stack([loss.detach(), loss.detach() + number])


def fitted(device, path=None, **more):
    trainer = Line(device, **more)
    fit(trainer, path, progress=False)
    return trainer, {name: value.cpu() for name, value in trainer.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def rows_of(folder):
    with open(folder / "history.csv") as stream:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(stream)]


def test_the_host_waits_every_50_steps_and_history_and_weights_are_those_of_the_cpu(tmp_path):
    _, wanted = fitted("cpu", tmp_path / "cpu" / "network.safetensors")
    with pretend_device() as record:
        trainer = Line("cuda")
        record.reset()
        fit(trainer, None, progress=False)
        # at steps 50, 100 and 120, and one look at the weights at the end
        assert len(record.syncs) == 4, record.syncs
        assert record.sent_bytes == 0
        _, found = fitted("cuda", tmp_path / "gpu" / "network.safetensors")
    assert same(wanted, found)
    assert rows_of(tmp_path / "cpu") == rows_of(tmp_path / "gpu")
    cpu, gpu = (load_tensors(tmp_path / kind / "network.safetensors")[1] for kind in ("cpu", "gpu"))
    assert cpu.keys() == gpu.keys()  # nothing new in the files of a CPU, nor of a budget in steps


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    with pretend_device(), pytest.raises(OasisError, match=r"network: training diverged at step 57 \(losses \[inf"):
        fitted("cuda", bad=57)
    with pytest.raises(OasisError, match=r"network: training diverged at step 57 \(losses \[inf"):
        fitted("cpu", bad=57)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step takes 0.1 s, and one of the first ten 1 s: function of the trainer that steps."""
    seen = []
    monkeypatch.setattr(
        calibration.time, "monotonic", lambda: sum(1.0 if n < calibration.WARM_UP else 0.1 for n in range(seen[0].made))
    )
    return seen.append


def test_minutes_are_steps_and_these_steps_train_the_same_weights(tmp_path, clock):
    with pretend_device():
        trainer = Line("cuda", replace(LONG, iterations=None, minutes=0.4))
        clock(trainer)
        fit(trainer, tmp_path / "network.safetensors", progress=False)
        # 24 s less the 12 s of the measurement, 0.1 s a step
        measured, meant = calibration.WARM_UP + calibration.TIMED, 120
        assert trainer.made == measured + meant
        assert load_tensors(tmp_path / "network.safetensors")[1]["iterations"] == meant
        _, wanted = fitted("cuda", settings=LONG)
        assert same(wanted, {name: value.cpu() for name, value in trainer.model.state_dict().items()})


def test_a_resumed_training_is_not_measured_again(tmp_path, clock, monkeypatch):
    settings = replace(LONG, iterations=None, minutes=0.4, checkpoint_minutes=1e-9)
    with pretend_device():
        killed = Line("cuda", settings)
        clock(killed)
        monkeypatch.setattr(killed, "step", dying_at(70, killed))
        with pytest.raises(KeyboardInterrupt):
            fit(killed, tmp_path / "network.safetensors", progress=False)
        resumed, found = fitted("cuda", tmp_path / "network.safetensors", settings=settings)
        assert resumed.made == 120 - 50  # from the last look
        _, wanted = fitted("cuda", settings=LONG)
    assert same(wanted, found)


def dying_at(number, trainer):
    """Its step, but the one of that number."""
    whole = trainer.step

    def step(at):
        if at == number:
            raise KeyboardInterrupt
        return whole(at)

    return step


def test_a_budget_below_the_measurement_is_one_step(clock):
    with pretend_device():
        trainer = Line("cuda", replace(LONG, iterations=None, minutes=1e-3))
        clock(trainer)
        fit(trainer, None, progress=False)
        assert trainer.made == calibration.WARM_UP + calibration.TIMED + 1


def test_a_cpu_looks_at_every_step(monkeypatch):
    monkeypatch.setattr(fitting, "CHECK_EVERY", 10**9)
    with pytest.raises(OasisError, match="step 3 "):
        fitted("cpu", bad=3)


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_weights(monkeypatch, capsys):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", counted)
    trainer, found = fitted("cpu", settings=replace(LONG, compile=True, iterations=5))
    assert len(graphs) == 1
    assert trainer.made == 1 + 5  # the trial is taken back
    assert same(fitted("cpu", settings=replace(LONG, iterations=5))[1], found)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_where_a_network_cannot_be_compiled_it_is_trained_as_it_is(monkeypatch, capsys):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compilation, "BACKEND", fails)
    trainer, found = fitted("cpu", settings=replace(LONG, compile=True, iterations=5))
    assert trainer.compiled is None
    assert same(fitted("cpu", settings=replace(LONG, iterations=5))[1], found)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("note: network: trained without compiling (")
    assert "no compiler here" in line
