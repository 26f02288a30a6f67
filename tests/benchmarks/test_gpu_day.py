"""The day on the GPU: what is packed comes back, runs where torch and numpy are all there is, and no part stops another."""

import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from benchmarks.gpu_day import checks, folds, pack, run, work
from benchmarks.gpu_day.components import connected
from benchmarks.gpu_day.packed import Packed, read_packed, write_packed
from benchmarks.gpu_day.tables import as_markdown
from benchmarks.gpu_day.trainers import Trainings, trainer_of
from oasis_monai.training.trainer import CHECK_EVERY
from oasis_monai.transforms.components import connected as by_scipy
from oasis_monai.utils.tensor_files import load_tensors
from oasis_monai.workflows.prepare import split_of
from tests.conftest import JOINT, TINY, merged, overrides
from tests.helpers.pretend_device import pretend_device

BLOCKED = ("monai", "nibabel", "itk", "hydra", "pandas", "scipy", "yaml", "safetensors", "lazy_loader", "tqdm", "oasis_monai")


@pytest.mark.parametrize("filled", [0.0, 0.05, 0.3, 1.0])
def test_pieces_without_scipy_are_those_of_scipy(filled):
    mask = np.random.default_rng(1).random((9, 8, 7)) < filled
    (ours, count), (theirs, expected) = connected(mask), by_scipy(mask)
    assert count == expected
    assert np.array_equal(ours, theirs)


def test_a_long_path_is_one_piece():
    mask = np.zeros((9, 9, 1), dtype=bool)
    mask[::2], mask[1::4, -1], mask[3::4, 0] = True, True, True  # there and back, row by row
    assert connected(mask)[1] == 1


@pytest.fixture
def packed(prepared):
    made, dataset = prepared(JOINT, {"k": 2})
    return Packed(made, dataset, split_of(made, dataset))


def test_what_is_packed_comes_back(packed, tmp_path):
    write_packed(tmp_path / "data", packed)
    found = read_packed(tmp_path / "data")
    ours, theirs = packed.dataset.library, found.dataset.library
    assert torch.equal(theirs.images, ours.images.half().float())
    assert torch.equal(theirs.labels, ours.labels)
    assert torch.equal(theirs.features, ours.features)
    assert (theirs.cases, theirs.patients, theirs.classes) == (ours.cases, ours.patients, ours.classes)
    assert found.split.to_json() == packed.split.to_json()
    assert found.settings == packed.settings
    for case, target in found.dataset.targets.items():
        assert target.label is None
        assert np.array_equal(target.geometry.affine, packed.dataset.targets[case].geometry.affine)
        assert torch.equal(target.image, theirs.images[theirs.cases.index(case)])


def test_the_trainers_are_those_that_a_training_runs(packed):
    """The loss of the first step is what the training itself writes down."""
    trainings = Trainings(packed)
    train = trainings.joint()["volume network"]
    context = trainings.context("cpu", iterations=3, minutes=None)
    first = trainer_of(train, context)
    again = trainer_of(train, context)
    assert type(first).__name__ == "SegmentationTrainer"
    assert torch.equal(first.step(0), again.step(0))
    with pytest.raises(AssertionError, match="runs fit"):
        trainer_of(lambda _: torch.nn.Identity(), context)


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
for part in sys.argv[2:]:
    file = Path(sys.argv[1]) / "parts" / f"{part.replace(' ', '_')}.json"
    file.parent.mkdir(exist_ok=True)
    def tell(status, until):
        file.write_text(json.dumps({"status": status, "until": until, "rows": [{"a": 1.0}]}))
    tell("running", time.time() - 14.5 if part == "bfloat16" else time.time() + 60)
    if part == "profile":
        print("the GPU has fallen off the bus", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if part == "bfloat16":
        time.sleep(60)
    if part == "resume":
        tell("failed", 0)
        sys.exit(1)
    tell("done", 0)
"""


class Scripted(run.Day):
    """A day whose second part dies, whose third hangs, and whose fourth ends with an error."""

    def command(self, parts):
        return [sys.executable, "-S", "-c", SCRIPT, str(self.output), *parts]


def test_a_part_that_dies_or_hangs_stops_no_other(tmp_path):
    options = run.parser().parse_args(["--output", str(tmp_path), "--minutes", "0.5"])
    found = Scripted(options).run()
    assert {name: told["status"] for name, told in found.items()} == {
        "step 0": "done",
        "profile": "failed",
        "bfloat16": "over its time",
        "resume": "failed",
        "folds": "done",
    }
    assert "fallen off the bus" in found["profile"]["error"]
    assert json.loads((tmp_path / "results.json").read_text()) == found
    table = (tmp_path / "table.md").read_text()
    assert table.count("| a |") == 5  # what a part had found before it died is kept
    assert "**over its time**" in table


def test_a_day_without_time_ends_at_once(tmp_path):
    options = run.parser().parse_args(["--output", str(tmp_path), "--minutes", "0"])
    assert Scripted(options).run() == {}


def test_an_error_is_kept_and_ends_the_process(tmp_path):
    words = ["--output", str(tmp_path), "--data", str(tmp_path / "absent"), "--device", "cpu", "--parts", "folds", "resume"]
    with pytest.raises(SystemExit):
        work.main([*words, "--end", "0"])
    told = run.read_parts(tmp_path, ["folds", "resume"])
    assert list(told) == ["folds"]
    assert told["folds"]["status"] == "failed"
    assert told["folds"]["error"].startswith("FileNotFoundError")


def test_numbers_in_the_table():
    told = {"status": "done", "rows": [{"a": 0.12345, "b": None}, {"a": 12345.6, "b": True, "c": 3}], "notes": ["So."]}
    lines = as_markdown({"folds": told}).splitlines()
    assert lines[2:8] == ["| a | b | c |", "|---|---|---|", "| 0.123 |  |  |", "| 12346 | yes | 3 |", "", "So."]


def test_a_package_made_for_one_machine_is_refused():
    with pytest.raises(ValueError, match="expected pure Python"):
        list(pack.package_files("scipy"))


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """A Python with torch, numpy and what these require, and nothing else."""
    environment = tmp_path_factory.mktemp("clean")
    venv.create(environment, with_pip=False, symlinks=True)
    links, todo, done = environment / "links", ["torch", "numpy"], set()
    links.mkdir()
    while todo:
        found = distribution(todo.pop())
        if found.name in done:
            continue
        done.add(found.name)
        for name in {PurePosixPath(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (links / name).exists():
                os.symlink(found.locate_file(name), links / name)
        for needed in map(Requirement, found.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                try:
                    todo.append(distribution(needed.name).name)
                except PackageNotFoundError:  # as torch itself is installed here
                    continue
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "links.pth").write_text(f"{links}\n")
    return environment / "bin" / "python"


@pytest.mark.slow
def test_the_day_from_start_to_end(phantom, clean_python, tmp_path):
    quick = {"k": 2, "joint": {"tta_views": 0}, "cache": str(tmp_path / "cache")}
    words = ["experiment=accuracy", f"data.root={phantom}", *overrides(merged(TINY, JOINT, quick))]
    pack.main(["--file", str(tmp_path / "day.pyz"), "--n", "2", *words])
    assert "monai-" in "".join(name for name in zipfile.ZipFile(tmp_path / "day.pyz").namelist() if "LICENSE" in name)
    absent = "; ".join(f"assert importlib.util.find_spec({name!r}) is None" for name in BLOCKED)
    subprocess.run([clean_python, "-c", f"import importlib.util, torch, numpy; {absent}"], check=True, cwd=tmp_path)
    command = [clean_python, tmp_path / "day.pyz", "--device", "cpu", "--output", "found", "--minutes", "5", "--steps", "2"]
    command += ["--fold-seconds", "1", "--networks", "volume network"]
    own = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout + (tmp_path / "found" / "log.txt").read_text()
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {told["status"] for told in found.values()} == {"done"}
    check_day(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "day.pyz", "found"]


def check_day(found):
    """The device is the CPU: it differs from the CPU in nothing, and a training goes on to the bit."""
    steps = found["step 0"]["rows"]
    assert len(steps) == 10
    assert all(value == 0 for row in steps for name, value in row.items() if name.startswith(("losses", "gradients")))
    (timed,) = found["profile"]["rows"]
    assert timed["ms a step"] > 0
    assert "aten::" in next(iter(found["profile"]["texts"].values()))
    (resumed,) = found["resume"]["rows"]
    assert resumed["killed after step"] == 1
    assert resumed["to the bit"]
    assert resumed["two uninterrupted"] == 0
    rows, scores = found["folds"]["rows"], found["folds"]["scores"]
    assert [row["fold"] for row in rows] == [0, 1]
    assert all(row["steps, slice network"] >= 1 for row in rows)
    assert len(scores) == len({one["case"] for one in scores}) == sum(row["cases"] for row in rows)
    assert all(0 <= value <= 1 for one in scores for value in one["dice"].values())
    assert set(scores[0]["dice"]) == {"FwoW 2", "majority 2", "estimate 0", "OASIS-joint 2"}


class Clocked:
    """A part of 100 seconds whose folds need 12 beside what they train."""

    def __init__(self, monkeypatch):
        self.now, self.given, self.notes, self.told = 0.0, [], [], {}
        self.packed = SimpleNamespace(split=SimpleNamespace(folds=[SimpleNamespace(index=i) for i in range(5)]))
        self.options = SimpleNamespace(fold_seconds=40.0)
        self.add, self.note = lambda row: None, self.notes.append
        monkeypatch.setattr(folds.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(folds, "train_and_score_fold", self.fold)

    @property
    def left(self):
        return 100 - self.now

    def fold(self, part, fold, seconds):
        self.now += seconds + 12
        self.given.append(seconds)
        return {}, [{"case": str(fold.index), "dice": {("FwoW", 6): 0.5}}]


def test_folds_share_the_time_that_is_left(monkeypatch):
    part = Clocked(monkeypatch)
    folds.cross_validate(part)
    assert part.now <= 100
    assert len(part.given) == 5
    assert max(part.given[1:]) < 2 * min(part.given)
    assert part.notes[0] == "FwoW, n = 6: mean 50.0 %, lowest case 50.0 %, sd 0.0 (5 cases)."


def test_folds_for_which_no_time_is_left_are_told(monkeypatch):
    part = Clocked(monkeypatch)
    part.now = 70.0
    folds.cross_validate(part)
    assert len(part.given) < 5
    assert part.notes[0] == f"No time was left for: fold {len(part.given)} and those after it."


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("cuda", CHECK_EVERY)])
def test_a_training_is_killed_when_it_has_a_checkpoint(packed, tmp_path, device, kept):
    """On a GPU there is none before the losses are looked at."""

    def kill(trainer, number):
        if number == checks.killing_step(device, 2):
            raise KeyboardInterrupt

    with pretend_device(), pytest.raises(KeyboardInterrupt):
        checks.train_network(packed, "volume network", device, 2, tmp_path, kill)
    (file,) = tmp_path.glob("*.safetensors")
    assert load_tensors(file)[1]["step"] == kept


def test_a_kill_is_told_from_another_end(packed, tmp_path, monkeypatch):
    """A training that was not killed shows nothing about resuming."""
    write_packed(tmp_path / "data", packed)
    words = ["--output", str(tmp_path), "--data", str(tmp_path / "data"), "--device", "cpu", "--parts", "resume", "--end", "9e9"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -signal.SIGTERM))
    with pytest.raises(SystemExit):
        work.main(words)
    assert "expected a training that is killed" in run.read_parts(tmp_path, ["resume"])["resume"]["error"]


def test_the_repository_ignores_the_file():
    root = Path(__file__).resolve().parents[2]
    assert pack.parser().parse_args(["x"]).file.parts[0] == "outputs"
    assert "/outputs/*" in (root / ".gitignore").read_text()
