"""``reliability.csv``: how often a structure is there where a result gives it a probability, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oasis_monai.evaluation.reliability import Reliability, expected_calibration_error
from oasis_monai.utils.errors import DataError, Fault
from oasis_monai.utils.files import write_text

RELIABILITY = "reliability.csv"
BEFORE, AFTER = "before", "after"
_COLUMNS = ("protocol", "method", "n", "label", "when", "temperature", "share", "probability", "observed")


def reliability_rows(
    about: Mapping[str, Any], labels: Sequence[str], before: Reliability, after: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row for each structure and bin with voxels: their share, mean probability, and the share at which the structure is there.

    Args:
        about: protocol, method and n.
        before: of all results.
        after: (C-1, BINS, 3) of them at the temperatures of the other folds, or None.
    """
    rows = []
    for when, bins, temperature in ((BEFORE, before.at(1.0), 1.0), (AFTER, after, before.temperature())):
        for label, own in zip(labels, () if bins is None else bins / before.results, strict=bins is not None):
            known = own[own[:, 0] > 0]
            for share, probability, observed in known:
                told = {"label": label, "when": when, "temperature": temperature, "share": share}
                rows.append({**about, **told, "probability": probability / share, "observed": observed / share})
    return rows


def write_reliability(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table, whole or not at all."""
    table = pd.DataFrame(list(rows), columns=list(_COLUMNS))
    write_text(path, table.to_csv(index=False, float_format="%.8f", lineterminator="\n"))


def read_reliability(path: Path) -> pd.DataFrame:
    """Read the table; without rows where there is none.

    Raises:
        DataError: it is another file.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(_COLUMNS))
    try:
        text = dict.fromkeys(("protocol", "method", "label", "when"), str)
        rows = pd.read_csv(path, dtype=text, keep_default_na=False)[list(_COLUMNS)]
        return rows.astype({"n": int} | dict.fromkeys(("temperature", "share", "probability", "observed"), float))
    except (OSError, ValueError, KeyError) as error:
        remedy = "delete it, or write it again from the run"
        raise DataError(Fault("", str(path), f"a CSV with the columns {', '.join(_COLUMNS)}", str(error), remedy)) from error


def calibration_error(rows: pd.DataFrame) -> float:
    """The expected calibration error of the bins of one structure, 0 to 1."""
    share = rows["share"].to_numpy()
    return float(expected_calibration_error(np.stack([share, share * rows["probability"], share * rows["observed"]], -1)))
