"""Seconds of stages, and operations and bytes, are counted once and where they belong."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.profiling import device_counts, roofline, stages
from oasis_monai.workflows.train import train_model
from tests.conftest import JOINT

ROOT = Path(__file__).resolve().parents[2]


def test_a_stage_within_another_counts_for_itself_alone(clock):
    class Program:
        def outer(self):
            clock(2)
            self.inner()
            clock(1)

        def inner(self):
            clock(5)

        @classmethod
        def made(cls):
            clock(7)
            return cls()

    found = stages.Stages()
    for name in ("outer", "inner", "made"):
        found.wrap(Program, name, name)
    program = Program.made()
    clock(100)  # between stages
    program.outer()
    assert found.spent == {"made": (7, 14), "outer": (3, 6), "inner": (5, 10)}
    assert "| inner | 2.500 | 5.000 | 33 % |" in stages.text(found.spent, runs=2)


def test_operations_and_bytes_of_a_product():
    a, b = torch.rand(8, 16), torch.rand(16, 4)
    flops, moved = roofline.count(lambda: (a @ b).t())
    assert flops == 2 * 8 * 16 * 4
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4)  # the transposition is a view


def test_the_profile_sees_every_stage_of_a_segmentation_and_every_part_of_a_training_step(settings, phantom, tmp_path):
    train_model(settings(JOINT, {"methods": ["OASIS-joint"], "n": 2}), tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--input", str(phantom / "Case01.mhd"), "--data", str(phantom), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profiling.segment", *words, "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = (tmp_path / "profile.md").read_text().split("## ")[1:]
    found = {part.splitlines()[0]: [line.split(" | ")[0][2:] for line in part.splitlines()[4:] if line] for part in parts}
    # whatever the program renames, a stage that is no longer met shows here
    whole = ["load model", "read scan", "preprocess", "estimate", "features", "select", "align", "warp, weigh, fuse"]
    whole += ["restore", "write label", "picture"]
    assert set(whole) <= set(found.pop("oasis-monai segment of one scan"))
    assert list(found) == [f"Training step, {name}" for name in ("STM", "slice network", "volume network")]
    assert all({"augment", "forward", "loss", "backward", "optimiser"} <= set(names) for names in found.values())


def test_counts_of_two_versions_stand_side_by_side(tmp_path, capsys):
    size = ["--size", "32", "--depth", "8", "--only", "volume network"]
    device_counts.main([*size, "--output", str(tmp_path / "counts.csv")])
    first = capsys.readouterr().out
    text = (tmp_path / "counts.csv").read_text().splitlines()
    name, kernels, sent, fetched, waits = text[1].split(",")
    assert (name, fetched, waits) == ("volume network", "0", "0")
    assert float(kernels) > 50
    assert 0 < float(sent) < 10
    (tmp_path / "old.csv").write_text(f"{text[0]}\n{name},1000,2000,1,7\n")
    found = {name: dict(zip(device_counts.COLUMNS, map(float, (kernels, sent, fetched, waits)), strict=True))}
    assert device_counts.table(found, {}) == first.rstrip("\n")
    beside = device_counts.table(found, device_counts.read(tmp_path / "old.csv")).splitlines()[-1]
    assert beside.startswith("| volume network | 1,000 → ")
    assert beside.endswith("| 1 → 0 | 7 → 0 |")
