"""Measure the DSC of scans whose structures lie off the image centre, with and without recentring of the grid.

    python -m benchmarks.robustness.off_centre [--output DIR] [--n 6] experiment=accuracy data.root=PATH cache=DIR

Uses the fold models of a cross-validation and trains those that are not in ``cache``. Adds dark slices to one side of every
test case of the patient folds, so that the image centre moves by 0 to 40 mm to the right, left, front or back (drawn per case).
Then segments it by OASIS-joint twice: with a grid that follows the structures (``joint.recentre``), and with a grid at the
image centre. In a scan 200 mm wide, the grid of 96 mm contains no dark slices; in one of 140 mm, up to 18 % of the grid is
dark. Writes ``offcentre.csv`` and ``offcentre.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.robustness.fold_models import fold_parser, open_fold, over_folds, settings_of, write_results
from oasis_monai.data.io import canonical_axes, read_volume
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.settings import Settings
from oasis_monai.workflows.corrupted_copies import segment_labelled

ASIDE_MM = (0, 10, 20, 30, 40)


def padded(volume: Volume, mm: float, direction: int) -> Volume:
    """Add slices of the lowest intensity on one side, so that the image centre moves by ``mm`` in a ``direction``: 0 right,
    1 left, 2 front, 3 back."""
    assert volume.label is not None
    world, away = divmod(direction, 2)
    order, flips = canonical_axes(volume.geometry.affine)
    axis = order[world]
    added = round(2 * mm / volume.geometry.spacing_mm[axis])
    first = added if flips[world] != bool(away) else 0
    shape = list(volume.geometry.shape)
    shape[axis] += added
    image = torch.full((1, *shape), float(volume.image.min()))
    label = torch.zeros((1, *shape), dtype=volume.label.dtype)
    for whole, own in ((image, volume.image), (label, volume.label)):
        whole.narrow(1 + axis, first, own.shape[1 + axis]).copy_(own)
    affine = volume.geometry.affine.copy()
    affine[:3, 3] -= affine[:3, axis] * first
    return replace(volume, image=image, label=label, geometry=Geometry((shape[0], shape[1], shape[2]), affine))


def segment_fold(settings: Settings, index: int) -> list[dict[str, Any]]:
    """Segment every test case of a fold, padded and not, with a grid that follows the structures and with a fixed one."""
    rows = []
    for follows in (True, False):
        own = replace(settings, views="none", joint=replace(settings.joint, recentre=follows))
        one = open_fold(own, index)
        for case in sorted(one.fold.test):
            volume = read_volume(one.dataset.cases[case], settings.data.label_values)
            direction = int(np.random.default_rng([settings.seed, *case.encode()]).integers(4))
            for mm in ASIDE_MM:
                _, _, dice = segment_labelled(one.segmenter, padded(volume, mm, direction), own, one.embed, own.methods)
                (values,) = dice.values()
                row = {"fold": index, "case": case, "aside_mm": mm, "direction": "RLAP"[direction], "follows": follows}
                rows += [row | {"label": name, "dsc": dsc} for name, dsc in zip(settings.data.labels, values, strict=True)]
        print(f"fold {index}: {'follows' if follows else 'stays'}", flush=True)
    return rows


def table(rows: pd.DataFrame) -> str:
    """A Markdown table: one line per distance."""
    lines = ["| centre aside by | round the image's centre | lowest | follows the structures | lowest |", "|---|---|---|---|---|"]
    for mm in ASIDE_MM:
        cells = [f"{mm} mm"]
        for follows in (False, True):
            dsc = 100 * rows[(rows["aside_mm"] == mm) & (rows["follows"] == follows)]["dsc"]
            cells += [f"{dsc.mean():.1f}", f"{dsc.min():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    return fold_parser("benchmarks.robustness.off_centre", __doc__)


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    settings = settings_of(given.overrides, given.n)
    rows = over_folds(settings, segment_fold)
    write_results(given.output, "offcentre", rows, table(rows))


if __name__ == "__main__":
    main()
