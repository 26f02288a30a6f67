"""Plant wrong labels, and count how many are among the first suspects.

    python -m benchmarks.robustness.suspects [--output DIR] [--n 6] [--draws 200] data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. The models stay as they are: a wrong label
is only put in the place of a test case's reference. (With wrong labels in the training as well the results would be a little
worse; ``--trained FOLDER`` plants them in a copy of the data set there and runs the whole cross-validation on it.)

A case's label is shifted by two slices, mirrored about the middle of the image along one axis, exchanged for the label of another
case (centre on centre), robbed of a third of its slices, or two of its structures change names. In every draw one case in seven
gets one of these, each kind in turn. As many others are replaced by a corrupted copy of their scan
(:mod:`oasis_monai.transforms.corruptions`): there the result is wrong and the label is right, so that a low Dice alone is no
sign. Writes ``suspects_planted.csv`` (a row per planted label) and ``suspects_planted.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from oasis_monai.data.io import read_volume, write_label
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.evaluation.suspects import SUSPECT, Finding, Suspect, findings, read_suspects
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, draw_corruptions, shows_anything
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.corrupted_copies import segment_labelled
from oasis_monai.workflows.crossval import crossval
from oasis_monai.workflows.prepare import Dataset, find_and_check, prepare
from oasis_monai.workflows.suspects import compare, rank_findings

ONE_IN = 7  # cases; one of them gets a wrong label
VARIANTS = 2  # different wrong labels of each kind and case
FIRST = 10
RIGHT, CORRUPTED = "", "corrupted scan"


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
    one = open_fold(settings, index)
    dataset, fold, segmenter, embed = one.dataset, one.fold, one.segmenter, one.embed
    labels, rows = list(settings.data.labels), list[dict[str, Any]]()

    def segmented(scan: Volume) -> tuple[Callable[[np.ndarray], list[Finding]], dict[str, Any]]:
        """How a reference differs from the result of a scan, and what belongs to that result."""
        found, _, _ = segment_labelled(segmenter, scan, settings, embed, settings.methods)
        (key,) = found.results
        about = {"case": scan.case, "fold": index, "variant": 0, "agreement": found.results[key].agreement}
        return (lambda reference: findings(scan.case, compare(found, key, reference, labels))), about

    for case in sorted(fold.test):
        volume = read_volume(dataset.cases[case], settings.data.label_values, settings.data.ignore)
        assert volume.label is not None
        differ, about = segmented(volume)
        rows.append(about | {"kind": RIGHT, "findings": differ(volume.label[0].numpy())})
        ((name, seed),) = draw_corruptions(case, 1, settings.seed)
        copy = CORRUPTIONS[name](volume, seed)
        if shows_anything(copy) and copy.label is not None:
            of_copy, about_copy = segmented(copy)
            rows.append(about_copy | {"kind": CORRUPTED, "findings": of_copy(copy.label[0].numpy())})
        rng = np.random.default_rng([settings.seed, *case.encode()])
        for kind in kinds_for(settings):
            for variant in range(VARIANTS):
                wrong = wrong_label(kind, volume, dataset, settings, rng)
                rows.append(about | {"kind": kind, "variant": variant, "findings": differ(wrong)})
        print(f"fold {index}: {case}", flush=True)
    return rows


def drawn(rows: pd.DataFrame, labels: list[str], kinds: list[str], draws: int, seed: int) -> pd.DataFrame:
    """Rank of every planted label, over many draws of the cases that get one and of those whose scan is corrupted."""
    held = {(r["case"], r["kind"], r["variant"]): r for r in rows.to_dict("records")}
    groups = dict(zip(rows["case"], rows["fold"], strict=True))
    cases, made = sorted(groups), list[dict[str, Any]]()
    count = max(1, round(len(cases) / ONE_IN))
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        chosen = [str(case) for case in rng.permutation(cases)[: 2 * count]]
        planted = {case: kinds[(draw + i) % len(kinds)] for i, case in enumerate(chosen[:count])}
        taken = {case: held[case, RIGHT, 0] for case in cases}
        taken |= {case: held[case, kind, int(rng.integers(VARIANTS))] for case, kind in planted.items()}
        taken |= {case: held[case, CORRUPTED, 0] for case in chosen[count:] if (case, CORRUPTED, 0) in held}
        found = [one for row in taken.values() for one in row["findings"]]
        suspects = rank_findings(found, {case: row["agreement"] for case, row in taken.items()}, labels, groups)
        made += ranks(suspects, planted, draw)
    return pd.DataFrame(made)


def ranks(suspects: list[Suspect], planted: Mapping[str, str], draw: int = 0) -> list[dict[str, Any]]:
    """Where the planted labels stand among the cases; ``rank_by_dice`` were the lowest Dice first."""
    worst = {one.finding.case: one for one in reversed(suspects)}  # the first of each case stays
    order = list(dict.fromkeys(one.finding.case for one in suspects))
    lowest = {case: min(one.finding.dsc for one in suspects if one.finding.case == case) for case in order}
    by_dice = sorted(order, key=lambda case: lowest[case])
    innocent = sum(worst[case].score >= SUSPECT for case in order if case not in planted)
    return [
        {
            "draw": draw,
            "case": case,
            "planted": kind,
            "rank": order.index(case) + 1,
            "rank_by_dice": by_dice.index(case) + 1,
            "score": worst[case].score,
            "looks_like": worst[case].text,
            "innocent_suspects": innocent,
        }
        for case, kind in planted.items()
        if case in worst
    ]


def table(planted: pd.DataFrame, cases: int) -> str:
    """A Markdown table: one line per kind."""
    count = round(len(planted) / max(1, planted["draw"].nunique()))
    head = ["planted", "labels", f"among the first {FIRST}", f"among the first {count}", "the same, lowest Dice first"]
    head += ["median rank", f"score {SUSPECT:g} or more"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, part in [*planted.groupby("planted"), ("**all**", planted)]:
        hits = (part["rank"] <= FIRST, part["rank"] <= count, part["rank_by_dice"] <= count)
        cells = [f"{100 * hit.mean():.1f} %" for hit in hits]
        cells += [f"{part['rank'].median():g}", f"{100 * (part['score'] >= SUSPECT).mean():.1f} %"]
        lines.append(f"| {kind} | {len(part)} | {' | '.join(cells)} |")
    innocent = planted.groupby("draw")["innocent_suspects"].first().mean()
    told = f"{count} of {cases} labels planted a draw; suspects without a planted label: {innocent:.1f} a draw."
    return "\n".join(lines) + f"\n\n{told}\n"


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
    first = read_suspects(folder / "run" / "suspects.csv").groupby("case", sort=False).first()
    by_dice = list(first.sort_values("dsc").index)
    innocent = int((first.drop(index=list(planted))["score"] >= SUSPECT).sum())
    made = [
        {"draw": 0, "case": case, "planted": kind, "rank": list(first.index).index(case) + 1}
        | {"rank_by_dice": by_dice.index(case) + 1, "innocent_suspects": innocent}
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
    write_results(given.output, "suspects_planted", planted, table(planted, cases))


if __name__ == "__main__":
    main()
