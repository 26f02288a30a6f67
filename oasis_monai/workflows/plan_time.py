"""The time rule of the plan: a volume network that makes enough steps within its part of the training minutes.

The cost of a step is estimated from its voxels, not measured, so that a plan is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from oasis_monai.workflows.plan_choice import GRID, Asked, Choice
from oasis_monai.workflows.plan_grid import plain_settings, takes

LEAST_STEPS = 250
"""Of the volume network. With 20 minutes the tuned sets get 390 (hippocampus) and 2400 (prostate). IBSR18 would get 92 at full
resolution, too few: docs/explanation/plan.md has what was measured."""
SECONDS = {"U-Net3D": 1.2, "DynU-Net3D": 3.7}
"""Of one core, for a step with a million voxels in all images of its batch; measured on grids of 0.15 to 1.2 million voxels. Per
voxel a DynU-Net computes eight times as much, but in bfloat16 and denser layers."""
CHEAPER: tuple[tuple[str, list[int]], ...] = (("DynU-Net3D", [2, 2, 2]), ("U-Net3D", [2, 2, 2]))
"""What comes in the place of a DynU-Net at full resolution. (A U-Net there takes four times as long a step, and learns less.)"""


def steps_within(minutes: float, network: str, size: Sequence[int], stride: Sequence[int], batch: int) -> int:
    """How many steps a volume network makes in so many minutes of one core.

    Examples:
        >>> steps_within(7, "DynU-Net3D", (80, 96, 80), (1, 1, 1), 2)
        92
        >>> steps_within(7, "U-Net3D", (96, 96, 32), (2, 2, 1), 2)
        2373
    """
    millions = batch * math.prod(n / by for n, by in zip(size, stride, strict=True)) / 1e6
    return int(60 * minutes / (SECONDS[network] * millions))


def affordable(
    networks: Mapping[str, Mapping[str, Any]], asked: Asked, grid: Choice
) -> tuple[Mapping[str, Mapping[str, Any]], str]:
    """The networks with a volume network that makes :data:`LEAST_STEPS`, and what is to be said of it.

    They stay as they are where the user has chosen the volume network, where no minutes limit the training, and on a named GPU,
    which is faster by far. If none makes as many steps, the one with most of them is taken.
    """
    joint, minutes = networks["joint"], asked.value("training.minutes")
    given = any(asked.value(f"joint.{key}") is not None for key in ("volume_network", "volume_stride"))
    on_gpu = str(asked.config.get("device") or "").startswith("cuda")
    if asked.dims == 2 or given or minutes is None or on_gpu or asked.value("registration.joint") is False:
        return networks, ""
    budget = asked.value("joint.volume_budget")
    minutes = float(minutes) * (joint["volume_budget"] if budget is None else budget)
    if not minutes > 0:
        return networks, ""
    size, spacing = grid.values[GRID[0]], grid.values[GRID[1]]
    batch = asked.value("training.batch") or 2
    first = (joint["volume_network"], list(joint["volume_stride"]))
    best, most = dict(networks), -1
    for name, stride in (first, *(CHEAPER if first[1] == [1, 1, 1] else ())):
        tried = {**networks, "joint": {**joint, "volume_network": name, "volume_stride": stride}}
        steps = steps_within(minutes, name, size, stride, batch)
        if steps > most and ((name, stride) == first or takes(plain_settings(asked, tried), size, spacing)):
            best, most = tried, steps
        if most >= LEAST_STEPS:
            break
    changed = (best["joint"]["volume_network"], best["joint"]["volume_stride"]) != first
    fewer = steps_within(minutes, first[0], size, first[1], batch)
    told = f"about {_rounded(most)} steps in its {minutes:.3g} min"
    told += f" (a {first[0]} at full resolution: {_rounded(fewer)})" if changed else ""
    return best, told


def _rounded(steps: int) -> str:
    """Two digits of it: an estimate has no more."""
    return f"{int(float(f'{steps:.2g}')):,}"
