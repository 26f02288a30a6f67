"""Growth is summed up rightly, and the measurement of libraries writes what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import image_size, memory_growth

ROOT = Path(__file__).resolve().parents[2]


def test_the_exponent_of_a_power_law():
    assert memory_growth.exponent([(1, 9.0), (2, 3 * 2**1.5), (8, 3 * 8**1.5)]) == pytest.approx(1.5)


def test_growth_is_written_as_a_table_and_drawn_axis_by_axis(tmp_path):
    rows = [
        {"axis": axis, "value": value, "seconds": 0.1 * value, "working_mb": 2.0 * value} for axis in "ab" for value in (1, 4)
    ]
    rows.append({"axis": "c", "value": 3, "seconds": 1.0, "working_mb": 1.0})  # of a single point nothing grows
    memory_growth.write(rows, tmp_path, "some", {"a": "apples", "b": "books", "c": "cups", "d": "drawers"}, ("b",))
    head, *lines = (tmp_path / "some.csv").read_text().splitlines()
    assert head == "axis,value,seconds,working_mb"
    assert lines[1] == "a,4,0.4,8.0"
    assert len(lines) == 5
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("labels", [1, 5, 20, 100])
def test_as_many_structures_as_are_asked_for_lie_in_every_atlas(labels):
    for row in range(3):
        label = image_size.column_labels(64, labels, row)
        assert label.unique().tolist() == list(range(labels + 1))
        assert label.shape == (1, 64, 64, 64)


def test_a_scan_of_any_size_is_segmented_and_measured(monkeypatch):
    monkeypatch.setattr(image_size, "FINE", (64, 64))
    found = image_size.point(24**3, 3, 2)
    assert found["seconds"] > 0
    assert found["peak_mb"] >= found["working_mb"]


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
