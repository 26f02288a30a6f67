"""Volumes: what is written is read back by independent readers, what is wrong is named, and a kill leaves nothing half done."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from oasis_monai.data.formats import dispatch as writers
from oasis_monai.data.formats import load
from oasis_monai.data.formats.dispatch import data_files, read_header
from oasis_monai.data.formats.metaimage import ELEMENT_TYPES
from oasis_monai.data.io import canonical_axes, read_image, read_volume, to_canonical, write_label, write_probability
from oasis_monai.data.labels import find_label_values
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import ConfigError, DataError
from tests.helpers.real import real_data

SHAPE = (4, 5, 6)


FORMATS = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd")


def rotation(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def affine(direction: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = direction * [0.3, 0.7, 2.2]
    out[:3, 3] = [-101.123456, 33.3, 0.1]
    return out


AFFINES = {
    "straight": affine(np.eye(3)),
    "lps": affine(np.diag([-1.0, -1.0, 1.0])),
    "left-handed": affine(np.diag([1.0, 1.0, -1.0])),
    "permuted": affine(np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])),
    "oblique": affine(rotation(37, (1, 2, -3))),
    "oblique left-handed": affine(rotation(160, (3, -1, 1)) @ np.diag([1, -1, 1])),
}


@pytest.fixture
def label() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8))


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z[, C]) and RAS affine from ITK, its points asked one by one."""
    import itk

    reader = itk.ImageFileReader[itk.VectorImage[itk.F, 3]].New(FileName=str(path))
    reader.Update()
    image = reader.GetOutput()
    origin = np.array(image.TransformIndexToPhysicalPoint([0, 0, 0]))
    out = np.eye(4)
    out[:3, 3] = origin
    for axis in range(3):
        step = [int(i == axis) for i in range(3)]
        out[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(step)) - origin
    values = itk.array_from_image(image)
    return np.moveaxis(values, (0, 1, 2), (2, 1, 0)), np.diag([-1, -1, 1, 1]) @ out


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", AFFINES)
def test_label_round_trip(tmp_path: Path, label: torch.Tensor, name: str, kind: str) -> None:
    geometry = Geometry(SHAPE, AFFINES[name])
    path = tmp_path / f"x{kind}"
    write_label(path, label, geometry, (0, 1, 2))
    values, seen = (by_nibabel if "nii" in kind else by_itk)(path)
    tolerance = 1e-5 if "nii" in kind else 1e-12  # float32 in NIfTI
    np.testing.assert_array_equal(values.reshape(SHAPE), label)
    np.testing.assert_allclose(seen, AFFINES[name], atol=tolerance)
    volume = read_volume(Case("x", path, path), (0, 1, 2))
    assert volume.label is not None
    assert volume.label.dtype == torch.uint8
    assert torch.equal(volume.label[0], label)
    assert torch.equal(volume.image[0], label.float())
    np.testing.assert_allclose(volume.geometry.affine, AFFINES[name], atol=tolerance)


def test_nifti_by_itk_and_by_nibabel(tmp_path: Path, label: torch.Tensor) -> None:
    """The two libraries, with their frames LPS and RAS, agree on what we wrote; qform and sform say the same."""
    for name, matrix in AFFINES.items():
        write_label(tmp_path / "x.nii.gz", label, Geometry(SHAPE, matrix), (0, 1, 2))
        np.testing.assert_allclose(
            by_itk(tmp_path / "x.nii.gz")[1], by_nibabel(tmp_path / "x.nii.gz")[1], atol=1e-4, err_msg=name
        )
        image = nibabel.load(tmp_path / "x.nii.gz")
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("values", "dtype"), [((0, 255, 7), "uint8"), ((5, -3, 1000), "int16"), ((0, 1, 100_000), "int32")])
def test_label_values_are_those_of_the_data_set(
    tmp_path: Path, label: torch.Tensor, values: tuple[int, ...], dtype: str, kind: str
) -> None:
    path = tmp_path / f"x{kind}"
    write_label(path, label, Geometry(SHAPE, AFFINES["oblique"]), values)
    assert read_header(path).dtype == dtype
    assert find_label_values(path) == tuple(sorted(values))
    volume = read_volume(Case("x", path, path), values)
    assert volume.label is not None
    assert torch.equal(volume.label[0], label)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [0, 2, 7])
def test_probability_round_trip(tmp_path: Path, kind: str, channels: int) -> None:
    shape = (channels, *SHAPE) if channels else SHAPE
    probability = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"p{kind}"
    write_probability(path, probability, Geometry(SHAPE, AFFINES["oblique"]))
    values, seen = (by_nibabel if "nii" in kind else by_itk)(path)
    expected = probability.movedim(0, -1) if channels else probability
    np.testing.assert_array_equal(values.reshape(expected.shape), expected)
    np.testing.assert_allclose(seen, AFFINES["oblique"], atol=1e-5)


@pytest.mark.parametrize("case", ["50%_dose", "LIST01", "Local", "scan:1", "Müller", "a b (1)", ".x", "plain-1.2"])
def test_a_header_s_voxels_are_found_whatever_the_scan_is_called(tmp_path: Path, case: str) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[1, 2, 1] = 1
    path = tmp_path / f"{case}.mhd"
    write_label(path, label, Geometry(label.shape, AFFINES["oblique"]), (0, 1))
    write_label(tmp_path / f"other {case}.mhd", 0 * label, Geometry(label.shape, AFFINES["oblique"]), (0, 1))
    np.testing.assert_array_equal(read_image(path)[0][0].numpy(), label)
    np.testing.assert_array_equal(by_itk(path)[0][..., 0], label)


def test_compressed_and_deterministic(tmp_path: Path) -> None:
    label = np.zeros((64, 64, 16), np.uint8)
    for kind in (".mhd", ".mha", ".nii.gz"):
        path = tmp_path / f"x{kind}"
        contents = []
        for _ in range(2):
            write_label(path, label, Geometry(label.shape, AFFINES["oblique"]), (0, 1))
            contents.append([f.read_bytes() for f in data_files(path)])
        assert contents[0] == contents[1]
        assert sum(map(len, contents[0])) < label.size / 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.mha", "x.mhd", "x.nii.gz", "x.zraw"]  # nothing else left


@pytest.mark.parametrize("stop_at", range(2))
def test_a_kill_between_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """Killed before the voxels or before the header is in place: no header, rather than one beside other voxels."""
    path = tmp_path / "x.mhd"
    old, new = np.zeros(SHAPE, np.uint8), np.ones((2, 2, 2), np.uint8)
    write_label(path, old, Geometry(SHAPE, AFFINES["oblique"]), (0, 1))
    real, calls = os.replace, []

    class Killed(BaseException):
        pass

    def replace(source: str, target: str) -> None:
        calls.append(Path(target).name)
        if len(calls) > stop_at:
            raise Killed
        real(source, target)

    monkeypatch.setattr(writers.os, "replace", replace)
    with pytest.raises(Killed):
        write_label(path, new, Geometry((2, 2, 2), AFFINES["lps"]), (0, 1))
    assert calls == ["x.zraw", "x.mhd"][: stop_at + 1]
    with pytest.raises(DataError, match="No such file"):
        read_header(path)
    monkeypatch.undo()
    write_label(path, new, Geometry((2, 2, 2), AFFINES["lps"]), (0, 1))
    assert find_label_values(path) == (1,)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: torch.Tensor, kind: str
) -> None:
    path = tmp_path / f"x{kind}"
    geometry = Geometry(SHAPE, AFFINES["oblique"])
    write_label(path, label, geometry, (0, 1, 2))

    def full(path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(writers, "write_metaimage", lambda path, *_: full(path))
    monkeypatch.setattr(writers, "write_nrrd", lambda path, *_: full(path))
    monkeypatch.setattr(nibabel, "save", lambda _, path: full(path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        write_label(path, label * 0, geometry, (0, 1, 2))
    assert sorted(tmp_path.iterdir()) == before
    assert find_label_values(path) == (0, 1, 2)


def scan(path: Path, values: np.ndarray, matrix: np.ndarray = AFFINES["oblique"]) -> Path:
    """A float64 or integer scan by nibabel, not by us."""
    image = nibabel.Nifti1Image(values, matrix)
    image.set_sform(matrix, 1)
    nibabel.save(image, path)
    return path


LABELS: list[tuple[np.ndarray, str]] = [
    (np.full(SHAPE, 3.0), r"label values: expected only 0, 1, found 3 \(120 voxels\); correct the label"),
    (np.full(SHAPE, 0.5), r"label: expected whole numbers, found 120 others, such as 0\.5"),
    (np.full(SHAPE, np.nan), "label: expected whole numbers, found 120 others, such as nan"),
    (np.full(SHAPE, np.inf), "label: expected whole numbers"),
    (np.full(SHAPE, 1e200), "label: expected whole numbers"),
    (np.arange(120.0).reshape(SHAPE), r"label values: expected only 0, 1, found 2 \(1 voxels\), 3 \(1 voxels\), .*\.\.\."),
]


@pytest.mark.parametrize(("values", "match"), LABELS)
def test_bad_label(tmp_path: Path, values: np.ndarray, match: str) -> None:
    case = Case("p7", scan(tmp_path / "i.nii", np.ones(SHAPE)), scan(tmp_path / "l.nii", values))
    with pytest.raises(DataError, match=f"^p7: l.nii {match}"):
        read_volume(case, (0, 1))


def test_a_scaled_mask_is_whole(tmp_path: Path) -> None:
    """0.99999998 is what a mask scaled by a float32 slope holds."""
    path = scan(tmp_path / "l.nii", np.where(np.arange(120).reshape(SHAPE) > 60, 1 - 2e-8, 0.0))
    assert find_label_values(path) == (0, 1)


def test_a_label_of_whole_numbers_that_its_header_scales_is_read_as_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE) % 3, np.eye(4))
    image.header.set_slope_inter(2, 0)
    nibabel.save(image, tmp_path / "l.nii")
    stored = nibabel.load(tmp_path / "l.nii")
    wanted = tuple(int(v) for v in np.unique(stored.get_fdata()))
    assert stored.dataobj.slope != 1
    assert find_label_values(tmp_path / "l.nii") == wanted


@pytest.mark.parametrize("kind", [".mha", ".nii", ".nrrd"])
def test_the_background_of_a_case_changes_what_is_stored_as_bytes(tmp_path: Path, kind: str) -> None:
    values = (np.arange(120) % 4).astype(np.uint8).reshape(SHAPE)
    writers.write_array(tmp_path / f"l{kind}", values, Geometry(SHAPE, np.eye(4)))
    volume = read_volume(Case("x", tmp_path / f"l{kind}", tmp_path / f"l{kind}", background=(2,)), (0, 1, 3))
    assert volume.label is not None
    assert np.array_equal(volume.label[0].numpy(), np.array([0, 1, 0, 2])[values])


@pytest.mark.parametrize("kind", [".mha", ".nii"])
def test_labels_take_little_more_memory_than_their_voxels(tmp_path: Path, kind: str) -> None:
    """A few bytes a voxel; 8 of them are an array of float64 or of numpy's indices."""
    shape = (64, 128, 128)
    label = np.zeros(shape, np.uint8)
    label[10:30, 10:90] = 1
    grid = Geometry(shape, np.eye(4))

    def peak(work: Callable[[], object]) -> float:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1] / label.size
        finally:
            tracemalloc.stop()

    assert peak(lambda: write_label(tmp_path / f"l{kind}", label, grid, (0, 7))) < 5
    assert peak(lambda: find_label_values(tmp_path / f"l{kind}")) < 5
    case = Case("x", tmp_path / f"l{kind}", tmp_path / f"l{kind}")
    assert peak(lambda: read_volume(case, (0, 7))) < 12  # of which the image has 4, as float32, and 1 as it is stored


def test_large_label_values_stay_exact(tmp_path: Path) -> None:
    path = scan(tmp_path / "l.nii", np.full(SHAPE, 2**24 + 1, np.int32))  # float32 would make it 2**24
    assert find_label_values(path) == (2**24 + 1,)


def test_bad_image(tmp_path: Path) -> None:
    values = np.ones(SHAPE)
    values[0, 0, :2] = np.nan, np.inf
    with pytest.raises(DataError, match=r"i\.nii: voxels: expected finite numbers, found 2 NaN or infinite"):
        read_image(scan(tmp_path / "i.nii", values))
    with pytest.raises(DataError, match="found 120 NaN or infinite"):
        read_image(scan(tmp_path / "i.nii", np.full(SHAPE, 1e300)))  # beyond float32


def shifted(voxels: float) -> np.ndarray:
    """Along the second axis, whose voxels have 0.7 mm."""
    matrix = AFFINES["oblique"].copy()
    matrix[:3, 3] += voxels * matrix[:3, 1]
    return matrix


GRIDS = [
    (SHAPE, shifted(1.01), r"origin off by 0\.\d+ mm: up to 1.01 voxels"),
    (SHAPE, AFFINES["lps"], r"direction off by 1\.\d+.*: up to [0-9.]+ voxels"),
    (SHAPE, AFFINES["oblique"] @ np.diag([1, 1, 1.5, 1]), r"spacing off by 1\.1 mm: up to 2\.5 voxels"),
    ((4, 5, 7), AFFINES["oblique"], "shape 4 x 5 x 6 against 4 x 5 x 7"),
]


@pytest.mark.parametrize(("shape", "matrix", "match"), GRIDS)
def test_label_on_another_grid(tmp_path: Path, shape: tuple[int, ...], matrix: np.ndarray, match: str) -> None:
    image = scan(tmp_path / "i.nii", np.ones(SHAPE))
    label = scan(tmp_path / "l.nii", np.ones(shape), matrix)
    with pytest.raises(DataError, match=f"^p7: label geometry: expected the image's grid, found {match}; resample"):
        read_volume(Case("p7", image, label), (0, 1))


@pytest.mark.parametrize(("voxels", "told"), [(1e-5, None), (0.09, None), (0.11, "0.077 mm apart, 0.11"), (0.99, "0.99")])
def test_a_label_less_than_a_voxel_aside_gets_the_image_s_grid(tmp_path: Path, voxels: float, told: str | None) -> None:
    """Rounding, as between two writers, in silence; more with a warning of how much."""
    image, label = scan(tmp_path / "i.nii", np.ones(SHAPE)), scan(tmp_path / "l.nii", np.ones(SHAPE), shifted(voxels))
    volume = read_volume(Case("p7", image, label), (0, 1))
    np.testing.assert_array_equal(volume.geometry.affine, read_header(image).affine)
    if told is None:
        assert volume.notes == ()
        return
    (note,) = volume.notes
    assert (note.case, note.field, note.severity) == ("p7", "label geometry", "warning")
    assert told in note.found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("kind", [".nii", ".mha"])
def test_a_label_in_another_order_of_axes_is_put_in_the_image_s(
    tmp_path: Path, label: torch.Tensor, order: tuple[int, ...], signs: tuple[int, ...], kind: str
) -> None:
    """All 48; nibabel turns the label (through its orientations), we turn it back."""
    image = scan(tmp_path / "i.nii", np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    turned = nibabel.Nifti1Image(label.numpy(), AFFINES["oblique"]).as_reoriented(np.array([*zip(order, signs, strict=True)]))
    path = tmp_path / f"l{kind}"
    write_label(path, np.asarray(turned.dataobj), Geometry(turned.shape, turned.affine), (0, 1, 2))
    volume = read_volume(Case("p7", image, path), (0, 1, 2))
    assert volume.label is not None
    assert torch.equal(volume.label[0], label)
    assert volume.notes == ()


def two_forms(path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int], values: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16) if values is None else values, None)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    image.header.set_xyzt_units("mm" if codes[0] != 4 else "unknown")
    nibabel.save(image, path)
    return path


STRAIGHT = AFFINES["lps"]
MOVED = STRAIGHT + np.outer([1, 0, 0, 0], [0, 0, 0, 15.0])
CODES = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (0, 0)]


@pytest.mark.parametrize("other", [STRAIGHT, MOVED], ids=["together", "apart"])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_label_lies_where_each_program_shows_the_scan(
    tmp_path: Path, codes: tuple[int, int], other: np.ndarray, kind: str
) -> None:
    """ITK and nibabel prefer different ones of a NIfTI header's two transforms: the label has both, with their codes."""
    path = two_forms(tmp_path / "scan.nii", other, STRAIGHT, codes)
    image, geometry = read_image(path)
    write_label(tmp_path / f"l{kind}", image[0] * 0, geometry, (0, 1))
    write_probability(tmp_path / f"p{kind}", torch.rand(2, *SHAPE), geometry)
    for name in (f"l{kind}", f"p{kind}"):
        np.testing.assert_allclose(by_itk(tmp_path / name)[1], by_itk(path)[1], atol=1e-4)
    np.testing.assert_array_equal(read_header(path).affine, nibabel.load(path).affine)
    if kind.startswith(".nii"):
        np.testing.assert_array_equal(by_nibabel(tmp_path / f"l{kind}")[1], by_nibabel(path)[1])
        one, two = nibabel.load(path).header, nibabel.load(tmp_path / f"l{kind}").header
        for field in ("sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x", "pixdim"):
            np.testing.assert_array_equal(one[field], two[field], err_msg=field)
    assert read_volume(Case("x", path, tmp_path / f"l{kind}"), (0, 1)).label is not None
    notes = {note.field: note.remedy for note in read_header(path).notes}
    if codes == (0, 0):
        assert "as by nibabel" in notes["sform_code, qform_code"]
    elif other is MOVED and 0 not in codes:
        agreed = np.allclose(by_itk(path)[1], nibabel.load(path).affine, atol=1e-4)
        assert ("as by nibabel and ITK" if agreed else "viewers on ITK use the qform") in notes["sform, qform"]
    else:
        assert notes == {}


def test_a_label_drawn_in_a_viewer_that_takes_the_qform_is_on_the_scan_s_grid(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "scan.nii", MOVED, STRAIGHT, (2, 1))
    drawn = two_forms(tmp_path / "drawn.nii", STRAIGHT, STRAIGHT, (1, 1))
    assert read_volume(Case("x", path, drawn), (0, 1)).label is not None
    elsewhere = two_forms(tmp_path / "elsewhere.nii", STRAIGHT - (MOVED - STRAIGHT), STRAIGHT - (MOVED - STRAIGHT), (1, 1))
    with pytest.raises(DataError, match="label geometry"):
        read_volume(Case("x", path, elsewhere), (0, 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (0, 1)])
def test_labels_by_itk_of_nearly_straight_scans_are_on_their_grid(tmp_path: Path, codes: tuple[int, int], seed: int) -> None:
    """A quaternion in float32 is least exact near half a turn, where scans stored LPS are."""
    import itk

    shape, angles = (96, 96, 24), np.random.default_rng(seed).uniform(-0.1, 0.1, 3)
    turn = rotation(angles[0], (1, 0, 0)) @ rotation(angles[1], (0, 1, 0)) @ rotation(angles[2], (0, 0, 1))
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-2.0, -2.0, 3.0])
    path = two_forms(tmp_path / "scan.nii", matrix, matrix, codes, np.zeros(shape, np.uint8))
    made = tmp_path / "label.nii"
    itk.imwrite(itk.imread(str(path)), str(made))
    assert read_volume(Case("x", path, made), (0, 1)).notes == ()
    original = nibabel.load(path)
    drawn = nibabel.Nifti1Image(np.zeros(shape, np.uint8), original.header.get_qform())
    drawn.set_sform(original.header.get_qform(), 1)
    drawn.set_qform(original.header.get_qform(), 1)
    nibabel.save(drawn, made)
    assert read_volume(Case("x", path, made), (0, 1)).notes == ()


@pytest.mark.parametrize("shear", [5e-5, 2e-4, 1e-3, 5e-3, 0.05])
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1)])
def test_a_sheared_sform_beside_a_clean_qform_is_read_as_itk_reads_it(
    tmp_path: Path, shear: float, codes: tuple[int, int]
) -> None:
    sform = STRAIGHT.copy()
    sform[1, 2] = 2.2 * shear
    path = two_forms(tmp_path / "scan.nii", sform, STRAIGHT, codes)
    np.testing.assert_allclose(read_image(path)[1].affine, by_itk(path)[1], atol=1e-4 if shear > 1e-4 else 6e-4)
    told = [note.remedy for note in read_header(path).notes]
    assert [text.split(",")[0] for text in told] == (["the qform is used"] if shear > 0.01 else [])
    two_forms(path, sform, STRAIGHT, (codes[0], 0))
    if shear > 1e-4:  # nothing else to go by: ITK refuses it too
        with pytest.raises(DataError, match="orthonormal axes"):
            read_image(path)
        with pytest.raises(RuntimeError, match="No orthonormal definition"):
            by_itk(path)


def test_a_sform_of_another_voxel_size_is_no_scan_s(tmp_path: Path) -> None:
    """An affine registration to a template: the volume of an organ is that on the scanner."""
    path = two_forms(tmp_path / "scan.nii", STRAIGHT @ np.diag([1.1, 1.1, 1.1, 1]), STRAIGHT, (4, 1))
    np.testing.assert_allclose(read_image(path)[1].affine, STRAIGHT, atol=1e-5)
    assert "the qform is used" in read_header(path).notes[0].remedy
    two_forms(path, STRAIGHT @ np.diag([1.4, 1.4, 1.4, 1]), STRAIGHT, (1, 1))
    with pytest.raises(DataError, match="pixdim: expected the spacing of the sform"):
        read_image(path)


@pytest.mark.parametrize("extra", [(17,), (1, 100), (2, 3)])
def test_a_series_in_time_has_one_fault(tmp_path: Path, extra: tuple[int, ...]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((*SHAPE, *extra), np.int16), STRAIGHT), tmp_path / "i.nii.gz")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "i.nii.gz")
    assert [fault.field for fault in caught.value.faults] == ["dim"]


def test_all_faults_of_a_case_at_once(tmp_path: Path) -> None:
    image, label = scan(tmp_path / "i.nii", np.full(SHAPE, np.nan)), scan(tmp_path / "l.nii", np.full(SHAPE, 9.0))
    (tmp_path / "short.nii").write_bytes(image.read_bytes()[:-1])
    for case, fields in [
        (Case("a", image, label), ["i.nii voxels", "l.nii label values"]),
        (Case("b", tmp_path / "short.nii", tmp_path / "gone.nii"), ["short.nii voxels", "gone.nii file"]),
    ]:
        with pytest.raises(DataError) as caught:
            read_volume(case, (0, 1))
        assert [(f.case, f.field) for f in caught.value.faults] == [(case.id, field) for field in fields]


def test_an_error_of_the_reader_stays_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fall-through to other readers, whose last words are about DICOM."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("first\nsecond")

    path = scan(tmp_path / "i.nii", np.ones(SHAPE))
    monkeypatch.setattr(nibabel, "load", broken)
    with pytest.raises(DataError, match=r"i\.nii: file: expected one that nibabel reads, found RuntimeError: first second;"):
        read_image(path)


def test_a_reader_that_disagrees_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan(tmp_path / "i.nii", np.ones(SHAPE))
    monkeypatch.setattr(nibabel, "load", lambda _, **__: nibabel.Nifti1Image(np.ones(SHAPE), AFFINES["lps"]))
    with pytest.raises(DataError, match=r"geometry: expected what the header says .* direction off by"):
        read_image(path)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ELEMENT_TYPES)
def test_metaimages_are_read_as_itk_reads_them(tmp_path: Path, kind: str, order: str, compressed: bool, local: bool) -> None:
    dtype = np.dtype(ELEMENT_TYPES[kind]).newbyteorder(order)
    if dtype.kind == "f":
        stored = np.linspace(-1e3, 1e3, math.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    else:
        limits = np.iinfo(ELEMENT_TYPES[kind])
        stored = np.random.default_rng(1).integers(limits.min, limits.max, SHAPE, ELEMENT_TYPES[kind]).astype(dtype)
    data = stored.tobytes(order="F")
    data = zlib.compress(data) if compressed else data
    path = tmp_path / ("x.mha" if local else "x.mhd")
    size = f"CompressedData = True\nCompressedDataSize = {len(data)}\n" if compressed else ""
    text = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {order == '>'}\n{size}"
        f"TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 1 -2 3.5\nElementSpacing = 0.5 0.75 3\n"
        f"DimSize = {' '.join(map(str, SHAPE))}\nElementType = {kind}\nElementDataFile = {'LOCAL' if local else 'x.raw'}\n"
    )
    path.write_bytes(text.encode() + (data if local else b""))
    if not local:
        (tmp_path / "x.raw").write_bytes(data)
    image, geometry = read_image(path)
    values, affine = by_itk(path)
    np.testing.assert_array_equal(image[0].numpy(), stored.astype(np.float32))
    if "64" not in ELEMENT_TYPES[kind] or dtype.kind == "f":  # ITK's long long goes through another rounding
        np.testing.assert_array_equal(image[0].numpy(), values.reshape(SHAPE))
    np.testing.assert_allclose(geometry.affine, affine, atol=1e-12)


def test_a_metaimage_changed_between_check_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.mha"
    write_label(path, np.ones(SHAPE, np.uint8), Geometry(SHAPE, AFFINES["lps"]), (0, 1))
    header = read_header(path)
    monkeypatch.setattr(load, "read_header", lambda _: header)
    for cut in (40, 3):  # a zlib stream that ends early, and one that is no more
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(DataError, match=r"^x\.mha: file: expected the voxels that its check found, found (EOFError|error): "):
            read_image(path)


def test_segmenting_a_metaimage_needs_no_itk(tmp_path: Path) -> None:
    """To import ITK takes longer than all else that `segment` does."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from oasis_monai.data.io import read_image, write_label\n"
        "from oasis_monai.data.types import Geometry\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "write_label(path, np.ones((3, 4, 5)), Geometry((3, 4, 5), np.eye(4)), (0, 7))\n"
        "print(float(read_image(path)[0].sum()), [m for m in ('itk', 'monai', 'nibabel') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.mhd")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "420.0 []"


ARGUMENTS = [
    ("x.jpg", SHAPE, (0, 1, 2), ConfigError, "a name ending in .mhd"),
    ("x.seg.nrrd", SHAPE, (0, 1, 2), ConfigError, "a name ending in .mhd"),
    ("x.png", SHAPE, (0, 1, 2), ConfigError, "one slice of whole numbers from 0 to 65535 for .png"),
    ("x.nii", (4, 5), (0, 1, 2), ValueError, "expected shape (4, 5, 6)"),
    ("x.nii", SHAPE, (0, 1), ValueError, "expected indices 0..1"),
    ("x.nii", SHAPE, (0, 1, 1), ConfigError, "distinct whole numbers"),
    ("x.nii", SHAPE, (0,), ConfigError, "2 to 255"),
    ("x.nii", SHAPE, (0, 1.5, 2), ConfigError, "whole numbers"),
    ("x.nii", SHAPE, (0, 1, 2**40), ConfigError, "whole numbers"),
]


@pytest.mark.parametrize(("name", "shape", "values", "error", "match"), ARGUMENTS)
def test_bad_arguments(
    tmp_path: Path, name: str, shape: tuple[int, ...], values: tuple[int, ...], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=re.escape(match)):
        write_label(tmp_path / name, np.full(shape, 2, np.uint8), Geometry(SHAPE, AFFINES["lps"]), values)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="probability: expected shape"):
        write_probability(tmp_path / "p.nii", np.zeros((2, 4, 5, 7)), Geometry(SHAPE, AFFINES["lps"]))


@pytest.mark.parametrize("name", AFFINES)
def test_canonical_is_nibabels(name: str) -> None:
    array = np.arange(120).reshape(SHAPE)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.int32), AFFINES[name]))
    turned, spacing = to_canonical(array, AFFINES[name])
    np.testing.assert_array_equal(turned, np.asarray(image.dataobj))
    np.testing.assert_allclose(spacing, image.header.get_zooms(), rtol=1e-6)
    permutation, flips = canonical_axes(AFFINES[name])
    for world, (axis, flip) in enumerate(zip(permutation, flips, strict=True)):
        step = AFFINES[name][:3, axis] * (-1 if flip else 1)
        assert step[world] > 0  # it runs to the right, to the front, upwards


def test_real_case() -> None:
    root = real_data("promise12")
    volume = read_volume(Case("Case00", root / "Case00.mhd", root / "Case00_segmentation.mhd"), (0, 1))
    raw = np.fromfile(root / "Case00.raw", "<i2").reshape(volume.geometry.shape, order="F")
    mask = np.fromfile(root / "Case00_segmentation.raw", "i1").reshape(volume.geometry.shape, order="F")
    assert volume.label is not None
    np.testing.assert_array_equal(volume.image[0].numpy(), raw)
    np.testing.assert_array_equal(volume.label[0].numpy(), mask)
    assert np.allclose(volume.geometry.affine, np.diag([-0.546875, -0.546875, 2.2, 1]))  # LPS in the file, RAS here
