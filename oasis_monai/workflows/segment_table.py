"""The table at the end of a ``segment`` run: one line per scan, on the terminal and as ``segment.csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.evaluation.tables import aligned_text
from oasis_monai.utils.files import write_text
from oasis_monai.utils.words import SHOWN

DONE, FLAGGED, SKIPPED, FAILED = "done", "flagged", "skipped", "failed"
FILE = "segment.csv"


@dataclass(frozen=True)
class Row:
    """One scan.

    Args:
        case: its id.
        status: :data:`DONE`, :data:`FLAGGED` (done, with doubts), :data:`SKIPPED` (finished before) or :data:`FAILED`.
        volume_ml: per label; empty when it failed.
        predicted_dsc: per label, 0 to 1; without those for which there is no prediction.
        calibrated: whether the predictions come from a cross-validation; else they are the agreement of the parts.
        flags: names, see :mod:`oasis_monai.segmentation.flags`.
        reason: why it failed, one line.
        interval: per label, the ends of the 90 % interval of the DSC, 0 to 1; without those for which none is known.
    """

    case: str
    status: str
    volume_ml: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reason: str = ""
    predicted_dsc: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def row_of(record: Mapping[str, Any], skipped: bool = False) -> Row:
    """The row of a scan, from the content of its JSON file."""
    flags = tuple(str(flag["name"]) for flag in record["flags"])
    volumes = {str(name): float(ml) for name, ml in record["volume_ml"].items()}
    predicted = {str(name): float(v) for name, v in record["predicted_dsc"].items() if v is not None}
    ends = {str(name): own for name, own in record.get("dsc_interval_90", {}).items() if own is not None}
    interval = {name: (float(low), float(high)) for name, (low, high) in ends.items()}
    status = SKIPPED if skipped else FLAGGED if flags else DONE
    return Row(str(record["case"]), status, volumes, flags, "", predicted, record["calibrated"] is True, interval)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the JSON file of a finished scan; None if it is another file, is damaged, or its label is missing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        row_of(record)
        complete = isinstance(record["asked"], dict) and isinstance(record["files"], list)
        return record if complete and path.with_name(record["label"]).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def merge_earlier_rows(rows: Sequence[Row], output: Path) -> list[Row]:
    """Add the rows of scans that earlier runs finished in the folder ``output``; sorted by case."""
    known = {row.case: row for row in rows}
    for path in sorted(output.glob("*.json")):
        record = read_record(path)
        if record is not None and record["case"] not in known:
            known[record["case"]] = row_of(record, skipped=True)
    return [known[case] for case in sorted(known)]


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.volume_ml))


def table_text(rows: Sequence[Row]) -> str:
    """Aligned columns with a head; flags and reasons last. Of many structures it says how many were found, and the worst."""
    labels = _labels(rows)
    expected = [row for row in rows if row.predicted_dsc]
    noun = "DSC % predicted" if all(row.calibrated for row in expected) else "agreement %"
    noun += " (90 % interval)" if any(row.interval for row in expected) else ""
    more = [f"{name} {noun}" for name in labels] if expected else []
    if len(labels) > SHOWN:
        return _of_many(rows, len(labels), f"least {noun}" if expected else "")
    lines = [["case", "status", *(f"{name} ml" for name in labels), *more, "flags and faults"]]
    for row in rows:
        volumes = [f"{row.volume_ml[name]:.1f}" if name in row.volume_ml else "-" for name in labels]
        dsc = {name: f"{100 * value:.0f}{_range(row.interval.get(name))}" for name, value in row.predicted_dsc.items()}
        predictions = [dsc.get(name, "-") for name in labels] if expected else []
        lines.append([row.case, row.status, *volumes, *predictions, row.reason or ", ".join(row.flags)])
    return aligned_text(lines, left=(0, 1, len(lines[0]) - 1))


def _of_many(rows: Sequence[Row], structures: int, least: str) -> str:
    """The table without a column for every structure; ``least``: the head of what is least certain, empty for none."""
    lines = [["case", "status", "structures", "ml", *([least] if least else []), "flags and faults"]]
    for row in rows:
        volumes, predicted = row.volume_ml, row.predicted_dsc
        found = (
            [f"{sum(ml > 0 for ml in volumes.values())} of {structures}", f"{sum(volumes.values()):.1f}"]
            if volumes
            else ["-", "-"]
        )
        worst = min(predicted, key=predicted.__getitem__, default=None)
        told = "-" if worst is None else f"{worst} {100 * predicted[worst]:.0f}{_range(row.interval.get(worst))}"
        lines.append([row.case, row.status, *found, *([told] if least else []), row.reason or ", ".join(row.flags)])
    return aligned_text(lines, left=(0, 1, len(lines[0]) - 1))


def _range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" ({100 * ends[0]:.0f}-{100 * ends[1]:.0f})"


def write_table(output: Path, rows: Sequence[Row]) -> Path:
    """Write ``segment.csv``, whole or not at all: case, status, ``LABEL_ml`` and ``LABEL_predicted_dsc`` (0 to 1) for each
    label, then ``LABEL_predicted_low`` and ``LABEL_predicted_high`` (the 90 % interval) where a scan has them, calibrated (false:
    the plain agreement of the parts), flags (with ; between), reason."""
    labels = _labels(rows)
    bounded = [name for name in labels if any(name in row.interval for row in rows)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [f"{name}_ml" for name in labels] + [f"{name}_predicted_dsc" for name in labels]
    head += [f"{name}_predicted_{end}" for name in bounded for end in ("low", "high")]
    writer.writerow(["case", "status", *head, "calibrated", "flags", "reason"])
    for row in rows:
        volumes = [row.volume_ml.get(name, "") for name in labels]
        predicted = [row.predicted_dsc.get(name, "") for name in labels]
        predicted += [end for name in bounded for end in row.interval.get(name, ("", ""))]
        calibrated = str(row.calibrated).lower() if row.predicted_dsc else ""
        writer.writerow([row.case, row.status, *volumes, *predicted, calibrated, ";".join(row.flags), row.reason])
    write_text(output / FILE, out.getvalue())
    return output / FILE
