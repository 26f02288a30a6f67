"""Write the measured rows as a CSV file, Markdown tables and a plot."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
REFERENCE = {"pair": "ANTs SyN", "case": "ANTs SyN + voting"}


def write_report(rows: Sequence[Row], failed: Sequence[tuple[str, str]], folder: Path, n: int, threads: int) -> None:
    """Write ``speed.csv``, ``speed.md`` and ``speed.png``; the tables name the methods that failed."""
    if not rows:
        return
    from oasis_monai.utils.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "speed.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    parts = [_machine(threads)]
    for dims, kind in ((3, "pair"), (3, "case"), (2, "pair")):
        if some := [row for row in rows if (row["dims"], row["kind"]) == (dims, kind)]:
            title = {"pair": f"One pair, {dims}D", "case": f"One case, {dims}D, n = {n}"}[kind]
            parts.append(f"## {title}\n\n" + table(some, REFERENCE[kind]))
    if failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {name}: {why}" for name, why in failed))
    write_text(folder / "speed.md", "\n\n".join(parts) + "\n")
    plot(rows, folder / "speed.png")


def _machine(threads: int) -> str:
    """One line: processor, threads and versions."""
    from oasis_monai.workflows.run_record import versions

    cpu = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    found = versions()
    used = ", ".join(f"{k} {found[k]}" for k in ("oasis-monai", "torch", "monai", "itk", "numpy"))
    return f"{cpu}, {os.cpu_count()} cores, {threads} threads for every method; {used}."


def table(rows: Sequence[Row], reference: str) -> str:
    """A Markdown table, with the speed relative to the method ``reference`` if that was run."""
    slow = next((row["seconds"] for row in rows if row["method"] == reference), None)
    lines = [
        f"| method | seconds (min to max) | {reference} / it | DSC % (sd) | folded % | peak MB | MB above idle | settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " to ".join(f"{row[k]:.3g}" for k in ("seconds_min", "seconds_max"))
        ratio = "" if slow is None else f"{slow / row['seconds']:.3g}"
        folded = "" if row["folded_percent"] is None else f"{row['folded_percent']:.2g}"
        lines.append(
            f"| {row['method']} | {row['seconds']:.3g} ({times}) | {ratio} | {row['dsc']:.1f} ({row['dsc_sd']:.1f}) | {folded} "
            f"| {row['peak_mb']:.0f} | {row['working_mb']:.0f} | {row['settings']} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot DSC over seconds (logarithmic): up and left is better."""
    from matplotlib.figure import Figure

    from oasis_monai.evaluation.figures import write_figure

    kinds = [k for k in ((3, "pair"), (3, "case"), (2, "pair")) if any((r["dims"], r["kind"]) == k for r in rows)]
    figure = Figure(figsize=(4.2 * len(kinds), 4.6), layout="constrained")
    for ax, (dims, kind) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        shown = [row for row in rows if (row["dims"], row["kind"]) == (dims, kind)]
        for number, row in enumerate(shown, 1):  # names would overlap
            ours, at = row["method"].startswith("OASIS"), (row["seconds"], row["dsc"])
            name = f"{number}  {row['method']}"
            ax.plot(*at, "o" if ours else "s", color="tab:red" if ours else "tab:gray", markersize=5, label=name)
            place = (4, 4) if number % 2 else (-9, -10)
            ax.annotate(str(number), at, xytext=place, textcoords="offset points", fontsize=8)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7, frameon=False)
        ax.set_xscale("log")
        ax.margins(x=0.25, y=0.12)
        ax.set_title(f"one {kind}, {dims}D", fontsize=9)
        ax.set_xlabel("seconds")
        ax.set_ylabel("DSC %")
    write_figure(path, figure)
