"""The fusion methods by name, and what each of them needs."""

from __future__ import annotations

from collections.abc import Sequence

from oasis_monai.utils.errors import ConfigError

INTERPOLATION = "interpolation"
METHODS = {
    "FwoW": "fuse without warping, weights by image similarity",
    "FWAL": "fuse warped atlas labels, weights by image similarity",
    "OASIS": "fuse warped labels, weights by LOA among the atlases (R1)",
    "OASIS-consensus": "fuse warped labels, weights by LOA in the target's space (R2)",
    "OASIS-conditioned": "fuse warped labels, weights by LOA, nearer atlases count more (R3)",
    "OASIS-joint": "fuse warped labels and the joint model's estimate, weights by LOA with the estimate (R4)",
    "estimate": "the joint model's own estimate, no atlas",
    "majority": "fuse warped labels, equal weights",
    "STAPLE": "STAPLE on the warped labels",
    INTERPOLATION: "no image: the shape between the scan's own labelled slices, what slice folds give away",
}
UNALIGNED = ("FwoW", "estimate", INTERPOLATION)
"""Methods that need no STM."""
UNFUSED = ("estimate", INTERPOLATION)
"""Methods that fuse no atlas: once, as n = 0."""


def check_methods(methods: Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """The methods asked for, in order; a name that is none of :data:`METHODS` or ``more`` is a ConfigError."""
    unknown = [m for m in methods if m not in METHODS and m not in more]
    if unknown or not methods:
        raise ConfigError("methods", f"one or more of {[*METHODS, *more]}", list(methods))
    return tuple(dict.fromkeys(methods))


JOINT_METHODS = ("OASIS-joint", "estimate")
"""Methods that only a joint model has."""


def result_keys(methods: Sequence[str], ns: Sequence[int]) -> list[tuple[str, int]]:
    """What a segmenter gives: every method at every n, and once, as n = 0, those that fuse no atlas."""
    return [(m, n) for m in methods for n in (ns if needs_atlases([m]) else (0,))]


def needs_alignment(methods: Sequence[str]) -> bool:
    """:data:`UNALIGNED` and the segmentation networks need no STM."""
    return any(m not in UNALIGNED and m in METHODS for m in methods)


def needs_atlases(methods: Sequence[str]) -> bool:
    """Whether any of the methods fuses atlases."""
    return any(m not in UNFUSED and m in METHODS for m in methods)


def needs_estimate(methods: Sequence[str]) -> bool:
    """Whether a joint model's segmentation network has a part in any of the methods."""
    return any(m not in ("FwoW", INTERPOLATION) and m in METHODS for m in methods)
