"""Growth is summed up rightly, and the measurement of libraries writes what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import memory_growth

ROOT = Path(__file__).resolve().parents[2]


def test_the_exponent_of_a_power_law():
    assert memory_growth.exponent([(1, 9.0), (2, 3 * 2**1.5), (8, 3 * 8**1.5)]) == pytest.approx(1.5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_benchmark_over_library_sizes_writes_its_numbers_and_a_plot(tmp_path):
    words = ["--max", "100", "--targets", "1", "--output", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling.library_size", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, row = (tmp_path / "out" / "library_size.csv").read_text().splitlines()
    values = dict(zip(head.split(","), map(float, row.split(",")), strict=True))
    assert values["slices"] == 100
    assert values["file_mb"] == pytest.approx(100 * (3 * 96 * 96 + 4000 + 8) / 2**20, rel=0.02)
    assert values["segment_s"] > values["select_s"] > 0
    assert (tmp_path / "out" / "library_size.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["out"]  # no library is left
