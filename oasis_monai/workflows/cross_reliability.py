"""How reliable the probabilities of a cross-validation are, and the temperature that mends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oasis_monai.data.types import Segmentation
from oasis_monai.evaluation.reliability import Reliability, cross_fitted, measure_reliability, near_structures, total
from oasis_monai.evaluation.reliability_tables import reliability_rows, write_reliability
from oasis_monai.evaluation.scores import method_name
from oasis_monai.segmentation.pipeline import CaseResult
from oasis_monai.segmentation.result import Key
from oasis_monai.transforms.spatial import restore, shifted_grid


@dataclass
class CrossReliability:
    """Sums of every method, n and fold.

    Args:
        labels: names of the structures.
    """

    labels: Sequence[str]
    sums: dict[Key, dict[int, Reliability]] = field(default_factory=dict)

    def add(self, fold: int, found: CaseResult, labels: Mapping[Key, Segmentation], truth: np.ndarray) -> None:
        """Add the results of a case by the methods of which calibrations are kept.

        Args:
            found: has their probabilities.
            labels: on the scan's own grid.
            truth: (x, y, z) class indices there.
        """
        for key, result in labels.items():
            own = None if found.results[key].agreement is None else _measure(found, key, result.label.numpy(), truth)
            if own is not None:
                by_fold = self.sums.setdefault(key, {})
                by_fold[fold] = by_fold[fold] + own if fold in by_fold else own

    def temperatures(self) -> dict[str, float]:
        """ "method-n" -> the temperature that all folds give, for new scans."""
        return {method_name(*key): total(by_fold.values()).temperature() for key, by_fold in self.sums.items()}

    def write(self, path: Path, protocol: str) -> None:
        """Write ``reliability.csv``, if there is anything: before, and after at the temperatures of the other folds."""
        rows: list[dict[str, Any]] = []
        for key, by_fold in sorted(self.sums.items()):
            about = {"protocol": protocol, "method": key[0], "n": key[1]}
            rows += reliability_rows(about, self.labels, total(by_fold.values()), cross_fitted(by_fold))
        if rows:
            write_reliability(path, rows)


def _measure(found: CaseResult, key: Key, label: np.ndarray, truth: np.ndarray) -> Reliability | None:
    """Of one result. Only the part of the scan round the structures is resampled."""
    native = found.target.native
    near = near_structures(label, truth, native.spacing_mm)
    if near is None:
        return None
    box, counted = near
    part = shifted_grid(native, [side.start for side in box], counted.shape)
    _, probability = restore(found.results[key].probability, found.grids[key], part, keep_probability=True)
    assert probability is not None
    return measure_reliability(probability.cpu(), torch.from_numpy(truth[box]), torch.from_numpy(counted))
