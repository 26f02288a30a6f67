"""Pieces that are found, missed and made up: against MONAI's panoptic quality and a loop over pairs of pieces."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_panoptic_quality
from scipy import ndimage

from oasis_monai.evaluation.instances import PieceCounts, count_pieces


def blobs(seed, width=1.2, shape=(26, 24, 12)):
    """Two masks of several pieces each, most of them alike."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=shape), width)
    other = field + 0.35 * ndimage.gaussian_filter(random.normal(size=shape), width)
    return other > 0.12, field > 0.12


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_monais_panoptic_quality_and_of_a_loop(seed):
    result, reference = blobs(seed)
    around = np.ones((3, 3, 3))
    (in_result, results), (in_reference, references) = ndimage.label(result, around), ndimage.label(reference, around)
    found = count_pieces(result, reference)
    assert references > 3
    assert 0 < found.found < references
    matched = 0
    for r in range(1, references + 1):
        for p in range(1, results + 1):
            one, other = in_reference == r, in_result == p
            matched += int((one & other).sum() / (one | other).sum() > 0.5)
    assert found == PieceCounts(references, matched, references - matched, results - matched)
    # MONAI takes images of two dimensions: the slices beside each other are one, whose pieces are numbered already
    flat = [torch.from_numpy(numbers.reshape(numbers.shape[0], -1).astype(np.int64)) for numbers in (in_result, in_reference)]
    true, false, missed, _ = compute_panoptic_quality(*flat, match_iou_threshold=0.5, output_confusion_matrix=True).tolist()
    assert (found.found, found.false, found.missed) == (true, false, missed)


def test_empty_masks_and_pieces_that_are_half_alike():
    empty = np.zeros((8, 8, 1), bool)
    two = empty.copy()
    two[1:3, 1] = two[5:7, 1] = True
    assert count_pieces(empty, empty) == PieceCounts(0, 0, 0, 0)
    assert count_pieces(empty, two) == PieceCounts(2, 0, 2, 0)
    assert count_pieces(two, empty) == PieceCounts(0, 0, 0, 2)
    joined = empty.copy()
    joined[1:7, 1] = True  # one piece over both, and over the gap
    assert count_pieces(joined, two) == PieceCounts(2, 0, 2, 1)
    half = empty.copy()
    half[1:5, 1] = True  # an intersection over union of 2 / 4 is no match: there could be two
    assert count_pieces(half, two) == PieceCounts(2, 0, 2, 1)
