"""Cases that look like one person: found where they are, and quiet where all are of different ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oasis_monai.data.cases import find_cases
from oasis_monai.data.io import read_volume
from oasis_monai.data.phantom.anatomy import draw_picture
from oasis_monai.data.phantom.make import make_phantom
from oasis_monai.data.phantom.patient import draw_patient
from oasis_monai.data.phantom.scanner import CENTRES, SIZES, make_grid, place_patient, scan
from oasis_monai.data.types import Case, Geometry, Volume
from oasis_monai.workflows import check as module
from oasis_monai.workflows.check import check_cases
from oasis_monai.workflows.twins import _are_neighbours, find_twins, portrait, twin_faults
from tests.helpers.real import real_data


def volume(name, image, label, affine):
    geometry = Geometry(image.shape, affine)
    return Volume(
        name, torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(label.astype(np.uint8))[None], geometry
    )


def phantom(name, number):
    made = make_phantom(number, seed=7, size="tiny")
    return volume(name, made.image, made.label, made.affine)


def again(name, number):
    """The same person as :func:`phantom`'s, on another day: another bias field, another noise, moved by 6 mm, brighter."""
    site = CENTRES[number % len(CENTRES)]
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([7, number]).spawn(5)]
    later = [np.random.default_rng(s) for s in np.random.SeedSequence([99, number]).spawn(2)]
    patient = draw_patient(streams[0], site.coil)
    moved = replace(patient, shift_mm=tuple(s + d for s, d in zip(patient.shift_mm, (4, -3, 3), strict=True)))
    shape, affine = make_grid(site, SIZES["tiny"], streams[1])
    frame = place_patient(moved, shape, affine)
    picture = draw_picture(moved, frame, streams[2])
    return volume(name, 1.2 * scan(site, picture, frame, *later), picture.gland, affine)


@pytest.fixture(scope="module")
def crowd():
    return [portrait(phantom(f"c{i:02d}x", i)) for i in range(24)]


def pairs(found):
    return {frozenset(twins.cases) for twins in found}


@pytest.mark.fast
def test_a_person_scanned_again_is_found_and_nobody_else(crowd):
    assert find_twins(crowd, {}) == []
    second = [portrait(again(f"c{i:02d}y", i)) for i in (3, 10, 17)]
    wanted = {frozenset((f"c{i:02d}x", f"c{i:02d}y")) for i in (3, 10, 17)}
    found = find_twins(crowd + second, {})
    assert pairs(found) <= wanted
    assert len(found) >= 2
    assert all(twins.expected < 0.2 for twins in found)
    assert [twins.expected for twins in found] == sorted(twins.expected for twins in found)
    told = {f"c{i:02d}{which}": f"person {i}" for i in range(24) for which in "xy"}
    assert find_twins(crowd + second, told) == []
    assert find_twins((crowd + second)[::-1], {}) == found


@pytest.mark.fast
def test_a_mirror_image_is_found_as_one(crowd):
    whole = phantom("c05x", 5)
    axis = int(np.argmax(np.abs(whole.geometry.affine[0, :3])))
    noise = torch.from_numpy(
        np.random.default_rng(0).normal(0, float(whole.image.std()) / 20, whole.image.shape).astype(np.float32)
    )
    assert whole.label is not None
    other = replace(whole, case="c05y", image=whole.image.flip(axis + 1) + noise, label=whole.label.flip(axis + 1))
    (found,) = find_twins([*crowd, portrait(other)], {})
    assert found.cases == ("c05x", "c05y")
    assert found.mirrored
    assert "looks like the mirror image of c05y (robust z +" in twin_faults([*crowd, portrait(other)], {})[0].found


@pytest.mark.fast
def test_of_a_few_cases_nothing_is_said(crowd):
    assert find_twins([*crowd[:6], portrait(again("c03y", 3))], {}) == []
    assert twin_faults([], {}) == []


@pytest.mark.fast
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("p7_a", "p7_b", True), ("h051", "h052", True), ("h052", "h051", True), ("h051", "h053", False), ("h051", "k052", False),
        ("alice", "bob", False), ("p7_a", "p8_a", False), ("p7", "p7_b", False), ("p1s1", "p1s2", True), ("p1s1", "p2s1", False),
    ],
)  # fmt: skip
def test_neighbouring_names(a, b, expected):
    assert _are_neighbours(a, b) == expected


@pytest.mark.fast
def test_the_check_warns_unless_the_patient_is_told(monkeypatch):
    made = {v.case: v for v in [*(phantom(f"c{i:02d}x", i) for i in range(24)), again("c10y", 10)]}
    monkeypatch.setattr(module, "read_volume", lambda case, *args: made[case.id])
    cases = [Case(name, Path(name), Path(name)) for name in made]
    told = [f for f in check_cases(cases, (0, 1)) if f.field == "patient"]
    assert [(f.case, f.severity) for f in told] == [("c10x", "warning")]
    assert "looks like one person with c10y (robust z +" in told[0].found
    known = [replace(case, patient=case.id[:3]) for case in cases]
    assert not [f for f in check_cases(known, (0, 1)) if f.field == "patient"]


def portraits_of(name, layout, values, count=None):
    return [portrait(read_volume(case, values)) for case in find_cases(real_data(name), layout)[:count]]


def test_of_the_hippocampus_the_sides_of_one_brain_are_found():
    """Numbers 2k-1 and 2k; of all 200 cases 43 of 52 pairs are found, and no false one."""
    made = portraits_of("hippocampus", "msd", (0, 1, 2), 100)
    person = {one.case: (int(one.case[-3:]) + 1) // 2 for one in made}
    there = len(person) - len(set(person.values()))
    found = find_twins(made, {})
    right = sum(person[twins.cases[0]] == person[twins.cases[1]] for twins in found)
    assert right >= 0.6 * there
    assert len(found) - right <= max(1, 0.1 * right)


def test_of_the_prostates_nobody_is_taken_for_another():
    assert find_twins(portraits_of("promise12", "promise12", (0, 1), 34), {}) == []
