"""The process that works: it runs parts one after the other and keeps every result as soon as there is one.

    python -m benchmarks.gpu_day.work --parts folds --end 0 --output gpu_day --data gpu_day.data --device cpu

:mod:`benchmarks.gpu_day.run` starts it, and another one where it ends before its last part.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_parser
from benchmarks.gpu_day.packed import Packed, read_packed
from benchmarks.gpu_day.run import SHARES, add_networks, part_file, write_whole

ENTRANCES = ("pretend_device", "pretend_gpu")
"""Names of the context manager of a file with a pretend device."""


@dataclass
class Part:
    """One part of the day: what it works with, its time, and its results.

    Args:
        file: where the results go.
        until: the time (of ``time.time``) at which it should have ended.
        options: of :func:`parser`.
        counts: what counts operations on a pretend device; None on a real one.
    """

    file: Path
    until: float
    options: argparse.Namespace
    counts: Any = None
    told: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._longest = 0.0
        self.told = {"status": "running", "until": self.until, "machine": machine(self.device), "rows": [], "notes": []}
        self.told["texts"] = {}
        self.write()

    @property
    def device(self) -> str:
        return str(self.options.device)

    @property
    def steps(self) -> int:
        return int(self.options.steps)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()

    @cached_property
    def packed(self) -> Packed:
        return read_packed(self.options.data)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row of the table."""
        now = time.monotonic()
        if self.told["rows"]:  # the first one takes longer: libraries are loaded and kernels chosen
            self._longest = max(self._longest, now - self._last)
        self._last = now
        self.told["rows"].append(row)
        self.write()

    def note(self, sentence: str) -> None:
        self.told["notes"].append(sentence)
        self.write()

    def write(self) -> None:
        self.told["seconds"] = time.monotonic() - self._began
        write_whole(self.file, json.dumps(self.told))

    def enough(self, what: str) -> bool:
        """Whether there is time for a further row; where not, that is noted. The longest but the first is its measure."""
        if self.left < self._longest:
            self.note(f"No time was left for: {what}.")
            return False
        return True


def is_cuda(device: str) -> bool:
    """Whether this is a real GPU."""
    return device.startswith("cuda") and torch.version.cuda is not None


def wait(device: str) -> None:
    """Until the device has done all."""
    if is_cuda(device):
        torch.cuda.synchronize()


def machine(device: str) -> str:
    """What a reader needs to know of the machine."""
    about = f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    if not is_cuda(device):
        return f"{'a pretend device' if device.startswith('cuda') else 'CPU'}, {about}"
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {about}"


def pretended(path: Path | None) -> AbstractContextManager[Any]:
    """The pretend device of a file; nothing where none is named."""
    if path is None:
        return contextlib.nullcontext()
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module  # its dataclasses look for it
    found.loader.exec_module(module)
    enter = next(getattr(module, name) for name in ENTRANCES if hasattr(module, name))
    return _without_inference_mode(enter()) if enter.__name__ == ENTRANCES[1] else enter()


@contextlib.contextmanager
def _without_inference_mode(entered: AbstractContextManager[Any]) -> Iterator[Any]:
    """Tensors that wrap others have no views of inference tensors; the newer file looks after that itself."""
    from unittest import mock

    def none(mode: bool = True) -> Any:
        return torch.no_grad() if mode else contextlib.nullcontext()

    with mock.patch.object(torch, "inference_mode", none), entered as counts:
        yield counts


def run_parts(options: argparse.Namespace, counts: Any) -> None:
    """Run the parts of the options in their time; an error ends this process after it is kept."""
    from benchmarks.gpu_day.checks import check_bfloat16, check_resume, check_step, profile
    from benchmarks.gpu_day.folds import cross_validate

    functions = {
        "step 0": check_step,
        "profile": profile,
        "bfloat16": check_bfloat16,
        "resume": check_resume,
        "folds": cross_validate,
    }
    for number, name in enumerate(options.parts):
        now, shares = time.time(), [SHARES[later] for later in options.parts[number:]]
        part = Part(part_file(options.output, name), now + (options.end - now) * shares[0] / sum(shares), options, counts)
        try:
            functions[name](part)
        except Exception as error:
            traceback.print_exc()
            part.told |= {
                "status": "failed",
                "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            }
            part.write()
            sys.exit(1)  # after an error on a GPU nothing else works in this process
        part.told["status"] = "done"
        part.write()


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.gpu_day.work", __doc__)
    parser.add_argument("--parts", nargs="+", default=[], choices=list(SHARES), help="which to run")
    parser.add_argument("--end", type=float, default=0.0, help="when all has to have ended, in seconds since 1970")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--data", type=Path, required=True, help="the packed data set")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    parser.add_argument("--fold-seconds", type=float, default=40.0, help="most training seconds of a fold")
    add_networks(parser)
    parser.add_argument("--pretend", type=Path, help="a file with pretend_device()")
    parser.add_argument("--killed", default="", help="of the part resume: the network whose training kills this process")
    parser.add_argument("--folder", type=Path, help="of the part resume: where that keeps its checkpoint")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_flush_denormal(True)
    with pretended(options.pretend) as counts:
        if options.killed:
            from benchmarks.gpu_day.checks import train_until_killed

            train_until_killed(read_packed(options.data), options)
        else:
            run_parts(options, counts)


if __name__ == "__main__":
    main()
