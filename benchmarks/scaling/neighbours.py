"""Measure how often the index of very large libraries misses a neighbour, and how long exact search and index take.

    python -m benchmarks.scaling.neighbours [--rows 200000 1000000] [--real FOLDER] [--queries 50] [--output docs/results/scale]

Three kinds of 1000 features: ``normal`` (independent: no neighbour is near, and no index can know which is nearest),
``clustered`` (round points along 24 random directions) and, with ``--real``, ``like real``: those of slices in the folder
``features`` of a cache (of a run in 2D), each mixed with one of the nearest ten and moved at random by a tenth of their distance.
Queries are made in the same way and are not in the library. Features are float16. Recall is the part of the six nearest that the
index finds as well. Seconds are computing time of all threads. Writes ``neighbours.csv`` and ``neighbours.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_parser
from oasis_monai.atlases.neighbours import Neighbours
from oasis_monai.atlases.selection import nearest
from oasis_monai.utils.files import write_text
from oasis_monai.utils.tensor_files import load_if_whole

FEATURES, N, PART = 1000, 6, 10_000
DIRECTIONS, POINTS = 24, 2000
NEAR, MOVED = 10, 0.1
KINDS = ("normal", "clustered", "like real")
Draw = Callable[[int, torch.Generator], torch.Tensor]


def normal(count: int, random: torch.Generator) -> torch.Tensor:
    """(count, F) independent features."""
    return torch.randn(count, FEATURES, generator=random)


def clustered() -> Draw:
    """Draws features round points that lie along few directions."""
    random = torch.Generator().manual_seed(7)
    points = torch.randn(POINTS, DIRECTIONS, generator=random) @ torch.randn(DIRECTIONS, FEATURES, generator=random)

    def draw(count: int, random: torch.Generator) -> torch.Tensor:
        near = points[torch.randint(POINTS, (count,), generator=random)]
        return near + torch.randn(count, FEATURES, generator=random)

    return draw


def like_real(found: torch.Tensor) -> Draw:
    """Draws features between neighbours among (N, F) real ones."""
    near, _ = nearest(found, found, NEAR + 1)

    def draw(count: int, random: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(found), (count,), generator=random)
        others = near[rows, torch.randint(1, NEAR + 1, (count,), generator=random)]
        gap = found[others] - found[rows]
        made = found[rows] + torch.rand(count, 1, generator=random) * gap
        noise = torch.randn(count, FEATURES, generator=random)
        return made + MOVED * gap.norm(dim=1, keepdim=True) / FEATURES**0.5 * noise

    return draw


def features_of(cache: Path) -> torch.Tensor:
    """(N, F) the features of all slices in a cache.

    Raises:
        SystemExit: it has none.
    """
    held = [stored[0]["vectors"] for file in sorted(cache.glob("*.safetensors")) if (stored := load_if_whole(file))]
    slices = [vectors for vectors in held if len(vectors) > 5 and vectors.shape[1] == FEATURES]  # of volumes there are at most 5
    if not slices:
        raise SystemExit(f"{cache}: expected features of slices, found none; run a cross-validation with spatial_dims=2")
    return torch.cat(slices).unique(dim=0)


def measure(name: str, draw: Draw, rows: int, queries: int) -> dict[str, Any]:
    """One row of the table."""
    library = torch.empty(rows, FEATURES, dtype=torch.float16)
    for part, start in zip(library.split(PART), range(0, rows, PART), strict=True):
        part.copy_(draw(len(part), torch.Generator().manual_seed(start)))
    asked = draw(queries, torch.Generator().manual_seed(rows + 1))
    search, clock = Neighbours(library), time.process_time
    began = clock()
    expected, _ = nearest(asked, library, N)
    exact = clock()
    search.nearest(asked[:1], N)  # makes the index
    made = clock()
    found, _ = search.nearest(asked, N)
    ended = clock()
    same = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, expected, strict=True)]
    return {
        "features": name,
        "rows": rows,
        "queries": queries,
        "recall of 6": sum(same) / (N * queries),
        "nearest one found": float((found[:, 0] == expected[:, 0]).float().mean()),
        "s to make the index": made - exact,
        "ms a query, index": 1000 * (ended - made) / queries,
        "ms a query, exact": 1000 * (exact - began) / queries,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [
            f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            for value in row.values()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.scaling.neighbours", __doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000], help="sizes of the library")
    parser.add_argument("--real", type=Path, help="the folder features of a cache")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, metavar="KIND", help="of features")
    parser.add_argument("--queries", type=int, default=50, help="slices that are searched")
    parser.add_argument("--output", type=Path, default=Path("docs/results/scale"), help="folder for the results")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    draws: dict[str, Draw] = {"normal": normal, "clustered": clustered()}
    if options.real:
        draws["like real"] = like_real(features_of(options.real))
    rows = []
    for count in options.rows:
        for name, draw in draws.items():
            if name not in options.kinds:
                continue
            rows.append(measure(name, draw, count, options.queries))
            print(rows[-1], flush=True)
    lines = [",".join(rows[0]), *(",".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows)]
    write_text(options.output / "neighbours.csv", "\n".join(lines) + "\n")
    write_text(options.output / "neighbours.md", as_table(rows))


if __name__ == "__main__":
    main()
