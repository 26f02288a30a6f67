"""The CT phantom: reproducible, the same in slabs, with structures of the stated sizes, sides and contrasts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as components

from oasis_monai.data.phantom import LABELS, PROTOCOLS, Phantom, abdomen_slab, ct, make_phantom, write_phantom
from oasis_monai.data.phantom.abdomen import WALL_MM, draw_abdomen
from oasis_monai.data.phantom.scanner import place_patient
from oasis_monai.utils.errors import ConfigError

COHORT = 5


def made(index: int, **more: object) -> Phantom:
    return make_phantom(index, **({"size": "tiny", "kind": "ct"} | more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [made(i, seed=3) for i in range(COHORT)]


def world(scan: Phantom, name: str) -> np.ndarray:
    """The centre of a structure in RAS+ mm."""
    return scan.affine[:3] @ np.append(np.argwhere(scan.label == LABELS[name]).mean(0), 1)


def test_same_arguments_give_the_same_voxels_in_slabs_of_any_thickness(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(1, seed=1)
    np.random.seed(0)  # the global generator must play no part
    monkeypatch.setattr(ct, "SLAB_VOXELS", 5 * 64 * 64)
    again = made(1, seed=1)
    assert first.image.shape[2] > 10
    assert np.array_equal(first.label, again.label)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.affine, again.affine)


def test_other_seed_and_other_case_are_other_patients() -> None:
    scans = [made(i, seed=seed, centre="thin") for i, seed in ((0, 0), (0, 1), (1, 0))]
    for one, two in itertools.combinations(scans, 2):
        assert one.image.shape == two.image.shape
        both = [scan.label == LABELS["left_kidney"] for scan in (one, two)]
        assert np.mean(one.image == two.image) < 0.6  # air
        assert 2 * (both[0] & both[1]).sum() / (both[0].sum() + both[1].sum()) < 0.9


def test_size_changes_the_grid_and_not_the_patient() -> None:
    tiny, small = made(0), made(0, size="small")
    assert np.array(tiny.image.shape) * tiny.spacing_mm == pytest.approx(np.array(small.image.shape) * small.spacing_mm)
    for name in ("right_kidney", "left_kidney", "aortic_lumen"):
        assert world(tiny, name) == pytest.approx(world(small, name), abs=4)


def test_the_largest_grid_is_that_of_a_whole_abdomen() -> None:
    thin = PROTOCOLS[0]
    assert (thin.matrix, thin.matrix, thin.slices) == (512, 512, 400)
    assert thin.spacing_mm == (0.8, 0.8, 1.0)


def test_every_scan_has_every_structure_in_its_place(cohort: list[Phantom]) -> None:
    for scan in cohort:
        assert set(np.unique(scan.label)) == {0, *LABELS.values()}
        right, left, aorta = (world(scan, name) for name in ("right_kidney", "left_kidney", "aortic_lumen"))
        assert right[0] > aorta[0] > left[0]  # RAS+: the patient's right has the larger x
        assert aorta[1] > min(right[1], left[1]) - 10
        for name in ("right_kidney", "left_kidney"):
            ml = (scan.label == LABELS[name]).sum() * np.prod(scan.spacing_mm) / 1000
            assert 60 < ml < 260
        lesion = (scan.label == LABELS["lesion"]).sum() * np.prod(scan.spacing_mm) / 1000
        assert 0.4 < lesion < 5  # a ball of 15 mm has 1.8 ml; a tiny grid has voxels of 0.3 ml
    assert len({tuple(np.round(world(scan, "lesion") - world(scan, "aortic_lumen"))) for scan in cohort}) == COHORT


def fine_part(case: int) -> tuple[np.ndarray, np.ndarray]:
    """HU without noise and labels of a few slices of 1 mm at the height of the kidneys, of a patient who lies straight."""
    patient_rng, _, shape_rng, _ = (np.random.default_rng(s) for s in np.random.SeedSequence([0, case, 1]).spawn(4))
    patient = draw_abdomen(patient_rng, shape_rng)
    frame = place_patient(patient, (400, 400, 400), np.diag([1.0, 1.0, 1.0, 1.0]), slice(200, 206))
    return abdomen_slab.paint_slab(patient, frame)


def test_the_aortic_wall_is_three_millimetres_thick_and_closed() -> None:
    for case in range(2):
        _, label = fine_part(case)
        lumen, wall = (label == LABELS[name] for name in ("aortic_lumen", "aortic_wall"))
        for k in range(label.shape[2]):
            area, inner = (lumen | wall)[..., k].sum(), lumen[..., k].sum()
            thickness = np.sqrt(area / np.pi) - np.sqrt(inner / np.pi)  # of a ring of these areas
            assert thickness == pytest.approx(WALL_MM, abs=0.5)
            outside = ~(lumen | wall)[..., k]
            assert components(outside)[1] == 1
            assert distance_transform_edt(~outside)[lumen[..., k]].min() > WALL_MM - 1.2  # nowhere thinner


def test_contrasts_are_low() -> None:
    """Between a structure and what touches it there are 15 to 45 HU, as much as the noise; fat is another matter."""
    for case in range(2):
        hu, label = fine_part(case)
        inner = [np.median(hu[binary_erosion(label == LABELS[name])]) for name in ("aortic_lumen", "aortic_wall")]
        assert 10 < inner[0] - inner[1] < 55
    for case in range(2):
        scan = made(case, size="small", centre="thick")
        lesion = scan.label == LABELS["lesion"]
        organ = {1: "right_kidney", 2: "left_kidney"}
        near = distance_transform_edt(~lesion, sampling=scan.spacing_mm)
        beside = scan.label[(near > 3) & (near < 9)]
        most = np.bincount(beside, minlength=3)[1:3]
        if most.max() > 0.4 * len(beside):  # in a kidney
            host = scan.label == LABELS[organ[int(most.argmax()) + 1]]
            assert 5 < np.median(scan.image[host]) - np.median(scan.image[lesion]) < 60


def test_protocols_differ_in_grid_direction_and_tilt(cohort: list[Phantom]) -> None:
    four = cohort[: len(PROTOCOLS)]
    assert [scan.centre for scan in four] == [protocol.name for protocol in PROTOCOLS]
    for one, two in itertools.combinations(four, 2):
        assert one.spacing_mm != two.spacing_mm
    direction = {scan.centre: scan.affine[:3, :3] / scan.spacing_mm for scan in four}
    assert direction["thin"] == pytest.approx(np.diag([-1, -1, 1]))
    assert direction["thick"] == pytest.approx(np.diag([1, -1, -1]))
    assert 0.03 < abs(direction["tilted"][1, 2]) < 0.4
    for matrix in direction.values():
        assert np.linalg.det(matrix) == pytest.approx(1)
    noise = [np.std(scan.image[scan.label == LABELS["aortic_lumen"]]) for scan in four]
    assert min(noise) > 5
    assert all(scan.image.min() >= -1024 for scan in four)


def test_files_are_a_data_set_that_tells_itself_apart_from_the_other_kind(tmp_path) -> None:
    from oasis_monai.data.cases import find_cases
    from oasis_monai.data.io import read_volume

    assert write_phantom(tmp_path, cases=2, size="tiny", kind="ct") == ["Case00", "Case01"]
    case = find_cases(tmp_path, "promise12")[0]
    volume, scan = read_volume(case, [0, *LABELS.values()]), made(0)
    assert np.array_equal(volume.image[0].numpy(), scan.image)
    assert np.array_equal(volume.label[0].numpy(), scan.label)
    assert volume.geometry.affine == pytest.approx(scan.affine, abs=1e-6)
    before = (tmp_path / "Case00.raw").read_bytes()
    write_phantom(tmp_path, cases=1, size="tiny")
    assert (tmp_path / "Case00.raw").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "mr"}, "phantom.kind: expected one of prostate, ct, found 'mr'"),
        ({"kind": "ct", "labels": 2}, "phantom.labels: expected 5 for ct"),
        ({"kind": "ct", "centre": "array"}, "phantom.centre: expected one of thin, thick, tilted, sharp, found 'array'"),
        ({"kind": "ct", "size": "huge"}, "phantom.size: expected one of tiny, small, demo, native"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_phantom(0, **arguments)  # type: ignore[arg-type]
