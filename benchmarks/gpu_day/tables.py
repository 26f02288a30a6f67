"""What the parts have found, as tables to paste into the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "step 0": "Step 0 on the device beside the CPU",
    "profile": "A training step on the device",
    "bfloat16": "bfloat16 beside float32",
    "resume": "Killed and started again",
    "folds": "Cross-validation, scored on the working grid",
}


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One section for each part that has begun: its table, its notes, and what went wrong."""
    sections = []
    for part, told in found.items():
        lines = [f"## {TITLES[part]}", ""]
        if told.get("machine"):
            lines += [told["machine"], ""]
        if told["rows"]:
            lines += [*_table(told["rows"]), ""]
        lines += [f"{note}\n" for note in told.get("notes", ())]
        if told["status"] != "done":
            lines += [f"**{told['status']}** {told.get('error', '')}".rstrip(), ""]
        for title, text in told.get("texts", {}).items():
            lines += [f"<details><summary>{title}</summary>", "", "```", text.rstrip(), "```", "", "</details>", ""]
        sections.append("\n".join(lines))
    return "\n".join(sections)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
