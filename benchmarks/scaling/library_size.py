"""Measure time and memory with atlas libraries of 100 to 100,000 slices: loading, selection, segmentation.

    python -m benchmarks.scaling.library_size [--max 100000] [--targets 20] [--output docs/results/scale] [--scratch DIR]

Builds a library of each size. A new process then loads it (with checksum), selects 6 atlases for each of 20 target slices,
aligns and fuses them (OASIS, with an untrained STM). Seconds are computing time in one thread, so other processes count little;
waiting for the disk is not included. A slice is synthetic and takes 31 KB: a random image of 96 x 96 voxels (float16), a disc
as label, 1000 random features. The largest library takes 3 GB of disk, and 3 GB of memory while it is built. Writes
``library_size.csv`` and ``library_size.png``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_parser
from benchmarks.speed.timing import memory_mb
from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.data.types import Geometry, Preprocessed
from oasis_monai.evaluation.figures import write_figure
from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
from oasis_monai.segmentation.alignment import Aligner
from oasis_monai.segmentation.loa import LoaTable
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.utils.files import write_text

SIZES = (100, 316, 1_000, 3_162, 10_000, 31_623, 100_000)
SIDE, FEATURES, PART = 96, 1000, 1000  # made in parts: random images are float32 at first, twice the size
PER_CASE, N = 20, 6
COLUMNS = ("slices", "file_mb", "build_s", "load_s", "select_s", "segment_s", "peak_mb", "own_mb")


def synthetic(count: int) -> AtlasLibrary:
    """A library of ``count`` random slices; 20 slices make a case."""
    axis = torch.arange(SIDE)
    images = torch.empty(count, 1, SIDE, SIDE, dtype=torch.float16)
    labels, features = torch.empty(count, 1, SIDE, SIDE, dtype=torch.uint8), torch.empty(count, FEATURES)
    for start in range(0, count, PART):
        random = torch.Generator().manual_seed(start)
        part = slice(start, min(start + PART, count))
        rows = part.stop - start
        centre = SIDE / 4 + SIDE / 2 * torch.rand(2, rows, 1, 1, generator=random)
        inside = (axis[:, None] - centre[0]).square() + (axis - centre[1]).square() < (SIDE / 6) ** 2
        labels[part] = inside[:, None]
        images[part] = torch.rand(rows, 1, SIDE, SIDE, generator=random).half() + inside[:, None]
        features[part] = torch.randn(rows, FEATURES, generator=random)
    cases = tuple(f"case{row // PER_CASE}" for row in range(count))
    return AtlasLibrary(images, labels, features, cases, torch.arange(count) % PER_CASE, 2)


def measure(path: Path, targets: int) -> dict[str, float]:
    """Use a library for a number of target slices; -> seconds of computing, and the increase of memory in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SpatialTransformModel((SIDE, SIDE), RegistrationSettings(field_stride=(2,), joint=False))
    random = torch.Generator().manual_seed(1)
    geometry = Geometry((SIDE, SIDE, targets), torch.eye(4).numpy())
    target = Preprocessed("target", torch.rand(1, SIDE, SIDE, targets, generator=random), None, geometry, geometry)
    features = torch.randn(targets, FEATURES, generator=random)
    _segment(synthetic(PART // 20), model, target, features)  # costs that come once and do not depend on the library
    before = memory_mb()
    seconds = {}
    started = time.process_time()
    library = AtlasLibrary.load(path)
    seconds["load_s"] = time.process_time() - started
    started = time.process_time()
    Segmenter(library).select(features[:1], N)
    seconds["select_s"] = time.process_time() - started
    started = time.process_time()
    _segment(library, model, target, features)
    seconds["segment_s"] = time.process_time() - started
    after = memory_mb()
    return seconds | {"peak_mb": after.peak - before.peak, "own_mb": after.own - before.own}


def _segment(library: AtlasLibrary, model: SpatialTransformModel, target: Preprocessed, features: torch.Tensor) -> None:
    aligner = Aligner(model)
    Segmenter(library, aligner, LoaTable(library, aligner))(target, features, ("OASIS",), (N,))


def run(sizes: list[int], targets: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield a row with :data:`COLUMNS` for every size. Libraries in ``scratch`` are deleted after use."""
    for count in sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "library.safetensors"
            needed = count * (3 * SIDE**2 + 4 * FEATURES)
            if shutil.disk_usage(folder).free < 1.2 * needed:
                sys.exit(
                    f"error: --scratch: expected {1.2 * needed / 1e9:.1f} GB free, found less in {scratch}; name another folder"
                )
            started = time.process_time()
            synthetic(count).save(path)
            built = time.process_time() - started
            command = [sys.executable, "-m", "benchmarks.scaling.library_size", "--measure", str(path), "--targets", str(targets)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: {count} slices: {done.stderr}")
            row = {"slices": count, "file_mb": path.stat().st_size / 2**20, "build_s": built, **json.loads(done.stdout)}
            yield {key: round(value, 3) for key, value in row.items()}


def plot(rows: list[dict[str, Any]], targets: int, path: Path) -> None:
    """Plot seconds and memory over the number of slices, both logarithmic."""
    from matplotlib.figure import Figure

    slices = [row["slices"] for row in rows]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label in (
        ("load_s", "load, with checksum"),
        ("select_s", f"select {N} for one slice"),
        ("segment_s", f"segment {targets} slices"),
    ):
        left.loglog(slices, [row[key] for row in rows], "o-", label=label)
    left.set_ylabel("seconds of computing, one thread")
    for key, label in (
        ("file_mb", "file"),
        ("peak_mb", "peak in memory, pages of the file counted"),
        ("own_mb", "its own at the end"),
    ):
        right.loglog(slices, [max(row[key], 0.1) for row in rows], "o-", label=label)
    right.set_ylabel("MiB beyond those before loading")
    for axes in (left, right):
        axes.set_xlabel("slices in the library")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    write_figure(path, figure)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.scaling.library_size", __doc__)
    parser.add_argument("--max", type=int, default=SIZES[-1], help="largest library, in slices")
    parser.add_argument("--targets", type=int, default=20, help="slices to segment")
    parser.add_argument("--output", type=Path, default=Path("docs/results/scale"), help="folder for the results")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="folder where libraries are built")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.targets)))
        return
    rows = []
    for row in run([size for size in SIZES if size <= asked.max], asked.targets, asked.scratch):
        print("  ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)
        rows.append(row)
    if not rows:
        sys.exit(f"error: --max: expected {SIZES[0]} or more, found {asked.max}")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(asked.output / "library_size.csv", text.getvalue())
    plot(rows, asked.targets, asked.output / "library_size.png")


if __name__ == "__main__":
    main()
