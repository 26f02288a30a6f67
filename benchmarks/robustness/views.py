"""Measure the DSC of changed scans with and without the search for other views.

    python -m benchmarks.robustness.views [--output DIR] [--n 6] experiment=accuracy data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. Every test case is segmented by OASIS-joint
as it is and after each change: enlarged 1.5 and 2 times, halved, moved 40 mm aside by dark slices, turned by 90 degrees, upside
down, inverted, and with 1.5 times the voxel size in plane. Each is segmented as it is (``views=none``) and with a search where
the parts disagree (``views=doubtful``); both are timed. Writes ``views.csv`` and ``views.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from benchmarks.robustness.off_centre import padded
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.segmentation.agreement import overlaps
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, UNTOUCHED, shows_anything
from oasis_monai.workflows.corrupted_copies import segment_labelled

SEED = 3  # of the corruptions


def enlarged(volume: Volume, size: float) -> Volume:
    """The scan as if everything in it were ``size`` times as large."""
    affine = volume.geometry.affine.copy()
    affine[:3, :3] *= size
    return replace(volume, geometry=Geometry(volume.geometry.shape, affine))


CHANGES: dict[str, Callable[[Volume], Volume]] = {
    UNTOUCHED: lambda volume: volume,
    "enlarged 1.5 times": lambda volume: enlarged(volume, 1.5),
    "enlarged 2 times": lambda volume: enlarged(volume, 2.0),
    "halved": lambda volume: enlarged(volume, 0.5),
    "moved by 40 mm": lambda volume: padded(volume, 40, 0),
    **{
        name: lambda volume, name=name: CORRUPTIONS[name](volume, SEED)  # type: ignore[misc]
        for name in ("turned by 90 degrees", "upside down", "inverted", "wrong voxel size")
    },
}
"""What is done to a scan."""


def segment_fold(settings: Settings, index: int) -> list[dict[str, Any]]:
    """Segment every test case of a fold, changed and not, without and with a search."""
    own = {views: replace(settings, views=views) for views in ("none", "doubtful")}
    opened = {views: open_fold(one, index) for views, one in own.items()}
    dataset, fold = opened["none"].dataset, opened["none"].fold
    rows = []
    for case in sorted(fold.test):
        volume = read_volume(dataset.cases[case], settings.data.label_values)
        for change, make in CHANGES.items():
            scan = make(volume)
            if not shows_anything(scan):
                continue
            for views, one in opened.items():
                start = time.perf_counter()
                found, _, dice = segment_labelled(one.segmenter, scan, own[views], one.embed, settings.methods)
                seconds = time.perf_counter() - start
                ((key, values),) = dice.items()
                told = overlaps(found.results[key].agreement).mean(1)  # type: ignore[arg-type]
                about = {"fold": index, "case": case, "change": change, "views": views, "seconds": seconds}
                about |= {"view": found.view.name, "tried": len(found.tried)}
                labelled = zip(settings.data.labels, values, told, strict=True)
                rows += [about | {"label": name, "dsc": dsc, "agreement": own_told} for name, dsc, own_told in labelled]
            print(f"fold {index}: {case} {change}", flush=True)
    return rows


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per change, and one for all."""
    head = ["scans", "as it is: DSC", "lowest", "with the search", "lowest", "searched", "seconds", "with the search", "most"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    changes = [change for change in CHANGES if (rows["change"] == change).any()]
    for name, part in [*((change, rows[rows["change"] == change]) for change in changes), ("**all**", rows)]:
        by = {views: part[part["views"] == views] for views in ("none", "doubtful")}
        cells = [name]
        for one in by.values():
            cells += [f"{100 * one['dsc'].mean():.1f}", f"{100 * one['dsc'].min():.1f}"]
        searched, seconds = by["doubtful"], by["none"]["seconds"]
        cells += [f"{int((searched['tried'] > 0).sum())} of {len(searched)}", f"{seconds.mean():.1f}"]
        cells += [f"{searched['seconds'].mean():.1f}", f"{searched['seconds'].max():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    return fold_parser("benchmarks.robustness.views", __doc__)


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    rows = over_folds(settings, segment_fold)
    write_results(given.output, "views", rows, table(rows))


if __name__ == "__main__":
    main()
