"""The tables of a study: the paper's Table 1, ablations, and the audit of the two kinds of folds.

Each table exists twice: tidy (one row per value, for programs) and as a :class:`oasis_monai.evaluation.tables.Grid` (for people).
The table of the learning curve is in :mod:`.learning_curve`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.scores import method_name, method_rank
from oasis_monai.evaluation.statistics import at_best_n, holm, interval, wilcoxon
from oasis_monai.evaluation.tables import NONE, Cell, Grid, best_bold, interval_text, latex, markdown, number_text
from oasis_monai.networks.segmentation import NETWORKS
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import natural

PAPER_METRICS = {"arvd_percent": ("aRVD %", 1.0, False), "hd_mm": ("HD mm", 1.0, False), "dsc": ("DSC %", 100.0, True)}
"""Table 1's metrics: heading, scale, whether more is better."""
PAPER_REGIONS = ("apex", "base", "whole")
PAPER_ROWS = ("ConvNet2D", "FwoW", "FWAL", "ConvNet3D", "OASIS")
PRINTED: dict[str, tuple[int, tuple[float, ...]]] = {
    "ConvNet2D": (0, (38.21, 37.91, 32.29, 9.45, 14.88, 24.97, 67.93, 63.73, 71.03)),
    "FwoW": (2, (17.43, 15.64, 16.26, 6.32, 6.64, 14.16, 84.50, 86.53, 85.68)),
    "FWAL": (4, (9.99, 9.98, 13.14, 5.35, 6.11, 10.51, 90.82, 90.83, 91.31)),
    "ConvNet3D": (0, (15.18, 11.04, 6.95, 4.17, 5.22, 5.13, 86.81, 86.42, 89.43)),
    "OASIS": (4, (9.82, 9.92, 6.63, 4.61, 5.05, 6.59, 90.90, 90.87, 92.81)),
}
"""arXiv 1912.02417, Table 1: n, then aRVD, HD and DSC, each at apex, base and whole."""
TIDY = ("source", "protocol", "label", "method", "n", "metric", "region", "cases", "misses", "mean", "sd", "ci_low", "ci_high")
AUDITED = ("patient", "slice")
"""The protocols that the audit of the folds compares."""
COMPARED = ("difference", "difference_ci_low", "difference_ci_high", "p", "p_holm")


class Table(NamedTuple):
    """One table: tidy, and for people (a grid per label)."""

    tidy: pd.DataFrame
    grids: list[Grid]


def table1(scores: pd.DataFrame, groups: Mapping[str, int], protocol: str, main: str = "OASIS", printed: bool = True) -> Table:
    """The paper's Table 1 under one protocol: aRVD, HD and DSC at apex, base and whole, n of every method chosen on the other
    folds (:func:`.choose_n`), each row compared with ``main`` by whole-structure DSC (paired, Wilcoxon,
    Holm over the rows).

    Args:
        scores: as :func:`oasis_monai.evaluation.scores.read_scores` gives.
        groups: case -> fold, see ``choose_n``.
        printed: the paper's printed values as rows of their own (they are PROMISE12's).
    """
    mine = scores[scores["protocol"] == protocol]
    methods = [m for m in sorted(set(mine["method"]), key=method_rank) if _in_table1(m)]
    tidy: list[dict[str, Any]] = []
    grids = []
    for label in sorted(set(mine["label"]), key=natural):
        of_label = mine[mine["label"] == label]
        chosen = {m: at_best_n(of_label, m, groups) for m in methods}
        against = _compared({m: rows for m, (rows, _) in chosen.items()}, main)
        cells: list[list[Cell]] = []
        names: list[tuple[Cell, Cell]] = []
        for method in [*dict.fromkeys([*(PAPER_ROWS if printed else ()), *methods])]:
            if printed and method in PRINTED:
                n, values = PRINTED[method]
                names.append((Cell(f"{method_name(method, n)}", math.nan), Cell("printed")))
                cells.append([*(Cell(f"{v:.2f}", math.nan) for v in values), Cell("50"), *[Cell(NONE)] * 2])
                tidy += _printed_rows(protocol, label, method, n, values)
            if method not in chosen:
                names.append((Cell(method, math.nan), Cell("not measured")))
                cells.append([Cell(NONE)] * (len(PAPER_METRICS) * len(PAPER_REGIONS) + 3))
                continue
            rows, ns = chosen[method]
            numbers = _statistics(rows, PAPER_METRICS, PAPER_REGIONS)
            names.append((Cell(f"{method}-n*" if ns else method), Cell(f"measured{_n_text(ns)}")))
            versus = against.get(method)
            cells.append(
                [
                    *(_mean_cell(numbers[metric, region]) for metric in PAPER_METRICS for region in PAPER_REGIONS),
                    Cell(f"{_cases(rows)} / {_misses(rows, PAPER_REGIONS)}"),
                    *_versus_cells(versus),
                ]
            )
            n_text = " ".join(str(n) for n in ns.values()) if ns else "0"
            for (metric, region), statistics in numbers.items():
                row = _tidy("measured", protocol, label, method, n_text, metric, region, rows, statistics)
                tidy.append(row | (versus or {} if (metric, region) == ("dsc", "whole") else {}))
        columns = len(PAPER_METRICS) * len(PAPER_REGIONS)
        bold = best_bold(
            list(zip(*[row[:columns] for row in cells], strict=True)),
            [up for *_, up in PAPER_METRICS.values() for _ in PAPER_REGIONS],
        )
        body = tuple((*names[i], *(column[i] for column in bold), *cells[i][columns:]) for i in range(len(cells)))
        head = ("method", "source", *(f"{h} {r}" for h, *_ in PAPER_METRICS.values() for r in PAPER_REGIONS))
        title = f"Table 1, {label}, {tables.PROTOCOL_TITLES[protocol]}"
        grids.append(
            Grid(
                f"table1_{protocol}",
                title,
                (*head, "cases / misses", f"{main} \N{MINUS SIGN} row", "p (Holm)"),
                body,
                _table1_notes(protocol, printed, main),
            )
        )
    return Table(pd.DataFrame(tidy, columns=[*TIDY, *COMPARED]), grids)


def _table1_notes(protocol: str, printed: bool, main: str) -> tuple[str, ...]:
    notes = [
        "Mean [95 % t-interval] over cases (where patients have several, it counts patients); best measured value of a column in "
        "bold. Misses: structures there but not found, "
        "over apex, base and whole; each counts with DSC 0 and the image diagonal as its distance.",
        "n*: for each fold the n with the best mean whole DSC over the cases of the other folds.",
        f"Last columns: {main} minus the row in whole DSC, points, paired; p of Wilcoxon's signed-rank test, Holm over the rows.",
    ]
    if printed:
        notes += [
            "Printed: arXiv 1912.02417, Table 1 (50 cases, folds not described). Its ConvNet3D row equals figures published for "
            "the challenge's hidden test set, not a cross-validation.",
        ]
    if protocol == "slice":
        notes.append("A volume network has no slice folds: ConvNet3D is measured under patient folds only.")
    return tuple(notes)


def ablation(scores: pd.DataFrame, reference: str, n: int, protocol: str) -> Table:
    """Ablations: every variant of a method at one n, compared with the method (paired whole DSC, Wilcoxon, Holm).

    Variants are the methods of the same kind: all with the reference's suffix (`` 3D``) or none, and networks without n.
    """
    mine = scores[(scores["protocol"] == protocol) & scores["n"].isin([0, n])]
    volumes = of_volumes(reference)
    methods = [m for m in sorted(set(mine["method"]), key=method_rank) if of_volumes(m) == volumes]
    tidy: list[dict[str, Any]] = []
    grids = []
    for label in sorted(set(mine["label"]), key=natural):
        of_label = mine[mine["label"] == label]
        rows_of = {m: of_label[of_label["method"] == m] for m in methods}
        rows_of = {m: rows for m, rows in rows_of.items() if len(rows)}
        if reference not in rows_of:
            continue
        against = _compared(rows_of, reference)
        regions = [r for r in tables.REGIONS if r in set(of_label["region"])]
        names, cells = [], []
        for method, rows in rows_of.items():
            numbers = _statistics(rows, {"dsc": PAPER_METRICS["dsc"], "hd95_mm": ("", 1.0, False)}, regions)
            whole = rows[(rows["region"] == "whole") & rows["dsc"].notna()]
            low = float(100 * whole["dsc"].min()) if len(whole) else math.nan
            hd95 = numbers["hd95_mm", "whole"]
            names.append(Cell(method_name(method, int(rows["n"].iloc[0]))))
            cells.append(
                [
                    *(_mean_cell(numbers["dsc", region]) for region in regions),
                    Cell(number_text(low), low),
                    Cell(number_text(hd95[0]), hd95[0]),
                    Cell(str(_misses(rows, regions))),
                    *_versus_cells(against.get(method)),
                ]
            )
            for (metric, region), statistics in numbers.items():
                row = _tidy("measured", protocol, label, method, str(rows["n"].iloc[0]), metric, region, rows, statistics)
                tidy.append(row | (against.get(method, {}) if (metric, region) == ("dsc", "whole") else {}))
        columns = len(regions) + 2
        up = [True] * (len(regions) + 1) + [False]
        bold = best_bold(list(zip(*[row[:columns] for row in cells], strict=True)), up)
        body = tuple((names[i], *(column[i] for column in bold), *cells[i][columns:]) for i in range(len(cells)))
        head = (
            "method",
            *(f"DSC % {r}" for r in regions),
            "lowest",
            "95HD mm",
            "misses",
            f"{reference} \N{MINUS SIGN} row",
            "p (Holm)",
        )
        note = f"Every method that fuses atlases at n = {n}. Differences: paired, whole DSC, points [95 % interval]."
        title = f"Ablations of {reference}-{n}, {label}, {tables.PROTOCOL_TITLES[protocol]}"
        name = f"ablation_{'3d' if volumes else '2d'}_{protocol}"
        grids.append(Grid(name, title, head, body, (note,)))
    return Table(pd.DataFrame(tidy, columns=[*TIDY, *COMPARED]), grids)


def audit(scores: pd.DataFrame, groups: Mapping[str, int]) -> Table:
    """The fold audit: whole DSC of every method under slice and under patient folds, and the leakage, their paired difference
    in points. At n* and at every n."""
    whole = scores[(scores["region"] == "whole") & scores["dsc"].notna()]
    both = [
        m for m in sorted(set(whole["method"]), key=method_rank) if set(AUDITED) <= set(whole[whole["method"] == m]["protocol"])
    ]
    tidy: list[dict[str, Any]] = []
    grids = []
    for label in sorted(set(whole["label"]), key=natural):
        lines = []
        for method in both:
            sides = {
                p: whole[(whole["label"] == label) & (whole["method"] == method) & (whole["protocol"] == p)] for p in AUDITED
            }
            ns = sorted(set(sides["patient"]["n"]) & set(sides["slice"]["n"]))
            picked: list[tuple[str, dict[str, pd.DataFrame]]] = []
            if ns != [0]:
                picked.append(("n*", {p: at_best_n(rows, method, groups)[0] for p, rows in sides.items()}))
            picked += [(str(n), {p: rows[rows["n"] == n] for p, rows in sides.items()}) for n in ns]
            for text, pair in picked:
                joined = pair["slice"].merge(pair["patient"], on="case", suffixes=("_slice", "_patient"))
                leak, patients = 100 * (joined["dsc_slice"] - joined["dsc_patient"]).to_numpy(), joined["patient_slice"].tolist()
                means = {p: interval(100 * joined[f"dsc_{p}"].to_numpy(), patients=patients) for p in AUDITED}
                gap = interval(leak, patients=patients)
                values = {
                    f"{p}_{k}": v for p, m in means.items() for k, v in zip(("mean", "sd", "ci_low", "ci_high"), m, strict=True)
                }
                leak_values = dict(zip(("leak", "leak_sd", "leak_ci_low", "leak_ci_high"), gap, strict=True))
                tidy.append(
                    {
                        "label": label,
                        "method": method,
                        "n": text,
                        "cases": len(joined),
                        **values,
                        **leak_values,
                        "p": wilcoxon(leak, patients),
                    }
                )
                if text in ("n*", "0"):
                    name = method if text == "0" else f"{method}-n*"
                    cells = [Cell(interval_text(means[p]), means[p][0]) for p in ("slice", "patient")]
                    lines.append((Cell(name), *cells, Cell(interval_text(gap, signed=True), gap[0]), Cell(str(len(joined)))))
        if lines:
            head = ("method", "slice folds, DSC %", "patient folds, DSC %", "leakage, points", "cases")
            notes = (
                "Whole structure, mean [95 % interval]. Leakage: the same case's DSC under slice folds minus that under patient "
                "folds; under slice folds other slices of the case are among the atlases and in the training set.",
                "n*: chosen for each fold on the cases of the other folds, for each protocol by itself.",
            )
            grids.append(Grid("audit", f"What the folds do, {label}", head, tuple(lines), notes))
    return Table(pd.DataFrame(tidy), grids)


def write_table(folder: Path, name: str, table: Table) -> None:
    """``name.csv`` (tidy), ``name.md`` and ``name.tex`` (for people), each whole or not at all."""
    write_text(folder / f"{name}.csv", table.tidy.to_csv(index=False, lineterminator="\n"))
    write_text(folder / f"{name}.md", "\n".join(markdown(grid) for grid in table.grids))
    write_text(folder / f"{name}.tex", "\n".join(latex(grid) for grid in table.grids))


def _in_table1(method: str) -> bool:
    """The paper's rows, and ours beside them; fusion rules and ablations have a table of their own."""
    plain = method.removesuffix(" 3D")
    return plain in (*PAPER_ROWS, "OASIS-joint") or method in NETWORKS


def of_volumes(method: str) -> bool:
    """Whether a study's method works on volumes: a network's name decides, or the suffix an arm gives its fusion rules."""
    return NETWORKS[method] == 3 if method in NETWORKS else " 3D" in method


def _compared(rows_of: Mapping[str, pd.DataFrame], main: str) -> dict[str, dict[str, float]]:
    """Per method the paired difference main minus method in whole DSC points, with Holm over all of them."""
    if main not in rows_of:
        return {}

    def dsc(rows: pd.DataFrame) -> pd.Series:
        whole = rows[(rows["region"] == "whole") & rows["dsc"].notna()]
        return whole.set_index("case")["dsc"]

    reference = dsc(rows_of[main])
    patient_of = {case: who for rows in rows_of.values() for case, who in zip(rows["case"], rows["patient"], strict=True)}
    results: dict[str, dict[str, float]] = {}
    for method, rows in rows_of.items():
        if method == main:
            continue
        paired = (100 * (reference - dsc(rows))).dropna()
        difference, patients = paired.to_numpy(), [patient_of[case] for case in paired.index]
        mean, _, low, high = interval(difference, patients=patients)
        p = wilcoxon(difference, patients)
        results[method] = {"difference": mean, "difference_ci_low": low, "difference_ci_high": high, "p": p}
    for method, adjusted in zip(results, holm([r["p"] for r in results.values()]), strict=True):
        results[method]["p_holm"] = adjusted
    return results


def _statistics(
    rows: pd.DataFrame, metrics: Mapping[str, tuple[str, float, bool]], regions: Sequence[str]
) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    counted = rows[rows["status"] != "absent"]
    at = {region: counted[counted["region"] == region] for region in regions}
    return {
        (metric, region): interval(
            *(scale * at[region][metric].to_numpy(float), 0.0, 100.0 if metric == "dsc" else math.inf),
            patients=at[region]["patient"].tolist(),
        )
        for metric, (_, scale, _) in metrics.items()
        for region in regions
    }


def _tidy(
    source: str, protocol: str, label: str, method: str, n: str, metric: str, region: str, rows: pd.DataFrame, statistics: Any
) -> dict[str, Any]:
    at = rows[(rows["region"] == region) & (rows["status"] != "absent")]
    mean, sd, low, high = statistics
    counts = (len(at), int((at["status"] == "miss").sum()))
    values = (source, protocol, label, method, n, metric, region, *counts, mean, sd, low, high)
    return dict(zip(TIDY, values, strict=True))


def _printed_rows(protocol: str, label: str, method: str, n: int, values: Sequence[float]) -> list[dict[str, Any]]:
    keys = [(metric, region) for metric in PAPER_METRICS for region in PAPER_REGIONS]
    blank = (50, math.nan)
    return [
        dict(zip(TIDY, ("printed", protocol, label, method, str(n), *key, *blank, v, *[math.nan] * 3), strict=True))
        for key, v in zip(keys, values, strict=True)
    ]


def _mean_cell(statistics: tuple[float, float, float, float]) -> Cell:
    return Cell(interval_text(statistics), statistics[0])


def _versus_cells(versus: Mapping[str, float] | None) -> list[Cell]:
    if versus is None:
        return [Cell(NONE), Cell(NONE)]
    gap = (versus["difference"], math.nan, versus["difference_ci_low"], versus["difference_ci_high"])
    p = versus["p_holm"]
    text = NONE if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")
    return [Cell(interval_text(gap, signed=True), gap[0]), Cell(text, p)]


def _n_text(ns: Mapping[int, int]) -> str:
    return f", n = {', '.join(str(ns[fold]) for fold in sorted(ns))}" if ns else ""


def _cases(rows: pd.DataFrame) -> int:
    return int(rows["case"].nunique())


def _misses(rows: pd.DataFrame, regions: Sequence[str]) -> int:
    return int(((rows["status"] == "miss") & rows["region"].isin(list(regions))).sum())
