"""Labels: values of any size, one to ignore, names that a file tells, segments in layers."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.io import read_volume
from oasis_monai.data.labels import find_label_values, read_label_names
from oasis_monai.data.types import IGNORE, Case
from oasis_monai.utils.errors import ConfigError, DataError
from tests.data.formats.test_second_readers import SHAPE, VOXELS, nrrd_text

AFFINE = np.array([[-0.3, 0, 0, -1], [0, -0.7, 0, -2], [0, 0, 2.2, 3], [0, 0, 0, 1]])  # nrrd_text's, in RAS


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def segmentation(folder: Path, layers: np.ndarray, segments: list[dict[str, object]]) -> Path:
    """A seg.nrrd as 3D Slicer writes it: (x, y, z), or (L, x, y, z) with the layers first."""
    keys = "".join(f"Segment{i}_{key}:={value}\n" for i, segment in enumerate(segments) for key, value in segment.items())
    changes = {"type": "uchar", "endian": None}
    if layers.ndim == 4:
        changes |= {"dimension": "4", "sizes": " ".join(map(str, layers.shape)), "kinds": "list domain domain domain"}
        changes["space_directions"] = "none (0.3,0,0) (0,0.7,0) (0,0,2.2)"
    text = nrrd_text(**changes)[:-1] + f"{keys}Segmentation_ContainedRepresentationNames:=Binary labelmap|\n\n".encode()
    path = folder / "x.seg.nrrd"
    path.write_bytes(text + layers.astype(np.uint8).tobytes(order="F"))
    return path


def box(*corner: int) -> np.ndarray:
    out = np.zeros(SHAPE, bool)
    out[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2, corner[2] : corner[2] + 2] = True
    return out


ONE, TWO = box(0, 0, 0), box(2, 3, 4)


def test_names_of_a_labelmap(tmp_path: Path) -> None:
    label = 3 * ONE + 5 * TWO
    told = [
        {"ID": "Segment_1", "Name": "gland", "LabelValue": 3, "Layer": 0, "Color": "0 1 0"},
        {"ID": "Segment_2", "Name": "Läsion \\\\ new", "LabelValue": 5, "Layer": 0},
        {"ID": "lonely", "LabelValue": 9, "Layer": 0},
    ]
    path = segmentation(tmp_path, label, told)
    assert read_label_names(path) == {"gland": 3, "Läsion \\ new": 5, "lonely": 9}
    assert find_label_values(path) == (0, 3, 5)
    volume = read_volume(Case("x", nifti(tmp_path / "i.nii", VOXELS), path), (0, 5, 3))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), 2 * ONE + TWO)
    assert read_label_names(nifti(tmp_path / "l.nii", label.astype(np.uint8))) == {}


@pytest.mark.parametrize("values", [(1, 2), (1, 1)])
def test_layers_without_overlap_become_one_label(tmp_path: Path, values: tuple[int, int]) -> None:
    """Values that tell the segments apart stay; else they are numbered in order."""
    layers = np.stack([values[0] * ONE, values[1] * TWO])
    told: list[dict[str, object]] = [
        {"ID": "a", "Name": "gland", "LabelValue": values[0], "Layer": 0},
        {"ID": "b", "Name": "tumour", "LabelValue": values[1], "Layer": 1},
    ]
    path = segmentation(tmp_path, layers, told)
    assert read_label_names(path) == {"gland": 1, "tumour": 2}
    volume = read_volume(Case("x", nifti(tmp_path / "i.nii", VOXELS), path), (0, 1, 2))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), ONE + 2 * TWO)
    older = [{key: value for key, value in segment.items() if key in ("ID", "Name")} for segment in told]
    assert read_label_names(segmentation(tmp_path, np.stack([ONE, TWO]), older)) == {"gland": 1, "tumour": 2}
    assert find_label_values(tmp_path / "x.seg.nrrd") == (0, 1, 2)


def test_structures_by_name_whatever_their_numbers(tmp_path: Path) -> None:
    """Two files that number the same structures the other way round; a structure that nobody asks for is left out."""
    image = nifti(tmp_path / "i.nii", VOXELS)
    three = box(0, 3, 0)
    for one, two in ((1, 2), (2, 1)):
        told = [
            {"ID": "a", "Name": "Gland", "LabelValue": one, "Layer": 0},
            {"ID": "b", "Name": "tumour", "LabelValue": two, "Layer": 0},
            {"ID": "c", "Name": "sketch", "LabelValue": 3, "Layer": 0},
        ]
        path = segmentation(tmp_path, one * ONE + two * TWO + 3 * three, told)
        volume = read_volume(Case("x", image, path, names=(("gland", 1), ("tumour", 7))), (0, 1, 7))
        assert volume.label is not None
        np.testing.assert_array_equal(volume.label[0].numpy(), ONE + 2 * TWO)
    layers = np.stack([ONE, ONE | TWO])
    told = [{"ID": name, "Name": name, "LabelValue": 1, "Layer": i} for i, name in enumerate(("inner", "outer"))]
    path = segmentation(tmp_path, layers, told)
    volume = read_volume(Case("x", image, path, names=(("outer", 1),)), (0, 1))  # the other one overlaps it, and is not asked for
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), ONE | TWO)


def test_layers_that_share_voxels_are_kept_apart_where_they_may(tmp_path: Path) -> None:
    image = nifti(tmp_path / "i.nii", VOXELS)
    layers = np.stack([ONE, ONE | TWO])
    told = [{"ID": name, "Name": name, "LabelValue": 1, "Layer": i} for i, name in enumerate(("inner", "outer"))]
    path = segmentation(tmp_path, layers, told)
    case = Case("x", image, path, structures=(("outer", (1, 2)), ("inner", (2,))), overlapping=True)
    volume = read_volume(case, (0, 1, 2))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), np.where(ONE, 2, ONE | TWO))


def test_a_label_cut_to_its_segments_is_put_back(tmp_path: Path) -> None:
    """3D Slicer saves the box around the segments."""
    image = nifti(tmp_path / "i.nii", VOXELS)
    cut = TWO[1:, 2:, 3:]
    segment: list[dict[str, object]] = [{"ID": "a", "Name": "gland", "LabelValue": 1, "Layer": 0}]
    path = segmentation(tmp_path, cut, segment)
    whole = path.read_bytes().replace(b"sizes: 4 5 6", b"sizes: 3 3 3")
    for origin, good in (("(1.3,3.4,9.6)", True), ("(1.45,3.4,9.6)", False), ("(1.6,3.4,9.6)", False), ("(0.7,3.4,9.6)", False)):
        path.write_bytes(whole.replace(b"(1,2,3)", origin.encode()))
        if good:
            volume = read_volume(Case("x", image, path), (0, 1))
            assert volume.label is not None
            np.testing.assert_array_equal(volume.label[0].numpy(), TWO)
            continue
        with pytest.raises(DataError, match="label geometry: expected the image's grid, found shape 4 x 5 x 6 against 3 x 3 x 3"):
            read_volume(Case("x", image, path), (0, 1))


def test_layers_that_cannot_be_one_label(tmp_path: Path) -> None:
    told: list[dict[str, object]] = [{"ID": name, "Name": name, "LabelValue": 1, "Layer": i} for i, name in enumerate("ab")]
    with pytest.raises(DataError, match=r"x\.seg\.nrrd: segments: .*found a and b share 8 voxels; decide in 3D Slicer"):
        find_label_values(segmentation(tmp_path, np.stack([ONE, ONE]), told))
    with pytest.raises(DataError, match=r"segments: .*found 8 of a value that is no segment's"):
        find_label_values(segmentation(tmp_path, np.stack([ONE, 2 * TWO]), told))
    with pytest.raises(DataError, match="label: expected one channel, found 2 that differ"):
        find_label_values(segmentation(tmp_path, np.stack([ONE, TWO]), []))


def test_hostile_segments(tmp_path: Path) -> None:
    told: list[dict[str, object]] = [
        {"ID": "a", "LabelValue": "99999999999999999999", "Layer": "-1"},
        {"ID": "b", "LabelValue": 0},
        {"ID": "c", "LabelValue": 4, "Layer": 7},
        {"ID": "\x7f", "Name": "", "LabelValue": "nan"},
    ]
    path = segmentation(tmp_path, ONE, told[:3])
    assert read_label_names(path) == {"a": 1}
    assert find_label_values(path) == (0, 1)
    with pytest.raises(DataError, match="header: expected 'field: value' lines of printable"):
        find_label_values(segmentation(tmp_path, ONE, told))


def test_an_ignored_value_and_large_ones(tmp_path: Path) -> None:
    values = (7 * ONE + 65_535 * TWO).astype(np.uint16)
    values[3, 0, 0] = 255
    case = Case("x", nifti(tmp_path / "i.nii", VOXELS), nifti(tmp_path / "l.nii", values))
    volume = read_volume(case, (0, 65_535, 7), ignore=255)
    assert volume.label is not None
    expected = TWO + 2 * ONE.astype(int)
    expected[3, 0, 0] = IGNORE
    np.testing.assert_array_equal(volume.label[0].numpy(), expected)
    with pytest.raises(DataError, match=r"label values: expected only 0, 65535, 7, found 255 \(1 voxels\)"):
        read_volume(case, (0, 65_535, 7))
    with pytest.raises(ConfigError, match="ignore: expected a value that is no label's, found 7"):
        read_volume(case, (0, 7), ignore=7)
    many = np.arange(120).reshape(SHAPE).astype(np.uint8) + 135  # up to 254: class 254 is not the index to ignore
    case = Case("x", case.image, nifti(tmp_path / "l.nii", many))
    volume = read_volume(case, list(range(255)))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), many)
    with pytest.raises(ConfigError, match="2 to 255 distinct whole numbers"):
        read_volume(case, list(range(256)))


def test_a_label_of_several_channels_is_refused(tmp_path: Path) -> None:
    several = np.stack([ONE, TWO], -1).astype(np.uint8)
    case = Case("x", nifti(tmp_path / "i.nii", VOXELS), nifti(tmp_path / "l.nii", several))
    with pytest.raises(DataError, match=r"^x: l\.nii label: expected one channel, found 2 that differ"):
        read_volume(case, (0, 1))
