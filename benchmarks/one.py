"""Run one method in a process of its own, so that its memory is its own: ``one.py WORLD MODELS MINUTES METHOD OUTPUT``.

With ``train:NAME`` as the method it trains a network instead. Started by speed.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import memory_mb, spread, timed
from methods import Aligned, Maker, Method
from world import World


def makers(models: Path, given: Path | None, minutes: float) -> dict[str, tuple[str, Maker]]:
    """Name -> (what it aligns: ``pair`` or ``case``, how to make it)."""
    import ours
    import peers

    trained = "as given" if given else f"trained {minutes:g} min"
    plain, joint = given or models / "plain", given or models / "joint"
    found: dict[str, tuple[str, Maker]] = {
        "OASIS STM": ("pair", ours.stm_pair(plain, 1, f"{trained}, one pair at a time")),
        "OASIS STM, batch of 6": ("pair", ours.stm_pair(plain, 6, trained)),
        "OASIS joint STM, batch of 6": ("pair", ours.stm_pair(joint, 6, f"{trained}; the target's estimate given")),
        "MONAI VoxelMorph": ("pair", ours.shipped_pair("monai", models, minutes)),
        "voxelmorph": ("pair", ours.shipped_pair("voxelmorph", models, minutes)),
        "ANTs SyN": ("pair", peers.ants_pair("SyN", "affine and SyN as shipped (mutual information, 40 + 20 + 0 iterations)")),
        "ANTs SyNQuick": ("pair", peers.ants_pair("antsRegistrationSyNQuick[s]", "as shipped")),
        "elastix": ("pair", peers.elastix),
        "Demons": ("pair", peers.demons),
        "OASIS": ("case", ours.oasis_case(plain, f"{trained}, LOA table made in training")),
        "OASIS-joint": ("case", ours.oasis_case(joint, trained)),
        "ANTs SyN + voting": ("case", peers.ants_voting("SyN", "as the pairs; half or more of the votes")),
        "ANTs SyN + joint label fusion": ("case", peers.ants_joint_label_fusion),
        "platipy": ("case", peers.platipy),
    }
    if given:
        only = "OASIS" if not _is_joint(given) else "OASIS-joint"
        drop = {"OASIS", "OASIS-joint", "OASIS joint STM, batch of 6"} - {only}
        found = {k: v for k, v in found.items() if k not in drop}
    return found


def _is_joint(model: Path) -> bool:
    return bool(json.loads((model / "model.json").read_text(encoding="utf-8"))["settings"]["registration"]["joint"])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks; 1 where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def folded_percent(field: np.ndarray) -> float:
    """Share of voxels whose neighbourhood a field (*S, D) turns inside out."""
    import torch

    from oasis_monai.warp import jacobian_determinant

    ddf = torch.from_numpy(np.ascontiguousarray(np.moveaxis(field, -1, 0), np.float32))[None]
    return 100 * float((jacobian_determinant(ddf) <= 0).float().mean())


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
    return {"times": times, "scores": scores, "folded": [folded_percent(f) for f in fields], "peak_mb": peak}


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
    return {"times": times, "scores": scores, "folded": [], "peak_mb": memory_mb()[1]}


def main(arguments: list[str]) -> None:
    folder, given, minutes, name, output = Path(arguments[0]), arguments[1], float(arguments[2]), arguments[3], Path(arguments[4])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.set_flush_denormal(True)
    world = World.load(folder)
    if name.startswith("train:"):
        import ours

        ours.train(world, name.removeprefix("train:"), minutes, folder)
        return
    kind, make = makers(folder, Path(given) if given else None, minutes)[name]
    method = make(world)
    before = memory_mb()[0]
    found = run_pairs(world, method) if kind == "pair" else run_cases(world, method)
    times = spread(found["times"])
    result = {
        "dims": world.dims,
        "kind": kind,
        "method": name,
        "seconds": times.median,
        "seconds_min": times.low,
        "seconds_max": times.high,
        "runs": len(found["times"]),
        "dsc": 100 * float(np.mean(found["scores"])),
        "dsc_sd": 100 * float(np.std(found["scores"])),
        "folded_percent": float(np.mean(found["folded"])) if found["folded"] else None,
        "peak_mb": found["peak_mb"],
        "working_mb": found["peak_mb"] - before,
        "settings": method.settings,
    }
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
