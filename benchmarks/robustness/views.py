"""Measure the DSC of changed scans with and without the search for other views.

    python -m benchmarks.robustness.views [--output DIR] [--n 6] experiment=accuracy data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. Every test case is segmented by OASIS-joint
as it is and after each change: enlarged 1.5 and 2 times, halved, moved 40 mm aside by dark slices, turned by 90 degrees, upside
down, inverted, and with 1.5 times the voxel size in plane (``--change`` chooses some). Each is segmented as it is
(``--views none``) and with a search where the parts disagree (``--views doubtful``); both are timed. A changed scan is *kept*
where its DSC is within 2 points of the same scan untouched, segmented in the same way; what is neither kept nor flagged is a
silent failure. Flags are those of a trained model, but that the predicted DSC is calibrated on the other folds: on untouched
scans and on the corruptions of a cross-validation, without the one under test. Writes ``views.csv`` and ``views.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from benchmarks.robustness.off_centre import padded
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.quality import cross_fitted
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.agreement import SOURCES, overlaps
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, UNTOUCHED, shows_anything
from oasis_monai.workflows.corrupted_copies import segment_labelled
from oasis_monai.workflows.postprocessing import CrossPostprocessing
from oasis_monai.workflows.scan_result import describe_result

SEED = 3  # of the corruptions
SEARCHES = ("none", "doubtful")
KEPT = 0.02  # a changed scan may have so much less Dice than the same scan untouched


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


def segment_fold(changes: Sequence[str], searches: Sequence[str], settings: Settings, index: int) -> list[dict[str, Any]]:
    """Segment every test case of a fold, changed and not, without and with a search."""
    own = {views: replace(settings, views=views) for views in searches}
    opened = {views: open_fold(one, index) for views, one in own.items()}
    first = opened[searches[0]]
    dataset, fold = first.dataset, first.fold
    anatomy = CrossPostprocessing(settings, dataset, first.split, [fold]).anatomy(fold)
    limit = flags.typical_distance(first.segmenter.library, settings.features.distance)
    rows = []
    for case in sorted(fold.test):
        volume = read_volume(dataset.cases[case], settings.data.label_values)
        for change in changes:
            scan = CHANGES[change](volume)
            if not shows_anything(scan):
                continue
            for views, one in opened.items():
                start = time.perf_counter()
                found, _, dice = segment_labelled(one.segmenter, scan, own[views], one.embed, settings.methods)
                seconds = time.perf_counter() - start
                ((key, values),) = dice.items()
                agreement = found.results[key].agreement
                assert agreement is not None
                told = describe_result(found, key, one.segmenter.library, settings.data.labels, {}, limit, anatomy=anatomy)
                about = {"fold": index, "case": case, "change": change, "views": views, "seconds": seconds}
                about |= {"view": found.view.name, "tried": len(found.tried)}
                about["flags"] = " ".join(flag.name for flag in told.flags if flag.name != flags.UNSURE)
                for name, dsc, parts in zip(settings.data.labels, values, overlaps(agreement).tolist(), strict=True):
                    row = about | {"label": name, "dsc": dsc, "agreement": sum(parts) / len(parts)}
                    rows.append(row | dict(zip(SOURCES, parts, strict=True)))
            print(f"fold {index}: {case} {change}", flush=True)
    return rows


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Add ``predicted_dsc``, ``unsure``, ``kept`` (within 2 points of the same scan untouched) and ``flagged``."""
    rows = rows.copy()
    rows[["predicted_dsc", "unsure"]] = float("nan"), True
    for _, part in rows.groupby(["views", "label"]):
        fitted = part["change"].isin([UNTOUCHED, *CORRUPTIONS]).to_numpy()
        values, dsc = part[list(SOURCES)].to_numpy(), part["dsc"].to_numpy()
        told, unsure = cross_fitted(values, dsc, part["fold"].tolist(), part["change"].tolist(), fitted)
        rows.loc[part.index, "predicted_dsc"], rows.loc[part.index, "unsure"] = told, unsure
    who = ["case", "label", "views"]
    untouched = rows[rows["change"] == UNTOUCHED].set_index(who)["dsc"]
    before = untouched.reindex(pd.MultiIndex.from_frame(rows[who])).to_numpy()
    rows["kept"] = rows["dsc"] >= before - KEPT
    rows["flagged"] = rows["unsure"].astype(bool) | (rows["flags"] != "")
    return rows


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per change, and one for all."""
    searches = [views for views in SEARCHES if (rows["views"] == views).any()]
    columns = ("DSC", "lowest", "kept", "kept or flagged", "flagged", "seconds")
    head = ["scans", *(f"{column}, views={views}" for views in searches for column in columns), "searched", "seconds at most"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    changes = [change for change in CHANGES if (rows["change"] == change).any()]
    for name, part in [*((change, rows[rows["change"] == change]) for change in changes), ("**all**", rows)]:
        cells = [name]
        for one in (part[part["views"] == views] for views in searches):
            kept, flagged = one["kept"].astype(bool), one["flagged"].astype(bool)
            cells += [f"{100 * one['dsc'].mean():.1f}", f"{100 * one['dsc'].min():.1f}"]
            cells += [f"{told.sum()} of {len(one)}" for told in (kept, kept | flagged, flagged)]
            cells.append(f"{one['seconds'].mean():.1f}")
        cells += [f"{int((one['tried'] > 0).sum())} of {len(one)}", f"{one['seconds'].max():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.views", __doc__)
    parser.add_argument("--change", action="append", choices=list(CHANGES), help="one of the changes; may be given several times")
    parser.add_argument("--views", action="append", choices=SEARCHES, help="one of the searches; likewise")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    changes = [UNTOUCHED, *(name for name in CHANGES if name in (given.change or CHANGES) and name != UNTOUCHED)]
    rows = judged(over_folds(settings, partial(segment_fold, changes, given.views or SEARCHES)))
    write_results(given.output, "views", rows, table(rows))


if __name__ == "__main__":
    main()
