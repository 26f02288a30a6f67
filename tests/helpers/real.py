"""Where the real data lies. It is never part of the project: a test that needs it skips, saying so, where it is absent."""

import os
from pathlib import Path

import pytest

LAYOUTS = {"promise12": "promise12/training_data", "hippocampus": "hippocampus", "ibsr18": "ibsr18"}


def real_data(name: str) -> Path:
    """Folder of the data set ``name``: below $OASIS_REAL_DATA, or below ``../shared/data`` beside the checkout."""
    base = os.environ.get("OASIS_REAL_DATA")
    root = Path(base) if base else Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = root / LAYOUTS[name]
    if not folder.is_dir():
        pytest.skip(f"real data {name!r} is not at {folder}: set OASIS_REAL_DATA to the folder that holds {LAYOUTS[name]}")
    return folder
