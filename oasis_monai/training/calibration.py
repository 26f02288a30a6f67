"""Convert a budget in minutes into steps of a GPU, by timing some.

Steps of a GPU run while the host prepares the next ones. To know the time after each, the host would have to wait for it, and the
GPU would idle; and the minutes of two trainings on one GPU would be fewer steps for both. So steps are timed once, at the start,
and the training has a number of steps from then on. It is kept with the checkpoint: a resumed training has the same.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

WARM_UP, TIMED = 10, 20
"""Steps that are made before, and while, the time is taken: a GPU's first steps choose kernels and fill its memory."""


def steps_within(
    seconds: float, step: Callable[[int], object], model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> int:
    """How many steps take so many seconds, 1 or more, those of this measurement included. Model and optimiser stay as they were.

    Args:
        step: makes the step of a number.
        device: a GPU.
    """
    with taken_back(model, optimiser):
        began = time.monotonic()
        for number in range(WARM_UP):
            step(number)
        torch.cuda.synchronize(device)
        warm = time.monotonic()
        for number in range(TIMED):
            step(number)
        torch.cuda.synchronize(device)
        done = time.monotonic()
    return max(1, int((seconds - (done - began)) / max((done - warm) / TIMED, 1e-9)))


@contextlib.contextmanager
def taken_back(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Put weights and moments back to what they were before."""
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(weights)
        optimiser.load_state_dict(moments)
