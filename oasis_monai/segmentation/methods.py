"""The table of methods: what each one does, how it weighs an atlas, and what it needs.

A new method is one entry of :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from oasis_monai.segmentation import fusion
from oasis_monai.segmentation.evidence import Evidence
from oasis_monai.utils.errors import ConfigError

ATLASES, ALIGNMENT, ESTIMATE, LOA, LABELLED_SLICES = "atlases", "alignment", "estimate", "LOA", "labelled slices"
USUAL_ATLASES = 6
"""Atlases that are fused where nobody says how many, if there are so many."""


@dataclass(frozen=True)
class Method:
    """One way to segment a target.

    Args:
        description: one line for the table of methods.
        weigh: (evidence, n) -> (n,) weights of the first n atlases, sum 1. None where no weighted sum of labels is made.
        needs: of :data:`ATLASES` (it fuses atlases, at every n), :data:`ALIGNMENT` (a registration network),
            :data:`ESTIMATE` (a joint model), :data:`LOA` (overlaps of the atlases with each other) and
            :data:`LABELLED_SLICES` (of the target itself: slice folds).
        predicts_dice: whether parts of the result are compared, so that its Dice can be predicted.
    """

    description: str
    weigh: Callable[[Evidence, int], torch.Tensor] | None
    needs: frozenset[str]
    predicts_dice: bool = True


def _method(
    description: str,
    weigh: Callable[[Evidence, int], torch.Tensor] | None,
    *needs: str,
    predicts_dice: bool = True,
) -> Method:
    return Method(description, weigh, frozenset(needs), predicts_dice)


INTERPOLATION = "interpolation"
METHODS: dict[str, Method] = {
    "FwoW": _method(
        "fuse without warping, weights by image similarity",
        lambda evidence, n: fusion.image_weights(evidence.atlas_images(n), evidence.target),
        ATLASES,
        predicts_dice=False,
    ),
    "FWAL": _method(
        "fuse warped atlas labels, weights by image similarity",
        lambda evidence, n: fusion.normalise(evidence.warped_similarity[:n]),
        *(ATLASES, ALIGNMENT),
    ),
    "OASIS": _method(
        "fuse warped labels, weights by LOA among the atlases (R1)",
        lambda evidence, n: fusion.loa_weights(evidence.loa_matrix[:n, :n]),
        *(ATLASES, ALIGNMENT, LOA),
    ),
    "OASIS-consensus": _method(
        "fuse warped labels, weights by LOA in the target's space (R2)",
        lambda evidence, n: fusion.loa_weights(evidence.consensus_matrix[:n, :n]),
        *(ATLASES, ALIGNMENT),
    ),
    "OASIS-conditioned": _method(
        "fuse warped labels, weights by LOA, nearer atlases count more (R3)",
        lambda evidence, n: fusion.conditioned_weights(evidence.loa_matrix[:n, :n], evidence.distances[:n], evidence.temperature),
        *(ATLASES, ALIGNMENT, LOA),
    ),
    "OASIS-joint": _method(
        "fuse warped labels and the joint model's estimate, weights by LOA with the estimate (R4)",
        lambda evidence, n: fusion.normalise(evidence.overlap_with_estimate[:n]),
        *(ATLASES, ALIGNMENT, ESTIMATE),
    ),
    "estimate": _method("the joint model's own estimate, no atlas", None, ESTIMATE),
    "majority": _method("fuse warped labels, equal weights", lambda _, n: fusion.equal_weights(n), ATLASES, ALIGNMENT),
    "STAPLE": _method("STAPLE on the warped labels", None, ATLASES, ALIGNMENT, predicts_dice=False),
    INTERPOLATION: _method(
        "no image: the shape between the scan's own labelled slices, what slice folds give away",
        None,
        LABELLED_SLICES,
        predicts_dice=False,
    ),
}
"""Name -> :class:`Method`. FwoW, FWAL and OASIS are those of the paper (section 2.2); the others are ours or well known.

Examples:
    >>> from oasis_monai import METHODS
    >>> METHODS["majority"].description
    'fuse warped labels, equal weights'
    >>> [name for name, method in METHODS.items() if "estimate" in method.needs]  # those of a joint model
    ['OASIS-joint', 'estimate']
"""


def check_methods(methods: Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """The methods asked for, in order, each once.

    Args:
        more: names that are allowed beside :data:`METHODS` (segmentation networks).

    Raises:
        ConfigError: a name is unknown, or there is none.
    """
    unknown = [m for m in methods if m not in METHODS and m not in more]
    if unknown or not methods:
        raise ConfigError("methods", f"one or more of {[*METHODS, *more]}", list(methods))
    return tuple(dict.fromkeys(methods))


def methods_that_need(need: str, methods: Sequence[str]) -> tuple[str, ...]:
    """Those of ``methods`` that need one of the things listed in :class:`Method`. A segmentation network needs none."""
    return tuple(m for m in methods if m in METHODS and need in METHODS[m].needs)


def needs_atlases(methods: Sequence[str]) -> bool:
    """Whether any of the methods fuses atlases."""
    return bool(methods_that_need(ATLASES, methods))


def needs_alignment(methods: Sequence[str]) -> bool:
    """Whether any of the methods needs a registration network."""
    return bool(methods_that_need(ALIGNMENT, methods))


def uses_estimate(methods: Sequence[str]) -> bool:
    """Whether a joint model's estimate has a part in any of the methods: its registration network sees the estimate too."""
    return needs_alignment(methods) or bool(methods_that_need(ESTIMATE, methods))


def result_keys(methods: Sequence[str], ns: Sequence[int]) -> list[tuple[str, int]]:
    """(method, n) of every result: each method at every n, and once, as n = 0, those that fuse no atlas."""
    return [(m, n) for m in methods for n in (ns if needs_atlases([m]) else (0,))]
