"""Write the results of a finished study: tables, figures and the page.

``results/`` contains only tables and plots and may be passed on where the scans may not; ``fig4_*.png``, ``browser/`` and
``report.html`` show slices of the scans.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.data.folds import PROTOCOLS, patient_groups
from oasis_monai.evaluation import figures
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.case_grid import case_grid, ranked_cases
from oasis_monai.evaluation.case_view import load_browser
from oasis_monai.evaluation.comparison import Table, ablation, audit, of_volumes, table1, write_table
from oasis_monai.evaluation.learning_curve import learning_table, read_learning
from oasis_monai.evaluation.report import StudyParts, write_report
from oasis_monai.networks.segmentation import NETWORKS
from oasis_monai.settings import build
from oasis_monai.utils.files import write_text
from oasis_monai.workflows.study import Study, plan

FIG3_NOTE = (
    "Mean over cases, band: 95 % t-interval. Level lines: networks without atlases. A best n read off here is chosen on the very "
    "cases it is scored on; Table 1 chooses it on the other folds."
)
AUDIT_NOTE = (
    "The same cases, methods, settings and training budget; only the folds differ. Under slice folds most nearest atlases of a "
    "test slice are its neighbours of the same patient, and the networks have been trained on them."
)
LEARNING_NOTE = "The same training budget at every size. Dots: single test cases."
FIG4_NOTE = "Red: reference. Yellow: result. Best, median and worst case of {method} by whole DSC."


def write_results(study: Study, config: Mapping[str, Any], run_dir: Path) -> Path:
    """Write ``results/`` (CSV, Markdown, LaTeX, SVG, PNG), Fig. 4 and ``report.html`` of a study that has run.

    Returns:
        The page's path.

    Raises:
        DataError: its scores are absent.
    """
    scores = tables.read_scores(run_dir / "scores.csv")
    settings = build(config)
    patients = dict(zip(scores["case"], scores["patient"], strict=True))
    groups = patient_groups(patients, settings.k, settings.seed, patients)
    out = run_dir / "results"
    made: dict[str, Table] = {}
    protocols = [p for p in PROTOCOLS if p in set(scores["protocol"])]
    for protocol in protocols:
        there = set(scores.loc[scores["protocol"] == protocol, "method"])
        main = study.main if study.main in there else f"{study.main} 3D"  # a protocol may have its volume form alone
        made[f"table1_{protocol}"] = table1(scores, _folds(scores, protocol, groups), protocol, main, study.printed)
    for reference in study.ablation:
        for protocol in protocols:
            table = ablation(scores, reference, study.n, protocol)
            if table.grids:
                made[_beside(table.grids[0].name, made, reference)] = table
    leaks = audit(scores, groups)
    if leaks.grids:
        made["audit"] = leaks
    drawings = [("DSC over n (Fig. 3)", "fig3", figures.dsc_over_n(_whole_curves(scores)), FIG3_NOTE)]
    if leaks.grids:
        best = leaks.tidy[leaks.tidy["n"].isin(["n*", "0"]) & (leaks.tidy["label"] == leaks.tidy["label"].iloc[0])]
        plain = [m for m in best["method"] if len(set(scores.loc[scores["method"] == m, "n"])) > 1 or m in NETWORKS]
        drawn = figures.fold_audit(scores[scores["method"].isin(plain)], best[best["method"].isin(plain)], study.printed)
        drawings.append(("What the folds do", "audit", drawn, AUDIT_NOTE))
    if study.learning is not None and (run_dir / "learning.csv").exists():
        frame = _sized(read_learning(run_dir / "learning.csv"), _fewest_trained(patients, groups))
        made["learning"] = learning_table(frame, study.learning.main)
        drawings.append(("Learning curve", "learning", figures.learning_curve(frame), LEARNING_NOTE))
    for name, table in made.items():
        write_table(out, name, table)
    parts = []
    for title, name, figure, note in drawings:
        if figure is not None:
            figures.write_figure(out / f"{name}.svg", figure)
            figures.write_figure(out / f"{name}.png", figure)
            parts.append((title, figures.svg_element(figure), note))
    browser = {run_dir / "arms" / job.name / "browser": job.suffix for job in plan(study, config) if job.train_cases is None}
    for name, source in (("summary.csv", "summary.csv"), ("learning_scores.csv", "learning.csv")):
        if (run_dir / source).exists():
            write_text(out / name, (run_dir / source).read_text(encoding="utf-8"))
    grids = tuple(grid for table in made.values() for grid in table.grids)
    pictures = _fig4(scores, browser, study, run_dir)
    return write_report(run_dir, StudyParts(grids, tuple(parts), tuple(pictures), browser))


def _beside(name: str, others: Collection[str], reference: str) -> str:
    """A file's name, with the reference behind it where another has taken it."""
    return name if name not in others else f"{name}_{re.sub(r'[^A-Za-z0-9]+', '-', reference).strip('-')}"


def _whole_curves(scores: pd.DataFrame) -> pd.DataFrame:
    """The methods with a curve over n, and the networks, which are level lines."""
    several = scores.groupby("method")["n"].nunique()
    lines = [m for m in several.index if several[m] > 1 or set(scores.loc[scores["method"] == m, "n"]) == {0}]
    return scores[scores["method"].isin(lines)]


def _folds(scores: pd.DataFrame, protocol: str, groups: Mapping[str, int]) -> Mapping[str, int]:
    """Case -> the fold n is not chosen on: by centre and from the file the fold that tested it."""
    if protocol not in ("centre", "file"):
        return groups
    mine = scores[scores["protocol"] == protocol]
    return dict(zip(mine["case"], mine["fold"], strict=True))


def _fewest_trained(patients: Mapping[str, str], groups: Mapping[str, int]) -> int:
    """The smallest number of patients that a whole patient fold trains with."""
    of_fold = {fold: {patients[case] for case in groups if groups[case] == fold} for fold in groups.values()}
    return len(set(patients.values())) - max(map(len, of_fold.values()))


def _sized(frame: pd.DataFrame, whole: int) -> pd.DataFrame:
    """Whole folds, told as 0, under the number of patients they train with (the smallest where folds differ). They stand for a
    size that asks for as many."""
    return frame[frame["train_cases"] != whole].assign(train_cases=lambda rows: rows["train_cases"].replace(0, whole))


def _fig4(scores: pd.DataFrame, browser: Mapping[Path, str], study: Study, run_dir: Path) -> list[tuple[str, Path, str]]:
    """Best, median and worst case of the main method, under each protocol, and of its volume form under patient folds."""
    pictures: list[tuple[str, Path, str]] = []
    for protocol in PROTOCOLS:
        views = load_browser(browser, protocol)
        rows = scores[(scores["protocol"] == protocol) & (scores["region"] == "whole") & scores["n"].isin([0, study.n])]
        rows = rows[rows["dsc"].notna()]
        names = [tables.method_name(m, n) for m, n in zip(rows["method"], rows["n"], strict=True)]
        dsc = rows.assign(name=names).groupby(["case", "name"])["dsc"].mean().to_dict()
        for reference in study.ablation or (study.main,):
            main = tables.method_name(reference, study.n)
            volumes = of_volumes(reference)
            shown = [
                name
                for name in dict.fromkeys(sorted(names, key=lambda n: tables.method_rank(tables.plain_method(n))))
                if _in_fig4(name, volumes, study.n) and any(name in view.results for view in views.values())
            ]
            ranked = [
                (rank, views[case])
                for rank, case in ranked_cases({c: v for (c, m), v in dsc.items() if m == main})
                if case in views
            ]
            kind = "3d" if volumes else "2d"
            taken = [picture.stem for _, picture, _ in pictures]
            path = run_dir / f"{_beside(f'fig4_{kind}_{protocol}', taken, reference)}.png"
            if main in shown and case_grid(path, ranked, shown, dsc):
                title = f"Contours (Fig. 4), atlases are {'volumes' if volumes else 'slices'}, {protocol} folds"
                pictures.append((title, path, FIG4_NOTE.format(method=main)))
    return pictures


def _in_fig4(name: str, volumes: bool, n: int) -> bool:
    """Networks and the paper's three ways of fusing, of one kind."""
    if name in NETWORKS:
        return of_volumes(name) == volumes
    suffix = " 3D" if volumes else ""
    return name in {f"{method}{suffix}-{n}" for method in ("FwoW", "FWAL", "OASIS", "OASIS-joint")}
