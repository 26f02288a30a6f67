"""Find cases that look like one person although they are told to be of two.

Every case leaves a portrait: its grey values and its label on a coarse grid, and percentiles of the grey values as they are in
the file. Compared are the whole scan, the scan round the label and the label's shape. What all cases share is taken out of these
pictures (whitening), so that the correlation of two is about what is special in both. All pairs are compared, also with one of
the two mirrored, as the two sides of one head are.

How sure a finding is: the similarity of nearly all pairs is that of different persons. Its upper tail, fitted where no twins are,
tells how many of all pairs would by chance be as alike as the pair at hand. Scans of one person mostly have neighbouring names
(``p7_a`` and ``p7_b``), so that half of the chance of a false alarm is spent on such pairs (weighted p-values, Genovese et al.,
Biometrika 93, 2006). Pairs are named while false ones are expected to be at most :data:`FALSE_SHARE` of all named (Benjamini and
Hochberg).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from oasis_monai.data.io import to_canonical
from oasis_monai.data.types import IGNORE, Volume
from oasis_monai.utils.errors import Fault

SIZE = (14, 16, 12)
PERCENTILES = (2, 10, 25, 50, 75, 90, 98)
KEPT = 40
FEWEST = 8  # cases; of fewer the pairs say nothing of what is usual
MOST = 1000  # cases that are compared, with all their pairs in memory
FALSE_SHARE = 0.05
TAIL = 1.3  # between the exponential tail (1), which is too wary, and the normal one (2), which real similarities exceed
CAP = 10.0  # robust z; a label that was copied from scan to scan decides nothing by itself
NAMED = 8  # pairs that have a line of their own
NEAR = 5  # places apart in the order of names that may still be of one scanner


@dataclass(frozen=True)
class Portrait:
    """What is kept of one case: a few hundred kilobytes.

    Args:
        case: its id.
        image: (x, y, z) float16 grey values from 0 to 1, canonical axes, at most :data:`KEPT` points along each.
        step_mm: distance of these points.
        percentiles: of the grey values, as in the file.
        mask: (x, y, z) bool, where the image is labelled; None without a label.
    """

    case: str
    image: np.ndarray
    step_mm: np.ndarray
    percentiles: np.ndarray
    mask: np.ndarray | None


@dataclass(frozen=True)
class Twins:
    """Two cases that look like one person.

    Args:
        cases: their ids, in order.
        z: how far their similarity lies above that of all pairs, in robust standard deviations.
        expected: how many pairs of different persons would by chance look as alike, among all that were compared.
        mirrored: whether one looks like the mirror image of the other.
    """

    cases: tuple[str, str]
    z: float
    expected: float
    mirrored: bool


def portrait(volume: Volume) -> Portrait:
    """The portrait of a case; of several channels the first counts."""
    image, spacing = to_canonical(volume.image[0].numpy(), volume.geometry.affine)
    image, spacing_mm = image.astype(np.float32), np.asarray(spacing, float)
    low, high = np.percentile(image, [1, 99])
    scaled = (np.clip(image, low, high) - low) / max(float(high - low), 1e-9)
    size = np.minimum(image.shape, KEPT).tolist()
    mask = None
    if volume.label is not None:
        label, _ = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
        labelled = _pooled((label > 0) & (label != IGNORE), size) > 0.5
        mask = labelled if labelled.any() else None
    step_mm = np.array(image.shape) * spacing_mm / size
    kept = _pooled(scaled, size).astype(np.float16)
    return Portrait(
        volume.case, kept, step_mm, np.percentile(image, PERCENTILES), mask if mask is not None and mask.any() else None
    )


def find_twins(portraits: Sequence[Portrait], patients: Mapping[str, str]) -> list[Twins]:
    """Pairs of cases of different patients that look like one, the surest first.

    Args:
        portraits: of the cases of one data set.
        patients: case -> the person it is told to be of. Pairs of one person are not compared.
    """
    chosen = sorted(portraits, key=lambda one: _name(one.case))[:MOST]
    if len(chosen) < FEWEST:
        return []
    ids = [one.case for one in chosen]
    told = np.array([[patients.get(a, a) == patients.get(b, b) for b in ids] for a in ids])
    compared = np.triu(~told, 1)
    if compared.sum() < FEWEST:
        return []
    straight, mirrored = _similarities(chosen, compared)
    neighbours = np.array([[_are_neighbours(a, b) for b in ids] for a in ids])
    z, expected = zip(*(_expected(one, compared, neighbours) for one in (straight, mirrored)), strict=True)
    better = np.argmin(expected, 0)
    least = 2 * np.minimum(expected[0], expected[1])  # either way could have been the one
    pairs = np.argwhere(compared)
    order = np.argsort(least[compared], kind="stable")
    ranked = least[compared][order]
    share = ranked / np.arange(1, len(ranked) + 1)
    count = int(np.flatnonzero(share <= FALSE_SHARE).max(initial=-1)) + 1
    found = []
    for i, j in pairs[order[:count]].tolist():
        way = int(better[i, j])
        found.append(Twins((ids[i], ids[j]), float(z[way][i, j]), float(least[i, j]), bool(way)))
    return found


def twin_faults(portraits: Sequence[Portrait], patients: Mapping[str, str]) -> list[Fault]:
    """A warning for each of the surest pairs of :func:`find_twins`, and one that says how many more there are."""
    found = find_twins(portraits, patients)
    remedy = "look at both; if they are one person, say so with data.patient or a column patient"
    expected = "a patient of its own"
    faults = []
    for twins in found[:NAMED]:
        like = "the mirror image of" if twins.mirrored else "one person with"
        chance = f"robust z {twins.z:+.1f}; by chance {_chance(twins.expected)} such pairs are expected"
        text = f"looks like {like} {twins.cases[1]} ({chance})"
        faults.append(Fault(twins.cases[0], "patient", expected, text, remedy, "warning"))
    if len(found) > NAMED:
        rest = ", ".join(" and ".join(twins.cases) for twins in found[NAMED : 3 * NAMED])
        more = f"{len(found)} pairs look like one person, about {FALSE_SHARE:.0%} of them by chance; further ones: {rest}"
        more += ", ..." if len(found) > 3 * NAMED else ""
        if sum(_is_consecutive(*twins.cases) for twins in found) > 0.8 * len(found):
            remedy += "; numbers 2k-1 and 2k: data.patient=consecutive_pairs"
        faults.append(Fault("", "patient", "each patient's scans told as such", more, remedy, "warning"))
    return faults


def _chance(expected: float) -> str:
    return "fewer than 0.0001" if expected < 1e-4 else f"{expected:.1g}"


def _pooled(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Means over boxes, ``size`` of them."""
    whole = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    return torch.nn.functional.adaptive_avg_pool3d(whole, (size[0], size[1], size[2]))[0].numpy()


def _sampled(image: np.ndarray, spacing_mm: np.ndarray, centre: np.ndarray, size: np.ndarray, step_mm: np.ndarray) -> np.ndarray:
    """Smooth an image and sample it on ``size`` points ``step_mm`` apart round ``centre`` (in voxels)."""
    from scipy import ndimage

    ratio = step_mm / spacing_mm
    smooth = ndimage.gaussian_filter(image, np.where(ratio > 1, ratio / 2, 0))
    first = centre - (np.asarray(size) - 1) / 2 * ratio
    return np.asarray(ndimage.affine_transform(smooth, ratio, first, output_shape=tuple(size), order=1, mode="nearest"))


def _similarities(portraits: Sequence[Portrait], compared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) similarity of all pairs as they are, and of each with the mirror image of the other; larger is more alike."""
    straight, mirrored = (np.zeros(compared.shape) for _ in range(2))
    for pictures in _pictures(portraits):
        flat, flipped = (_unit(part.reshape(len(part), -1)) for part in (pictures, pictures[:, ::-1]))
        own, other = _whitened(flat, flipped)
        for total, right in ((straight, own), (mirrored, other)):
            r = np.arctanh(np.clip(own @ right.T, -0.999999, 0.999999))
            total += np.minimum(_robust((r + r.T) / 2, compared), CAP)
    grey = _grey_scale(portraits, compared)
    return straight + grey, mirrored + grey


def _pictures(portraits: Sequence[Portrait]) -> list[np.ndarray]:
    """(N, *SIZE) pictures of several kinds: the whole scan; and where all are labelled the scan and the label round the label."""
    size = np.array(SIZE)
    extent = np.median([one.step_mm * one.image.shape for one in portraits], 0)
    middle = [(np.array(one.image.shape) - 1) / 2 for one in portraits]

    def of(images: list[np.ndarray], centres: list[np.ndarray], span_mm: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                _sampled(image.astype(np.float32), one.step_mm, centre, size, span_mm / size)
                for one, image, centre in zip(portraits, images, centres, strict=True)
            ]
        )

    found = [of([one.image for one in portraits], middle, extent)]
    masks = [one.mask for one in portraits if one.mask is not None]
    if len(masks) == len(portraits):
        places = [np.argwhere(mask) for mask in masks]
        centres = [place.mean(0) for place in places]
        spans = [(np.ptp(place, 0) + 1) * one.step_mm for place, one in zip(places, portraits, strict=True)]
        span_mm = np.median(spans, 0)
        found.append(of([one.image for one in portraits], centres, 2 * span_mm))
        found.append(of(masks, centres, 1.6 * span_mm))
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows without their mean, of length 1."""
    rows = rows - rows.mean(1, keepdims=True)
    length: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(length, 1e-9)


def _whitened(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in directions of like spread over ``rows``, of length 1: what is common to all cases counts least."""
    mean = rows.mean(0)
    _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
    weight = 1 / np.sqrt(spread**2 + np.median(spread**2) + 1e-12)
    own, other = ((part - mean) @ axes.T * weight for part in (rows, others))
    return tuple(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9) for part in (own, other))  # type: ignore[return-value]


def _grey_scale(portraits: Sequence[Portrait], compared: np.ndarray) -> np.ndarray:
    """(N, N) how alike the scales of the grey values are, by rank as a normal score: scans of one session share theirs."""
    from scipy.special import ndtri

    values = np.array([one.percentiles for one in portraits])
    logs = np.log(np.maximum(values - min(0.0, float(values.min())), 1e-3))
    apart = np.sqrt(np.maximum(((logs[:, None] - logs[None]) ** 2).sum(-1), 0))
    known = apart[compared]
    ranks = np.argsort(np.argsort(known, kind="stable"), kind="stable")
    score = np.zeros_like(apart)
    score[compared] = -ndtri((ranks + 0.5) / len(ranks))
    return score + score.T


def _robust(values: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """In robust standard deviations (the wider of the whole and the upper side) above the median of the pairs compared."""
    known = values[compared]
    middle = float(np.median(known))
    whole, upper = 1.4826 * float(np.median(np.abs(known - middle))), float(np.quantile(known, 0.8413)) - middle
    return (values - middle) / max(whole, upper, 1e-9)


def _expected(similarity: np.ndarray, compared: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) robust z, and how many pairs of different persons are expected to be as alike, half of them among neighbours."""
    z, count = _robust(similarity, compared), len(compared)
    known = np.sort(z[compared])
    # twins are at most one pair a case: above that share of the pairs the tail is not that of different persons alone
    top = max(1 - max(2 / (count - 1), 0.01), 0.6)
    base = max(1 - 4 * (1 - top), 0.5)
    high, low = (max(float(np.quantile(known, q)), 0.0) ** TAIL for q in (top, base))
    rate = max(high - low, 1e-9) / np.log((1 - base) / (1 - top))

    def chance(at: np.ndarray) -> np.ndarray:
        return np.minimum(1, (1 - top) * np.exp(-np.clip((np.maximum(at, 0) ** TAIL - high) / rate, -50, 500)))

    close = compared & neighbours
    if not 0 < close.sum() <= 2 * count:
        return z, chance(z) * len(known)
    # names that are near each other may be of one place and scanner: pairs a little apart tell how much that alone makes alike
    order = np.arange(count)
    near = z[compared & ~neighbours & (np.abs(order[:, None] - order[None]) <= NEAR)]
    shift, wider = 0.0, 1.0
    if len(near) >= FEWEST:
        shift = max(float(np.median(near)), 0.0)
        wider = max(float(np.quantile(near, 0.8413)) - shift, 1.0)
    return z, np.where(neighbours, chance((z - shift) / wider) * 2 * close.sum(), chance(z) * 2 * len(known))


def _name(case: str) -> list[tuple[int, str]]:
    """An id as what it is sorted by: numbers by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", case) if part]


def _are_neighbours(a: str, b: str) -> bool:
    """Whether two ids differ in their last number by one, or behind the same number in a text alone (``p7_a`` and ``p7_b``)."""
    one, two = _name(a), _name(b)
    if len(one) != len(two) or one[:-1] != two[:-1] or a == b:
        return False
    if one[-1][0] >= 0:
        return two[-1][0] >= 0 and abs(one[-1][0] - two[-1][0]) == 1
    return two[-1][0] < 0 and len(one) > 1


def _is_consecutive(a: str, b: str) -> bool:
    """Whether ids end in the numbers 2k-1 and 2k."""
    one, two = _name(a)[-1][0], _name(b)[-1][0]
    return one % 2 == 1 and two == one + 1
