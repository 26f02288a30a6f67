"""Count operations and bytes of an aligned pair and of a training step, and compare the speed with the machine's peak.

    python -m benchmarks.profiling.roofline [--threads 2] [--output docs/results/speed]

The peak is measured in the same run, by a large matrix product and a large copy. Bytes are those of all tensors that the
operators read and write, as if there were no cache. Prints the table; ``--output`` writes ``floor.md`` as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command_line import command_parser
from benchmarks.speed.data import GRIDS
from benchmarks.speed.timing import seconds

BATCH, STEP_BATCH = 6, 2


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes of the input and output tensors of every operator, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return result


def peaks() -> tuple[float, float]:
    """Peak (operations, bytes) per second: a float32 matrix product of 2048 x 2048, and a copy of 256 MiB (read and written)."""
    side = 2048
    a, b = torch.rand(side, side), torch.rand(side, side)
    source = torch.rand(2**26)
    target = torch.empty_like(source)
    product = seconds(lambda: a @ b, 5).low
    copy = seconds(lambda: target.copy_(source), 5).low
    return 2 * side**3 / product, 2 * source.numel() * 4 / copy


def count(run: Callable[[], object]) -> tuple[int, int]:
    """(operations, bytes) of ``run()``. Counts the multiplications and additions of convolutions and matrix products; there
    are few others."""
    with FlopCounterMode(display=False) as flops:
        run()
    with ByteCounter() as read:
        run()
    return flops.get_total_flops(), read.total


def tasks(dims: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (pairs, run): aligning a batch of pairs, and a training step, on the ``dims``-dimensional grid of the benchmark. In
    3D also a training step of MONAI's VoxelMorph with the same loss, once of our STM's width and once as shipped."""
    from monai.networks.nets import VoxelMorph, VoxelMorphUNet

    from oasis_monai.networks import warp
    from oasis_monai.networks.losses import RegistrationLoss
    from oasis_monai.networks.registration import RegistrationSettings, SpatialTransformModel
    from oasis_monai.segmentation.alignment import Aligner

    grid = GRIDS[dims]
    size = tuple(grid["preprocessing"]["size"])
    model = SpatialTransformModel(size, RegistrationSettings(**grid["registration"]))
    aligner = Aligner(model, batch=BATCH)
    atlas, target = torch.rand(BATCH, 1, *size), torch.rand(BATCH, 1, *size)
    label = (torch.rand(BATCH, 1, *size) > 0.5).float()
    loss = RegistrationLoss()

    @torch.inference_mode()
    def align() -> None:
        field = warp.resize_ddf(aligner.fields(atlas, target).float(), size)
        warp.warp(label, field)

    def step(network: torch.nn.Module) -> Callable[[], None]:
        optimiser, few = torch.optim.Adam(network.parameters()), slice(0, STEP_BATCH)

        def run() -> None:
            found = network(atlas[few], target[few])
            field = found[1] if isinstance(found, tuple) else found
            moved, moved_label = warp.warp_pair(atlas[few], label[few], field)
            optimiser.zero_grad(set_to_none=True)
            loss(moved, target[few], moved_label, label[few], field).total.backward()
            optimiser.step()

        return run

    runs: dict[str, tuple[int, Callable[[], object]]] = {
        f"aligning, {dims}D": (BATCH, align),
        f"training step, {dims}D": (STEP_BATCH, step(model)),
    }
    if dims == 3:
        first, *others = grid["registration"]["channels"]
        levels = [width for width in others for _ in ("down", "up")]
        equal = VoxelMorph(VoxelMorphUNet(dims, 2, first, levels, (first,)))
        runs["training step, MONAI VoxelMorph of equal width, 3D"] = (STEP_BATCH, step(equal))
        runs["training step, MONAI VoxelMorph, 3D"] = (STEP_BATCH, step(VoxelMorph()))
    return runs


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.profiling.roofline", __doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of the computation")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each task")
    parser.add_argument("--output", type=Path, help="folder for floor.md; if not given, the table is only printed")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    best_flops, best_bytes = peaks()
    lines = [
        f"Peak with {options.threads} threads, float32: {best_flops / 1e9:.0f} GFLOP/s, {best_bytes / 1e9:.1f} GB/s.",
        "",
        "| | GFLOP a pair | MB a pair | ms a pair | GFLOP/s (of peak) | GB/s (of peak) | least ms by FLOP, by bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for dims in (3, 2):
        for name, (pairs, run) in tasks(dims).items():
            flops, moved = (total / pairs for total in count(run))
            spent = seconds(run, options.repeats).median / pairs
            rates = f"{flops / spent / 1e9:.0f} ({100 * flops / spent / best_flops:.0f} %) | "
            rates += f"{moved / spent / 1e9:.1f} ({100 * moved / spent / best_bytes:.0f} %)"
            least = f"{1e3 * flops / best_flops:.2f}, {1e3 * moved / best_bytes:.2f}"
            lines.append(f"| {name} | {flops / 1e9:.3f} | {moved / 1e6:.0f} | {1e3 * spent:.2f} | {rates} | {least} |")
    print("\n".join(lines))
    if options.output:
        from oasis_monai.utils.files import write_text

        write_text(options.output / "floor.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
