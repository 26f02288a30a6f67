"""What people call images and labels, and which names belong together."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

LABEL_WORDS = frozenset(
    (
        *("label", "labels", "lbl", "mask", "masks", "seg", "segs", "segmentation", "segmentations", "dseg", "gt", "groundtruth"),
        *("truth", "manual", "annotation", "annotations", "contour", "contours", "roi", "rois", "delineation", "delineations"),
    )
)
"""Words of a label's name."""
IMAGE_WORDS = frozenset(("image", "images", "img", "imgs", "scan", "scans", "volume", "volumes", "mri", "mr", "ct"))
"""Words of the name of a folder of images."""
SEPARATORS = "_-. "
SAMPLE = 40  # labels that are compared with all images to find out how their names differ


def words(name: str) -> list[str]:
    """The words of a name, in lower case: ``p00_T2-seg`` has p00, t2 and seg."""
    return [word for word in re.split(r"[^0-9a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]


def is_label(name: str) -> bool:
    """Whether a name says that it is a label's."""
    return not LABEL_WORDS.isdisjoint(words(name))


def matching(images: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Which label belongs to which image, by what their names have in common.

    They are the same, or they differ by what stands at their ends (``p00_t2`` and ``p00_gland``) or at their beginnings, the
    same way in as many of them as possible.

    Args:
        images, labels: names without ending, each once.

    Returns:
        Image -> (what both are called, the label or None).
    """
    there = set(labels)
    rules = Counter[tuple[bool, str, str]]()
    for label in _spread(labels):
        for image in images:
            for at_end in (True, False):
                common = _common(image, label, at_end)
                if common:
                    rules[at_end, _rest(image, common, at_end), _rest(label, common, at_end)] += 1
    ranked = sorted(rules, key=lambda rule: (-rules[rule], len(rule[1]) + len(rule[2]), rule))
    tried = [(rule, _apply(rule, images, there)) for rule in ranked[:20]]
    rule, best = max(tried, key=lambda pair: len(pair[1]), default=((True, "", ""), {}))
    if len(images) == len(labels) == 1:
        core = best[images[0]][0] if best else ""
        whole = core and (images[0] == core or images[0].replace(core, "", 1)[:1] in SEPARATORS or not images[0].startswith(core))
        return {images[0]: (core if whole else images[0], labels[0])}
    if any(rule[1:]) and 2 * len(best) <= min(len(images), len(labels)):  # by chance
        best = {}
    names = {image: best[image][0] if image in best else image for image in images}
    if not all(names.values()) or len(set(names.values())) < len(names):
        names = {image: image for image in images}
    return {image: (names[image], best[image][1] if image in best else None) for image in images}


def _spread(values: Sequence[str]) -> list[str]:
    step = max(1, len(values) // SAMPLE)
    return list(values[::step])


def _common(one: str, other: str, at_start: bool) -> int:
    """How many characters two names share at their start, or at their end."""
    pairs = zip(*((one, other) if at_start else (one[::-1], other[::-1])), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _rest(name: str, common: int, at_end: bool) -> str:
    return name[common:] if at_end else name[: len(name) - common]


def _apply(rule: tuple[bool, str, str], images: Iterable[str], labels: set[str]) -> dict[str, tuple[str, str]]:
    """Image -> (its name without what differs, its label) where there is one by this rule."""
    at_end, own, other = rule
    found = {}
    for image in images:
        if at_end and image.endswith(own):
            core = image[: len(image) - len(own)]
            label = core + other
        elif not at_end and image.startswith(own):
            core = image[len(own) :]
            label = other + core
        else:
            continue
        if label in labels:
            found[image] = (core.strip(SEPARATORS), label)
    return found
