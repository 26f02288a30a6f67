"""The scans of a review: those to segment, those of a finished ``segment`` folder, and in which order one looks at them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oasis_monai.data.labels import read_whole
from oasis_monai.data.scans import one_scan
from oasis_monai.data.types import Case, Geometry
from oasis_monai.review import grids
from oasis_monai.review.drawings import Drawings
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.workflows.segment_table import read_record, row_of

WAITING, WORKING, DONE, FAILED = "waiting", "working", "done", "failed"
ROUNDED_ML = 0.00051
"""How far a volume in a record is from the true one: it has three digits."""


@dataclass(frozen=True)
class Entry:
    """One scan of the worklist.

    Args:
        id: what it is called.
        status: :data:`WAITING`, :data:`WORKING`, :data:`DONE` or :data:`FAILED`.
        record: the content of its JSON file; empty unless it is done.
        reason: why it failed.
    """

    id: str
    status: str
    record: Mapping[str, Any]
    reason: str = ""

    @property
    def least(self) -> float | None:
        """The lowest predicted Dice of its structures, 0 to 1; None where nothing is predicted."""
        known = row_of(self.record).predicted_dsc.values() if self.record else ()
        return min(known, default=None)

    def order(self) -> tuple[int, float, str]:
        """The sorting key: what failed, what is least certain (first that of which nothing is predicted), what waits."""
        rank = {FAILED: 0, DONE: 1, WORKING: 2, WAITING: 3}[self.status]
        least = self.least
        return rank, -1.0 if least is None else least, self.id


class Worklist:
    """All scans of a folder of results, and those that are to come.

    Args:
        output: the folder of ``segment``'s results.
        labels: structure -> value in label files, in the order of the classes; None: as the results show.
    """

    def __init__(self, output: Path, labels: Mapping[str, int] | None = None) -> None:
        self.output = output
        self._cases: dict[str, Case] = {}
        self._reasons: dict[str, str] = {}
        self._working: set[str] = set()
        self._geometries: dict[str, Geometry] = {}
        self._records: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}
        self._lock = threading.RLock()
        self.labels = dict(labels) if labels is not None else find_labels(output, list(self._read_records().values()))

    @property
    def label_values(self) -> tuple[int, ...]:
        """Value in label files of each class, the background first."""
        return (0, *self.labels.values())

    def add(self, cases: Sequence[Case]) -> None:
        """Add scans that are to be segmented, or were."""
        with self._lock:
            self._cases |= {case.id: case for case in cases}

    def begin(self, cases: Sequence[str]) -> None:
        """These scans are being segmented."""
        with self._lock:
            self._working |= set(cases)
            for case in cases:
                self._reasons.pop(case, None)

    def end(self, cases: Sequence[str], reasons: Mapping[str, str]) -> None:
        """These scans are done, but those that failed for ``reasons``."""
        with self._lock:
            self._working -= set(cases)
            self._reasons |= reasons

    def entries(self) -> list[Entry]:
        """Every scan, in the order in which one looks at them."""
        with self._lock:
            records = self._read_records()
            made = []
            for case in dict.fromkeys([*self._cases, *records]):
                if reason := self._reasons.get(case):
                    made.append(Entry(case, FAILED, {}, reason))
                elif case in records:
                    made.append(Entry(case, DONE, records[case]))
                else:
                    made.append(Entry(case, WORKING if case in self._working else WAITING, {}))
            return sorted(made, key=Entry.order)

    def record(self, case: str) -> dict[str, Any]:
        """The record of a finished scan.

        Raises:
            KeyError: there is no such scan, or it is not finished.
        """
        with self._lock:
            return self._read_records()[case]

    def label_file(self, case: str) -> Path:
        """The label of a finished scan; KeyError as :meth:`record`."""
        return self.output / Path(self.record(case)["label"]).name

    def map_file(self, record: Mapping[str, Any], part: str) -> Path | None:
        """The map ``part`` (``uncertainty``) beside the label of a finished scan's record, None where there is none."""
        names = [Path(str(name)).name for name in record["files"]]
        own = [self.output / name for name in names if name.startswith(f"{record['case']}_{part}.")]
        return next((path for path in own if path.is_file()), None)

    def case(self, case: str) -> Case:
        """The files of a scan: as they were given, else as the record of its result says.

        Raises:
            KeyError: there is no such scan.
            DataError: its file is gone, or the record does not say where it was.
        """
        with self._lock:
            if case not in self._cases:
                record = self.record(case)
                path = record.get("scan")
                if not path or not Path(path).exists():
                    found = f"{path}, which is not there" if path else "none"
                    raise DataError(Fault(case, "scan", "the file of the scan", found, "give the scans with input=DIR"))
                self._cases[case] = replace(one_scan([Path(path)]), id=case)
            return self._cases[case]

    def geometry(self, case: str) -> Geometry:
        """The grid of a scan; errors as :meth:`case`."""
        with self._lock:
            if case not in self._geometries:
                self._geometries[case] = grids.scan_geometry(self.case(case))
            return self._geometries[case]

    def unfinished(self, drawings: Drawings) -> list[str]:
        """The given scans whose results nobody has looked at yet: they may be segmented, also again."""
        with self._lock:
            return [name for name, case in self._cases.items() if not drawings.touched(case)]

    def _read_records(self) -> dict[str, dict[str, Any]]:
        """Case -> the content of its JSON file; a file is read again when it has changed."""
        found = {}
        for path in sorted(self.output.glob("*.json")):
            try:
                stat = path.stat()
            except OSError:  # replaced at this moment
                continue
            stamp = (stat.st_mtime_ns, stat.st_size)
            if self._records.get(path, (None, None))[0] != stamp:
                record = read_record(path)
                mine = record is not None and record["case"] == path.stem and Path(record["label"]).name == record["label"]
                self._records[path] = (stamp, record if mine else None)
            record = self._records[path][1]
            if record is not None:
                found[path.stem] = record
        return found


def find_labels(output: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The value of each structure in the label files of a ``segment`` folder: the one whose voxels have its volume in every scan.

    Args:
        output: the folder.
        records: the content of its JSON files.

    Raises:
        ConfigError: two structures have the same volumes, or a structure is in no scan.
    """
    names = list(dict.fromkeys(name for record in records for name in record["volume_ml"]))
    candidates: dict[str, set[int] | None] = dict.fromkeys(names)
    for record in records:
        values, header = read_whole(output / record["label"])
        voxel_ml = Geometry(header.shape, header.affine).voxel_ml
        counts = _counts(values)
        for name, volume in record["volume_ml"].items():
            if volume:
                near = {
                    value for value, n in counts.items() if math.isclose(n * voxel_ml, volume, abs_tol=ROUNDED_ML, rel_tol=1e-6)
                }
                before = candidates[name]
                candidates[name] = near if before is None else before & near
    sure = {name: values for name, values in candidates.items() if values and len(values) == 1}
    found = {name: next(iter(values)) for name, values in sure.items()}
    if len(found) < len(names) or len(set(found.values())) < len(found) or not found:
        told = ", ".join(name for name in names if name not in found) or "no structure"
        raise ConfigError("model", "the model of these results", None, f"add model=DIR: the values of {told} are not clear")
    return dict(sorted(found.items(), key=lambda one: one[1]))


def _counts(values: Any) -> dict[int, int]:
    import numpy as np

    distinct, counts = np.unique(values, return_counts=True)
    return {int(v): int(n) for v, n in zip(distinct, counts, strict=True) if v}
