"""Compare training steps of every network with those of another checkout.

    python -m benchmarks.speed.training_steps --old PATH_OF_A_CHECKOUT [--threads 1] [--rounds 8] [--networks U-Net3D ConvNet3D]

The two checkouts take turns, each in a process of its own: the same images, initial weights and random draws, default settings,
volumes of 96 x 96 x 32 voxels and slices of 96 x 96. Prints a table: steps per minute of both, the median of the ratios of the
paired rounds, and the largest difference between their losses, which shows whether they train the same weights. With one thread
the time is that of the computing thread, so that other processes do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser

NETWORKS = (
    "slice network 3D",
    "slice network 2D, two atlases",
    "U-Net3D, volume network",
    "DynU-Net3D, volume network",
    "registration network 3D, joint",
    "registration network 3D, plain",
    "registration network 2D, joint",
    "ConvNet3D",
    "U-Net3D",
    "DynU-Net3D",
    "ConvNet2D",
    "U-Net2D",
    "DynU-Net2D",
)
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that makes training steps of one checkout.

    Raises:
        RuntimeError: it has ended; what it said is on the terminal.
    """

    def __init__(self, checkout: Path, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("one_trainer.py")), str(checkout), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._checkout = checkout

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):  # libraries print too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the process of {self._checkout} ended with code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def open_workers(checkouts: Sequence[Path], threads: int) -> Iterator[list[Worker]]:
    """A process for each checkout, ended on leaving."""
    with contextlib.ExitStack() as stack:
        workers = [Worker(checkout, threads) for checkout in checkouts]
        for worker in workers:
            stack.callback(worker.close)
        yield workers


def compare(workers: Sequence[Worker], network: str, rounds: int, steps: int) -> dict[str, float]:
    """Old and new steps per minute, the ratio of the rounds, and how far the losses are apart, of one network."""
    old, new = workers
    for worker in workers:
        worker.ask(network=network)
    seconds: list[tuple[float, float]] = []
    apart = 0.0
    for number in range(rounds + 1):
        turn = [new, old] if number % 2 else [old, new]
        made = {worker: worker.ask(steps=[number * steps, steps]) for worker in turn}
        pairs = zip(made[old]["losses"], made[new]["losses"], strict=True)
        apart = max(apart, *(abs(one - other) for one, other in pairs))
        if number:  # the first round warms up
            seconds.append((made[old]["seconds"], made[new]["seconds"]))
    per_minute = [60 * steps / statistics.median(column) for column in zip(*seconds, strict=True)]
    ratio = statistics.median(before / after for before, after in seconds)
    return {"old": per_minute[0], "new": per_minute[1], "ratio": ratio, "apart": apart}


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.speed.training_steps", __doc__)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--threads", type=int, default=1, help="threads of the computation")
    parser.add_argument("--rounds", type=int, default=8, help="paired rounds")
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME", help="which networks")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    print("| network | old, steps a minute | new | ratio | losses apart |\n|---|---|---|---|---|")
    with open_workers([options.old, ROOT], options.threads) as workers:
        for network in options.networks:
            found = compare(workers, network, options.rounds, options.steps)
            print(
                f"| {network} | {found['old']:.0f} | {found['new']:.0f} | {found['ratio']:.2f} | {found['apart']:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
