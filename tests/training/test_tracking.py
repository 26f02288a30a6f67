"""Watching a training: what is shown is true, and no weight, no random number and no second of the budget depends on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oasis_monai.data.types import IGNORE
from oasis_monai.networks.slice_unet import JointSettings
from oasis_monai.training import tracking as module
from oasis_monai.training import trainer as trainer_module
from oasis_monai.training.registration import RegistrationTrainer
from oasis_monai.training.slices import SliceTrainer, train_slice_network
from oasis_monai.training.tracking import Tracking, Watch, choose_kind, mean_dice
from oasis_monai.training.trainer import FitContext, TrainingSettings
from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.tensor_files import load_tensors
from tests.training import test_registration as registration
from tests.training import test_segmentation as segmentation
from tests.training.test_registration import Killed, discs, same

SETTINGS = TrainingSettings(iterations=20, minutes=None, lr=5e-3, batch=2, checkpoint_minutes=1e-12)


def watch(folder, images=None, kind="tensorboard"):
    return Watch(Tracking(kind, folder, "net"), lambda: images)


def events(folder):
    """What TensorBoard shows of a training: name -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def history(path):
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return [{name: float(cell) for name, cell in zip(head, row, strict=True) if cell} for row in rows]


def slow_dice(predicted, label, classes, cases):
    """Voxel by voxel."""
    found = []
    for case in sorted(set(cases)):
        for index in range(1, classes):
            both = ours = theirs = 0
            for number, other in enumerate(cases):
                for p, t in zip(predicted[number].flatten().tolist(), label[number].flatten().tolist(), strict=True):
                    if other == case and t != IGNORE:
                        both, ours, theirs = both + (p == index == t), ours + (p == index), theirs + (t == index)
            if theirs:
                found.append(2 * both / (ours + theirs))
    return float(np.mean(found))


def test_dice_is_of_cases_and_structures_without_what_nobody_labelled():
    predicted = torch.randint(0, 4, (5, 6, 7))
    label = torch.randint(0, 4, (5, 6, 7), dtype=torch.uint8)
    label[torch.rand(5, 6, 7) < 0.2] = IGNORE
    label[3][label[3] == 2] = 0  # case c lacks a structure
    cases = ("a", "b", "a", "c", "b")
    assert mean_dice(predicted, label, 4, cases) == pytest.approx(slow_dice(predicted, label, 4, cases))
    assert mean_dice(label[:1].long(), label[:1], 4, ("a",)) == 1
    assert mean_dice(predicted, torch.zeros_like(label), 4, cases) is None


def test_the_kind_is_what_is_installed(monkeypatch):
    assert choose_kind("auto") == "tensorboard"
    assert choose_kind("mlflow") == "mlflow"
    monkeypatch.setattr(module, "installed", lambda package: False)
    assert choose_kind("auto") == choose_kind("none") == "none"
    with pytest.raises(ConfigError, match=r"^tracking: .*mlflow, which is not.*pip install 'oasis-monai\[mlflow\]'"):
        choose_kind("mlflow")


def one(kind, folder, watched=None):
    if kind == "segmentation":
        return segmentation.train(folder, settings=SETTINGS, watch=watched)
    if kind == "registration":
        return registration.train(folder, SETTINGS, watch=watched)
    joint = JointSettings(slices_per_step=2, decoder=(8, 8, 8, 8), pretrained=False)
    library = segmentation.rods(3)
    few = replace(SETTINGS, iterations=8)
    return train_slice_network(FitContext(library, (1.0, 1.0, 1.0), few, 1, folder, progress=False, watch=watched), joint)


@pytest.mark.parametrize("kind", ["segmentation", "registration", "slices"])
def test_weights_and_random_numbers_are_the_same_to_the_bit(tmp_path, kind):
    plain = one(kind, tmp_path / "plain")
    before = torch.get_rng_state()
    images = segmentation.rods(3) if kind == "slices" else discs()
    watched = one(kind, tmp_path / "watched", watch(tmp_path / "events", images))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(watched, plain)
    (own,) = (tmp_path / "watched").glob("history.csv")
    with_dice, without = history(own), history(tmp_path / "plain" / "history.csv")
    known = [row.pop("validation_dice") for row in with_dice if "validation_dice" in row]
    assert [r | {"seconds": 0} for r in with_dice] == [r | {"seconds": 0} for r in without]
    assert len(known) == (4 if kind == "slices" else 20)  # a slice network has half of 8 steps
    assert all(0 <= value <= 1 for value in known)
    assert events(tmp_path / "events" / "net")["validation_dice"][-1][1] == pytest.approx(known[-1], abs=1e-6)
    assert "validation_dice" not in (tmp_path / "plain" / "history.csv").read_text()


def test_the_last_dice_is_that_of_the_finished_network(tmp_path):
    images = discs(cases=6)
    network = segmentation.train(tmp_path / "a", settings=SETTINGS, watch=watch(tmp_path / "events", images))
    with torch.no_grad():
        predicted = network(images.images.float()).argmax(1)
    expected = slow_dice(predicted, images.labels[:, 0], images.classes, images.cases)
    assert events(tmp_path / "events" / "net")["validation_dice"][-1] == (20, pytest.approx(expected, abs=1e-5))


def test_slices_are_shown_as_the_network_sees_them():
    library = segmentation.rods(3)
    joint = JointSettings(slices_per_step=2, decoder=(8, 8, 8, 8), pretrained=False)
    context = FitContext(library, (1.0, 1.0, 1.0), replace(SETTINGS, augment=False), 1, None)
    from oasis_monai.networks.slice_unet import SliceUNet, with_neighbours

    model = SliceUNet(library.classes, 0, joint.decoder, False).eval()
    trainer = SliceTrainer(context, model, joint)
    with torch.no_grad():
        found = trainer.validate(library)
        predicted = torch.stack([model(with_neighbours(image).float()).argmax(1) for image in library.images])
    label = library.labels[:, 0].movedim(-1, 1)
    near = (label > 0).flatten(2).any(2)
    assert near.all(), "of these scans every slice shows the structure"
    assert found == pytest.approx(slow_dice(predicted, label, library.classes, library.cases))


def test_a_killed_training_goes_on_where_its_checkpoint_was(tmp_path, monkeypatch):
    """The record has no step twice, none of those that were lost, and is what the history has."""
    from tensorboard.summary.writer import event_file_writer as writer

    # TensorBoard reads files in the order of their names: seconds, then a counter of the process, of which 10 comes before 9
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))
    rare = replace(SETTINGS, checkpoint_minutes=1e9)
    for death, settings in ((8, SETTINGS), (15, rare)):  # the second is lost: its steps are made and recorded once more
        with pytest.MonkeyPatch.context() as patch:
            segmentation.steps_of(patch, death)
            with pytest.raises(Killed):
                segmentation.train(tmp_path / "a", settings=settings, watch=watch(tmp_path / "events", discs()))
    assert load_tensors(tmp_path / "a" / "network.safetensors")[1]["step"] == 8
    segmentation.train(tmp_path / "a", settings=SETTINGS, watch=watch(tmp_path / "events", discs()))
    shown, kept = events(tmp_path / "events" / "net"), history(tmp_path / "a" / "history.csv")
    assert [step for step, _ in shown["loss"]] == [row["step"] for row in kept] == list(range(1, 21))
    assert [value for _, value in shown["loss"]] == pytest.approx([row["loss"] for row in kept], abs=1e-5)
    whole = watch(tmp_path / "whole events", discs())
    segmentation.train(tmp_path / "whole", settings=SETTINGS, watch=whole)
    assert events(tmp_path / "whole events" / "net")["validation_dice"] == shown["validation_dice"]


def test_what_is_shown_takes_nothing_from_the_budget(tmp_path, monkeypatch):
    """On a clock by which a step takes a second and a look a hundred."""
    now = [0.0]
    step = RegistrationTrainer.step

    def timed(self, number):
        now[0] += 1
        return step(self, number)

    def validate(self, images):
        now[0] += 100
        return 0.5

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(thread_time=lambda: now[0]))
    monkeypatch.setattr(RegistrationTrainer, "step", timed)
    monkeypatch.setattr(RegistrationTrainer, "validate", validate)
    settings = replace(SETTINGS, iterations=100, minutes=0.2)
    registration.train(tmp_path / "a", settings, watch=watch(tmp_path / "events", discs()))
    rows = history(tmp_path / "a" / "history.csv")
    assert [row["seconds"] for row in rows] == list(range(1, 13))
    assert now[0] > 1000


def test_a_record_that_fails_does_not_end_a_training(tmp_path, capsys):
    (tmp_path / "events").write_text("a file where a folder should be")
    network = segmentation.train(tmp_path / "a", settings=SETTINGS, watch=watch(tmp_path / "events"))
    assert same(network, segmentation.train(tmp_path / "b", settings=SETTINGS))
    assert "the training goes on, but nothing more is recorded of it" in capsys.readouterr().err


def test_mlflow_has_settings_and_curves_and_a_resumed_training_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes longer to set up
    from mlflow import MlflowClient

    uri = (tmp_path / "store").as_uri()
    tracking = Tracking("mlflow", tmp_path / "run" / "tracking", "net", uri, "prostates", {"k": "5", "training.lr": "0.002"})
    tracking.prepare()
    with pytest.MonkeyPatch.context() as patch:
        segmentation.steps_of(patch, 6)
        with pytest.raises(Killed):
            segmentation.train(tmp_path / "a", settings=SETTINGS, watch=Watch(tracking))
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'prostates'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params == {"k": "5", "training.lr": "0.002"}
    segmentation.train(tmp_path / "a", settings=SETTINGS, watch=Watch(tracking))
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run/net"
    shown = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(m.step for m in shown) == list(range(1, 21))
    kept = {row["step"]: row["loss"] for row in history(tmp_path / "a" / "history.csv")}
    assert {m.step: m.value for m in shown} == pytest.approx(kept, abs=1e-5)


def test_a_store_that_cannot_be_used_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"^tracking: expected an MLflow store .*MLFLOW_TRACKING_URI"):
        Tracking("mlflow", tmp_path, uri="nonsense://x").prepare()
