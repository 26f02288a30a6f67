"""What post-processing changes, and what its flags find, on untouched, corrupted and planted results.

    python -m benchmarks.robustness.anatomy [--output DIR] [--n 6] [--copies 10] data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``; ``fold=`` chooses one. Segments every test
case untouched and after ``--copies`` corruptions of :mod:`oasis_monai.transforms.corruptions`. To each untouched result it also
adds a second piece, a ball of a tenth of the volume beside the structure (``planted piece``), and takes a hole out of it
(``planted hole``). Every operation is done for every structure (``postprocessing=all``), by the anatomy of the fold's training
labels. Writes ``anatomy.csv``, one row per result and structure: Dice before and after, and the flags of the result before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from oasis_monai.data.io import read_volume
from oasis_monai.data.types import Segmentation, Volume
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.segmentation.anatomy import measure_anatomy
from oasis_monai.segmentation.methods import result_keys
from oasis_monai.segmentation.postprocessing import every_operation, postprocess
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, UNTOUCHED, draw_corruptions, shows_anything
from oasis_monai.transforms.spatial import resample_label
from oasis_monai.workflows.corrupted_copies import segment_labelled
from oasis_monai.workflows.postprocessing import CrossPostprocessing

PART = 0.1  # of the structure's volume, planted


def planted(result: Segmentation) -> Iterator[tuple[str, Segmentation]]:
    """A result with a second piece of the first structure beside it, and one with a hole in it."""
    label, spacing = result.label.numpy(), np.asarray(result.geometry.spacing_mm)
    own = label == 1
    if not own.any():
        return
    radius = (3 * PART * own.sum() * spacing.prod() / 4 / np.pi) ** (1 / 3)
    outside = ndimage.distance_transform_edt(label == 0, sampling=spacing)
    places = np.argwhere((outside > radius + 2 * spacing.max()) & (outside < 2 * radius + 4 * spacing.max()))
    inside = ndimage.distance_transform_edt(own, sampling=spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in label.shape), indexing="ij"), -1)
    if len(places):
        centre = places[len(places) // 2]
        ball = (((grid - centre) * spacing) ** 2).sum(-1) <= radius**2
        yield "planted piece", replace(result, label=torch.from_numpy(np.where(ball, 1, label).astype(np.uint8)))
    centre = np.array(np.unravel_index(inside.argmax(), label.shape))
    ball = ((((grid - centre) * spacing) ** 2).sum(-1) <= radius**2) & (inside > 1.5 * spacing.max())
    if ball.any():
        yield "planted hole", replace(result, label=torch.from_numpy(np.where(ball, 0, label).astype(np.uint8)))


def segment_fold(copies: int, settings: Settings, index: int) -> list[dict[str, Any]]:
    """Rows of the test cases of one fold."""
    one = open_fold(settings, index)
    dataset, split, fold, segmenter, embed = one.dataset, one.split, one.fold, one.segmenter, one.embed
    anatomy = CrossPostprocessing(settings, dataset, split, [fold]).anatomy(fold)
    names, (key, *_) = list(settings.data.labels), result_keys(settings.methods, settings.n)
    rows: list[dict[str, Any]] = []

    def add(volume: Volume, change: str, result: Segmentation) -> None:
        working = settings.preprocessing.working_geometry(result.geometry)
        on_grid = resample_label(result.label[None], result.geometry, working)[0]
        told = flags.implausible(measure_anatomy(on_grid, working.spacing_mm, names), anatomy)
        edited, changes = postprocess(result, anatomy, every_operation(anatomy), names)
        assert volume.label is not None
        before, after = (overlap_counts(one.label, volume.label[0], len(names) + 1) for one in (result, edited))
        for number, name in enumerate(names):
            done = "; ".join(str(one) for one in changes if one.structure == name)
            row = {"fold": fold.index, "case": volume.case, "change": change, "label": name, "done": done}
            dsc = {which: float(c[number, 0] / c[number, 1]) for which, c in (("before", before), ("after", after))}
            rows.append({**row, **dsc, "flags": " ".join(flag.name for flag in told)})

    for number, case in enumerate(sorted(fold.test), 1):
        volume = read_volume(dataset.cases[case], settings.data.label_values, settings.data.ignore)
        for change, seed in [(UNTOUCHED, 0), *draw_corruptions(case, copies, settings.seed)]:
            scan = CORRUPTIONS[change](volume, seed) if change != UNTOUCHED else volume
            if shows_anything(scan):
                _, labels, _ = segment_labelled(segmenter, scan, settings, embed, settings.methods)
                add(scan, change, labels[key])
                if change == UNTOUCHED:
                    for name, result in planted(labels[key]):
                        add(scan, name, result)
        print(f"fold {fold.index}: {number} of {len(fold.test)} cases", flush=True)
    return rows


def table(rows: pd.DataFrame) -> str:
    """What became of every kind of change: mean DSC, lowest, and how many results were changed, better, worse and flagged."""
    text = ["change | results | before (lowest) | after (lowest) | edited | better | worse | flagged"]
    for change, part in rows.groupby("change", sort=False):
        gain = part["after"] - part["before"]
        before, after = (f"{100 * part[k].mean():.2f} ({100 * part[k].min():.1f})" for k in ("before", "after"))
        counts = ((part["done"] != "").sum(), (gain > 0).sum(), (gain < 0).sum(), (part["flags"] != "").sum())
        text.append(f"{change} | {len(part)} | {before} | {after} | {' | '.join(map(str, counts))}")
    return "\n".join(text) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.anatomy", __doc__)
    parser.add_argument("--copies", type=int, default=len(CORRUPTIONS), help="corrupted copies of each case")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    fold = partial(segment_fold, given.copies)
    rows = over_folds(settings, fold)
    write_results(given.output, "anatomy", rows, table(rows))


if __name__ == "__main__":
    main()
