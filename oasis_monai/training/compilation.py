"""Compile a network for its training, where that can be done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from oasis_monai.training.calibration import taken_back

BACKEND = "inductor"
"""Of ``torch.compile``."""


def compile_network(
    model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device, trial: Callable[[Any], object], name: str
) -> Any:
    """A network as ``torch.compile`` makes it: of fused kernels, on a GPU replayed as CUDA graphs. Its weights are those of
    ``model``, which stays as it was.

    Args:
        trial: makes a training step with a compiled network. Its backward pass is compiled there too, so only then it is known
            whether all can be.
        name: what messages call it.

    Returns:
        None where it cannot be compiled; a note on stderr says why.
    """
    from tqdm import tqdm

    how: dict[str, Any] = {"mode": "reduce-overhead"} if device.type != "cpu" and BACKEND == "inductor" else {}
    try:
        with taken_back(model, optimiser):
            made = torch.compile(model, backend=BACKEND, dynamic=False, **how)
            trial(made)
    except Exception as error:  # of torch, of the compiler that it calls, or of a GPU's driver
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        tqdm.write(f"note: {name}: trained without compiling ({reason})", file=sys.stderr)
        return None
    return made
