"""Plant wrong labels, and count how many are among the first suspects.

    python -m benchmarks.robustness.suspects [--output DIR] [--n 6] [--draws 200] data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. The models stay as they are: a wrong label
is only put in the place of a test case's reference. (With wrong labels in the training as well the results would be a little
worse; ``--trained FOLDER`` plants them in a copy of the data set there and runs the whole cross-validation on it.)

A case's label is shifted by two slices, mirrored about the middle of the image along one axis, exchanged for the label of another
case (centre on centre), robbed of a third of its slices, or two of its structures change names. In every draw one case in seven
gets one of these, each kind in turn. Writes ``suspects_planted.csv`` (a row per planted label) and ``suspects_planted.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.robustness.fold_models import fold_parser, over_folds, settings_of
from oasis_monai.atlases.features import embedder
from oasis_monai.data.io import read_volume, write_label
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.suspects import SUSPECT, Suspect, findings
from oasis_monai.settings import Settings
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.corrupted_copies import segment_labelled
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.fold_models import FoldModels
from oasis_monai.workflows.prepare import Dataset, find_and_check, prepare, split_of
from oasis_monai.workflows.suspects import compare, rank_findings

ONE_IN = 7  # cases; one of them gets a wrong label
VARIANTS = 2  # different wrong labels of each kind and case
FIRST = 10


def shifted(label: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """By two slices one way or the other."""
    from scipy import ndimage

    step = np.zeros(3)
    step[axis] = rng.choice([-2, 2])
    return np.asarray(ndimage.shift(label, step, order=0))


def mirrored(label: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """About the middle of the image, along any axis."""
    return np.flip(label, int(rng.integers(3))).copy()


def without_a_third(label: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """Without a third of the slices that it has, side by side anywhere."""
    there = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
    count = max(1, round(len(there) / 3))
    first = int(rng.integers(len(there) - count + 1))
    robbed = label.copy()
    np.moveaxis(robbed, axis, 0)[there[first : first + count]] = 0
    return robbed


def swapped(label: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """Two of its structures have each other's value."""
    one, other = rng.permutation(np.unique(label[(label > 0) & (label < 255)]))[:2]
    return np.where(label == one, other, np.where(label == other, one, label)).astype(label.dtype)


def placed(label: np.ndarray, grid: Geometry, onto: Geometry) -> np.ndarray:
    """Another scan's label on this grid, the centre of its image on the centre of this one."""
    out, sides = np.zeros(onto.shape, label.dtype), []
    for count, mm, own, own_mm in zip(onto.shape, onto.spacing_mm, grid.shape, grid.spacing_mm, strict=True):
        at = np.rint((np.arange(count) - (count - 1) / 2) * mm / own_mm + (own - 1) / 2).astype(int)
        sides.append((np.flatnonzero((at >= 0) & (at < own)), at[(at >= 0) & (at < own)]))
    out[np.ix_(*(here for here, _ in sides))] = label[np.ix_(*(there for _, there in sides))]
    return out


Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
CHANGES: dict[str, Change] = {"shifted": shifted, "mirrored": mirrored, "third missing": without_a_third, "swapped": swapped}
OTHER = "another case's"


def kinds_for(settings: Settings) -> list[str]:
    """The kinds of wrong labels of a data set; only several structures can be exchanged."""
    return [OTHER, *(kind for kind in CHANGES if kind != "swapped" or len(settings.data.labels) > 1)]


def wrong_label(kind: str, volume: Volume, dataset: Dataset, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """(x, y, z) a wrong label of a case, on its own grid."""
    assert volume.label is not None
    label, spacing_mm = volume.label[0].numpy(), volume.geometry.spacing_mm
    if kind == OTHER:
        patient = dataset.cases[volume.case].patient
        other = str(rng.choice([case.id for case in dataset.cases.values() if case.patient != patient]))
        donor = read_volume(dataset.cases[other], settings.data.label_values, settings.data.ignore)
        assert donor.label is not None
        return placed(donor.label[0].numpy(), donor.geometry, volume.geometry)
    return CHANGES[kind](label, max(range(3), key=lambda axis: (round(spacing_mm[axis], 3), axis)), rng)


def segment_fold(settings: Settings, index: int) -> list[dict[str, Any]]:
    """Segment every test case of a fold, and compare it with its reference and with wrong ones; a row each."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cache = Path(settings.cache)
    dataset = prepare(settings, find_and_check(settings, cache, print), cache, print)
    split = split_of(settings, dataset)
    fold = split.folds[index]
    segmenter = FoldModels(settings, dataset, split, cache, print).segmenter(fold)
    embed = embedder(settings.features.name, settings.features.weights)
    labels, rows = list(settings.data.labels), []
    for case in sorted(fold.test):
        volume = read_volume(dataset.cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        found, _, _ = segment_labelled(segmenter, volume, settings, embed, settings.methods)
        (key,) = found.results
        whole = compare(found, key, volume.label[0].numpy(), labels)
        about = {"case": case, "fold": index, "agreement": found.results[key].agreement}
        rows.append(about | {"kind": "", "variant": 0, "findings": findings(case, whole)})
        rng = np.random.default_rng([settings.seed, *case.encode()])
        for kind in kinds_for(settings):
            for variant in range(VARIANTS):
                wrong = wrong_label(kind, volume, dataset, settings, rng)
                told = findings(case, compare(found, key, wrong, labels))
                rows.append(about | {"kind": kind, "variant": variant, "findings": told})
        print(f"fold {index}: {case}", flush=True)
    return rows


def drawn(rows: pd.DataFrame, labels: list[str], kinds: list[str], draws: int, seed: int) -> pd.DataFrame:
    """Rank of every planted label, over many draws of the cases that get one."""
    right = rows[rows["kind"] == ""].set_index("case")
    wrong = {(r["case"], r["kind"], r["variant"]): r["findings"] for r in rows[rows["kind"] != ""].to_dict("records")}
    agreements, groups = right["agreement"].to_dict(), right["fold"].to_dict()
    cases, made = sorted(right.index), []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        chosen = rng.permutation(cases)[: max(1, round(len(cases) / ONE_IN))]
        planted = {str(case): kinds[(draw + i) % len(kinds)] for i, case in enumerate(chosen)}
        held = {case: wrong[case, kind, int(rng.integers(VARIANTS))] for case, kind in planted.items()}
        found = [one for case in cases for one in held.get(case, right.loc[case, "findings"])]
        made += ranks(rank_findings(found, agreements, labels, groups), planted, draw)
    return pd.DataFrame(made)


def ranks(suspects: list[Suspect], planted: Mapping[str, str], draw: int = 0) -> list[dict[str, Any]]:
    """Where the planted labels stand among the cases."""
    order = list(dict.fromkeys(one.finding.case for one in suspects))
    worst = {case: next(one for one in suspects if one.finding.case == case) for case in planted if case in order}
    innocent = [one for one in suspects if one.finding.case not in planted and one.score >= SUSPECT]
    return [
        {
            "draw": draw,
            "case": case,
            "planted": kind,
            "rank": order.index(case) + 1,
            "score": worst[case].score,
            "looks_like": worst[case].text,
            "innocent_suspects": len({one.finding.case for one in innocent}),
        }
        for case, kind in planted.items()
        if case in worst
    ]


def table(planted: pd.DataFrame, cases: int) -> str:
    """A Markdown table: one line per kind."""
    count = round(len(planted) / max(1, planted["draw"].nunique()))
    head = [
        "planted",
        "labels",
        f"among the first {FIRST}",
        f"among the first {count}",
        "median rank",
        f"score {SUSPECT:g} or more",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, part in [*planted.groupby("planted"), ("**all**", planted)]:
        hits = [f"{100 * (part['rank'] <= most).mean():.1f} %" for most in (FIRST, count)]
        flagged = f"{100 * (part['score'] >= SUSPECT).mean():.1f} %"
        lines.append(f"| {kind} | {len(part)} | {' | '.join(hits)} | {part['rank'].median():g} | {flagged} |")
    innocent = planted.groupby("draw")["innocent_suspects"].first().mean()
    return (
        "\n".join(lines)
        + f"\n\n{count} of {cases} labels planted a draw; suspects without a planted label: {innocent:.1f} a draw.\n"
    )


def run_on_copy(settings: Settings, folder: Path, seed: int) -> pd.DataFrame:
    """Plant wrong labels in a copy of the data set, train and test on it, and rank: the wrong labels are in the training too."""
    dataset = prepare(settings, find_and_check(settings, None, print), None, print)
    cases, kinds = sorted(dataset.cases), kinds_for(settings)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(cases)[: max(1, round(len(cases) / ONE_IN))]
    planted = {str(case): kinds[i % len(kinds)] for i, case in enumerate(chosen)}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case,image,label,patient,centre"]
    for name in cases:
        case = dataset.cases[name]
        label = case.label
        if name in planted:
            volume = read_volume(case, settings.data.label_values, settings.data.ignore)
            label = folder / f"{name}_planted.nii.gz"
            values = list(settings.data.label_values)
            write_label(label, wrong_label(planted[name], volume, dataset, settings, rng), volume.geometry, values)
        assert label is not None
        lines.append(f"{name},{case.image.resolve()},{label.resolve()},{case.patient},{case.centre}")
    write_text(folder / "cases.csv", "\n".join(lines) + "\n")
    own = replace(settings, data=replace(settings.data, root=str(folder / "cases.csv"), layout="table"), corruptions=0)
    crossval(own, folder / "run", overwrite=True)
    rows = pd.read_csv(folder / "run" / "suspects.csv", dtype={"case": str})
    order = list(dict.fromkeys(rows["case"]))
    first = rows.groupby("case", sort=False).first()
    innocent = int((first["score"] >= SUSPECT).sum() - (first.loc[list(planted), "score"] >= SUSPECT).sum())
    made = [
        {"draw": 0, "case": case, "planted": kind, "rank": order.index(case) + 1, "innocent_suspects": innocent}
        | first.loc[case, ["score", "looks_like"]].to_dict()
        for case, kind in planted.items()
    ]
    return pd.DataFrame(made)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.suspects", __doc__)
    parser.add_argument("--draws", type=int, default=200, help="how often cases are drawn")
    parser.add_argument("--trained", type=Path, default=None, help="plant in a copy of the data set here, and train on it")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    if given.trained is not None:
        planted, cases = run_on_copy(settings, given.trained, settings.seed), 0
        cases = pd.read_csv(given.trained / "cases.csv").shape[0]
    else:
        rows = over_folds(settings, segment_fold)
        cases = rows["case"].nunique()
        planted = drawn(rows, list(settings.data.labels), kinds_for(settings), given.draws, settings.seed)
    write_text(given.output / "suspects_planted.csv", planted.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    write_text(given.output / "suspects_planted.md", table(planted, cases))
    print(table(planted, cases))


if __name__ == "__main__":
    main()
