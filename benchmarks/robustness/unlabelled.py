"""Measure what scans without labels are worth: a few labelled training cases, and the fold's others without their labels.

    python -m benchmarks.robustness.unlabelled experiment=accuracy data.root=PATH [--sizes 4 8] [--folds 0 1] [--longer]

Every fold is a patient fold; its training side is cut to the first ``--sizes`` patients of the learning curve (``train_cases``).
Its test cases are segmented by OASIS-joint twice: by the model that was trained on these alone, and by the same model trained on
with the other training cases as unlabelled scans (``unlabelled=rest``). With ``--longer`` also by one that was trained on the
labelled cases alone in as many minutes as both trainings of the second take. No test case is among the unlabelled scans.

Writes ``unlabelled.csv``, one row per case, structure and model; ``unlabelled_scans.csv``, what became of every unlabelled scan,
with the Dice of its pseudo label, for which alone its true label is read, after all training; and ``unlabelled.md``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from benchmarks.robustness.fold_models import (
    OpenFold,
    fold_parser,
    open_fold,
    over_folds,
    score_cases,
    settings_of,
    write_results,
)
from oasis_monai.evaluation.statistics import interval
from oasis_monai.segmentation.agreement import overlap_counts
from oasis_monai.settings import REST, Settings
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.self_trained_folds import SELF_TRAINED, SelfTrainedFolds
from oasis_monai.workflows.self_training import read_pseudo_labels

BEFORE, LONGER, AFTER = "labelled alone", "labelled alone, longer", "with unlabelled"
SCANS = "pseudo label"
"""The kind of the rows that tell of unlabelled scans."""


def measure_fold(settings: Settings, index: int, longer: bool) -> list[dict[str, Any]]:
    """Train the models of one fold, segment its test cases with each, and look at the pseudo labels; -> rows."""
    one = open_fold(settings, index)
    models = one.models
    assert isinstance(models, SelfTrainedFolds)
    about = {"labelled": len(one.fold.train), "fold": index}
    trained = {BEFORE: models.base.segmenter(one.fold)}
    if longer:
        trained[LONGER] = open_fold(_longer(settings), index).segmenter
    trained[AFTER] = one.segmenter
    rows = []
    for name, segmenter in trained.items():
        scored = score_cases(one, segmenter, settings, sorted(one.fold.test))
        print(f"{len(one.fold.train)} labelled, fold {index}, {name}: {pd.DataFrame(scored)['dsc'].mean():.4f}", flush=True)
        rows += [{**about, "kind": "test case", "model": name, **row} for row in scored]
    return rows + [{**about, "kind": SCANS, "model": AFTER, **row} for row in _pseudo_labels(one, models)]


def _longer(settings: Settings) -> Settings:
    """Without unlabelled scans, in as many minutes as the training with and that without labels take together."""
    training, how = settings.training, settings.self_training
    one_round = how.budget(training)
    pairs = {key: (getattr(training, key), getattr(one_round, key)) for key in ("minutes", "iterations")}
    total: dict[str, Any] = {
        key: None if own is None or more is None else own + how.rounds * more for key, (own, more) in pairs.items()
    }
    return replace(settings, unlabelled=None, training=replace(training, **total))


def _pseudo_labels(one: OpenFold, models: SelfTrainedFolds) -> list[dict[str, Any]]:
    """What became of the unlabelled scans: a row per round, scan and structure, with the Dice of the pseudo label on the working
    grid."""
    library, labels = one.dataset.library, list(models.settings.data.labels)
    folder, rows = models.folder(one.fold, SELF_TRAINED), []
    for number in range(1, models.settings.self_training.rounds + 1):
        for case, (told, label) in read_pseudo_labels(folder, number, list(models.scans(one.fold))).items():
            truth = library.labels[one.dataset.rows(case)][0]
            counts = overlap_counts(label, truth, library.classes).tolist()
            dice = [common / both if both else math.nan for common, both in counts]
            about = {"case": case, "round": number, "agreement": told.agreement, "refused": told.refused, "view": told.view}
            rows += [{**about, "label": name, "dsc": dsc} for name, dsc in zip(labels, dice, strict=True)]
    return rows


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per number of labelled cases and model; gains are paired with the labelled cases alone."""
    head = ["labelled cases", "model", "patients", "mean [95 % CI]", "lowest", "gain [95 % CI]", "unlabelled", "trained with"]
    head += ["Dice of their pseudo labels, lowest", "of those left out"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for size, part in rows.groupby("labelled"):
        tests, scans = part[part["kind"] == "test case"], part[part["kind"] == SCANS]
        before = _per_patient(tests[tests["model"] == BEFORE])
        for model in (BEFORE, LONGER, AFTER):
            own = tests[tests["model"] == model]
            if not len(own):
                continue
            mean, _, low, high = interval(100 * _per_patient(own).to_numpy())
            cells = [str(size), model, str(len(before)), f"{mean:.1f} [{low:.1f}, {high:.1f}]", f"{100 * own['dsc'].min():.1f}"]
            gain, _, low, high = interval(100 * (_per_patient(own) - before).to_numpy())
            cells.append("" if model == BEFORE else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(f"| {' | '.join([*cells, *(_about_scans(scans) if model == AFTER else [''] * 4)])} |")
    return "\n".join(lines) + "\n"


def _per_patient(rows: pd.DataFrame) -> pd.Series:
    """The mean Dice of each patient, over structures and scans."""
    return rows.groupby(["fold", "patient"])["dsc"].mean()


def _about_scans(scans: pd.DataFrame) -> list[str]:
    """How many unlabelled scans there were and how many were trained with in the last round, and how good their labels were."""
    last = scans[scans["round"] == scans["round"].max()]
    kept, others = last[last["refused"] == ""], last[last["refused"] != ""]
    counts = [str(len(part.groupby(["fold", "case"]))) for part in (last, kept)]
    quality = f"{100 * kept['dsc'].mean():.1f}, {100 * kept['dsc'].min():.1f}" if len(kept) else ""
    return [*counts, quality, f"{100 * others['dsc'].mean():.1f}" if len(others) else ""]


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.unlabelled", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8], help="numbers of labelled patients")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1], help="folds to measure")
    parser.add_argument("--longer", action="store_true", help="also train on the labelled cases alone for as long")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    parts = []
    for size in given.sizes:
        words = [*given.overrides, f"train_cases={size}", f"unlabelled={REST}"]
        settings = settings_of(words, min(given.n, size))
        parts.append(over_folds(settings, partial(measure_fold, longer=given.longer), given.folds))
    rows = pd.concat(parts, ignore_index=True)
    scans = rows[rows["kind"] == SCANS].dropna(axis=1, how="all")
    write_text(given.output / "unlabelled_scans.csv", scans.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    tests = rows[rows["kind"] != SCANS].dropna(axis=1, how="all")
    write_results(given.output, "unlabelled", tests, table(rows))


if __name__ == "__main__":
    main()
