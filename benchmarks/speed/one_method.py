"""Measure one method in a process of its own, so that memory and the OpenMP library belong to this method alone.

    python -m benchmarks.speed.one_method FOLDER MODEL 1.0 METHOD OUTPUT

:mod:`benchmarks.speed.run` starts it. FOLDER is the folder of a saved :class:`.World`, MODEL a model folder or "", the
number the minutes of training and OUTPUT a JSON file. With ``train:NAME`` as METHOD it trains a network instead of measuring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import command_parser
from benchmarks.speed.data import World
from benchmarks.speed.methods import ENTRIES, Aligned, Method
from benchmarks.speed.timing import memory_mb, spread, timed


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks; 1 if both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def run_pairs(world: World, method: Method) -> dict[str, Any]:
    """Align every pair, one batch at a time. The seconds of a batch are divided by its pairs."""
    assert method.align is not None
    align, count = method.align, len(world.fixed)
    batches = [np.arange(first, first + method.batch) % count for first in range(0, count, method.batch)]
    arrays = (world.fixed, world.moving, world.moving_label)
    align(*(a[batches[0]] for a in arrays))
    times: list[float] = []
    results: dict[int, Aligned] = {}
    for repeat in range(method.repeats):
        for rows in batches:
            parts = [a[rows] for a in arrays]
            made, spent = timed(lambda parts=parts: align(*parts))  # type: ignore[misc]
            times.append(spent / len(rows))
            if repeat == 0:
                results |= dict(zip(rows.tolist(), made, strict=True))
    peak = memory_mb().peak
    scores = [dice(made.label >= 0.5, world.fixed_label[i] > 0) for i, made in results.items()]
    fields = [field for made in results.values() if (field := made.field()) is not None]
    return {"times": times, "scores": scores, "fields": fields, "peak_mb": peak}


def run_cases(world: World, method: Method) -> dict[str, Any]:
    """Segment every case. Methods with a single repeat are slow and get no warm-up run."""
    assert method.segment is not None
    if method.repeats > 1:
        method.segment(0)
    times, scores = [], []
    for repeat in range(method.repeats):
        for number in range(len(world.targets)):
            label, spent = timed(lambda number=number: method.segment(number))  # type: ignore[misc]
            times.append(spent)
            if repeat == 0:
                scores.append(dice(label > 0, world.target_labels[number] > 0))
    return {"times": times, "scores": scores, "fields": [], "peak_mb": memory_mb().peak}


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.speed.one_method", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("minutes", type=float)
    parser.add_argument("method")
    parser.add_argument("output", type=Path)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    folder, given, minutes, name, output = options.folder, options.model, options.minutes, options.method, options.output
    world = World.load(folder)
    # `ours` and `peers` are imported late: a process loads only the libraries of the method it measures
    if name.startswith("train:"):
        from benchmarks.speed import ours

        ours.train(world, name.removeprefix("train:"), minutes, folder)
        return
    entry = ENTRIES[name]
    if entry.network:
        from benchmarks.speed import ours

        method = ours.make(world, entry, folder, Path(given) if given else None, minutes)
    else:
        from benchmarks.speed import peers

        method = peers.MAKERS[name](world)
    before = memory_mb().now
    found = run_pairs(world, method) if entry.kind == "pair" else run_cases(world, method)
    times = spread(found["times"])
    result = {
        "dims": world.dims,
        "kind": entry.kind,
        "method": name,
        "seconds": times.median,
        "seconds_min": times.low,
        "seconds_max": times.high,
        "runs": len(found["times"]),
        "dsc": 100 * float(np.mean(found["scores"])),
        "dsc_sd": 100 * float(np.std(found["scores"])),
        "folded_percent": None,
        "peak_mb": found["peak_mb"],
        "working_mb": found["peak_mb"] - before,
        "settings": method.settings,
    }
    if found["fields"]:
        np.save(output.with_suffix(".npy"), np.stack(found["fields"]).astype(np.float32))
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
