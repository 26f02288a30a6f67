"""Pieces of a structure that are found, missed and made up: for structures with several pieces, such as lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oasis_monai.transforms.components import connected

MATCH_IOU = 0.5
"""Two pieces are the same one where their intersection over union is above this: then a piece has at most one partner (panoptic
quality, Kirillov et al. 2019, arXiv 1801.00868)."""


@dataclass(frozen=True)
class PieceCounts:
    """How the pieces of a result meet those of its reference.

    Args:
        reference: pieces of the reference.
        found: of these, with a piece of the result that is the same one.
        missed: the others.
        false: pieces of the result that are none of the reference's.
    """

    reference: int
    found: int
    missed: int
    false: int


def count_pieces(result: np.ndarray, reference: np.ndarray) -> PieceCounts:
    """Count the connected pieces of two masks (voxels that share a face, an edge or a corner) that are the same.

    Args:
        result: (x, y, z) bool.
        reference: the same, on the same grid.

    Examples:
        >>> reference = np.zeros((9, 9, 3), bool)
        >>> reference[1:3, 1:3] = reference[6:8, 6:8] = True
        >>> result = np.zeros_like(reference)
        >>> result[1:3, 1:4] = True
        >>> count_pieces(result, reference)
        PieceCounts(reference=2, found=1, missed=1, false=0)
    """
    (in_result, results), (in_reference, references) = connected(result), connected(reference)
    both = result & reference
    pairs, shared = np.unique(in_reference[both].astype(np.int64) * (results + 1) + in_result[both], return_counts=True)
    sizes, own = (np.bincount(numbers[mask]) for numbers, mask in ((in_reference, reference), (in_result, result)))
    union = sizes[pairs // (results + 1)] + own[pairs % (results + 1)] - shared
    found = int((shared > MATCH_IOU * union).sum())
    return PieceCounts(references, found, references - found, results - found)
