"""How networks were trained: read the histories that a run keeps (``training/<network>.csv``), and draw them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_monai.evaluation.figures import COLOURS, DASHES, INK, add_legend, dress, new_figure
from oasis_monai.training.tracking import VALIDATION as DICE
from oasis_monai.utils.errors import DataError, Fault

ACROSS = 2  # networks beside each other: more would be too small to read
_COLUMNS = ("step", "seconds", "loss")


def read_histories(folder: Path) -> dict[str, pd.DataFrame]:
    """Network -> its history, a row for each hundredth of the training; empty without any.

    Raises:
        DataError: a file is something else.
    """
    found = {}
    for path in sorted(folder.glob("[!.]*.csv")):
        try:
            history = pd.read_csv(path).astype(float)
        except (OSError, ValueError) as error:
            history = pd.DataFrame({"error": [str(error)]})
        if not len(history) or not set(_COLUMNS) <= set(history):
            remedy = "run the command that wrote it again, or delete the file"
            raise DataError(Fault("", str(path), f"numbers in the columns {', '.join(_COLUMNS)}", "something else", remedy))
        found[path.stem] = history
    return found


def parts_of_name(name: str) -> tuple[str, int | None, str]:
    """``fold2-slice_network-member0`` -> ("slice network", 2, "member0"): network, fold where there are several, and part."""
    match = re.fullmatch(r"(?:fold(\d+)-)?(.+?)(?:-((?:member|half|round)\d+.*))?", name)
    assert match is not None
    fold, network, part = match.groups()
    return network.replace("_", " "), None if fold is None else int(fold), part or ""


def training_curves(histories: Mapping[str, pd.DataFrame]) -> Any | None:
    """The loss over training steps and, where it was computed, the Dice of held-out cases beneath: a panel per network, a line
    per fold; parts of one network differ by their dash.

    Args:
        histories: see :func:`read_histories`.

    Returns:
        A figure, or None without histories.
    """
    if not histories:
        return None
    parts = {name: parts_of_name(name) for name in histories}
    networks = list(dict.fromkeys(network for network, _, _ in parts.values()))
    validated = any(DICE in history for history in histories.values())
    height, across = 2 if validated else 1, min(ACROSS, len(networks))
    down = -(-len(networks) // across)
    figure = new_figure(1.5 + 3.3 * across, 0.6 + 2.4 * height * down)
    axes = figure.subplots(height * down, across, squeeze=False)
    handles: dict[str, Any] = {}
    for place, network in enumerate(networks):
        row, column = height * (place // across), place % across
        upper, lower = axes[row, column], axes[row + height - 1, column]
        mine = [name for name in histories if parts[name][0] == network]
        kinds = list(dict.fromkeys(parts[name][2] for name in mine))
        for name in mine:
            fold, part = parts[name][1:]
            look = {"color": COLOURS[((fold or 1) - 1) % len(COLOURS)], "linestyle": DASHES[kinds.index(part) % len(DASHES)]}
            history = histories[name]
            (line,) = upper.plot(history["step"], history["loss"], linewidth=1.3, **look)
            if fold is not None:
                handles.setdefault(f"fold {fold}", line)
            if DICE in history:
                known = history[history[DICE].notna()]
                lower.plot(known["step"], 100 * known[DICE], linewidth=1.3, marker="o", markersize=3, **look)
        if validated:
            dress(lower, "", "steps")
            lower.set_ylim(0, 100)
            lower.set_xlim(upper.get_xlim())
        dress(upper, network, "" if validated else "steps")
        if column == 0:
            if validated:
                lower.set_ylabel("held-out Dice, %", color=INK)
            upper.set_ylabel("loss", color=INK)
    for empty in axes[height * (down - 1) :, len(networks) - across * (down - 1) :].flat:
        empty.set_visible(False)
    if handles:
        add_legend(figure, dict(sorted(handles.items(), key=lambda item: int(item[0].split()[1]))))
    return figure
