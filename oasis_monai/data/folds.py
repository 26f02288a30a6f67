"""Cross-validation folds: by patient (the default), or by slice (only to reproduce the paper's tables)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oasis_monai.utils.errors import ConfigError
from oasis_monai.utils.files import digest

PROTOCOLS = ("patient", "slice")


@dataclass(frozen=True)
class Fold:
    """One fold: for every case, which of its images (0 for a volume; slice numbers for slices) train and which are tested.

    Args:
        index: 0..k-1.
        train, test: case id -> image numbers, ascending; a case without any is absent.
    """

    index: int
    train: Mapping[str, tuple[int, ...]]
    test: Mapping[str, tuple[int, ...]]

    def key(self) -> str:
        """Digest of the split."""
        return digest([{k: list(v) for k, v in sorted(part.items())} for part in (self.train, self.test)])


@dataclass(frozen=True)
class Split:
    """All folds of one protocol. Every image is tested exactly once.

    Args:
        protocol: ``patient``: a case is wholly in training or wholly in test; ``slice``: its slices are dealt out singly, so
            that a test slice's neighbours of the same patient stay in training.
    """

    protocol: str
    seed: int
    folds: tuple[Fold, ...]

    def to_json(self) -> dict[str, Any]:
        folds = [{"index": f.index, "train": dict(f.train), "test": dict(f.test)} for f in self.folds]
        return {"protocol": self.protocol, "seed": self.seed, "folds": folds}

    def key(self) -> str:
        """Digest over all folds."""
        return digest([self.protocol, [f.key() for f in self.folds]])


def make_split(images: Mapping[str, int], k: int, seed: int, protocol: str = "patient", spatial_dims: int = 3) -> Split:
    """Deal cases (or slices) into ``k`` folds of nearly equal size, at random by ``seed``.

    Args:
        images: case id -> number of its images (1 for a volume, else its slices).
        k: number of folds, at least 2.
        seed: same seed, same cases: same folds, on any machine and whatever the order of ``images``.
        protocol: ``patient`` or ``slice``.
        spatial_dims: ``slice`` needs atlases that are slices (2).

    Raises:
        ConfigError: on a protocol, ``k`` or number of cases that cannot work.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("folds", f"one of {list(PROTOCOLS)}", protocol)
    if protocol == "slice" and spatial_dims != 2:
        raise ConfigError(
            "folds", "patient where an atlas is a volume (spatial_dims=3)", protocol, "set spatial_dims=2 or folds=patient"
        )
    if k < 2:
        raise ConfigError("k", "2 folds or more", k)
    if protocol == "patient" and len(images) < k:
        raise ConfigError("k", f"no more folds than cases ({len(images)})", k, "take fewer folds or add cases")
    ids = sorted(images)
    random = np.random.default_rng(seed)
    units: list[tuple[str, tuple[int, ...]]]
    if protocol == "patient":
        units = [(case, tuple(range(images[case]))) for case in ids]
    else:
        units = [(case, (number,)) for case in ids for number in range(images[case])]
    if len(units) < k:
        raise ConfigError("k", f"no more folds than slices ({len(units)})", k, "take fewer folds or add cases")
    order = random.permutation(len(units))
    folds = []
    for index, held in enumerate(np.array_split(order, k)):
        test = _collect([units[i] for i in held])
        train = _collect([units[i] for i in np.setdiff1d(order, held)])
        folds.append(Fold(index, train, test))
    split = Split(protocol, seed, tuple(folds))
    check_no_leak(split)
    return split


def patient_groups(cases: Iterable[str], k: int, seed: int) -> dict[str, int]:
    """Case -> its fold under patient folds: the groups that are told apart where a slice fold has no cases of its own. Of
    slices there may be more folds than cases: then every case is a group."""
    ids = sorted(cases)
    if len(ids) < 2:
        return dict.fromkeys(ids, 0)
    return {case: fold.index for fold in make_split(dict.fromkeys(ids, 1), min(k, len(ids)), seed).folds for case in fold.test}


def limit_training(split: Split, cases: int) -> Split:
    """The same test sides with at most ``cases`` training patients a fold, drawn by the split's seed: the patients of a
    smaller number are among those of a larger one.

    Raises:
        ConfigError: a fold has fewer patients.
    """
    folds = []
    for fold in split.folds:
        if cases > len(fold.train):
            raise ConfigError("train_cases", f"1 to {len(fold.train)}, the training patients of fold {fold.index}", cases)
        order = np.random.default_rng([split.seed, fold.index]).permutation(sorted(fold.train))
        folds.append(Fold(fold.index, {case: fold.train[case] for case in sorted(order[:cases].tolist())}, fold.test))
    return Split(split.protocol, split.seed, tuple(folds))


def _collect(units: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    gathered: dict[str, list[int]] = {}
    for case, numbers in units:
        gathered.setdefault(case, []).extend(numbers)
    return {case: tuple(sorted(numbers)) for case, numbers in sorted(gathered.items())}


def check_no_leak(split: Split) -> None:
    """Raise ValueError if a patient (protocol ``patient``) or a slice (``slice``) is on both sides of a fold, or tested
    other than once."""
    tested: list[tuple[str, int]] = []
    for fold in split.folds:
        both = set(fold.train) & set(fold.test)
        if split.protocol == "patient" and both:
            raise ValueError(f"fold {fold.index}: {sorted(both)} on both sides; folds by patient must keep a patient on one side")
        for case in both:
            if set(fold.train[case]) & set(fold.test[case]):
                raise ValueError(f"fold {fold.index}: slices of {case} on both sides")
        tested += [(case, number) for case, numbers in fold.test.items() for number in numbers]
    if len(tested) != len(set(tested)):
        raise ValueError("an image is tested in two folds")
