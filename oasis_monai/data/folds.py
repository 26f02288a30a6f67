"""Cross-validation folds: by patient (the default), by centre, from the data set's own list, or by slice (only to reproduce the
paper's tables). Everything but slice folds deals whole patients: all scans of a person are on one side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oasis_monai.data.types import Case
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import digest

SLICE = "slice"
PROTOCOLS = ("patient", "centre", "file", SLICE)
"""How cases are dealt to folds. Under all but the last no patient is on both sides."""
NAMED = 5  # cases named in one message


@dataclass(frozen=True)
class Fold:
    """One fold: for every case, which of its images (0 for a volume; slice numbers for slices) train and which are tested.

    Args:
        index: 0..k-1.
        train, test: case id -> image numbers, ascending; a case without any is absent.
        name: of the centre that is left out, or the data set's own number; empty for folds drawn at random.
    """

    index: int
    train: Mapping[str, tuple[int, ...]]
    test: Mapping[str, tuple[int, ...]]
    name: str = ""

    def key(self) -> str:
        """Digest of the split."""
        return digest([{k: list(v) for k, v in sorted(part.items())} for part in (self.train, self.test)])


@dataclass(frozen=True)
class Split:
    """All folds of one protocol. Every image is tested exactly once, but for cases that the data set's own folds never test.

    Args:
        protocol: ``slice``: the slices of a case are dealt out singly, so that a test slice's neighbours of the same patient stay
            in training; all others: a patient is wholly in training or wholly in test.
        patients: case -> the person it is of; a case that is not there is nobody else's.
        centres: case -> where it was scanned, where that is known.
    """

    protocol: str
    seed: int
    folds: tuple[Fold, ...]
    patients: Mapping[str, str] = field(default_factory=dict)
    centres: Mapping[str, str] = field(default_factory=dict)

    @property
    def honest(self) -> bool:
        """Whether no patient is on both sides of a fold."""
        return self.protocol != SLICE

    def to_json(self) -> dict[str, Any]:
        named = [{"name": f.name} if f.name else {} for f in self.folds]
        folds = [
            {"index": f.index, **name, "train": dict(f.train), "test": dict(f.test)}
            for f, name in zip(self.folds, named, strict=True)
        ]
        told = {case: {"patient": p, "centre": self.centres.get(case, "")} for case, p in sorted(self.patients.items())}
        return {"protocol": self.protocol, "seed": self.seed, "folds": folds, "cases": told}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Split:
        """The split of :meth:`to_json`.

        Raises:
            KeyError, TypeError, AttributeError: it is none.
        """
        folds = []
        for one in told["folds"]:
            train, test = ({case: tuple(images) for case, images in one[side].items()} for side in ("train", "test"))
            folds.append(Fold(one["index"], train, test, one.get("name", "")))
        people = told["cases"]
        patients = {case: own["patient"] for case, own in people.items()}
        centres = {case: own["centre"] for case, own in people.items() if own["centre"]}
        return cls(told["protocol"], told["seed"], tuple(folds), patients, centres)

    def key(self) -> str:
        """Digest over all folds."""
        return digest([self.protocol, [f.key() for f in self.folds]])

    def choose(self, fold: int | str | None) -> list[Fold]:
        """The folds that ``fold`` names: an index, a name, or None for all.

        Raises:
            ConfigError: there is no such fold.
        """
        found = [one for one in self.folds if fold is None or fold in (one.index, one.name)]
        if not found:
            names = [one.name for one in self.folds if one.name]
            expected = f"null (all), 0 to {len(self.folds) - 1}" + (f" or one of {names}" if names else "")
            raise ConfigError("fold", expected, fold)
        return found

    def testing(self) -> dict[str, int]:
        """Case -> the fold that tests it; under slice folds, where several do, the last."""
        return {case: fold.index for fold in self.folds for case in fold.test}


def by_patient(cases: Iterable[str], patients: Mapping[str, str]) -> list[list[str]]:
    """The cases of each patient, ascending; patients in order of their first case, so that their names do not matter."""
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(patients.get(case, case), []).append(case)
    return sorted(groups.values())


def several_cases(cases: Iterable[str], patients: Mapping[str, str]) -> list[list[str]]:
    """Those of :func:`by_patient` that have more than one: what training depends on beside the cases themselves."""
    return [group for group in by_patient(cases, patients) if len(group) > 1]


def make_split(
    images: Mapping[str, int],
    k: int,
    seed: int,
    protocol: str = "patient",
    spatial_dims: int = 3,
    cases: Collection[Case] = (),
) -> Split:
    """Deal cases (or slices) into folds.

    ``patient``: ``k`` folds at random by ``seed``, with all cases of a patient in one, of as equal a number of cases as that
    allows. ``centre``: a fold for every centre, which it tests alone, in order of their names. ``file``: the folds that the data
    set says, see :func:`_of_the_data_set`. ``slice``: single slices at random.

    Args:
        images: case id -> number of its images (1 for a volume, else its slices).
        k: number of folds, at least 2; not used by ``centre`` and ``file``, which have their own.
        seed: same seed, same cases: same folds, on any machine and whatever the order of ``images``.
        protocol: one of :data:`PROTOCOLS`.
        spatial_dims: ``slice`` needs atlases that are slices (2).
        cases: what is known of the cases: patient, centre, fold, split. One that is not among them is a patient of its own.

    Raises:
        ConfigError: on a protocol, ``k`` or number of cases that cannot work.
        DataError: ``centre`` and ``file``: every case that does not say what is needed, every patient who would be on both sides.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("folds", f"one of {list(PROTOCOLS)}", protocol)
    if protocol == SLICE and spatial_dims != 2:
        raise ConfigError(
            "folds", "patient where an atlas is a volume (spatial_dims=3)", protocol, "set spatial_dims=2 or folds=patient"
        )
    known = {case.id: case for case in cases}
    every = [known.get(case) or Case(case, Path()) for case in sorted(images)]
    patients = {case.id: case.patient for case in every}
    if protocol == "patient":
        sides = _drawn(patients, k, seed)
    elif protocol == "centre":
        sides = _by_centre(every)
    elif protocol == "file":
        sides = _of_the_data_set(every)
    else:
        sides = []
    if protocol == SLICE:
        folds = _slices(images, k, seed)
    else:
        whole = {case: tuple(range(count)) for case, count in sorted(images.items())}
        folds = tuple(
            Fold(index, {case: whole[case] for case in sorted(train)}, {case: whole[case] for case in sorted(test)}, name)
            for index, (train, test, name) in enumerate(sides)
        )
    split = Split(protocol, seed, folds, patients, {case.id: case.centre for case in every if case.centre})
    check_no_leak(split)
    return split


Side = tuple[Collection[str], Collection[str], str]
"""Cases that train, cases that are tested, and the fold's name."""


def _drawn(patients: Mapping[str, str], k: int, seed: int) -> list[Side]:
    """Patients at random."""
    units = by_patient(patients, patients)
    if k < 2:
        raise ConfigError("k", "2 folds or more", k)
    if len(units) < k:
        what = "cases" if len(units) == len(patients) else "patients"
        raise ConfigError("k", f"no more folds than {what} ({len(units)})", k, f"take fewer folds or add {what}")
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    sizes = [len(unit) for unit in units]
    held: list[list[int]] = [[] for _ in range(k)]
    if len(set(sizes)) == 1:
        held = [part.tolist() for part in np.array_split(order, k)]
    else:  # the patients with most cases first, each to the fold that has fewest: the others then level them out
        loads = [0] * k
        for unit in sorted(order, key=lambda i: -sizes[i]):
            least = loads.index(min(loads))
            held[least].append(unit)
            loads[least] += sizes[unit]
    return [_sides(order, own, units, "") for own in held]


def _sides(order: Sequence[int], held: Sequence[int], units: Sequence[Sequence[str]], name: str) -> Side:
    train, test = ([case for i in part for case in units[i]] for part in (np.setdiff1d(order, held), held))
    return train, test, name


def _slices(images: Mapping[str, int], k: int, seed: int) -> tuple[Fold, ...]:
    """Single slices at random."""
    units = [(case, (number,)) for case in sorted(images) for number in range(images[case])]
    if k < 2:
        raise ConfigError("k", "2 folds or more", k)
    if len(units) < k:
        raise ConfigError("k", f"no more folds than slices ({len(units)})", k, "take fewer folds or add cases")
    order = np.random.default_rng(seed).permutation(len(units))
    return tuple(
        Fold(index, _collect([units[i] for i in np.setdiff1d(order, held)]), _collect([units[i] for i in held]))
        for index, held in enumerate(np.array_split(order, k))
    )


def _by_centre(cases: Sequence[Case]) -> list[Side]:
    """Leave one centre out."""
    without = [case.id for case in cases if not case.centre]
    if without:
        remedy = "name the centres by data.centre or a column centre, or set folds=patient"
        raise DataError(Fault("", "folds=centre", "a centre of every case", f"none of {_some(without, len(cases))}", remedy))
    centres = sorted({case.centre for case in cases})
    if len(centres) < 2:
        remedy = "correct data.centre, or set folds=patient"
        raise DataError(Fault("", "folds=centre", "2 centres or more", ", ".join(centres) or "none", remedy))
    _refuse_both_sides(cases, {case.id: case.centre for case in cases}, "centre")
    return [([c.id for c in cases if c.centre != name], [c.id for c in cases if c.centre == name], name) for name in centres]


def _of_the_data_set(cases: Sequence[Case]) -> list[Side]:
    """The folds that the cases name themselves (a column ``fold``, nnU-Net's ``splits_final.json``, a MONAI datalist).

    A case is tested in its fold and trains in all others. ``split=train`` without a fold: it trains in all folds and is tested
    in none. ``split=test``: it is never trained with, and tested in its fold if it has one. Where no case has a fold, ``split``
    alone makes one: train with the first kind, test the other.
    """
    if all(case.fold is None for case in cases):
        places = {case.id: case.split for case in cases}
        numbers: list[int | None] = [None]
    else:
        places = {case.id: case.split if case.fold is None else str(case.fold) for case in cases}
        numbers = [*sorted({case.fold for case in cases if case.fold is not None})]
    if untold := [case for case, place in places.items() if not place]:
        remedy = "give each a fold or split=train (in no test) or test (in no training), or set folds=patient"
        raise DataError(
            Fault("", "folds=file", "a fold or a split of every case", f"none of {_some(untold, len(cases))}", remedy)
        )
    _refuse_both_sides(cases, places, "fold or split")
    sides: list[Side] = []
    for number in numbers:
        test = [c.id for c in cases if (c.fold == number if number is not None else c.split == "test")]
        train = [c.id for c in cases if c.id not in test and c.split != "test"]
        if not train or not test:
            where = "split" if number is None else f"fold {number}"
            lacks = "none to train with" if not train else "none to test"
            raise DataError(
                Fault("", "folds=file", "cases on both sides of every fold", f"{lacks} ({where})", "set folds=patient")
            )
        sides.append((train, test, "" if number is None else str(number)))
    return sides


def _some(cases: Sequence[str], of: int) -> str:
    more = ", ..." if len(cases) > NAMED else ""
    return f"{len(cases)} of {of} cases ({', '.join(cases[:NAMED])}{more})"


def _refuse_both_sides(cases: Sequence[Case], places: Mapping[str, str], what: str) -> None:
    """Refuse patients whose cases are in several places, each of which is tested without the others."""
    faults = []
    for group in by_patient(places, {case.id: case.patient for case in cases}):
        if len({places[case] for case in group}) > 1:
            patient = next(case.patient for case in cases if case.id == group[0])
            found = ", ".join(f"{case}: {places[case]}" for case in group)
            remedy = "put all scans of a patient in one, or correct data.patient"
            faults.append(Fault(group[0], f"patient {patient}", f"one {what}", found, remedy))
    if faults:
        raise DataError(faults)


def patient_groups(cases: Iterable[str], k: int, seed: int, patients: Mapping[str, str] | None = None) -> dict[str, int]:
    """Case -> its fold under patient folds: the groups that are told apart where a slice fold has no cases of its own. Of
    slices there may be more folds than patients: then every patient is a group."""
    patients = {case: (patients or {}).get(case, case) for case in cases}
    units = by_patient(patients, patients)
    if len(units) < 2:
        return dict.fromkeys(sorted(patients), 0)
    sides = _drawn(patients, min(k, len(units)), seed)
    return {case: index for index, (_, test, _) in enumerate(sides) for case in test}


def limit_training(split: Split, patients: int) -> Split:
    """The same test sides with at most so many training patients a fold, drawn by the split's seed: the patients of a smaller
    number are among those of a larger one.

    Raises:
        ConfigError: a fold has fewer patients.
    """
    folds = []
    for fold in split.folds:
        units = {group[0]: group for group in by_patient(fold.train, split.patients)}
        if patients > len(units):
            raise ConfigError("train_cases", f"1 to {len(units)}, the training patients of fold {fold.index}", patients)
        order = np.random.default_rng([split.seed, fold.index]).permutation(sorted(units))
        kept = sorted(case for first in order[:patients].tolist() for case in units[first])
        folds.append(Fold(fold.index, {case: fold.train[case] for case in kept}, fold.test, fold.name))
    return Split(split.protocol, split.seed, tuple(folds), split.patients, split.centres)


def _collect(units: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    gathered: dict[str, list[int]] = {}
    for case, numbers in units:
        gathered.setdefault(case, []).extend(numbers)
    return {case: tuple(sorted(numbers)) for case, numbers in sorted(gathered.items())}


def check_no_leak(split: Split) -> None:
    """Raise ValueError if a patient (protocol ``slice``: a slice) is on both sides of a fold, or tested in two."""
    tested: list[tuple[str, int]] = []
    where: dict[str, int] = {}
    for fold in split.folds:
        both = set(fold.train) & set(fold.test)
        if split.honest:
            trained = {split.patients.get(case, case) for case in fold.train}
            known = sorted(case for case in fold.test if split.patients.get(case, case) in trained)
            if known:
                raise ValueError(f"fold {fold.index}: {known} on both sides; folds must keep a patient on one side")
            for case in fold.test:
                if where.setdefault(split.patients.get(case, case), fold.index) != fold.index:
                    raise ValueError(f"the patient of {case} is tested in two folds")
        for case in both:
            if set(fold.train[case]) & set(fold.test[case]):
                raise ValueError(f"fold {fold.index}: slices of {case} on both sides")
        tested += [(case, number) for case, numbers in fold.test.items() for number in numbers]
    if len(tested) != len(set(tested)):
        raise ValueError("an image is tested in two folds")
