"""Format values as plain text; the templates escape it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def number(value: float) -> str:
    """One decimal; a dash for NaN."""
    return NONE if math.isnan(value) else f"{value:.1f}".replace("-", MINUS)


def interval(row: pd.Series, metric: str = "", scale: float = 1.0) -> str:
    """``[low, high]`` of the row's ``<metric>_ci_low`` and ``_ci_high``; empty where they are undefined."""
    low, high = (scale * row[f"{metric}_{end}" if metric else end] for end in ("ci_low", "ci_high"))
    return "" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def plain(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: Any) -> str:
    """``12.3 s``, ``1 min 59 s`` or ``1 h 02 min``."""
    if not isinstance(seconds, int | float):
        return plain(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def joined(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def anchor(title: str) -> str:
    """A title as an HTML id."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def mapping(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The dictionary under ``key``; an empty one where there is none."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested dictionaries as (``outer.inner``, value)."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
