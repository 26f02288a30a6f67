"""The phantom: reproducible, geometrically right on disk, as hard as it claims to be, and never half written."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as components
from scipy.ndimage import map_coordinates

from oasis_monai.data.phantom import CENTRES, SIZES, Phantom, make_phantom, write_phantom
from oasis_monai.data.phantom.patient import draw_patient
from oasis_monai.data.phantom.shapes import Culler, Frame, ellipsoid, inside, rod
from oasis_monai.utils.errors import ConfigError, DataError

COHORT = 16


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [make_phantom(i, seed=3, size="tiny", labels=2) for i in range(COHORT)]


def millilitres(scan: Phantom) -> float:
    return float((scan.label > 0).sum() * np.prod(scan.spacing_mm) / 1000)


def on_common_grid(scan: Phantom, array: np.ndarray) -> np.ndarray:
    """Resample to 2.5 mm in patient axes, centred on the image centre: the frame FwoW compares cases in."""
    axes = (np.arange(-50, 51, 2.5), np.arange(-50, 51, 2.5), np.arange(-40, 41, 2.5))
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    index = np.linalg.inv(scan.affine[:3, :3]) @ points + (np.array(array.shape)[:, None] - 1) / 2
    return map_coordinates(array.astype(np.float32), index, order=1, mode="nearest").reshape([len(a) for a in axes])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# ---------------------------------------------------------------- one case


@pytest.mark.parametrize("index", range(4))
def test_same_arguments_give_the_same_voxels_whatever_happened_before(index: int) -> None:
    first = make_phantom(index, seed=1, size="tiny")
    np.random.seed(index)  # the global generator must play no part
    make_phantom(index + 1, seed=9, size="tiny")
    again = make_phantom(index, seed=1, size="tiny")
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert np.array_equal(first.affine, again.affine)


def test_other_seed_and_other_case_are_other_patients() -> None:
    scans = [make_phantom(i, seed, centre="array", size="tiny") for i, seed in ((0, 0), (0, 1), (1, 0))]
    for one, two in itertools.combinations(scans, 2):
        assert one.image.shape == two.image.shape
        assert np.mean(one.image == two.image) < 0.05
        assert 0 < dice(one.label > 0, two.label > 0) < 0.95


@pytest.mark.parametrize("index", range(4))
def test_size_changes_the_grid_and_not_the_patient(index: int) -> None:
    tiny, small = make_phantom(index, size="tiny"), make_phantom(index, size="small")
    assert tiny.image.size < small.image.size
    assert millilitres(tiny) == pytest.approx(millilitres(small), rel=0.02)
    centres = [s.affine[:3] @ np.append(np.argwhere(s.label).mean(0), 1) for s in (tiny, small)]
    assert centres[0] == pytest.approx(centres[1], abs=1.5)  # world millimetres
    assert np.array(tiny.image.shape) * tiny.spacing_mm == pytest.approx(np.array(small.image.shape) * small.spacing_mm)


def test_two_labels_split_the_one() -> None:
    for index in range(4):
        one, two = make_phantom(index, size="small", labels=1), make_phantom(index, size="small", labels=2)
        assert set(np.unique(one.label)) == {0, 1}
        assert set(np.unique(two.label)) == {0, 1, 2}
        assert np.array_equal(one.label > 0, two.label > 0)
        assert np.array_equal(one.image, two.image)
        # the T2 look: the peripheral zone is brighter than the central gland it embraces from behind
        assert np.median(two.image[two.label == 2]) > 1.15 * np.median(two.image[two.label == 1])
        anterior = (two.affine[:3, :3] @ (np.argwhere(two.label == 1).mean(0) - np.argwhere(two.label == 2).mean(0)))[1]
        assert anterior > 0


@pytest.mark.parametrize("centre", ["balloon", "gel"])
def test_endorectal_coil_lights_up_what_is_near_it(centre: str) -> None:
    scan = make_phantom(0, centre=centre, size="small", labels=2)
    zone = np.argwhere(scan.label == 2)
    depth = zone @ scan.affine[1, :3]  # millimetres towards the front
    near = scan.image[scan.label == 2][depth < np.quantile(depth, 0.2)]
    far = scan.image[scan.label == 2][depth > np.quantile(depth, 0.8)]
    assert np.median(near) > 1.3 * np.median(far)


# ---------------------------------------------------------------- a cohort


def test_glands_are_one_piece_inside_the_image_and_hold_their_volume(cohort: list[Phantom]) -> None:
    volumes = []
    for index, scan in enumerate(cohort):
        gland = scan.label > 0
        assert components(gland)[1] == 1
        border = np.ones_like(gland)
        border[1:-1, 1:-1, 1:-1] = False
        assert not (gland & border).any()
        drawn = draw_patient(np.random.default_rng(np.random.SeedSequence([3, index]).spawn(5)[0]), CENTRES[index % 4].coil)
        assert millilitres(scan) == pytest.approx(drawn.volume_ml, rel=0.02)
        volumes.append(millilitres(scan))
        assert 0.1 < (scan.label == 1).sum() / gland.sum() < 0.7
    assert min(volumes) > 20
    assert max(volumes) < 90
    assert max(volumes) > 1.8 * min(volumes)


def test_centres_differ_in_grid_intensity_and_direction(cohort: list[Phantom]) -> None:
    per_centre = {c.name: [s for s in cohort if s.centre == c.name] for c in CENTRES}
    assert [len(v) for v in per_centre.values()] == [COHORT // 4] * 4
    first = [v[0] for v in per_centre.values()]
    for one, two in itertools.combinations(first, 2):
        assert one.image.shape != two.image.shape
        assert one.spacing_mm != two.spacing_mm
    highest = {name: [int(s.image.max()) for s in scans] for name, scans in per_centre.items()}
    assert max(highest["oblique"]) <= 800 < 1000 < min(highest["array"]) < max(highest["array"]) < 4000 < min(highest["gel"])
    assert max(highest["balloon"]) > 8000
    directions = {name: scans[0].affine[:3, :3] / scans[0].spacing_mm for name, scans in per_centre.items()}
    assert directions["balloon"] == pytest.approx(np.diag([-1, -1, 1]))
    assert directions["array"] == pytest.approx(np.diag([1, -1, -1]))
    assert 0.03 < abs(directions["oblique"][1, 2]) < 0.4
    for direction in directions.values():  # what ITK accepts: a proper rotation
        assert direction.T @ direction == pytest.approx(np.eye(3), abs=1e-12)
        assert np.linalg.det(direction) == pytest.approx(1)
    assert len({tuple(s.affine[:3, 3]) for s in cohort}) == COHORT


def test_it_is_as_hard_as_unaligned_patients_are(cohort: list[Phantom]) -> None:
    """Whole-gland Dice between un-aligned cases, what alignment alone gives back, and how little intensities tell."""
    glands = [on_common_grid(s, s.label > 0) > 0.5 for s in cohort]
    images = [on_common_grid(s, s.image) for s in cohort]
    centred = []
    for gland in glands:
        off = np.rint(np.argwhere(gland).mean(0) - (np.array(gland.shape) - 1) / 2).astype(int)
        centred.append(np.roll(gland, tuple(-off), (0, 1, 2)))
    pairs = list(itertools.combinations(range(COHORT), 2))
    unaligned = [dice(glands[i], glands[j]) for i, j in pairs]
    similarity = [float(np.corrcoef(images[i].ravel(), images[j].ravel())[0, 1]) for i, j in pairs]
    assert 0.45 < np.mean(unaligned) < 0.65
    assert np.mean([dice(centred[i], centred[j]) for i, j in pairs]) > np.mean(unaligned) + 0.12
    ranks = np.corrcoef(np.argsort(np.argsort(similarity)), np.argsort(np.argsort(unaligned)))[0, 1]
    assert abs(ranks) < 0.6  # image similarity is a poor guide to label overlap


# ---------------------------------------------------------------- files


def test_itk_reads_back_what_was_written(tmp_path: Path) -> None:
    import itk

    flip = np.diag([-1.0, -1.0, 1.0])  # ITK's physical space is left-posterior-head
    ids = write_phantom(tmp_path, cases=4, seed=2, size="tiny", labels=2)
    assert ids == ["Case00", "Case01", "Case02", "Case03"]
    for index, case in enumerate(ids):
        scan = make_phantom(index, 2, size="tiny", labels=2)
        for name, array in ((case, scan.image), (f"{case}_segmentation", scan.label)):
            read = itk.imread(str(tmp_path / f"{name}.mhd"))
            values = itk.array_from_image(read).transpose(2, 1, 0)
            assert values.dtype == array.dtype
            assert np.array_equal(values, array)
            assert tuple(read.GetSpacing()) == pytest.approx(scan.spacing_mm)
            for voxel in ([0, 0, 0], [5, 0, 0], [0, 7, 0], [0, 0, 3], [4, 9, 2]):
                point = flip @ np.array(read.TransformIndexToPhysicalPoint(voxel))
                assert point == pytest.approx(scan.affine[:3] @ [*voxel, 1], abs=1e-6)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_complete_folder_is_kept_and_a_damaged_case_is_made_again(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=2, size="tiny")
    before, bytes_before = state(tmp_path), content(tmp_path)
    write_phantom(tmp_path, cases=2, size="tiny")
    assert state(tmp_path) == before
    damaged = tmp_path / "Case01.raw"
    raw = bytearray(damaged.read_bytes())
    raw[1000] ^= 1
    damaged.write_bytes(raw)
    write_phantom(tmp_path, cases=2, size="tiny")
    assert content(tmp_path) == bytes_before
    after = state(tmp_path)
    assert {n for n in after if after[n] != before[n] and n.startswith("Case")} == {n for n in after if n.startswith("Case01")}


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": "small"}, {"labels": 2}, {"cases": 1}, {"cases": 3}])
def test_other_parameters_leave_no_trace_of_the_old_ones(tmp_path: Path, change: dict[str, int]) -> None:
    first = {"cases": 2, "seed": 0, "size": "tiny", "labels": 1}
    write_phantom(tmp_path / "again", **first)
    write_phantom(tmp_path / "again", **(first | change))
    write_phantom(tmp_path / "fresh", **(first | change))
    assert content(tmp_path / "again") == content(tmp_path / "fresh")


def test_more_cases_keep_those_already_there(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=1, size="tiny")
    before = state(tmp_path)
    write_phantom(tmp_path, cases=2, size="tiny")
    assert all(state(tmp_path)[n] == s for n, s in before.items() if n.startswith("Case"))


def test_interrupted_at_any_file_no_half_case_is_found_and_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oasis_monai.data.phantom.folder.make_phantom", functools.cache(make_phantom))  # ten times the same two
    write_phantom(tmp_path / "whole", cases=2, seed=5, size="tiny")
    expected = content(tmp_path / "whole")
    replace, stops = os.replace, 0
    for allowed in itertools.count():
        folder = tmp_path / f"cut{allowed}"
        write_phantom(folder, cases=2, seed=4, size="tiny")  # an older set is being replaced
        left = [allowed]

        def cut(source: str, target: str, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("oasis_monai.utils.files.os.replace", cut)
            try:
                write_phantom(folder, cases=2, seed=5, size="tiny")
                finished = True
            except KeyboardInterrupt:
                finished, stops = False, stops + 1
        manifest = json.loads((folder / "phantom.json").read_text())
        for header in folder.glob("Case??.mhd"):  # how a case is found
            files = {n: folder / n for n in expected if n.startswith(header.stem)}
            assert all(f.exists() for f in files.values())
            if manifest["parameters"]["seed"] == 5:  # and then all four belong together
                assert all(f.read_bytes() == expected[n] for n, f in files.items())
        assert not list(folder.glob(".*"))  # no temporary file stays behind
        write_phantom(folder, cases=2, seed=5, size="tiny")
        assert content(folder) == expected
        if finished:
            break
    assert stops >= 9  # the list, then four files per case, at the least


def test_files_of_others_are_never_touched(tmp_path: Path) -> None:
    foreign = tmp_path / "Case07_segmentation.mhd"
    foreign.write_text("someone's truth")
    with pytest.raises(DataError, match=r"an empty folder or one written by the phantom, found 1 other files such as Case07"):
        write_phantom(tmp_path, cases=10, size="tiny")
    assert content(tmp_path) == {foreign.name: b"someone's truth"}
    foreign.unlink()
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(DataError, match=r"phantom\.json: expected the list this command wrote, found JSONDecodeError"):
        write_phantom(tmp_path, cases=1, size="tiny")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"case_index": -1}, "phantom.case_index: expected 0 or more, found -1"),
        ({"case_index": 0, "seed": -2}, "phantom.seed: expected 0 or more, found -2"),
        ({"case_index": 0, "size": "huge"}, f"phantom.size: expected one of {', '.join(SIZES)}, found 'huge'"),
        ({"case_index": 0, "labels": 3}, "phantom.labels: expected 1 (whole gland) or 2"),
        ({"case_index": 0, "centre": "home"}, "phantom.centre: expected one of balloon, array, oblique, gel, found 'home'"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)):
        make_phantom(**arguments)


@pytest.mark.parametrize("cases", [0, 101])
def test_bad_number_of_cases_writes_nothing(tmp_path: Path, cases: int) -> None:
    with pytest.raises(ConfigError, match=f"phantom.cases: expected 1 to 100, found {cases}"):
        write_phantom(tmp_path / "new", cases=cases)
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- drawing tools


def grid(*axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, z = np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij")
    return x, y, z


def test_distances_against_geometry() -> None:
    p = grid(np.linspace(-20, 20, 21), np.linspace(-18, 18, 19), np.linspace(-12, 12, 13))
    radius = np.sqrt((p[0] - 2) ** 2 + (p[1] + 1) ** 2 + p[2] ** 2)
    assert ellipsoid(p, (2, -1, 0), (9, 9, 9), 30) == pytest.approx(radius - 9, abs=1e-3)
    turned = np.stack([4 + 12 * np.cos(np.deg2rad(25)), 12 * np.sin(np.deg2rad(25)), 0])  # tip of the long axis
    tip = tuple(np.full((1, 1, 1), v, np.float32) for v in turned)
    assert ellipsoid(tip, (4, 0, 0), (12, 5, 6), 25).item() == pytest.approx(0, abs=1e-4)
    samples = np.linspace((-5, 2, 1), (8, -3, 4), 2001)
    nearest = min(np.linalg.norm(samples - [p[0][3, 7, 5], p[1][3, 7, 5], p[2][3, 7, 5]], axis=1))
    assert rod(p, (-5, 2, 1), (8, -3, 4))[3, 7, 5] == pytest.approx(nearest, abs=1e-3)
    assert inside(np.array([-2.0, -0.5, 0.0, 0.25, 2.0]), 1.0) == pytest.approx([1, 1, 0.5, 0.25, 0])


def test_random_field_is_one_function_of_space_whatever_the_grid() -> None:
    def at(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return Frame((x, y, z), (x, y, z), 1.0, 1.0).field(np.random.default_rng(7), 9.0)

    fine = at(np.arange(-80, 81, 2.0), np.arange(-80, 81, 2.0), np.arange(-40, 41, 4.0))
    coarse = at(np.arange(-80, 81, 8.0), np.arange(80, -81, -4.0), np.arange(-40, 41, 8.0))
    assert coarse == pytest.approx(fine[::4, ::-2, ::2], abs=1e-5)
    assert fine.std() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(fine[1:].ravel(), fine[:-1].ravel())[0, 1] > 0.9  # 2 mm apart
    assert abs(np.corrcoef(fine[20:].ravel(), fine[:-20].ravel())[0, 1]) < 0.2  # 40 mm apart


def test_culling_keeps_every_point_a_shape_can_touch() -> None:
    rng = np.random.default_rng(0)
    x, y, z = grid(np.linspace(-40, 40, 24), np.linspace(-40, 40, 22), np.linspace(-30, 30, 12))
    p = (x + 0.2 * y, y - 0.2 * x + 0.1 * z, z + 3 * np.sin(x / 9))  # turned and warped
    culler = Culler(p)
    shrunk = 0
    for _ in range(20):
        low = rng.uniform(-40, 30, 3)
        high = low + rng.uniform(2, 20, 3)
        needed = np.all([(a >= lo) & (a <= hi) for a, lo, hi in zip(p, low, high, strict=True)], axis=0)
        kept = np.zeros_like(needed)
        kept[culler.box(tuple(low), tuple(high), margin=0)] = True
        assert not (needed & ~kept).any()
        shrunk += kept.mean() < 0.5
    assert shrunk > 10
    assert culler.box((200, 0, 0), (210, 1, 1))[0] == slice(0, 0)
