"""Measure how time and memory grow with the number of atlases, the image size and the number of scans.

    python -m benchmarks.scaling.memory_growth [--threads 2] [--output docs/results/speed]

Runs an untrained STM on random images, because the content does not change the time. Each point is measured in a process of its
own. Writes ``growth.csv`` and ``growth.png``. For the size of the library see :mod:`benchmarks.scaling.library_size`, for scans
as they are stored and many labels :mod:`benchmarks.scaling.image_size`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.speed.data import GRIDS
from benchmarks.speed.timing import memory_mb, seconds

NS = (1, 2, 4, 8, 16, 32)
SIDES = (48, 64, 80, 96, 128)  # in plane; 32 slices
SCANS = (1, 2, 4, 8)
AXES = {"n": "atlases", "side": "voxels along x and y (32 slices)", "scans": "scans in a row"}
START = {"n": 6, "side": 80, "scans": 1}  # the values of the others while one grows


def point(n: int, side: int, scans: int) -> dict[str, float]:
    """Seconds and memory of selection, alignment, LOA weights (from a table that is already there) and fusion."""
    import torch

    from oasis_monai.atlases.library import AtlasLibrary
    from oasis_monai.data.types import Geometry, Preprocessed
    from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
    from oasis_monai.segmentation.alignment import Aligner
    from oasis_monai.segmentation.loa import LoaTable
    from oasis_monai.segmentation.segmenter import Segmenter

    torch.set_flush_denormal(True)
    size, count = (side, side, 32), max(NS)
    images = torch.rand(count, 1, *size)
    labels = torch.zeros(count, 1, *size, dtype=torch.uint8)
    labels[..., side // 4 : -side // 4, side // 4 : -side // 4, 8:-8] = 1
    names = tuple(f"a{i}" for i in range(count))
    library = AtlasLibrary(images, labels, torch.rand(count, 1000), names, torch.full((count,), -1), 2)
    aligner = Aligner(SpatialTransformModel(size, RegistrationSettings(**GRIDS[3]["registration"])), batch=8)
    grid = Geometry(size, torch.eye(4, dtype=torch.float64).numpy())
    target, features = Preprocessed("t", torch.rand(1, *size), None, grid, grid), torch.rand(1, 1000)
    loa = LoaTable(library, aligner)
    segmenter = Segmenter(library, aligner, loa)
    # a table with random values: computing it would leave free memory behind, which the run would then use unseen
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    loa.learn({"pairs": pairs, "values": torch.rand(len(pairs))})
    before = memory_mb().now

    def run() -> None:
        for _ in range(scans):
            segmenter(target, features, ("OASIS",), (n,))

    spent = seconds(run, 3)
    return {"seconds": spent.median, "seconds_min": spent.low, "seconds_max": spent.high, "working_mb": memory_mb().peak - before}


def exponent(values: list[tuple[float, float]]) -> float:
    """The exponent p of y ~ x^p between the last two points; 1 means linear growth."""
    (x0, y0), (x1, y1) = values[-2:]
    return math.log(max(y1, 1e-9) / max(y0, 1e-9)) / math.log(x1 / x0)


def growth_parser(module: str, description: str | None, output: str) -> argparse.ArgumentParser:
    """The options of a command that measures growth."""
    parser = command_parser(module, description)
    parser.add_argument("--threads", type=int, default=2, help="threads of the computation")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder for the results")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    return growth_parser("benchmarks.scaling.memory_growth", __doc__, "docs/results/speed")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.point:
        print(json.dumps(point(**json.loads(options.point))))
        return
    rows = measured("benchmarks.scaling.memory_growth", {"n": NS, "side": SIDES, "scans": SCANS}, START, options.threads)
    write(rows, options.output, "growth", AXES)


def measured(module: str, values: Mapping[str, Sequence[int]], start: Mapping[str, int], threads: int) -> list[dict[str, Any]]:
    """The ``--point`` of a module at every value of each axis, the others at their ``start``; each in a process of its own."""
    rows: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    for axis, along in values.items():
        for value in along:
            words = [sys.executable, "-m", module, "--point", json.dumps({**start, axis: value})]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: {axis} = {value}: {done.stderr}")
            rows.append({"axis": axis, "value": value, **json.loads(done.stdout)})
            print(f"{axis} = {value}: {rows[-1]['seconds']:.3f} s, {rows[-1]['working_mb']:.0f} MB", flush=True)
    return rows


def write(rows: list[dict[str, Any]], folder: Path, name: str, axes: Mapping[str, str], logarithmic: Sequence[str] = ()) -> None:
    """Write ``NAME.csv`` and ``NAME.png``: seconds and memory over every axis.

    Args:
        axes: each one in words.
        logarithmic: those that are drawn with logarithmic scales.
    """
    from matplotlib.figure import Figure

    from oasis_monai.evaluation.figures import write_figure
    from oasis_monai.utils.files import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(folder / f"{name}.csv", text.getvalue())
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    drawn = {axis: words for axis, words in axes.items() if any(row["axis"] == axis for row in rows)}
    panels = figure.subplots(2, len(drawn), squeeze=False)
    for column, (axis, words) in enumerate(drawn.items()):
        own = [row for row in rows if row["axis"] == axis]
        for line, (key, unit) in enumerate((("seconds", "seconds"), ("working_mb", "MB above idle"))):
            points = [(float(row["value"]), float(row[key])) for row in own]
            panels[line, column].plot(*zip(*points, strict=True), marker="o")
            if len(points) > 1:
                panels[line, column].set_title(f"at the end like x^{exponent(points):.1f}", fontsize=9)
            if axis in logarithmic:
                panels[line, column].set_xscale("log")
                panels[line, column].set_yscale("log")
            else:
                panels[line, column].set_ylim(0, 1.08 * max(y for _, y in points))
            panels[line, column].set_xlabel(words)
            panels[line, column].set_ylabel(unit)
    write_figure(folder / f"{name}.png", figure)


if __name__ == "__main__":
    main()
