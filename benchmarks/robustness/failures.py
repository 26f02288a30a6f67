"""Compare predicted and true DSC on corrupted test scans: does a joint model know when it fails?

    python -m benchmarks.robustness.failures [--output DIR] [--n 6] experiment=accuracy data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. Segments every test case of the patient
folds, once unchanged and once after each corruption of :mod:`oasis_monai.transforms.corruptions`. The predicted DSC is
calibrated as in a cross-validation, on the other folds: on their unchanged cases and on the corrupted copies that a
cross-validation makes of them, without copies of the corruption under test. ``--untouched`` calibrates on unchanged cases only.
Writes ``failures.csv`` (one row per scan and structure), ``failures.md`` and ``failures.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from oasis_monai.data.io import read_volume
from oasis_monai.evaluation.figures import write_figure
from oasis_monai.evaluation.quality import FAILURE, aurc, correlation, cross_fitted
from oasis_monai.evaluation.quality_intervals import Results, cross_fitted_intervals
from oasis_monai.evaluation.quality_tables import BOUNDS, coverage, plain_agreement
from oasis_monai.segmentation import flags
from oasis_monai.segmentation.agreement import SOURCES, overlaps
from oasis_monai.segmentation.methods import result_keys
from oasis_monai.settings import Settings
from oasis_monai.transforms.corruptions import CORRUPTIONS, UNTOUCHED, draw_corruptions, shows_anything
from oasis_monai.transforms.labels import decide
from oasis_monai.transforms.spatial import inside
from oasis_monai.workflows.corrupted_copies import segment_labelled


def segment_fold(settings: Settings, index: int) -> list[dict[str, Any]]:
    """Segment every test case of a fold, unchanged and corrupted; -> rows without predictions."""
    one = open_fold(settings, index)
    dataset, fold, segmenter, embed = one.dataset, one.fold, one.segmenter, one.embed
    limit = flags.typical_distance(segmenter.library, settings.features.distance)
    names, key = list(settings.data.labels), result_keys(settings.methods, settings.n)[0]
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(sorted(fold.test), 1):
        volume = read_volume(dataset.cases[case], settings.data.label_values)
        for change, seed in [(UNTOUCHED, 0), *draw_corruptions(case, len(CORRUPTIONS), settings.seed)]:
            scan = CORRUPTIONS[change](volume, seed) if change != UNTOUCHED else volume
            if not shows_anything(scan):
                continue
            found, labels, dice = segment_labelled(segmenter, scan, settings, embed, settings.methods)
            result, target = found.results[key], found.target
            assert result.agreement is not None
            assert found.selection is not None
            doubts = [
                flags.unlike_atlases(found.selection.distances[:, 0], limit),
                flags.empty(labels[key].label, names),
                flags.cut(decide(result.probability), inside(target.native, target.geometry), names),
            ]
            others = " ".join(flag.name for flag in doubts if flag is not None)
            for name, told, dsc in zip(names, overlaps(result.agreement).tolist(), dice[key], strict=True):
                row = {"fold": index, "case": case, "corruption": change, "label": name, "dsc": dsc}
                rows.append(row | dict(zip(SOURCES, told, strict=True)) | {"flags": others})
        print(f"fold {index}: {number} of {len(fold.test)} cases", flush=True)
    return rows


def predicted(rows: pd.DataFrame, copies: int, seed: int) -> pd.DataFrame:
    """Add ``predicted_dsc``, the ends of its 90 % interval and ``unsure``, calibrated on the unchanged cases and on ``copies`` of
    each that a cross-validation makes."""
    rows = rows.copy()
    names = {case: {name for name, _ in draw_corruptions(case, copies, seed)} for case in rows["case"].unique()}
    shipped = [c == UNTOUCHED or c in names[case] for case, c in zip(rows["case"], rows["corruption"], strict=True)]
    rows["shipped"], rows["unsure"] = shipped, True
    rows[["predicted_dsc", *BOUNDS]] = float("nan")
    for label in rows["label"].unique():
        own = rows["label"] == label
        part = rows[own]
        values, dsc, folds, changes = (part[name].to_numpy() for name in (list(SOURCES), "dsc", "fold", "corruption"))
        results = Results(values, dsc, folds, changes, part["case"].tolist(), list(range(len(part))))
        told, unsure = cross_fitted(values, dsc, folds.tolist(), changes.tolist(), part["shipped"].to_numpy())
        rows.loc[own, "predicted_dsc"], rows.loc[own, "unsure"] = told, unsure
        rows.loc[own, list(BOUNDS)] = cross_fitted_intervals(results, told, part["shipped"].to_numpy())
    return rows.drop(columns="shipped")


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per corruption, and one for all scans."""
    head = ["scans", "cases", "true DSC", "predicted", "mean error", "in the 90 % interval", "its width"]
    head += ["AURC", "of the plain agreement", "of the best order", "r", "DSC under 70 %"]
    head += ["of these unsure", "others unsure", "of these with any flag", "others with any flag"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    order = [UNTOUCHED, *(name for name in CORRUPTIONS if (rows["corruption"] == name).any())]
    for name, part in [*((name, rows[rows["corruption"] == name]) for name in order), ("**all**", rows)]:
        bad, unsure = part["dsc"] < FAILURE, part["unsure"].astype(bool)
        error = (part["predicted_dsc"] - part["dsc"]).abs()
        cells = [name, len(part), *(f"{100 * v.mean():.1f}" for v in (part["dsc"], part["predicted_dsc"], error))]
        within, known, width = coverage(part)
        orders = (part["predicted_dsc"], plain_agreement(part), part["dsc"])
        cells += [f"{within} of {known}", f"{100 * width:.1f}", *(f"{100 * aurc(order, part['dsc']):.1f}" for order in orders)]
        cells += [f"{correlation(part['predicted_dsc'], part['dsc']):.2f}", bad.sum()]
        for told in (unsure, unsure | (part["flags"] != "")):
            cells += [(bad & told).sum(), f"{(~bad & told).sum()} of {(~bad).sum()}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Plot true over predicted DSC, one point per scan and structure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    axes.axhline(100 * FAILURE, color="0.6", linewidth=0.8, linestyle=":")
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, change in enumerate([UNTOUCHED, *CORRUPTIONS]):
        part = rows[rows["corruption"] == change]
        style = (
            {"color": "black", "marker": "o"} if change == UNTOUCHED else {"color": colours[2 * i % 20], "marker": "os^Dv"[i % 5]}
        )
        axes.scatter(100 * part["predicted_dsc"], 100 * part["dsc"], s=13, label=change, alpha=0.8, linewidths=0, **style)
    axes.set_xlabel("predicted DSC %")
    axes.set_ylabel("true DSC %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    figure.legend(fontsize="small", loc="outside right upper", frameon=False)
    write_figure(path, figure)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = fold_parser("benchmarks.robustness.failures", __doc__)
    parser.add_argument("--untouched", action="store_true", help="calibrate on unchanged cases only")
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    rows = over_folds(settings, segment_fold)
    rows = predicted(rows, 0 if given.untouched else settings.corruptions, settings.seed)
    plot(rows, given.output / "failures.png")
    write_results(given.output, "failures", rows, table(rows))


if __name__ == "__main__":
    main()
