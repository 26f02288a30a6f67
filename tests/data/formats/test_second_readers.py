"""Every format against a second reader: voxels, and the world coordinates of voxels; then written and read again."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from oasis_monai.data.formats.dispatch import (
    ENDINGS,
    RESULTS,
    TABLE,
    data_files,
    ending,
    map_ending,
    read_header,
    result_ending,
    scans_among,
)
from oasis_monai.data.io import read_image, read_volume, write_label, write_probability
from oasis_monai.data.labels import find_label_values
from oasis_monai.data.types import Case, Geometry
from oasis_monai.utils.errors import ConfigError, DataError

SHAPE = (4, 5, 6)
VOXELS = np.random.default_rng(0).integers(-300, 3000, SHAPE).astype(np.int16)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(flip: bool = False) -> np.ndarray:
    """A grid at an angle, by the product of two plain rotations."""
    c, s = np.cos(0.6), np.sin(0.6)
    out = np.eye(4)
    out[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) * [0.3, 0.7, 2.2]
    out[:3, 3] = [-101.1, 33.3, 0.1]
    return out @ np.diag([1, -1 if flip else 1, 1, 1])


def by_itk(path: Path) -> tuple[np.ndarray, Any]:
    """Voxels (x, y, z), and a function from indices to RAS mm that asks ITK point by point."""
    import itk

    image = itk.imread(str(path))
    values = itk.array_from_image(image)
    return (
        values.transpose(*range(values.ndim - 1, -1, -1)) if values.ndim == 3 else values,
        lambda *at: np.array(image.TransformIndexToPhysicalPoint([int(i) for i in at])) * [-1, -1, 1],
    )


def same_world(affine: np.ndarray, place: Any, tolerance: float = 1e-4) -> None:
    for at in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (1, 2, 5)):
        np.testing.assert_allclose((affine @ [*at, 1])[:3], place(*at), atol=tolerance)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("kind", [".nrrd", ".nhdr"])
def test_nrrd_by_pynrrd_and_itk(tmp_path: Path, encoding: str, kind: str) -> None:
    import nrrd

    path = tmp_path / f"x{kind}"
    lps = LPS @ turned()
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(path), VOXELS, {**header, "encoding": encoding, "kinds": ["domain"] * 3}, index_order="F")
    image, grid = read_image(path)
    np.testing.assert_array_equal(image[0].numpy(), VOXELS)
    np.testing.assert_allclose(grid.affine, turned(), atol=1e-12)
    assert len(data_files(path)) == (2 if kind == ".nhdr" else 1)
    if encoding == "bzip2":  # which ITK's library is built without
        return
    values, place = by_itk(path)
    np.testing.assert_array_equal(values, VOXELS)
    same_world(grid.affine, place)


SPACES = {
    "right-anterior-superior": np.eye(4),
    "RAS": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1, 1, 1]),
    "LAS": np.diag([-1.0, 1, 1, 1]),
    "left-posterior-superior": LPS,
    "LPS": LPS,
    "scanner-xyz": LPS,
    "3D-right-handed": LPS,
}


def nrrd_text(**changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "type": "short",
        "dimension": "3",
        "space dimension": None,
        "space": "left-posterior-superior",
        "sizes": "4 5 6",
        "space directions": "(0.3,0,0) (0,0.7,0) (0,0,2.2)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(1,2,3)",
    }
    fields |= {key.replace("_", " "): value for key, value in changes.items()}
    return ("NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in fields.items() if v is not None) + "\n").encode()


def nrrd_file(folder: Path, data: bytes | None = None, **changes: str | None) -> Path:
    path = folder / "x.nrrd"
    path.write_bytes(nrrd_text(**changes) + (VOXELS.tobytes(order="F") if data is None else data))
    return path


@pytest.mark.parametrize("space", SPACES)
def test_spaces_of_nrrd(tmp_path: Path, space: str) -> None:
    path = nrrd_file(tmp_path, space=space)
    header = read_header(path)
    expected = SPACES[space] @ np.array([[0.3, 0, 0, 1], [0, 0.7, 0, 2], [0, 0, 2.2, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(header.affine, expected)
    same_world(header.affine, by_itk(path)[1])
    assert [note.field for note in header.notes] == (["space"] if space[:2] in ("sc", "3D") else [])


def test_nrrd_without_a_space(tmp_path: Path) -> None:
    for changes in ({"spacings": "0.3 0.7 2.2"}, {"space_dimension": "3", "space_directions": "(0.3,0,0) (0,0.7,0) (0,0,2.2)"}):
        path = nrrd_file(tmp_path, space=None, space_origin=None, **{"space_directions": None, **changes})
        header = read_header(path)
        same_world(header.affine, by_itk(path)[1])
        assert [note.field for note in header.notes] == ["space"]
        assert "by ITK" in header.notes[0].remedy


def test_spellings_of_nrrd(tmp_path: Path) -> None:
    """As ITK and pynrrd read them: bytes and lines skipped, upper case, comments, Windows' line ends, a file beside it."""
    raw = VOXELS.tobytes(order="F")
    big = VOXELS.astype(">i2").tobytes(order="F")
    variants = [
        (nrrd_text(endian="big"), big),
        (nrrd_text(byte_skip="7"), b"1234567" + raw),
        (nrrd_text(byte_skip="-1"), b"whatever" + raw),
        (nrrd_text(line_skip="2"), b"one\ntwo\n" + raw),
        (nrrd_text(encoding="gzip", byte_skip="3"), gzip.compress(b"abc" + raw)),
        (nrrd_text(encoding="gz", line_skip="1"), b"one\n" + gzip.compress(raw)),
        (nrrd_text(type="signed short int"), raw),
        (nrrd_text().replace(b"\n", b"\r\n"), raw),
        (nrrd_text().replace(b"type:", b"# a comment\nkey:=a value: with = signs\nType:"), raw),
        (nrrd_text(thicknesses="NaN NaN 2", centerings="cell cell cell", space_units='"mm" "mm" "mm"'), raw),
    ]
    for text, data in variants:
        path = tmp_path / "x.nrrd"
        path.write_bytes(text + data)
        np.testing.assert_array_equal(read_image(path)[0][0].numpy(), VOXELS, err_msg=text.decode())
        if b"gz" not in text and b"Type" not in text:
            np.testing.assert_array_equal(by_itk(path)[0], VOXELS, err_msg=text.decode())
    (tmp_path / "x.raw").write_bytes(raw)
    for name in ("x.raw", "./x.raw"):
        (tmp_path / "y.nhdr").write_bytes(nrrd_text(data_file=name).rstrip(b"\n"))
        np.testing.assert_array_equal(read_image(tmp_path / "y.nhdr")[0][0].numpy(), VOXELS)


KINDS = {"uchar": "u1", "int8": "i1", "ushort": "<u2", "int": "<i4", "unsigned int": "<u4", "long long": "<i8", "uint64": "<u8"}


@pytest.mark.parametrize(("name", "code"), [*KINDS.items(), ("float", "<f4"), ("double", "<f8")])
def test_types_of_nrrd(tmp_path: Path, name: str, code: str) -> None:
    import nrrd

    values = (np.abs(VOXELS) % 100).astype(code)
    path = nrrd_file(tmp_path, values.tobytes(order="F"), type=name)
    np.testing.assert_array_equal(read_image(path)[0][0].numpy(), nrrd.read(str(path))[0])
    assert read_header(path).dtype == np.dtype(code).name


@pytest.mark.parametrize("axis", [0, 3])
def test_channels_of_nrrd(tmp_path: Path, axis: int) -> None:
    import nrrd

    path = tmp_path / "x.nrrd"
    several = np.stack([VOXELS, VOXELS + 1, VOXELS * 2], axis)
    lps = LPS @ turned()
    directions = np.insert(lps[:3, :3].T, axis, np.nan, axis=0)
    kinds = ["domain"] * 3
    kinds.insert(axis, "list")
    header = {"space": "left-posterior-superior", "space directions": directions, "space origin": lps[:3, 3], "kinds": kinds}
    nrrd.write(str(path), several, header, index_order="F")
    image, grid = read_image(path)
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(several, axis, 0))
    np.testing.assert_allclose(grid.affine, turned(), atol=1e-12)
    path.write_bytes(path.read_bytes().replace(b"kinds", b"#kinds"))  # the directions tell it too
    np.testing.assert_array_equal(read_image(path)[0].numpy(), np.moveaxis(several, axis, 0))


@pytest.mark.parametrize("kind", [".mgz", ".mgh"])
@pytest.mark.parametrize("frames", [1, 3])
def test_freesurfer_by_nibabel(tmp_path: Path, kind: str, frames: int) -> None:
    values = np.stack([VOXELS + k for k in range(frames)], -1).astype(np.float32)
    path = tmp_path / f"x{kind}"
    nibabel.save(nibabel.MGHImage(values if frames > 1 else values[..., 0], turned(flip=True)), path)
    image, grid = read_image(path)
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(np.asarray(nibabel.load(path).dataobj).reshape(values.shape), -1, 0))
    np.testing.assert_allclose(grid.affine, turned(flip=True), atol=1e-4)
    with open(path, "rb") as stream:
        block = bytearray(gzip.decompress(stream.read()) if kind == ".mgz" else stream.read())
    block[28:30] = b"\0\0"  # no orientation
    path.write_bytes(gzip.compress(block) if kind == ".mgz" else block)
    with pytest.raises(DataError, match="goodRASFlag: expected 1, for the orientation, found 0; write the true one"):
        read_header(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("ends", [(".hdr", ".img"), (".HDR", ".IMG"), (".hdr.gz", ".img.gz")])
def test_nifti_in_two_files(tmp_path: Path, kind: Any, ends: tuple[str, str]) -> None:
    nibabel.save(kind(VOXELS, turned()), tmp_path / f"x{ends[0].lower()}")
    for name in ends:
        (tmp_path / f"x{name.lower()}").rename(tmp_path / f"x{name}")
    for name in ends:
        image, grid = read_image(tmp_path / f"x{name}")
        np.testing.assert_array_equal(image[0].numpy(), VOXELS)
        np.testing.assert_allclose(grid.affine, turned(), atol=1e-5)
        assert data_files(tmp_path / f"x{name}") == (tmp_path / f"x{ends[0]}", tmp_path / f"x{ends[1]}")
    if kind is nibabel.Nifti1Pair and ends[0] == ".hdr":
        values, place = by_itk(tmp_path / "x.hdr")
        np.testing.assert_array_equal(values, VOXELS)
        same_world(grid.affine, place)
    (tmp_path / f"x{ends[1]}").unlink()
    with pytest.raises(DataError, match=r"voxels: expected the name of one file beside the header, found x.*absent"):
        read_header(tmp_path / f"x{ends[0]}")


def test_analyze_says_what_orientation_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.hdr"
    nibabel.AnalyzeImage(VOXELS, np.diag([-0.3, 0.7, 2.2, 1])).to_filename(path)
    image, grid = read_image(path)
    np.testing.assert_array_equal(image[0].numpy(), VOXELS)
    np.testing.assert_allclose(grid.affine, nibabel.AnalyzeImage.load(path).affine, atol=1e-6)
    assert grid.forms is not None
    same_world(grid.forms.itk, by_itk(path)[1])
    (note,) = read_header(path).notes
    assert (note.field, note.severity) == ("orientation", "warning")
    assert "to the left, the front and the top, as by nibabel" in note.remedy
    write_label(tmp_path / "l.nii.gz", VOXELS > 0, grid, (0, 1))
    volume = read_volume(Case("x", path, tmp_path / "l.nii.gz"), (0, 1))
    assert volume.label is not None
    np.testing.assert_array_equal(volume.label[0].numpy(), VOXELS > 0)
    block = bytearray(path.read_bytes())
    block[112:116] = np.float32(2).tobytes()  # SPM's scaling
    path.write_bytes(block)
    with pytest.raises(DataError, match="funused1: expected 0 or 1, no scaling of intensities, found 2; convert"):
        read_header(path)


IMAGES = {
    "L": np.arange(63, dtype=np.uint8).reshape(7, 9),
    "I;16": (1000 * np.arange(63)).astype(np.uint16).reshape(7, 9),
    "RGB": np.arange(189, dtype=np.uint8).reshape(7, 9, 3),
    "F": np.linspace(-1, 1, 63, dtype=np.float32).reshape(7, 9),
}


@pytest.mark.parametrize("kind", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("mode", IMAGES)
def test_images_by_itk(tmp_path: Path, mode: str, kind: str) -> None:
    if mode == "F" and kind == ".png":
        pytest.skip("PNG holds whole numbers")
    import itk

    path = tmp_path / f"x{kind}"
    Image.fromarray(IMAGES[mode]).save(path, dpi=(127, 254))  # 0.2 and 0.1 mm
    image, grid = read_image(path)
    assert image.shape == (3 if mode == "RGB" else 1, 9, 7, 1)
    other = itk.imread(str(path))
    rows = itk.array_from_image(other).reshape(7, 9, -1)
    for x, y in ((0, 0), (8, 0), (0, 6), (3, 5)):
        np.testing.assert_array_equal(image[:, x, y, 0].numpy(), rows[y, x])
    assert grid.spacing_mm == pytest.approx((0.2, 0.1, 1.0), rel=1e-4)
    np.testing.assert_array_equal(np.sign(np.diag(grid.affine)), [-1, -1, 1, 1])  # as ITK's LPS: left and back
    if kind != ".png":  # of a PNG, ITK reads no size
        assert list(other.GetSpacing()) == pytest.approx([0.2, 0.1], rel=1e-4)
    assert read_header(path).notes == ()


def test_what_an_image_does_not_tell_is_told(tmp_path: Path) -> None:
    Image.fromarray(IMAGES["L"]).save(tmp_path / "bare.png")
    Image.fromarray(IMAGES["L"]).save(tmp_path / "screen.png", dpi=(96, 96))
    rgba = np.dstack([IMAGES["RGB"], IMAGES["L"]])
    Image.fromarray(rgba).save(tmp_path / "clear.png", dpi=(254, 254))
    told = {name: [note.field for note in read_header(tmp_path / f"{name}.png").notes] for name in ("bare", "screen", "clear")}
    assert told == {"bare": ["resolution"], "screen": ["resolution"], "clear": ["pixels"]}
    assert read_image(tmp_path / "bare.png")[1].spacing_mm == (1, 1, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png")[0][..., 0].numpy(), IMAGES["RGB"].transpose(2, 1, 0))


def test_labels_in_images(tmp_path: Path) -> None:
    """A mask as grey, as one bit, by a palette, and as grey that a program wrote as RGB; a drawing in colours is refused."""
    mask = (np.arange(63).reshape(7, 9) % 3 == 0).astype(np.uint8)
    palette = Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    Image.fromarray(mask * 255).save(tmp_path / "grey.png")
    Image.fromarray(mask > 0).save(tmp_path / "bit.png")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([mask * 7] * 3)).save(tmp_path / "rgb.png")
    for name, values in (("grey", (0, 255)), ("bit", (0, 1)), ("palette", (0, 1)), ("rgb", (0, 7))):
        assert find_label_values(tmp_path / f"{name}.png") == values
        volume = read_volume(Case("x", tmp_path / "grey.png", tmp_path / f"{name}.png"), values)
        assert volume.label is not None
        np.testing.assert_array_equal(volume.label[0, :, :, 0].numpy(), mask.T, err_msg=name)
    Image.fromarray(IMAGES["RGB"]).save(tmp_path / "drawn.png")
    with pytest.raises(DataError, match="label: expected one channel, found 3 that differ"):
        find_label_values(tmp_path / "drawn.png")


def test_nifti_of_two_dimensions(tmp_path: Path) -> None:
    import itk

    nibabel.save(nibabel.Nifti1Image(VOXELS[:, :, 0], turned()), tmp_path / "a.nii")
    image, grid = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), VOXELS[:, :, 0])
    np.testing.assert_allclose(grid.affine, nibabel.load(tmp_path / "a.nii").affine, atol=1e-5)
    flat = itk.image_from_array(VOXELS[:, :, 0].T.copy())
    flat.SetSpacing([0.5, 0.6])
    itk.imwrite(flat, str(tmp_path / "b.nii"))
    image, grid = read_image(tmp_path / "b.nii")
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), VOXELS[:, :, 0])
    assert grid.spacing_mm == pytest.approx((0.5, 0.6, 1))


@pytest.mark.parametrize("mode", ["label", "probability"])
@pytest.mark.parametrize("kind", [e for form in TABLE for e in form.written])
def test_results_are_read_again(tmp_path: Path, kind: str, mode: str) -> None:
    shape = (9, 7, 1) if kind in (".png", ".tif", ".tiff") else SHAPE
    affine = np.diag([-0.2, -0.1, 1, 1.0]) if shape[2] == 1 else turned()
    grid = Geometry(shape, affine)
    path = tmp_path / f"x{kind}"
    if mode == "label":
        label = np.arange(np.prod(shape)).reshape(shape) % 3
        write_label(path, label, grid, (0, 9, 40_000))
        assert find_label_values(path) == (0, 9, 40_000)
        values, seen = read_image(path)
        np.testing.assert_array_equal(values[0].numpy(), np.array([0, 9, 40_000])[label])
        np.testing.assert_allclose(seen.affine, affine, atol=1e-5)
        return
    maps = np.random.default_rng(1).random((2, *shape)).astype(np.float32)
    if shape[2] == 1:
        with pytest.raises(ConfigError, match="one slice of whole numbers"):
            write_probability(path, maps, grid)
        path = tmp_path / f"x{map_ending(kind)}"
    write_probability(path, maps, grid)
    np.testing.assert_array_equal(read_image(path)[0].numpy(), maps)


def test_one_table_says_what_results_are_called() -> None:
    expected = {".mgz": ".nii.gz", ".hdr": ".nii.gz", ".img": ".nii.gz", ".nhdr": ".nrrd", ".seg.nrrd": ".nrrd"}
    for kind in ENDINGS:
        assert ending(f"x{kind.upper()}") == kind
        assert result_ending(f"x{kind}") == expected.get(kind, kind if kind not in (".mgh", ".hdr.gz", ".img.gz") else ".nii.gz")
    assert result_ending("IM0001") == ".nii.gz"
    assert set(RESULTS) == {".mhd", ".mha", ".nii", ".nii.gz", ".nrrd"}


def test_the_bzip2_reader_stops_at_a_bomb(tmp_path: Path) -> None:
    bomb = bz2.compress(bytes(16 << 20))
    with pytest.raises(DataError, match=r"voxels: expected 240 bytes .* found more than 240 after decompression"):
        read_header(nrrd_file(tmp_path, bomb, encoding="bzip2"))


def test_which_files_of_a_folder_are_scans(tmp_path: Path) -> None:
    """Of a pair one; images only where there are no volumes."""
    names = ["a.hdr", "a.img", "b.nii.gz", "c.png", "d.img", "e.txt", "f.tif", "g.seg.nrrd"]
    for name in names:
        (tmp_path / name).touch()
    paths = [tmp_path / name for name in names]
    assert [path.name for path in scans_among(paths)] == ["a.hdr", "b.nii.gz", "d.img", "g.seg.nrrd"]
    assert [path.name for path in scans_among([tmp_path / "c.png", tmp_path / "e.txt", tmp_path / "f.tif"])] == ["c.png", "f.tif"]
