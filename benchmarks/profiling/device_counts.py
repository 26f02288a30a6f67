"""Count what a training step would do on a GPU, without one.

    python -m benchmarks.profiling.device_counts [--size 48] [--depth 16] [--output counts.csv] [--before old.csv]

Every kind of trainer makes two steps on the tests' pretend GPU (``tests/helpers/pretend_device.py``), on a synthetic library of
``size`` x ``size`` x ``depth`` voxels. Of the second step it prints, as a table in Markdown: the kernels that would be launched,
the kilobytes sent to the GPU and fetched from it, and how often the host would wait for the GPU. ``--before`` puts the numbers of
another version beside them, which the same command has written there with ``--output``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from benchmarks.command_line import command_parser
from oasis_monai.networks.slice_unet import JointSettings
from tests.helpers.pretend_device import pretend_device
from tests.helpers.trainers import make_trainers

COLUMNS = ("kernels", "kB sent", "kB fetched", "synchronisations")
JOINT = JointSettings(pretrained=False)  # its weights change no count


def counts(size: int, depth: int, names: list[str] | None = None) -> dict[str, dict[str, float]]:
    """The counts of the second step of every trainer."""
    found = {}
    for name, make in make_trainers(size, depth, JOINT).items():
        if names and name not in names:
            continue
        with pretend_device() as record:
            trainer = make("cuda")
            trainer.step(0)
            record.reset()
            trainer.step(1)
        sent, fetched = record.sent_bytes / 1000, record.fetched_bytes / 1000
        found[name] = dict(zip(COLUMNS, (record.launches, sent, fetched, len(record.syncs)), strict=True))
    return found


def table(now: dict[str, dict[str, float]], before: dict[str, dict[str, float]]) -> str:
    """The counts as a table in Markdown, with those of another version where there are any."""
    lines = [f"| a step of | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, values in now.items():
        old = before.get(name, {})
        cells = [(f"{old[key]:,.4g} → " if key in old else "") + f"{values[key]:,.4g}" for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, dict[str, float]]:
    """What ``--output`` wrote."""
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["step"]: {key: float(row[key]) for key in COLUMNS} for row in csv.DictReader(stream)}


def write(path: Path, found: dict[str, dict[str, float]]) -> None:
    """One row for each trainer."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("step", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": name} | {key: f"{value:g}" for key, value in row.items()} for name, row in found.items())


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.profiling.device_counts", __doc__)
    parser.add_argument("--size", type=int, default=48, help="voxels of the grid along x and y")
    parser.add_argument("--depth", type=int, default=16, help="voxels along z")
    parser.add_argument("--only", nargs="*", help="trainers to count, by name; all by default")
    parser.add_argument("--output", type=Path, help="a CSV file for the counts")
    parser.add_argument("--before", type=Path, help="such a file, of another version")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = counts(options.size, options.depth, options.only)
    if options.output:
        write(options.output, found)
    print(table(found, read(options.before) if options.before else {}))


if __name__ == "__main__":
    main()
