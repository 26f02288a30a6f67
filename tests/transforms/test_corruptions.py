"""Scans corrupted on purpose: the truth stays where the anatomy is."""

import numpy as np
import pytest
import torch

from oasis_monai.data.io import to_canonical
from oasis_monai.data.types import Geometry, Volume
from oasis_monai.transforms.corruptions import CORRUPTIONS, draw_corruptions, shows_anything


def scan(floor: float) -> Volume:
    label = torch.zeros(1, 40, 30, 12, dtype=torch.uint8)
    label[:, 8:20, 8:22, 2:8] = 1
    return Volume("a", floor + 50 + 100 * label.float(), label, Geometry((40, 30, 12), np.diag([0.5, 0.8, 3.0, 1.0])))


@pytest.mark.parametrize("floor", [0.0, -1000.0], ids=["mr", "ct"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_scan_keeps_its_truth_where_the_anatomy_is(name, floor):
    volume = scan(floor)
    image, label = volume.image.clone(), volume.label.clone()
    made = CORRUPTIONS[name](volume, 7)
    assert torch.equal(volume.image, image)
    assert torch.equal(volume.label, label)
    assert type(made.image) is type(made.label) is torch.Tensor
    assert (made.image.dtype, made.label.dtype) == (torch.float32, torch.uint8)
    assert torch.isfinite(made.image).all()
    assert tuple(made.image.shape[1:]) == tuple(made.label.shape[1:]) == made.geometry.shape
    assert name == "wrong voxel size" or not torch.equal(made.image, image)
    inside, outside = made.image[made.label == 1].mean(), made.image[made.label == 0].mean()
    assert inside - outside < -90 if name == "inverted" else inside - outside > 40  # of 100
    moved = name.startswith("turned") or name == "upside down"
    assert torch.equal(made.label, label) is not moved
    assert float(made.label.sum()) == pytest.approx(float(label.sum()), rel=0.05)
    assert torch.equal(made.image, CORRUPTIONS[name](volume, 7).image)


def stored(axes: str, mm: tuple[float, float, float], radii: tuple[float, float, float]) -> Volume:
    """An ellipsoid of ``radii`` in mm along R, A, S at the centre of a scan whose array axes run along ``axes``."""
    affine, shape, at = np.zeros((4, 4)), [], []
    affine[3, 3] = 1
    for column, name in enumerate(axes):
        world = "RAS".index(name) if name in "RAS" else "LPI".index(name)
        size = mm[world]
        affine[world, column] = size if name in "RAS" else -size
        shape.append(round(80 / size))
        shift = [1, 1, 1]
        shift[column] = -1
        at.append(((np.arange(shape[-1]) + 0.5 - shape[-1] / 2) * size / radii[world]).reshape(shift) ** 2)
    label = torch.from_numpy((at[0] + at[1] + at[2] <= 1).astype(np.uint8))[None]
    return Volume("a", 100 * label.float(), label, Geometry(tuple(shape), affine))


def spread_mm(volume: Volume) -> np.ndarray:
    """Covariance of the label's voxels along R, A, S, in mm."""
    label, spacing = to_canonical(volume.label[0].numpy(), volume.geometry.affine)
    return np.cov((np.argwhere(label) * spacing).T)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("mm", [(1.0, 1.0, 1.0), (0.7, 0.5, 2.0), (3.0, 0.7, 0.7)])
def test_a_turned_patient_is_turned_about_the_long_axis_in_mm_however_the_scan_is_stored(axes, mm):
    volume = stored(axes, mm, (10.0, 25.0, 15.0))
    before = spread_mm(volume)
    for seed in (0, 1):
        made = CORRUPTIONS["turned by 20 degrees"](volume, seed)
        after = spread_mm(made)
        own, vectors = np.linalg.eigh(after[:2, :2])
        assert np.sqrt(own) == pytest.approx(np.sqrt([before[0, 0], before[1, 1]]), rel=0.06)  # no shear, no new size
        assert abs(np.degrees(np.arctan2(*vectors[:, 1])) % 180 - 90) == pytest.approx(70, abs=2.5)
        assert after[2, 2] == pytest.approx(before[2, 2], rel=0.03)
        assert float(((made.image > 50) != (made.label > 0)).float().mean()) < 0.01  # image and label go together
    made = CORRUPTIONS["turned by 90 degrees"](volume, 0)
    after = spread_mm(made)
    assert [after[1, 1], after[0, 0], after[2, 2]] == pytest.approx(np.diag(before).tolist(), rel=1e-6)
    world = [axes.index(name) if name in axes else axes.index("LPI"["RAS".index(name)]) for name in "RAS"]
    assert [made.geometry.spacing_mm[a] for a in world] == pytest.approx([mm[1], mm[0], mm[2]])


@pytest.mark.parametrize("axes", ["RAS", "PIR", "SRA"])
def test_upside_down_is_that_and_slices_are_those_of_the_scanner(axes):
    volume = stored(axes, (3.0, 0.8, 1.0), (10.0, 15.0, 12.0))
    marked = volume.image.clone()
    up, right = axes.index("S") if "S" in axes else axes.index("I"), axes.index("R")
    marked.movedim(1 + up, 0)[0] = 500
    volume = Volume("a", marked, volume.label, volume.geometry)
    turned = CORRUPTIONS["upside down"](volume, 0).image.movedim(1 + up, 0)
    assert (turned[-1] == 500).all()
    assert not (turned[0] == 500).any()
    lost = CORRUPTIONS["lost slices"](volume, 3).image.movedim(1 + right, 0)  # sagittal slices of 3 mm
    assert not lost[::3].any()
    assert lost[1].any()
    thick = CORRUPTIONS["thick slices"](volume, 0).image.movedim(1 + right, 0)
    assert torch.equal(thick[0], thick[2])
    assert not torch.equal(thick[11], thick[12])
    wrong = CORRUPTIONS["wrong voxel size"](volume, 0).geometry.spacing_mm
    assert wrong[right] == pytest.approx(3.0)
    assert sorted(wrong) == pytest.approx([1.2, 1.5, 3.0])


def test_an_unlabelled_scan_is_not_turned():
    volume = scan(0)
    with pytest.raises(ValueError, match="a: only a labelled scan"):
        CORRUPTIONS["upside down"](Volume("a", volume.image, None, volume.geometry), 0)


def test_a_copy_of_which_nothing_is_left_is_told():
    one = Volume("a", torch.rand(1, 8, 8, 1) + 1, torch.ones(1, 8, 8, 1, dtype=torch.uint8), Geometry((8, 8, 1), np.eye(4)))
    assert not shows_anything(CORRUPTIONS["lost slices"](one, 0))
    assert shows_anything(CORRUPTIONS["lost slices"](one, 1))
    corner = Volume("a", torch.rand(1, 40, 8, 2), torch.zeros(1, 40, 8, 2, dtype=torch.uint8), Geometry((40, 8, 2), np.eye(4)))
    corner.label[:, 0, 0] = 1
    assert shows_anything(corner)
    assert not shows_anything(CORRUPTIONS["turned by 20 degrees"](corner, 1)) or not shows_anything(
        CORRUPTIONS["turned by 20 degrees"](corner, 0)
    )


def test_every_case_draws_its_own_and_always_the_same():
    one = {f"Case{i:02d}": draw_corruptions(f"Case{i:02d}", 3, 0) for i in range(40)}
    assert all(len({name for name, _ in names}) == 3 for names in one.values())
    assert {name for names in one.values() for name, _ in names} == set(CORRUPTIONS)
    assert len({seed for names in one.values() for _, seed in names}) == 120
    assert one["Case07"] == draw_corruptions("Case07", 3, 0) != draw_corruptions("Case07", 3, 1)
    assert draw_corruptions("Case07", 0, 0) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_channel_is_corrupted_by_its_own_scale(name):
    """CT beside MR: neither's offset reaches the other, and what turns turns both."""
    mr, ct = scan(0.0), scan(-1000.0)
    both = CORRUPTIONS[name](Volume("a", torch.cat([mr.image, ct.image]), mr.label, mr.geometry), 7)
    one = CORRUPTIONS[name](mr, 7)
    assert torch.equal(both.image[:1], one.image)
    assert torch.equal(both.label, one.label)
    assert np.array_equal(both.geometry.affine, one.geometry.affine)
    inside, outside = (both.image[1][both.label[0] == c].mean() for c in (1, 0))
    assert inside - outside < -90 if name == "inverted" else inside - outside > 40


def test_a_scan_of_which_only_ignored_voxels_are_left_shows_nothing():
    volume = scan(0.0)
    volume.label[volume.label == 1] = 255
    assert not shows_anything(volume)
