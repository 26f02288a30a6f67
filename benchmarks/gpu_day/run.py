"""Check and time training on a lent GPU: start the parts one after the other, and keep what each has found.

    python -m benchmarks.gpu_day.run [--minutes 8] [--device cuda] [--output gpu_day] [--parts folds] [--fold-seconds 40]

On the lent machine the same options follow the packed file: ``python gpu_day.pyz --minutes 8 --output gpu_day``. It needs Python
3.11 or later, torch and numpy. The parts:

* ``step 0``: the first step of every trainer on the GPU beside the same step on the CPU.
* ``profile``: 30 steps of each network of the joint model by torch's profiler.
* ``bfloat16``: the same steps in bfloat16 beside float32.
* ``resume``: trainings that are killed at a step and started again, beside trainings that were not.
* ``folds``: the cross-validation of the packed data set, scored on the working grid.

Every part has a share of the minutes; what it leaves over goes to those that follow. A part that fails, hangs or brings the GPU
into disorder ends alone: the next one starts in a new process. After every result ``results.json`` and ``table.md`` are written
anew, so a loan that ends early loses only what was not yet measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.gpu_day.tables import as_markdown

DATA = "gpu_day.data"
"""The data set's file, beside the packages."""
ROOT = Path(__file__).resolve().parents[2]
SHARES = {"step 0": 0.12, "profile": 0.1, "bfloat16": 0.1, "resume": 0.13, "folds": 0.55}
"""Parts, with the share of the time that each may take."""
JOINT_NETWORKS = ("slice network", "volume network", "joint registration network")
GRACE = 15.0
"""Seconds after its share at which a part that has not ended by itself is ended."""
RESERVE = 5.0
"""Seconds kept for writing at the end."""
LAST_WORDS = 400
"""Characters of the log that say why a process ended."""


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The option ``--networks``."""
    words = "networks of the joint model to profile, time and interrupt"
    parser.add_argument("--networks", nargs="+", choices=JOINT_NETWORKS, default=JOINT_NETWORKS, metavar="NETWORK", help=words)


def part_file(output: Path, part: str) -> Path:
    """Where a part keeps its results while it runs."""
    return output / "parts" / f"{part.replace(' ', '_')}.json"


def read_parts(output: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the parts have found so far; of one that has not begun, nothing."""
    found = {part: part_file(output, part) for part in parts}
    return {part: json.loads(file.read_text(encoding="utf-8")) for part, file in found.items() if file.exists()}


def write_whole(path: Path, text: str) -> None:
    """Write a text whole or not at all. The package has this too, but is not imported in this process: torch takes seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Day:
    """The processes that work, one after the other, and the results they leave.

    Args:
        options: of :func:`parser`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output, self.parts = options, options.output, list(options.parts)
        self.end = time.time() + 60 * options.minutes - RESERVE
        self._written = ""
        for part in self.parts:
            part_file(self.output, part).unlink(missing_ok=True)

    def run(self) -> dict[str, dict[str, Any]]:
        """Run all parts, or what there is time for; -> what they found."""
        waiting = self.parts
        while waiting and time.time() < self.end:
            self._work(waiting)
            found = read_parts(self.output, self.parts)
            begun = [part for part in waiting if part in found]
            for part in begun or waiting[:1]:
                if found.get(part, {"status": "running"})["status"] == "running":  # its process is gone
                    self._fail(part, found.get(part, {}))
            found = self.write()
            waiting = [part for part in waiting if part not in found]
        return self.write()

    def command(self, parts: Sequence[str]) -> list[str]:
        """What runs some parts."""
        options = self.options
        command = [sys.executable, "-m", "benchmarks.gpu_day.work", "--end", str(self.end), "--output", str(self.output)]
        command += ["--device", options.device, "--data", str(options.data), "--steps", str(options.steps)]
        command += ["--fold-seconds", str(options.fold_seconds), "--parts", *parts, "--networks", *options.networks]
        return command + (["--pretend", str(options.pretend)] if options.pretend else [])

    def _work(self, parts: Sequence[str]) -> None:
        """Have a new process run parts until it ends, or a part goes far over its time."""
        self.output.mkdir(parents=True, exist_ok=True)
        with open(self.output / "log.txt", "ab") as log:
            process = subprocess.Popen(self.command(parts), stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
            try:
                while process.poll() is None and time.time() < self._latest():
                    time.sleep(0.1)
                    self.write()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _latest(self) -> float:
        """The time at which the working process is ended."""
        running = [one["until"] + GRACE for one in read_parts(self.output, self.parts).values() if one["status"] == "running"]
        return min([self.end, *running])

    def _fail(self, part: str, found: dict[str, Any]) -> None:
        late = time.time() > min(found.get("until", self.end) + GRACE, self.end)
        log = self.output / "log.txt"
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:] if log.exists() else ""
        status, why = ("over its time", "") if late else ("failed", f"its process ended: {said.splitlines()[-1] if said else ''}")
        write_whole(part_file(self.output, part), json.dumps({"rows": [], **found, "status": status, "error": why}))

    def write(self) -> dict[str, dict[str, Any]]:
        """Write the results so far, where there are new ones."""
        found = read_parts(self.output, self.parts)
        text = json.dumps(found, indent=1)
        if text != self._written:
            write_whole(self.output / "results.json", text + "\n")
            write_whole(self.output / "table.md", as_markdown(found))
            self._written = text
        return found


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.gpu_day.run", __doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="all that there is; it ends before")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it out")
    parser.add_argument("--output", type=Path, default=Path("gpu_day"), help="folder for results.json, table.md and the log")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), metavar="PART", help="which to run")
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed, profiled, and interrupted")
    parser.add_argument("--fold-seconds", type=float, default=40.0, help="most training seconds of a fold")
    add_networks(parser)
    parser.add_argument("--data", type=Path, default=ROOT / DATA, help="the packed data set")
    parser.add_argument("--pretend", type=Path, help="a file with pretend_device() for a rehearsal without a GPU")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.output = options.output.resolve()
    options.pretend = options.pretend and options.pretend.resolve()
    options.data = options.data.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the working process is ended too
    found = Day(options).run()
    print((options.output / "table.md").read_text(encoding="utf-8"))
    if any(found.get(part, {}).get("status") != "done" for part in options.parts):
        sys.exit(1)


if __name__ == "__main__":
    main()
