"""Compare a training step of the slice network with the same step on unchanged library layers.

    python -m benchmarks.profiling.training_step [--threads 1] [--rounds 20]

The peer uses torch and ``efficientnet_lite_pytorch`` as they are, in float32: their own blocks, and AdamW one tensor at a time.
A step is forward pass, backward pass and optimiser step on 12 slices of 96 x 96 voxels, each with two atlases. The networks
take turns in one process. Prints milliseconds and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import DiceCELoss

from benchmarks.command_line import command_parser
from oasis_monai.networks import depthwise
from oasis_monai.networks.slice_unet import SliceUNet
from oasis_monai.utils.device import has_fast_bfloat16

SLICES, SIDE, CLASSES, ATLASES = 12, 96, 2, 2


def library_block(layers: Any, image: torch.Tensor, bfloat16: bool = False) -> torch.Tensor:
    """A block as ``efficientnet_lite_pytorch`` runs it, in place of :func:`oasis_monai.networks.depthwise.block`."""
    output: torch.Tensor = layers(image)
    return output


def stepper(ours: bool, bfloat16: bool) -> Callable[[], None]:
    """A function that does one training step of a network of its own."""
    torch.manual_seed(0)
    network = SliceUNet(CLASSES, ATLASES).train()
    network.encoder.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True if ours else None)
    loss = DiceCELoss(softmax=True, include_background=False, batch=True)
    image = torch.randn(SLICES, 3 + ATLASES * CLASSES, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    target = torch.zeros(SLICES, CLASSES, SIDE, SIDE)
    target[:, 1, 30:60, 30:60] = 1
    target[:, 0] = 1 - target[:, 1]
    own = depthwise.block

    def step() -> None:
        depthwise.block = own if ours else library_block
        try:
            output = network(image, bfloat16=bfloat16)
        finally:
            depthwise.block = own
        network.zero_grad(set_to_none=True)
        loss(output.float(), target).backward()
        optimiser.step()

    return step


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.profiling.training_step", __doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of the computation")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each network")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = {"the package's blocks, float32": stepper(False, False), "ours, float32": stepper(True, False)}
    if has_fast_bfloat16():
        steps["ours, bfloat16 where it is faster (what training does here)"] = stepper(True, True)
    # one thread: only its own computing time, so that other processes do not count
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):
        for name, step in steps.items():
            began = clock()
            step()
            if number > 1:  # the first two are warm-up
                times[name].append(clock() - began)
    peer = times["the package's blocks, float32"]
    for name, taken in times.items():
        ratio = statistics.median(p / t for p, t in zip(peer, taken, strict=True))
        print(f"{name}: {1000 * statistics.median(taken):.0f} ms, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
