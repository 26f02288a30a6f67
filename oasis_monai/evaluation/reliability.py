"""Whether probabilities are what they say, near the structures, and the temperature that makes them so.

Of the voxels to which a calibrated result gives a structure with probability p, the structure is at a share p. Networks and votes
are mostly too sure of themselves. Temperature scaling mends that and changes no label: every probability is raised to ``1 / T``
and the classes are scaled to sum 1 again (Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599). T
is that of :data:`TEMPERATURES` with the smallest negative log-likelihood on results of other folds.

Far from the structures every voxel is surely background, and would hide everything: only those within :data:`NEAR_MM` of the
reference or the result count (as the bounding boxes of Mehrtash et al., IEEE TMI 2020, arXiv 1911.13273). No voxel is kept: a
:class:`Reliability` holds sums for each temperature and bin, and adds up over results, each result weighing the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.data.types import IGNORE

TEMPERATURES = tuple(float(2 ** (step / 6)) for step in range(-9, 13))  # 0.35 to 4, 1 among them
BINS = 15  # of equal width, over 0 to 1
NEAR_MM = 10.0
LEAST = 1e-4  # probability below which a voxel costs no more: where no atlas votes for a class it is 0 at any temperature
MOST_VALUES = 500_000  # voxels x classes of one result that are looked at: of more, every second, third ...


@dataclass(frozen=True)
class Reliability:
    """Sums over voxels near the structures, of one or several results.

    Args:
        results: how many.
        loss: (K,) mean negative log-likelihood at each of :data:`TEMPERATURES`, summed over results.
        bins: (K, C-1, BINS, 3) per structure and bin of its probability: share of the voxels, that times the mean probability,
            and that times the share at which the structure is there; summed over results.
    """

    results: int
    loss: np.ndarray
    bins: np.ndarray

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.results + other.results, self.loss + other.loss, self.bins + other.bins)

    def temperature(self) -> float:
        """That of the smallest loss; 1 where none is smaller than that."""
        return TEMPERATURES[int(np.argmin(self.loss - 1e-12 * (np.array(TEMPERATURES) == 1)))]

    def at(self, temperature: float) -> np.ndarray:
        """(C-1, BINS, 3) the bins at one of :data:`TEMPERATURES`."""
        return np.asarray(self.bins[TEMPERATURES.index(temperature)])


def expected_calibration_error(bins: np.ndarray) -> np.ndarray:
    """(..., BINS, 3) -> (...): the mean distance of probability and share, a bin weighing as its voxels; NaN of none."""
    total = bins[..., 0].sum(-1)
    distance = np.abs(bins[..., 1] - bins[..., 2]).sum(-1)
    return np.asarray(np.where(total > 0, distance / np.where(total > 0, total, 1), np.nan))


def scale_probability(probability: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities at another temperature. Their order, and so every label, stays; what is 0 stays 0.

    Args:
        probability: (C, \\*S), not negative.
        temperature: above 1 they become less sure, below 1 surer.

    Examples:
        >>> scale_probability(torch.tensor([0.2, 0.8]), 2.0)
        tensor([0.3333, 0.6667])
    """
    if temperature == 1:
        return probability
    powers = probability.float().clamp_min(0) ** (1 / temperature)
    return powers / powers.sum(0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def measure_reliability(probability: torch.Tensor, truth: torch.Tensor, near: torch.Tensor) -> Reliability | None:
    """What one result adds; None where no labelled voxel is near.

    Args:
        probability: (C, \\*S).
        truth: (\\*S) class indices; :data:`IGNORE` does not count.
        near: (\\*S) bool, the voxels that count.
    """
    counted = near & (truth != IGNORE)
    number = int(counted.sum())
    if not number:
        return None
    step = -(-number * len(probability) // MOST_VALUES)
    values, is_there = probability[:, counted][:, ::step].double(), truth[counted][::step].long()
    one_hot = torch.nn.functional.one_hot(is_there, len(values)).T.double()
    loss, bins = np.zeros(len(TEMPERATURES)), np.zeros((len(TEMPERATURES), len(values) - 1, BINS, 3))
    for k, temperature in enumerate(TEMPERATURES):
        scaled = scale_probability(values, temperature).double()
        loss[k] = float(-(scaled * one_hot).sum(0).clamp_min(LEAST).log().mean())
        place = (scaled * BINS).long().clamp_max(BINS - 1)
        for c in range(1, len(values)):
            for part, weights in enumerate((torch.ones_like(scaled[c]), scaled[c], one_hot[c])):
                bins[k, c - 1, :, part] = torch.bincount(place[c], weights, BINS).numpy() / len(is_there)
    return Reliability(1, loss, bins)


def cross_fitted(by_fold: Mapping[int, Reliability]) -> np.ndarray | None:
    """(C-1, BINS, 3) the bins of all results, those of a fold at the temperature that the other folds give; None of one fold."""
    if len(by_fold) < 2:
        return None
    made = []
    for fold, own in by_fold.items():
        others = total(one for other, one in by_fold.items() if other != fold)
        made.append(own.at(others.temperature()))
    return np.asarray(np.sum(made, axis=0))


def near_structures(
    label: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """A box round the structures of a result and its reference, and the voxels in it within :data:`NEAR_MM` of them.

    Args:
        label, truth: (x, y, z) class indices.

    Returns:
        None where neither has a structure.
    """
    from scipy.ndimage import distance_transform_edt

    there = (label > 0) | ((truth > 0) & (truth != IGNORE))
    if not there.any():
        return None
    box = []
    for axis, mm in enumerate(spacing_mm):
        hit = np.flatnonzero(there.any(tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(NEAR_MM / mm))
        box.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    seen = there[tuple(box)]
    return tuple(box), distance_transform_edt(~seen, sampling=spacing_mm) <= NEAR_MM


def total(parts: Iterable[Reliability]) -> Reliability:
    """The sum of one or more."""
    first, *others = parts
    for one in others:
        first = first + one
    return first
