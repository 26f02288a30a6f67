"""A training step of the slice network against the same with the package's own blocks, in turn, in one run.

``python benchmarks/training_step.py [--threads 1] [--rounds 20]``. The peer is what torch and ``efficientnet_lite_pytorch`` do
by themselves in float32: blocks as they come, AdamW one tensor at a time. All take 12 slices of 96 x 96 with two atlases beside
them, forward, backward and the optimiser's step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.losses import DiceCELoss

from oasis_monai.networks import depthwise as lite_training
from oasis_monai.networks.slice_unet import SliceUNet
from oasis_monai.utils.device import has_fast_bfloat16

SLICES, SIDE, CLASSES, ATLASES = 12, 96, 2, 2


def stepper(ours: bool, half: bool) -> Callable[[], None]:
    """A function that makes one step of a network of its own."""
    torch.manual_seed(0)
    network = SliceUNet(CLASSES, ATLASES).train()
    network.encoder.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True if ours else None)
    loss = DiceCELoss(softmax=True, include_background=False, batch=True)
    image = torch.randn(SLICES, 3 + ATLASES * CLASSES, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    target = torch.zeros(SLICES, CLASSES, SIDE, SIDE)
    target[:, 1, 30:60, 30:60] = 1
    target[:, 0] = 1 - target[:, 1]
    own = lite_training.block

    def step() -> None:
        lite_training.block = own if ours else lambda layers, seen, half=False: layers(seen)
        try:
            output = network(image, half=half)
        finally:
            lite_training.block = own
        network.zero_grad(set_to_none=True)
        loss(output.float(), target).backward()
        optimiser.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {"the package's blocks, float32": stepper(False, False), "ours, float32": stepper(True, False)}
    if has_fast_bfloat16():
        steps["ours, bfloat16 where it is faster (what training does here)"] = stepper(True, True)
    clock = time.thread_time if options.threads == 1 else time.perf_counter  # alone, a thread's own time: others may be busy
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):
        for name, step in steps.items():
            began = clock()
            step()
            if number > 1:  # the first two warm up
                times[name].append(clock() - began)
    peer = times["the package's blocks, float32"]
    for name, taken in times.items():
        ratio = statistics.median(p / t for p, t in zip(peer, taken, strict=True))
        print(f"{name}: {1000 * statistics.median(taken):.0f} ms, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
