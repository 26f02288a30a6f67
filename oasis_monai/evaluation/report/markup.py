"""Pieces of HTML. Everything that comes from data passes through :func:`html.escape` here or where it is called."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def picture(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="contours, {escape(text)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def sortable(names: Sequence[str], rows: Sequence[str]) -> str:
    kinds = {0: " class=key"} | {i: " class=text" for i, name in enumerate(names) if name in ("label", "remarks")}
    head = "".join(f"<th{kinds.get(i, '')}>{sorter(name, i)}</th>" for i, name in enumerate(names))
    table = f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class=scroll tabindex=0>{table}</div>"


def sorter(name: str, column: int) -> str:
    return f'<button type=button data-column="{column}">{escape(name)}</button>'


def tab_row(axis: str, values: Sequence[str]) -> str:
    buttons = "".join(
        f'<button type=button data-axis="{axis}" data-value="{i}">{escape(v)}</button>' for i, v in enumerate(values)
    )
    return f'<div role=group aria-label="{axis}">{buttons}</div>'


def td(value: float, inner: str) -> str:
    return f'<td data-v="{"" if math.isnan(value) else repr(float(value))}">{inner}</td>'


def number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.1f}".replace("-", MINUS)


def ci(r: pd.Series, metric: str, scale: float = 1.0) -> str:
    low, high = (scale * r[f"{metric}_{end}" if metric else end] for end in ("ci_low", "ci_high"))
    return "" if math.isnan(low) else f"<small>[{number(low)}, {number(high)}]</small>"


def pairs(rows: Iterable[tuple[str, Any]]) -> str:
    return "<dl class=pairs>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(plain_text(v))}</dd>" for k, v in rows) + "</dl>"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return plain_text(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def mapping(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def anchor(title: str) -> str:
    """A title as an id."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())
