"""Speed, memory and Dice of OASIS and of the programs registration is done with today, side by side on the same pairs and cases.

``python benchmarks/speed.py [--data ROOT] [--model DIR] ...``; see docs/speed.md. Each method runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 1800  # seconds one method may take


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="PROMISE12's folder; without it the synthetic phantom is used")
    parser.add_argument("--model", type=Path, help="a 3D model folder of `oasis-monai train`, to measure instead of training one")
    parser.add_argument("--minutes", type=float, default=1.0, help="training of each network")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("-n", type=int, default=6, help="atlases of a case")
    parser.add_argument("--dims", type=int, nargs="+", default=[3, 2], choices=[2, 3])
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("outputs/bench"), help="models, cache and raw results")
    parser.add_argument("--output", type=Path, default=Path("docs/results/speed"))
    return parser.parse_args()


def run(words: list[str], threads: int) -> str | None:
    """Run one.py; -> what went wrong, or None."""
    names = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "one.py"), *words], env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {LIMIT} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def folded_percent(path: Path) -> float | None:
    """Share of voxels that the fields (P, *S, D) of a file turn inside out; None without fields."""
    if not path.exists():
        return None
    import numpy as np
    import torch

    from oasis_monai.networks.warp import jacobian_determinant

    fields = torch.from_numpy(np.load(path, allow_pickle=False)).movedim(-1, 1)
    return 100 * float((jacobian_determinant(fields) <= 0).float().mean())


def main() -> int:
    options = arguments()
    from registry import chosen
    from report import write
    from world import make_world

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
        entries = chosen(dims, model, options.methods)
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
    write(rows, failed, options.output, options.n, options.threads)
    print(f"results: {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
