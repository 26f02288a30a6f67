"""Measure what a few labelled scans of a new centre are worth: each centre left out, before, with more atlases, and adapted.

    python -m benchmarks.robustness.adapt [--output DIR] [--scans 3] [--draws 1] folds=centre data.root=PATH cache=DIR

Uses the fold models of a cross-validation by centre and trains those that are not in ``cache``. ``--scans`` patients of the
centre that a fold leaves out are drawn by the seed; the others are segmented three times by OASIS-joint: by the fold's model, by
the same with the drawn scans as further atlases (``oasis-monai library add=``), and by the model adapted to them
(``oasis-monai adapt``). So no test case has a scan of its patient in any of them. ``--own`` training cases of the fold are
segmented before and after as well, none with an atlas of its own: not to tell how good the model is there, but whether it
forgets. Writes ``adapt.csv``, one row per case, structure and model, and ``adapt.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.robustness.fold_models import (
    OpenFold,
    fold_parser,
    open_fold,
    over_folds,
    score_cases,
    settings_of,
    write_results,
)
from oasis_monai.data.folds import Fold, Split, by_patient
from oasis_monai.evaluation.statistics import interval
from oasis_monai.segmentation.build import build_segmenter
from oasis_monai.segmentation.segmenter import Segmenter
from oasis_monai.settings import Settings
from oasis_monai.utils.files import digest, locked
from oasis_monai.workflows.fold_models import segmenter_options
from oasis_monai.workflows.further_training import FURTHER_VERSION, RATE, SHARE, networks_of, train_further

BEFORE, ADDED, ADAPTED = "before", "library add", "adapt"
NEW, OWN = "new centre", "training case"
Row = dict[str, Any]


def drawn_cases(fold: Fold, split: Split, scans: int, draw: int) -> list[str]:
    """All cases of ``scans`` patients that a fold tests, by the split's seed and the number of the draw."""
    patients = by_patient(fold.test, split.patients)
    order = np.random.default_rng([split.seed, fold.index, draw]).permutation(len(patients)).tolist()
    return sorted(case for place in order[:scans] for case in patients[place])


def adapt_fold(settings: Settings, index: int, scans: int, draws: int, minutes: float, own: int) -> list[dict[str, Any]]:
    """Adapt the model of one fold to scans of the centre that it leaves out, and segment the others; -> rows."""
    one, cache = open_fold(settings, index), Path(settings.cache)
    dataset, split, fold, models, before = one.dataset, one.split, one.fold, one.models, one.segmenter
    old = sorted(fold.train)[:: max(1, len(fold.train) // own)][:own] if own else []
    rows = scored(BEFORE, before, [*fold.test, *old], settings, one, -1)
    for draw in range(draws):
        chosen = drawn_cases(fold, split, scans, draw)
        others = [case for case in fold.test if case not in chosen]
        new = dataset.library.subset(torch.cat([dataset.rows(case) for case in chosen]))
        both = replace(before.library, estimates=None).merge(new)  # estimates guide the training and the LOA of other methods
        added = build_segmenter(both, networks_of(before), segmenter_options(settings))
        key = digest([models.folder(fold).name, chosen, dataset.identity(chosen), minutes, SHARE, RATE, FURTHER_VERSION])
        own_settings = replace(settings, training=replace(settings.training, iterations=None, minutes=minutes))
        with locked(cache / "adapted" / key):
            adapted = train_further(before, own_settings, new, cache / "adapted" / key)
        rows += [{**row, "draw": draw} for row in rows if row["draw"] == -1 and row["case"] in (*others, *old)]
        rows += scored(ADDED, added, others, settings, one, draw)
        rows += scored(ADAPTED, adapted, [*others, *old], settings, one, draw)
        print(f"{fold.name or index}: draw {draw + 1} of {draws}, adapted with {', '.join(chosen)}", flush=True)
    return [row for row in rows if row["draw"] >= 0]


def scored(model: str, segmenter: Segmenter, cases: Sequence[str], settings: Settings, one: OpenFold, draw: int) -> list[Row]:
    """Segment cases, each without atlases of its own patient; -> rows."""
    about = {"centre": one.fold.name or str(one.fold.index), "draw": draw, "model": model}
    kinds = {case: NEW if case in one.fold.test else OWN for case in cases}
    return [{**about, "kind": kinds[row["case"]], **row} for row in score_cases(one, segmenter, settings, cases)]


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per centre, and one for all; gains are paired, of a patient in several draws the mean."""
    head = ["centre", "patients", "before: mean", "lowest", "library add", "lowest", "adapt", "lowest", "gain of adapt [95 % CI]"]
    head += ["agreement before", "after", "training cases before", "after"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, part in [*rows.groupby("centre"), ("**all**", rows)]:
        new, own = part[part["kind"] == NEW], part[part["kind"] == OWN]
        by_model = {model: new[new["model"] == model] for model in (BEFORE, ADDED, ADAPTED)}
        cells = [str(name), str(new["patient"].nunique())]
        for model in by_model.values():
            cells += [f"{100 * _per_patient(model, 'dsc').mean():.1f}", f"{100 * model['dsc'].min():.1f}"]
        gains = _per_patient(by_model[ADAPTED], "dsc") - _per_patient(by_model[BEFORE], "dsc")
        mean, _, low, high = interval(100 * gains.to_numpy())
        cells.append(f"{mean:+.1f} [{low:.1f}, {high:.1f}]")
        cells += [f"{100 * _per_patient(by_model[model], 'agreement').mean():.1f}" for model in (BEFORE, ADAPTED)]
        cells += [f"{100 * own[own['model'] == model]['dsc'].mean():.1f}" if len(own) else "" for model in (BEFORE, ADAPTED)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _per_patient(rows: pd.DataFrame, column: str) -> pd.Series:
    """The mean of a column of each patient, over structures, scans and draws."""
    return rows.groupby(["centre", "patient"])[column].mean()


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.adapt", __doc__)
    parser.add_argument("--scans", type=int, default=3, help="patients of the new centre to adapt with")
    parser.add_argument("--draws", type=int, default=1, help="how often they are drawn")
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of training")
    parser.add_argument("--own", type=int, default=4, help="training cases to segment before and after")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    one_fold = partial(adapt_fold, scans=given.scans, draws=given.draws, minutes=given.minutes, own=given.own)
    rows = over_folds(settings, one_fold)
    write_results(given.output, "adapt", rows, table(rows))


if __name__ == "__main__":
    main()
