"""Run one method in a process of its own, so that its memory (and its OpenMP library) is its own.

``one.py FOLDER MODEL MINUTES METHOD OUTPUT``: the world's folder, a model folder that was given or nothing, minutes of training.
With ``train:NAME`` as the method it trains a network instead. Started by speed.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from measure import memory_mb, spread, timed
from methods import Aligned, Method
from registry import ENTRIES
from world import World


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks; 1 where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def run_pairs(world: World, method: Method) -> dict[str, Any]:
    """Every pair of the world, a batch at a time; a batch's seconds are shared by its pairs."""
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
    peak = memory_mb()[1]
    scores = [dice(made.label >= 0.5, world.fixed_label[i] > 0) for i, made in results.items()]
    fields = [field for made in results.values() if (field := made.field()) is not None]
    return {"times": times, "scores": scores, "fields": fields, "peak_mb": peak}


def run_cases(world: World, method: Method) -> dict[str, Any]:
    """Every case of the world. Programs that run for many seconds are not warmed up: their first seconds do not matter."""
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
    return {"times": times, "scores": scores, "fields": [], "peak_mb": memory_mb()[1]}


def main(arguments: list[str]) -> None:
    folder, given, minutes, name, output = Path(arguments[0]), arguments[1], float(arguments[2]), arguments[3], Path(arguments[4])
    world = World.load(folder)
    if name.startswith("train:"):
        import ours

        ours.train(world, name.removeprefix("train:"), minutes, folder)
        return
    entry = ENTRIES[name]
    if entry.network:
        import ours

        method = ours.make(world, entry, folder, Path(given) if given else None, minutes)
    else:
        import peers

        method = peers.MAKERS[name](world)
    before = memory_mb()[0]
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
    main(sys.argv[1:])
