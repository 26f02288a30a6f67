"""Measure speed, memory and Dice of OASIS and of the usual registration programs on the same pairs and cases.

    python -m benchmarks.speed.run [--data PATH] [--model DIR]

Each method runs in a process of its own. ``make bench`` installs the other programs and runs this; docs/results/speed.md has
the results. Writes ``speed.csv``, ``speed.md`` and ``speed.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command_line import command_parser
from benchmarks.speed.data import make_world
from benchmarks.speed.methods import select_methods
from benchmarks.speed.report import write_report

LIMIT = 1800  # seconds one method may take


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.speed.run", __doc__)
    parser.add_argument("--data", help="folder of PROMISE12; the synthetic phantom if not given")
    parser.add_argument("--model", type=Path, help="3D model of `oasis-monai train` to measure; if not given, one is trained")
    parser.add_argument("--minutes", type=float, default=1.0, help="training time of each network")
    parser.add_argument("--pairs", type=int, default=6, help="pairs to align")
    parser.add_argument("--cases", type=int, default=2, help="cases to segment")
    parser.add_argument("-n", type=int, default=6, help="atlases per case")
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 2], choices=[2, 3], help="grids to run")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="run only these methods")
    parser.add_argument("--threads", type=int, default=2, help="threads of every method")
    parser.add_argument("--work", type=Path, default=Path("outputs/bench"), help="folder for models, cache and raw results")
    parser.add_argument("--output", type=Path, default=Path("docs/results/speed"), help="folder for the results")
    return parser


def run(words: list[str], threads: int) -> str | None:
    """Run :mod:`benchmarks.speed.one_method` with the arguments ``words``; -> what went wrong, or None."""
    names = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    try:
        command = [sys.executable, "-m", "benchmarks.speed.one_method", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not finished after {LIMIT} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def folded_percent(path: Path) -> float | None:
    """Percentage of voxels where the displacement fields (P, *S, D) in a NumPy file fold; None if there is no file."""
    if not path.exists():
        return None
    import numpy as np
    import torch

    from oasis_monai.networks.warp import jacobian_determinant

    fields = torch.from_numpy(np.load(path, allow_pickle=False)).movedim(-1, 1)
    return 100 * float((jacobian_determinant(fields) <= 0).float().mean())


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    root = options.data
    if root is None:
        from oasis_monai.data.phantom import write_phantom

        root = str(options.work / "phantom")
        write_phantom(root)
    rows, failed = [], []
    for dims in options.dims:
        model = options.model if dims == 3 else None
        folder = options.work / f"{Path(root).resolve().name}-{dims}d-{options.minutes:g}min{'-given' if model else ''}"
        make_world(root, dims, model, options.pairs, options.cases, options.n, folder)
        entries = select_methods(dims, model, options.methods)
        common = [str(folder), str(model or ""), str(options.minutes)]
        for network in dict.fromkeys(entry.network for entry in entries.values() if entry.network):
            if not (model and network in ("plain", "joint")):
                start = time.monotonic()
                trouble = run([*common, f"train:{network}", ""], options.threads)
                print(f"{dims}D train {network}: {trouble or f'{time.monotonic() - start:.0f} s'}", flush=True)
        for number, name in enumerate(entries):
            output = folder / f"{number}.json"
            for old in (output, output.with_suffix(".npy")):
                old.unlink(missing_ok=True)
            trouble = run([*common, name, str(output)], options.threads)
            if trouble is None:
                rows.append(json.loads(output.read_text(encoding="utf-8")))
                rows[-1]["folded_percent"] = folded_percent(output.with_suffix(".npy"))
                print(f"{dims}D {name}: {rows[-1]['seconds']:.4f} s, DSC {rows[-1]['dsc']:.1f}", flush=True)
            else:
                failed.append((f"{dims}D {name}", trouble))
                print(f"{dims}D {name}: failed: {trouble}", flush=True)
    write_report(rows, failed, options.output, options.n, options.threads)
    print(f"results: {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
