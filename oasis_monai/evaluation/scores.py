"""Score rows, the file ``scores.csv`` and summaries, as plain numbers and tables without images or networks.

``scores.csv`` holds one row per protocol x method x n x label x region x case; n is 0 for a network that uses no atlases. Rows
already follow the rule for empty structures; here it only has to survive averaging. A *miss* (reference present, result empty)
and a *false positive* (the reverse) enter every mean with the penalty values of their row, and are counted beside it. A row that
is *absent* on both sides has nothing to measure: it leaves the means and is counted too. So no mean silently skips values.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.data.folds import PROTOCOLS, SLICE
from oasis_monai.evaluation.statistics import interval
from oasis_monai.evaluation.tables import aligned_text
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import natural

KEY_COLUMNS = ("protocol", "method", "n", "label", "region", "case")
METRICS = ("dsc", "rvd_percent", "arvd_percent", "hd_mm", "hd95_mm", "abd_mm", "nsd")
PIECES = ("reference_pieces", "found_pieces", "missed_pieces", "false_pieces")
"""Counts of the whole structure; its thirds have none."""
LATER = ("nsd", "tolerance_mm", *PIECES)
"""Columns that files of earlier versions lack, then undefined."""
WHOSE = ("patient", "centre")
"""Columns that files of earlier versions lack: then each case is of another patient, and no centre is known."""
SCORE_COLUMNS = (
    *("protocol", "fold", "case", *WHOSE, "label", "region", "method", "n", "status"),
    *(*METRICS[:-1], "reference_ml", "volume_ml", *LATER),
)
STATISTICS = ("mean", "sd", "median", "ci_low", "ci_high")
GROUP_COLUMNS = ("protocol", "label", "region", "method", "n")
SUMMARY_COLUMNS = (
    *GROUP_COLUMNS,
    *("cases", "patients", "misses", "false_positives", "absent", "lowest_dsc", "lowest_case"),
    *(f"{metric}_{statistic}" for metric in METRICS for statistic in STATISTICS),
    *PIECES,
)
REGIONS = ("whole", "apex", "mid", "base")
STATUSES = ("ok", "miss", "false_positive", "absent")
# shown in this order, the paper's rows first; a variant ("OASIS 3D", "OASIS, beta = 0") follows the method its name starts with
TABLE_ORDER = (  # of the methods in tables: the paper's rows first; others follow by name
    *("ConvNet2D", "FwoW", "FWAL", "ConvNet3D", "U-Net3D", "OASIS", "OASIS-joint"),
    *("OASIS-consensus", "OASIS-conditioned", "majority", "STAPLE", "estimate", "interpolation"),
)
PROTOCOL_TITLES = {
    "patient": "patient folds (honest)",
    "centre": "one centre left out (honest)",
    "file": "the data set's own folds (no patient on both sides)",
    "slice": "slice folds (the paper's protocol: slices of one patient on both sides)",
}
_CHOICES = {"protocol": PROTOCOLS, "region": REGIONS, "status": STATUSES}
_TEXTS = ("protocol", "case", "label", "region", "method", "status", *WHOSE)
_INTEGERS = ("fold", "n")
_NUMBERS = tuple(column for column in SCORE_COLUMNS if column not in _TEXTS)
_RANGES = {"fold": (-1.0, math.inf), "n": (0.0, math.inf), "dsc": (0.0, 1.0), "rvd_percent": (-100.0, math.inf)}  # else >= 0
_RANGES["nsd"] = (0.0, 1.0)
_REMEDY = "write the file again from the run; do not edit it"


def write_scores(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write score rows as CSV, whole or not at all; the same rows in any order give the same bytes.

    Numbers are written with the fewest digits that read back as the same float64, an undefined number as an empty field.

    Args:
        path: the file to write.
        rows: mappings with every key of :data:`SCORE_COLUMNS`, of which :data:`WHOSE` and :data:`LATER` may be left out; ``dsc``
            and ``nsd`` in 0..1, ``*_percent`` in percent, ``*_mm`` in millimetres, ``*_ml`` in millilitres; ``fold`` is -1 where
            a case spans folds (slice folds).

    Raises:
        DataError: a column is missing or unknown, a status, region or protocol is none of ours, two rows have one key, a
            number is out of its range, or a row that counts lacks a metric (only the relative volume difference of a false
            positive may be undefined: its reference volume is 0).
    """
    rows = list(rows)
    where = str(Path(path).name)
    for row in rows:
        unknown = sorted(set(row) - set(SCORE_COLUMNS))
        if unknown:
            raise DataError(Fault(where, "columns", f"only {', '.join(SCORE_COLUMNS)}", ", ".join(unknown), "drop them"))
    frame = _validated([dict(row) for row in rows], where)
    write_text(path, _csv(frame, SCORE_COLUMNS))


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read what :func:`write_scores` wrote: columns :data:`SCORE_COLUMNS`, undefined numbers NaN, case and label names always
    text (``007`` stays ``007``). Further columns, as someone may add in a spreadsheet, are left out.

    Raises:
        DataError: the file is absent, is not a CSV in UTF-8, or breaks a rule of :func:`write_scores`.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            header, rows = reader.fieldnames or [], list(reader)
    except FileNotFoundError:
        raise DataError(Fault("", "scores file", "a CSV of scores", f"no file {path}", "run crossval first")) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(Fault("", "scores file", "a readable CSV in UTF-8", f"{error} in {path}", _REMEDY)) from error
    missing = [column for column in SCORE_COLUMNS if column not in (*header, *WHOSE, *LATER)]
    if missing:
        raise DataError(_missing("", str(path), missing))
    if any(None in row for row in rows):  # a row longer than the header: its values may be shifted
        raise DataError(Fault("", str(path), f"{len(header)} fields in every row", "a longer row", _REMEDY))
    if any(None in row.values() for row in rows):  # such as the last one of a file that was cut short
        raise DataError(Fault("", str(path), f"{len(header)} fields in every row", "a shorter row", _REMEDY))
    return _validated([{column: row[column] for column in SCORE_COLUMNS if column in row} for row in rows], str(path))


def join_scores(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The union of several jobs' scores (a multirun over folds and n). Rows that are equal in everything collapse.

    Raises:
        DataError: as :func:`read_scores`; two jobs give one key different values; or two jobs put one patient in different
            folds, so they were split differently and must not be averaged together. Each contradiction is named.
    """
    jobs = [(str(path), read_scores(path)) for path in paths]
    first: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    folds: dict[tuple[str, str], tuple[str, int]] = {}
    faults: list[Fault] = []
    remedy = "join only jobs of one seed, one split and one set of settings"
    for path, frame in jobs:
        for row in frame.to_dict("records"):
            if row["protocol"] != SLICE:
                seen_in, fold = folds.setdefault((row["protocol"], row["patient"]), (path, row["fold"]))
                if fold != row["fold"]:
                    faults.append(Fault(row["case"], "fold", f"{fold} as in {seen_in}", f"{row['fold']} in {path}", remedy))
                    continue
            other, known = first.setdefault(tuple(row[column] for column in KEY_COLUMNS), (path, row))
            for column in SCORE_COLUMNS:
                if not _same(known[column], row[column]):
                    field = f"{column} of {row['method']}-{row['n']} {row['label']} {row['region']} ({row['protocol']} folds)"
                    expected, found = (f"{r[column]} {where}" for r, where in ((known, f"as in {other}"), (row, f"in {path}")))
                    faults.append(Fault(row["case"], field, expected, found, remedy))
                    break
    if faults:
        unique = list(dict.fromkeys(faults))
        raise DataError([*unique[:20], *_rest(len(unique) - 20, remedy)])
    return _validated([row for _, row in first.values()], "joined scores")


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol x label x region x method x n: counts, then mean, sd, median and 95 % interval of every metric.

    ``cases`` are the rows that count (ok, miss, false positive). The interval is Student's t-interval of the mean,
    mean ± t(0.975, k-1) sd / sqrt(k), cut to the metric's possible range (which takes nothing from its coverage); it and
    the sd (with k-1) are NaN for one case. Counts of pieces are added up. Where patients have several cases, it counts patients
    (:func:`oasis_monai.evaluation.statistics.interval`). A metric undefined for false positives is averaged over the others.

    Args:
        scores: as :func:`read_scores` gives.

    Returns:
        Columns :data:`SUMMARY_COLUMNS`; units as in the scores (``dsc`` 0..1). Order: protocol, method, n, label, region.
    """
    rows = []
    for key, group in _sorted(scores, for_people=True).groupby(list(GROUP_COLUMNS), sort=False):
        counted = group[group["status"] != "absent"]
        row: dict[str, Any] = dict(zip(GROUP_COLUMNS, key, strict=True))
        row["cases"], row["patients"] = len(counted), counted["patient"].nunique()
        for name, status in (("misses", "miss"), ("false_positives", "false_positive"), ("absent", "absent")):
            row[name] = int((group["status"] == status).sum())
        worst = counted["dsc"].idxmin() if len(counted) else None
        row["lowest_dsc"] = math.nan if worst is None else float(counted.loc[worst, "dsc"])
        row["lowest_case"] = "" if worst is None else counted.loc[worst, "case"]
        for metric in METRICS:
            known = counted[counted[metric].notna()]
            values = known[metric].to_numpy(float)
            mean, sd, low, high = interval(values, *_RANGES.get(metric, (0.0, math.inf)), patients=known["patient"].tolist())
            numbers = (mean, sd, float(np.median(values)) if len(values) else math.nan, low, high)
            row.update({f"{metric}_{name}": number for name, number in zip(STATISTICS, numbers, strict=True)})
        row |= {column: group[column].sum(min_count=1) for column in PIECES}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def write_summary(path: str | Path, summary: pd.DataFrame, before: Sequence[str] = ()) -> None:
    """Write :func:`summarise`'s table as CSV, whole or not at all; NaN as an empty field. ``before``: further columns."""
    write_text(path, _csv(summary, (*before, *SUMMARY_COLUMNS)))


def paired_difference(scores: pd.DataFrame, a: tuple[str, int], b: tuple[str, int], metric: str = "dsc") -> pd.DataFrame:
    """Mean of metric(a) - metric(b) over the cases both have, with its 95 % t-interval: far narrower than the two intervals
    of the means, since easy and hard cases are so for both.

    Args:
        scores: as :func:`read_scores` gives.
        a: method and n.
        b: method and n.
        metric: one of :data:`METRICS`, in its unit.

    Returns:
        One row per protocol x label x region that has both: ``cases`` (pairs), ``unpaired`` (rows that count on one side
        only), ``mean``, ``sd``, ``ci_low``, ``ci_high``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, found {metric!r}")
    on = ["protocol", "label", "region", "case"]
    counted = _sorted(scores[(scores["status"] != "absent") & scores[metric].notna()])
    sides = [counted[(counted["method"] == m) & (counted["n"] == n)][[*on, "patient", metric]] for m, n in (a, b)]
    both = sides[0].merge(sides[1], on=[*on, "patient"], how="outer", suffixes=("_a", "_b"))
    both["difference"] = both[f"{metric}_a"] - both[f"{metric}_b"]
    rows = []
    for key, group in both.groupby(on[:3], sort=False):
        paired = group[group["difference"].notna()]
        if len(paired):
            numbers = interval(paired["difference"].to_numpy(float), patients=paired["patient"].tolist())
            rows.append((*key, len(paired), len(group) - len(paired), *numbers))
    rows.sort(key=lambda row: (row[0], natural(row[1]), REGIONS.index(row[2])))
    return pd.DataFrame(rows, columns=[*on[:3], "cases", "unpaired", "mean", "sd", "ci_low", "ci_high"])


def summary_text(summary: pd.DataFrame) -> str:
    """The summary for a console: one table per protocol and label, one line per method and n (the whole structure;
    of its thirds the mean DSC), with count, spread and misses (``1/0/2/0``: one whole structure, two middle thirds)."""
    blocks = []
    for protocol in PROTOCOLS:
        for label in sorted(set(summary.loc[summary["protocol"] == protocol, "label"]), key=natural):
            table = summary[(summary["protocol"] == protocol) & (summary["label"] == label)]
            blocks.append(f"{label}, {PROTOCOL_TITLES[protocol]}\n" + _console(table))
    if not blocks:
        return "No scores yet.\n"
    note = "CI: 95 % t-interval of the mean. Misses count in every mean with DSC 0 and their penalty distances.\n"
    return "\n".join(blocks) + note


def _console(table: pd.DataFrame) -> str:
    whole = table[table["region"] == "whole"]
    thirds = [region for region in REGIONS[1:] if region in set(table["region"])]
    extras = [name for name in ("false_positives", "absent") if table[name].sum()]
    known, several = whole["nsd_mean"].notna().any(), of_several_pieces(whole)
    misses = "misses " + "/".join(region[0] for region in ("whole", *thirds))
    head = ["method", "n", "DSC %  mean ± sd [95 % CI]", "lowest (case)", *thirds, "95HD mm", *(["NSD %"] if known else [])]
    head += ["aRVD %", misses, *(["pieces found/missed/false"] if several else []), "cases"]
    lines = [[*head, *(name.replace("_", " ") for name in extras)]]
    for _, row in whole.iterrows():
        spread = f" ± {_number(100 * row['dsc_sd'])} [{_number(100 * row['dsc_ci_low'])}, {_number(100 * row['dsc_ci_high'])}]"
        lowest = f"{_number(100 * row['lowest_dsc'])} ({row['lowest_case']})" if row["cases"] else "-"
        line = [row["method"], str(row["n"]), _number(100 * row["dsc_mean"]) + (spread if row["cases"] > 1 else ""), lowest]
        same = table[(table["method"] == row["method"]) & (table["n"] == row["n"])].set_index("region")
        line += [_number(100 * same["dsc_mean"].get(region, math.nan)) for region in thirds]
        line += [_number(row["hd95_mm_mean"]), *([_number(100 * row["nsd_mean"])] if known else [])]
        line.append(_number(row["arvd_percent_mean"]))
        line.append("/".join(str(same["misses"].get(region, "-")) for region in ("whole", *thirds)))
        line += [pieces_text(row)] if several else []
        lines.append([*line, str(row["cases"]), *(str(row[name]) for name in extras)])
    return aligned_text(lines, left=(0, 2, 3))


def of_several_pieces(table: pd.DataFrame) -> bool:
    """Whether a summary is of a structure with several pieces: then their counts tell something."""
    return bool((table["reference_pieces"] > table["cases"]).any())


def pieces_text(row: Mapping[str, Any]) -> str:
    """``12/3/1``: pieces found, missed and false; a dash where nobody counted them."""
    counts = [row[column] for column in PIECES[1:]]
    return "-" if any(math.isnan(count) for count in counts) else "/".join(f"{count:.0f}" for count in counts)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def method_rank(method: str) -> str:
    """Sort key of a method's name: ours in their fixed order, each followed by its variants, then any other by name."""
    known = [name for name in TABLE_ORDER if method == name or method.startswith((f"{name} ", f"{name},"))]
    return f"{TABLE_ORDER.index(known[0]) if known else len(TABLE_ORDER):02d}{method}"


def method_name(method: str, n: int) -> str:
    """``OASIS-6``, ``OASIS-6, beta = 0``: a method with its number of atlases; one that uses none (n = 0) goes by its name."""
    plain, comma, variant = method.partition(",")
    return f"{plain}-{n}{comma}{variant}" if n else method


def plain_method(name: str) -> str:
    """The method of a :func:`method_name`: ``OASIS, beta = 0`` of ``OASIS-6, beta = 0``, ``U-Net3D`` of ``U-Net3D``."""
    return re.sub(r"-\d+(?=,|$)", "", name)


def _sorted(frame: pd.DataFrame, for_people: bool = False) -> pd.DataFrame:
    """Rows in a fixed order; ``for_people``: labels with numbers in their names as one counts."""

    def rank(column: pd.Series) -> pd.Series:
        ranks: dict[Any, Callable[[str], Any]] = {"method": method_rank, "region": REGIONS.index}
        ranks |= {"label": natural} if for_people else {}
        return column.map(ranks[column.name]) if column.name in ranks else column

    return frame.sort_values(list(KEY_COLUMNS), key=rank, ignore_index=True)


def _validated(rows: list[dict[str, Any]], where: str) -> pd.DataFrame:
    """Typed, checked and ordered rows; all faults at once (the first 20 in full)."""
    faults: list[Fault] = []
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        row.update({column: math.nan for column in LATER if row.get(column) in (None, "")})
        row["patient"], row["centre"] = row.get("patient") or row.get("case"), row.get("centre") or ""
        fault = _row_fault(row, where)
        key = tuple(row.get(column) for column in KEY_COLUMNS)
        if fault is None and key in seen:
            fault = Fault(str(row["case"]), f"row in {where}", "one row per " + " x ".join(KEY_COLUMNS), f"two of {key}", _REMEDY)
        seen.add(key)
        if fault is not None:
            faults.append(fault)
    if faults:
        raise DataError([*faults[:20], *_rest(len(faults) - 20, _REMEDY)])
    return _sorted(pd.DataFrame(rows, columns=list(SCORE_COLUMNS)))


def _row_fault(row: dict[str, Any], where: str) -> Fault | None:
    """Bring one row's values to their types, in place; the first thing wrong with it, or None."""
    case = str(row.get("case") or where)
    missing = [column for column in SCORE_COLUMNS if column not in row]
    if missing:
        return _missing(case, where, missing)
    for column in _TEXTS:
        value, choices = row[column], _CHOICES.get(column)
        needed = column != "centre"
        if not isinstance(value, str) or (needed and not value) or (choices and value not in choices):
            expected = f"one of {', '.join(choices)}" if choices else "a name"
            return Fault(case, f"{column} in {where}", expected, repr(value), _REMEDY)
    for column in _NUMBERS:
        low, high = _RANGES.get(column, (0.0, math.inf))
        try:
            number = float(math.nan if row[column] in ("", None) else row[column])
        except (TypeError, ValueError):
            number = math.inf
        undefined = column in LATER or row["status"] == "absent" or (row["status"] == "false_positive" and "rvd" in column)
        good = math.isfinite(number) and low <= number <= high
        if column in _INTEGERS and not (good and number.is_integer()):
            return Fault(case, f"{column} in {where}", f"a whole number from {low:g}", repr(row[column]), _REMEDY)
        if not good and not (undefined and math.isnan(number)):
            expected = f"a finite number from {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
            return Fault(case, f"{column} in {where} (status {row['status']})", expected, repr(row[column]), _REMEDY)
        row[column] = int(number) if column in _INTEGERS else number + 0.0  # + 0.0: -0.0 would print otherwise than 0.0
    return None


def _missing(case: str, where: str, columns: Sequence[str]) -> Fault:
    return Fault(case, f"columns of {where}", f"the columns {', '.join(SCORE_COLUMNS)}", f"no {', '.join(columns)}", _REMEDY)


def _rest(more: int, remedy: str) -> list[Fault]:
    return [Fault("", "further rows", "no fault", f"{more} more like these", remedy)] if more > 0 else []


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _csv(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    # a column with fields that are undefined is of float64, whatever it counts
    counts = {column: frame[column].astype("Int64").astype(object).where(frame[column].notna(), "") for column in PIECES}
    for values in zip(*(counts.get(column, frame[column]).tolist() for column in columns), strict=True):
        # csv writes a float by repr(): the shortest text that reads back as the same float64
        writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in values])
    return out.getvalue()
