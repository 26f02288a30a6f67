"""Read a run's folder: scores, settings and pictures for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.data.folds import PROTOCOLS
from oasis_monai.evaluation import scores as tables
from oasis_monai.evaluation.quality_tables import QualityGroup
from oasis_monai.evaluation.tables import Grid
from oasis_monai.utils.errors import DataError, Fault

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class StudyParts:
    """Tables, drawings and pictures that a study adds to its page.

    Args:
        grids: tables, in order.
        drawings: (title, ``<svg>`` element of ours, note).
        pictures: (title, PNG file, note).
        browser: folders of the case browser's files, each with the suffix its methods go by.
    """

    grids: tuple[Grid, ...] = ()
    drawings: tuple[tuple[str, str, str], ...] = ()
    pictures: tuple[tuple[str, Path, str], ...] = ()
    browser: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    scores: pd.DataFrame
    summary: pd.DataFrame
    run: Mapping[str, Any]
    has_run: bool
    pictures: dict[tuple[str, str], Path]
    parts: StudyParts
    quality: tuple[QualityGroup, ...] = ()
    suspects: dict[str, Any] | None = None
    reliability: pd.DataFrame | None = None
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """The protocol of the page's head: patient folds where the run has both."""
        found = set(self.scores["protocol"])
        return next((p for p in PROTOCOLS if p in found), str(self.run.get("protocol", "patient")))

    @property
    def main(self) -> tuple[str, int]:
        """The method and n the page shows in detail. Fixed in advance, never the best scorer: OASIS (of a joint model
        OASIS-joint), and the paper's n = 6 (else the largest n)."""
        rows = self.scores[self.scores["protocol"] == self.protocol]
        methods = sorted(set(rows["method"]), key=tables.method_rank)
        method = next((m for m in ("OASIS-joint", "OASIS") if m in methods), methods[0])
        every = set(rows.loc[rows["method"] == method, "n"])
        return method, int(6 if 6 in every else max(every))

    def of(self, method: str, n: int) -> pd.DataFrame:
        """Rows of one method and n under the main protocol."""
        s = self.scores
        return s[(s["protocol"] == self.protocol) & (s["method"] == method) & (s["n"] == n)]


def read_run(path: Path) -> dict[str, Any] | None:
    remedy = "delete it, or write it again from the run"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(Fault("", str(path), "a JSON object", str(error), remedy)) from error
    if not isinstance(run, dict):
        raise DataError(Fault("", str(path), "a JSON object", type(run).__name__, remedy))
    return run


def find_pictures(folder: Path) -> dict[tuple[str, str], Path]:
    """(case, 'method-n') -> picture, in name order. A name without the parts counts as its own case; hidden files, which a kill
    in a write leaves behind, count as nothing."""
    found = {}
    for path in sorted(folder.glob("[!.]*.png")):
        case, separator, method = path.stem.rpartition("__")
        with open(path, "rb") as stream:
            if stream.read(8) == _PNG:
                found[(case, method) if separator else (path.stem, "")] = path
    return found
