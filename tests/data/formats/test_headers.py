"""Headers: every fault is named, none reaches ITK or nibabel, and what passes is read as those two read it."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from oasis_monai.data.formats.dispatch import data_files, read_header
from oasis_monai.data.formats.header import MAX_VOXELS
from oasis_monai.data.io import read_image
from oasis_monai.utils.errors import DataError
from tests.helpers.real import real_data

VOXELS = np.arange(24, dtype="<i2").reshape(4, 3, 2, order="F") - 5  # (x, y, z)
RAW = VOXELS.tobytes(order="F")
HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 0.8 -0.6 0 0.6 0.8 0 0 0 -1
Offset = 1.5 -2 3
ElementSpacing = 0.3 0.7 2.2
DimSize = 4 3 2
ElementType = MET_SHORT
ElementDataFile = scan.raw
"""


def mhd(folder: Path, text: str = HEADER, raw: bytes = RAW) -> Path:
    (folder / "scan.raw").write_bytes(raw)
    (folder / "scan.mhd").write_bytes(text.encode("latin-1"))
    return folder / "scan.mhd"


def line(key: str, value: str | None) -> str:
    """The good header with one line changed, or removed (None), or added before the last."""
    old = next((row for row in HEADER.splitlines(True) if row.startswith(key + " ")), None)
    if old is None:
        return HEADER.replace("ElementDataFile", f"{key} = {value}\nElementDataFile")
    return HEADER.replace(old, "" if value is None else f"{key} = {value}\n")


def packed(data: bytes = RAW, size: int | None = None) -> bytes:
    """A compressed .mha with the voxels inside."""
    stream = zlib.compress(data)
    text = HEADER.replace("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {size or len(stream)}")
    return text.replace("scan.raw", "LOCAL").encode() + stream


METAIMAGE_FAULTS = [
    (line("ElementDataFile", "sub/scan.raw"), "ElementDataFile: expected the name of one file beside the header"),
    (line("ElementDataFile", "../scan.raw"), "ElementDataFile: expected the name"),
    (line("ElementDataFile", ".."), "ElementDataFile: expected the name"),
    (line("ElementDataFile", "/etc/hostname"), "ElementDataFile: expected the name"),
    (line("ElementDataFile", "C:\\scan.raw"), "ElementDataFile: expected the name"),
    (line("ElementDataFile", "LIST"), "found LIST; join the slices"),
    (line("ElementDataFile", "LISTING"), "found LISTING; join the slices"),  # ITK compares four letters only
    (line("ElementDataFile", "s%02d.raw 1 2 1"), "join the slices"),
    (line("ElementDataFile", "gone.raw"), "gone.raw, which is absent"),
    (line("ElementDataFile", ""), "ElementDataFile: .*found nothing"),
    (line("ElementDataFile", None), "ElementDataFile: expected this key within"),
    (HEADER + "ElementSpacing = 1 1 1\n", "ElementDataFile: expected the last line"),
    (line("ElementSpacing", None), "ElementSpacing: expected 3 numbers, found nothing"),
    (line("ElementSpacing", "0.3 0 2.2"), "ElementSpacing: expected three finite spacings above 0 mm, found 0.3 0 2.2"),
    (line("ElementSpacing", "0.3 -0.7 2.2"), "ElementSpacing: expected three finite spacings above 0 mm"),
    (line("ElementSpacing", "0.3 nan 2.2"), "ElementSpacing: expected three finite spacings above 0 mm"),
    (line("ElementSpacing", "0.3 inf 2.2"), "ElementSpacing: expected three finite spacings above 0 mm"),
    (line("ElementSpacing", "0.3 1e999 2.2"), "ElementSpacing: expected three finite spacings above 0 mm"),
    (line("ElementSpacing", "0,3 0,7 2,2"), "ElementSpacing: expected 3 numbers, found 0,3"),
    (line("ElementSpacing", "0.3 0.7"), "ElementSpacing: expected 3 numbers, found 0.3 0.7"),
    (line("ElementSpacing", "1_0 1 1"), "ElementSpacing: expected 3 numbers"),  # float() would take it, MetaIO reads 1
    (line("TransformMatrix", "1 0.001 0 0 1 0 0 0 1"), "TransformMatrix: expected orthonormal axes .*deviation of 0.001"),
    (line("TransformMatrix", "2 0 0 0 1 0 0 0 1"), "TransformMatrix: expected orthonormal axes"),
    (line("TransformMatrix", "0 0 0 0 0 0 0 0 0"), "TransformMatrix: expected orthonormal axes"),
    (line("TransformMatrix", "1e300 0 0 0 1e300 0 0 0 1"), "TransformMatrix: expected orthonormal axes"),
    (line("TransformMatrix", "nan 0 0 0 1 0 0 0 1"), "TransformMatrix: expected nine finite"),
    (line("TransformMatrix", "1 0 0 1"), "TransformMatrix: expected 9 numbers"),
    (line("Offset", "0 inf 0"), "Offset: expected three finite"),
    (line("DimSize", "4 0 2"), "DimSize: expected three sizes of at least 1, found 4 x 0 x 2"),
    (line("DimSize", "4 -3 2"), "DimSize: expected three sizes of at least 1"),
    (line("DimSize", "4294967295 4294967295 4294967295"), f"DimSize: expected at most {MAX_VOXELS} voxels"),
    (line("DimSize", "512 512 2049"), f"DimSize: expected at most {MAX_VOXELS} voxels"),
    (line("DimSize", "4 3.5 2"), "DimSize: expected three whole numbers"),
    (line("DimSize", "inf 3 2"), "DimSize: expected three whole numbers"),
    (line("DimSize", None), "DimSize: expected 3 numbers, found nothing"),
    (line("NDims", "2"), "NDims: expected 3, found 2"),
    (line("NDims", "100"), "NDims: expected 3, found 100"),
    (line("NDims", None), "NDims: expected 3, found nothing"),
    (
        HEADER.replace("NDims = 3\n", "").replace("ElementType", "NDims = 3\nElementType"),
        "DimSize: expected this line after NDims",
    ),
    (line("ElementType", "MET_CUBE"), "ElementType: expected one of MET_CHAR.*found MET_CUBE"),
    (line("ElementType", None), "ElementType: .*found nothing"),
    (line("ElementNumberOfChannels", "3"), "ElementDataFile: expected 144 bytes of voxels .DimSize x ElementType x channels.*48"),
    (line("ElementNumberOfChannels", "17"), "ElementNumberOfChannels: expected 1 to 16 channels or volumes, found 17"),
    (line("ElementNumberOfChannels", "0"), "ElementNumberOfChannels: expected 1 to 16"),
    (line("ElementNumberOfChannels", "1.5"), "ElementNumberOfChannels: expected a whole number"),
    (line("ElementToIntensityFunctionSlope", "2"), "ElementToIntensityFunctionSlope: expected 1, found 2"),
    (line("HeaderSize", "-2"), "HeaderSize: expected the bytes before the voxels, or -1, found -2"),
    (line("HeaderSize", "inf"), "HeaderSize: expected the bytes"),
    (line("HeaderSize", "nan"), "HeaderSize: expected the bytes"),
    (line("HeaderSize", "3"), "ElementDataFile: expected 48 bytes.* found 45"),
    (line("HeaderSize", "10").replace("CompressedData = False", "CompressedData = True"), "HeaderSize: expected 0, found 10"),
    (line("DistanceUnits", "cm"), "DistanceUnits: expected mm"),
    (line("BinaryData", "False"), "ElementDataFile: expected 24 numbers as text .*found other text in scan.raw"),
    (line("ElementDataFile", "./../scan.raw"), "ElementDataFile: expected the name of one file"),
    (line("ElementDataFile", "LIST 2"), "ElementDataFile: .* found LIST 2; join the slices"),
    (line("CompressedData", "maybe"), "CompressedData: expected True or False, found maybe"),
    (line("ObjectType", "Tube"), "ObjectType: expected Image, found Tube"),
    (line("ElementByteOrderMSB", "True"), "BinaryDataByteOrderMSB: expected one value among"),
    (line("Origin", "0 0 0"), "Offset: expected one value among Offset, Position, Origin"),
    (HEADER.replace("NDims = 3\n", "NDims = 3\nElementSpacing = 9 9 9\n"), "ElementSpacing: expected one line, found two: 9 9 9"),
    (line("Comment", "a\x00b"), "header: expected 'Key = value' lines"),
    (line("Comment", "x" * 70000), "header: expected 'Key = value' lines"),
    (line("K" * 300, "x"), "header: expected 'Key = value' lines"),
    ("\x7fELF" + "\x00\xff" * 500, "ElementDataFile: expected this key within"),
    ("Comment = x\n" * 10**5 + HEADER, "ElementDataFile: expected this key within"),
    ("", "ElementDataFile: expected this key within"),
]


@pytest.mark.parametrize(("text", "match"), METAIMAGE_FAULTS)
def test_metaimage_fault(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_header(mhd(tmp_path, text))
    for row in str(caught.value).splitlines():
        assert row.startswith("scan.mhd: ")
        assert row.isascii()
        assert len(row) < 500


@pytest.mark.parametrize(
    ("raw", "match"), [(RAW[:-1], "found 47 in scan.raw, shorter"), (RAW + b"x", "found 49 .*longer"), (b"", "found 0 in")]
)
def test_raw_length(tmp_path: Path, raw: bytes, match: str) -> None:
    with pytest.raises(DataError, match=f"ElementDataFile: expected 48 bytes.*{match}"):
        read_header(mhd(tmp_path, raw=raw))


COMPRESSED_FAULTS = [
    (packed(size=20), "CompressedDataSize: expected .*found 20"),
    (packed().replace(b"CompressedDataSize = ", b"Comment = "), "CompressedDataSize: .*found nothing"),
    (packed()[:-6], "a damaged zlib stream"),
    (packed()[:-1] + b"\x00", "a damaged zlib stream"),  # the checksum at its end
    (packed(RAW[:-2]), "found 46 after decompression"),
    (packed(RAW + b"xx"), "found more than 48 after decompression"),
]


@pytest.mark.parametrize(("content", "match"), COMPRESSED_FAULTS)
def test_compressed_fault(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "scan.mha").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_header(tmp_path / "scan.mha")


def test_all_faults_of_a_header_at_once(tmp_path: Path) -> None:
    text = (
        HEADER.replace("0.3 0.7", "0 0.7")
        .replace("MET_SHORT", "MET_X")
        .replace("0.8 -0.6", "0.9 -0.6")
        .replace("scan.raw", "LIST")
    )
    with pytest.raises(DataError) as caught:
        read_header(mhd(tmp_path, text))
    assert [f.field for f in caught.value.faults] == ["ElementType", "ElementSpacing", "TransformMatrix", "ElementDataFile"]


def test_link_out_of_the_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = mhd(home)
    os.rename(home / "scan.raw", tmp_path / "secret.raw")
    (home / "scan.raw").symlink_to(tmp_path / "secret.raw")
    with pytest.raises(DataError, match=r"scan\.raw, a link that leaves the folder"):
        read_header(path)
    os.rename(tmp_path / "secret.raw", home / "other.raw")
    (home / "scan.raw").unlink()
    (home / "scan.raw").symlink_to("other.raw")
    assert read_header(path).shape == (4, 3, 2)
    (tmp_path / "linked.mhd").symlink_to(path)  # a data set linked file by file into a store
    (tmp_path / "scan.raw").symlink_to(home / "scan.raw")
    assert read_header(tmp_path / "linked.mhd").shape == (4, 3, 2)


def test_pipes_folders_and_absent_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mhd")
    (tmp_path / "folder.nii").mkdir()
    path = mhd(tmp_path)
    (tmp_path / "scan.raw").unlink()
    os.mkfifo(tmp_path / "scan.raw")
    cases = [
        (tmp_path / "pipe.mhd", "a regular file"),
        (tmp_path / "folder.nii", "a regular file"),
        (tmp_path / "absent.nii", "No such file"),
        (tmp_path / "scan.jpg", "No such file"),
        (tmp_path / "nul\0.mhd", "expected a path"),
        (path, "scan.raw, which is no regular file"),
    ]
    for file, match in cases:
        with pytest.raises(DataError, match=match):
            read_header(file)
    (tmp_path / "scan.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a name ending in \.mhd"):
        read_header(tmp_path / "scan.jpg")


def test_bombs_stay_small(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(64 << 20))
    (tmp_path / "bomb.mha").write_bytes(packed().split(b"LOCAL\n")[0] + b"LOCAL\n" + bomb)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(nifti() + bytes(64 << 20))
    (tmp_path / "long.mhd").write_bytes(b"A = " + bytes([65]) * (32 << 20))
    tracemalloc.start()
    try:
        for name, match in (("bomb.mha", "more than 48"), ("bomb.nii.gz", "found more"), ("long.mhd", "ElementDataFile")):
            with pytest.raises(DataError, match=match):
                read_header(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_variants_of_spelling_are_read_as_itk_reads_them(tmp_path: Path) -> None:
    import itk

    good = read_header(mhd(tmp_path)).affine
    variants = [
        HEADER.replace("\n", "\r\n"),
        HEADER.replace(" = ", "="),
        HEADER.replace(" = ", "\t=\t"),
        HEADER.replace("NDims", "\n\nNDims"),
        HEADER.replace("Offset", "Position"),
        HEADER.replace("TransformMatrix", "Rotation"),
        HEADER.replace("NDims", "Comment = a = b\n0008|0020 = 2\nNDims"),
        HEADER.replace("ObjectType = Image\nNDims = 3\nBinaryData = True\n", "NDims = 3\n"),
    ]
    for text in variants:
        path = mhd(tmp_path, text)
        header = read_header(path)
        np.testing.assert_allclose(header.affine, good)
        image = itk.imread(str(path))
        point = np.array(image.TransformIndexToPhysicalPoint([3, 2, 1]))
        np.testing.assert_allclose((header.affine @ [3, 2, 1, 1])[:3], point * [-1, -1, 1], atol=1e-9)
        np.testing.assert_array_equal(itk.array_from_image(image).T, VOXELS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_element_types(tmp_path: Path, order: str) -> None:
    """int8 and int64 included, for which ITK's Python package has no image."""
    integers = {"CHAR": "1", "SHORT": "2", "INT": "4", "LONG": "4", "LONG_LONG": "8"}
    codes = {f"{sign}{name}": kind + size for name, size in integers.items() for sign, kind in (("", "i"), ("U", "u"))}
    for name, code in {**codes, "FLOAT": "f4", "DOUBLE": "f8"}.items():
        values = (np.arange(24).reshape(4, 3, 2, order="F") - (0 if code[0] == "u" else 12)).astype(order + code)
        text = line("ElementType", "MET_" + name).replace("MSB = False", f"MSB = {order == '>'}")
        path = mhd(tmp_path, text, values.tobytes(order="F"))
        assert read_header(path).dtype == np.dtype(code).name
        np.testing.assert_array_equal(read_image(path)[0][0].numpy(), values.astype(float))


def test_inline_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "packed.mha").write_bytes(packed())
    (tmp_path / "plain.mha").write_bytes(HEADER.replace("scan.raw", "LOCAL").encode() + RAW)
    for name in ("packed.mha", "plain.mha"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0][0].numpy(), VOXELS)
        assert data_files(tmp_path / name) == (tmp_path / name,)
    assert data_files(mhd(tmp_path)) == (tmp_path / "scan.mhd", tmp_path / "scan.raw")


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z) and RAS affine."""
    import itk

    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(list(image.GetSpacing()))
    affine[:3, 3] = list(image.GetOrigin())
    return itk.array_from_image(image).T, np.diag([-1, -1, 1, 1]) @ affine


UNUSUAL = {
    "no CompressedDataSize": (line("CompressedData", "True"), zlib.compress(RAW)),
    "ElementSize": (HEADER.replace("ElementSpacing", "ElementSize"), RAW),
    "both sizes": (line("ElementSize", "9 9 9"), RAW),
    "dot slash": (HEADER.replace("scan.raw", ".//./scan.raw"), RAW),
    "the voxels are the end": (line("HeaderSize", "-1"), b"\1" * 77 + RAW),
    "a header before the voxels": (line("HeaderSize", "77"), b"\1" * 77 + RAW),
    "HeaderSize in one file": (line("HeaderSize", "-1").replace("scan.raw", "LOCAL").encode() + b"\1" * 77 + RAW, None),
    "colons": (HEADER.replace("Offset =", "Offset:").replace("ElementSpacing =", "ElementSpacing :"), RAW),
    "a name of Windows": (line("0010|0010", "M\xfcller").encode("latin-1"), RAW),
    "a name in UTF-8": (line("\u59d3", "M\xfcller").encode(), RAW),
    "a long value": (line("0010|4000", "x" * 5000), RAW),
    "a long header": (line("0019|0000", "y" + "".join(f"\n0019|{n:04x} = {'y' * 400}" for n in range(1, 300))), RAW),
    "text": (line("BinaryData", "False"), " ".join(map(str, VOXELS.ravel(order="F"))).encode() + b"\n"),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_metaimage_is_read_as_itk_reads_it(tmp_path: Path, what: str) -> None:
    text, raw = UNUSUAL[what]
    path = tmp_path / ("scan.mhd" if raw is not None else "scan.mha")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if raw is not None:
        (tmp_path / "scan.raw").write_bytes(raw)
    values, affine = by_itk(path)
    np.testing.assert_array_equal(read_image(path)[0][0].numpy(), values)
    np.testing.assert_array_equal(values, VOXELS)
    np.testing.assert_allclose(read_header(path).affine, affine, atol=1e-9)


WORDS = ["Müller^Jürgen", "a=b", "a: b", "a\tb", "a\rb", "   ", "x" * 5000, "ORIGINAL\\PRIMARY", "\u59d3\u540d", '"x"', "1 2 3"]
NAMES = ["0010|0010", "k=e", "key:colon", "ü", "#c", "k/é&%$", " lead", "k" * 90, "Offset", "ObjectType", "Comment", "\u59d3"]


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd", "Müller 1.mhd", "\u59d3.mhd", "a=b,c.mhd", "list.mhd", "LISTE.mhd"])
@pytest.mark.parametrize("how", ["plain", "compressed", "text"])
def test_whatever_itk_writes_is_read(tmp_path: Path, name: str, how: str) -> None:
    """With its dictionary, which a scan from DICOM brings along."""
    import itk

    path = tmp_path / name
    for number, (key, word) in enumerate([*((key, "v") for key in NAMES), *((f"k{n}", word) for n, word in enumerate(WORDS))]):
        image = itk.image_from_array(np.ascontiguousarray(VOXELS.T))
        image.SetSpacing([0.3, 0.7, 2.2])
        dictionary = image.GetMetaDataDictionary()
        dictionary[key] = word
        writer = itk.MetaImageIO.New()
        if how == "text":
            writer.SetFileTypeToASCII()
        itk.imwrite(image, str(path), imageio=writer, compression=how == "compressed")
        np.testing.assert_array_equal(read_image(path)[0][0].numpy(), VOXELS, err_msg=f"{number}: {key} = {word[:20]}")
        assert read_header(path).geometry.spacing_mm == pytest.approx((0.3, 0.7, 2.2))


@pytest.mark.parametrize("spelt", ["cp1252", "NFD"])
def test_a_data_file_is_found_under_the_name_that_another_system_gave_it(tmp_path: Path, spelt: str) -> None:
    """A header written by Windows, or files copied from a Mac: the letters are the same, their bytes are not."""
    header = HEADER.replace("scan.raw", "Müller.raw")
    (tmp_path / "scan.mhd").write_bytes(header.encode("cp1252") if spelt == "cp1252" else header.encode())
    name = "Müller.raw" if spelt == "cp1252" else unicodedata.normalize("NFD", "Müller.raw")
    (tmp_path / name).write_bytes(RAW)
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mhd")[0][0].numpy(), VOXELS)


def nifti(change: Callable[[bytearray], None] | None = None) -> bytes:
    """Header (352 bytes) of a good 4 x 3 x 2 int16 file with sform and qform of code 1."""
    affine = np.array([[-0.3, 0, 0, 10], [0, 0.7, 0, -20], [0, 0, 2.2, 5], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(VOXELS, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    block = bytearray(image.to_bytes()[:352])
    if change:
        change(block)
    return bytes(block)


def put(kind: str, offset: int, *values: float) -> Callable[[bytearray], None]:
    return lambda block: struct.pack_into(f"<{len(values)}{kind}", block, offset, *values)


NIFTI_FAULTS = [
    (put("i", 0, 347), "sizeof_hdr: expected 348 or 540"),
    (put("i", 344, 0x0031696E), "magic: expected n.1"),  # "ni1": voxels in another file
    (put("B", 347, 1), r"magic: expected n.1 .*found b'n.1.x01'"),
    (put("f", 76, 2.0), r"pixdim.0.: expected 1 or -1, found 2"),
    (put("h", 40, 3, 4, 0, 2), "dim: expected three sizes of at least 1, found 4 x 0 x 2"),
    (put("h", 40, 3, -4, 3, 2), "dim: expected three sizes"),
    (put("h", 40, 3, 32767, 32767, 32767), "dim: expected at most"),
    (put("h", 40, 1, 4, 3, 2), "dim: expected 2 or 3 dimensions"),
    (put("h", 40, 2, 4, 3, 2), "voxels: expected a file of 376 bytes"),
    (put("h", 40, 9, 4, 3, 2), "dim: expected 2 or 3 dimensions"),
    (put("h", 40, 4, 4, 3, 2, 2), "voxels: expected a file of 448 bytes"),
    (put("h", 40, 4, 4, 3, 2, 17), "dim: expected 1 to 16 channels or volumes, found 17; extract"),
    (put("h", 40, 5, 4, 3, 2, 2, 2), "dim: expected one dimension of channels, found 4 x 3 x 2 x 2 x 2"),
    (put("h", 40, 3, 4, 3, 1), "voxels: expected a file of 376 bytes"),
    (put("h", 40, 3, 4, 3, 3), "voxels: expected a file of 424 bytes .*found 400"),
    (put("h", 70, 128), "datatype: expected a real number"),
    (put("h", 70, 32), "datatype: expected a real number"),
    (put("h", 72, 8), "bitpix: expected 16 for int16, found 8"),
    (put("f", 80, 0.0), "pixdim: expected three finite spacings"),
    (put("f", 80, -0.3), "pixdim: expected three finite spacings"),
    (put("f", 80, float("nan")), "pixdim: expected three finite spacings"),
    (put("f", 80, 0.9), "pixdim: expected the spacing of the sform, found 0.3 0.7 2.2 in the sform, 0.9"),
    (put("f", 108, 1e9), "vox_offset: expected"),
    (put("f", 108, float("nan")), "vox_offset: expected"),
    (put("f", 108, 100.0), "vox_offset: expected"),
    (put("f", 112, float("inf")), "scl_slope, scl_inter: expected finite"),
    (put("B", 123, 1), "xyzt_units: expected millimetres, found metres"),
    (put("h", 254, 84), "sform_code, qform_code: expected 0 to 5, found 84, 1"),
    (put("f", 256, 3.0), "quatern_b.*length at most 1"),
    (put("f", 280, 0.3, 0.3), r"srow_x.*: expected orthonormal"),
    (put("f", 280, 0.0, 0.0), r"srow_x.*: expected three finite spacings"),
    (put("f", 280, float("nan")), r"srow_x.*: expected finite"),
]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(("change", "match"), NIFTI_FAULTS)
def test_nifti_fault(tmp_path: Path, change: Callable[[bytearray], None], match: str, name: str) -> None:
    content = nifti(change) + RAW
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=match):
        read_header(tmp_path / name)


def test_damaged_gzip(tmp_path: Path) -> None:
    good = gzip.compress(nifti() + RAW)
    path = tmp_path / "scan.nii.gz"
    for content, match in [
        (good[:-12], "EOFError"),
        (good[:30], "EOFError"),
        (good[:-5] + b"\x55" + good[-4:], "BadGzipFile"),  # checksum
        (nifti() + RAW, r"BadGzipFile.*; name it \.nii: it is not compressed"),
        (b"", "sizeof_hdr: .*found an empty file;"),
        (gzip.compress(nifti() + RAW[:-1]), "found 399"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=match):
            read_header(path)


def test_nifti_is_read_as_nibabel_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    changes = [
        None,
        put("h", 40, 4, 4, 3, 2, 1),  # trailing dimension of one
        put("h", 254, 0),  # the qform alone
        put("h", 252, 0),  # the sform alone
        put("f", 108, 0.0),  # vox_offset 0 means 352
        put("f", 112, 2.0, 7.0),  # intensity scaling
        lambda block: (put("f", 76, 0.0)(block), put("h", 254, 0)(block))[0],  # qfac 0 means 1; the qform alone
    ]
    for change in changes:
        path.write_bytes(nifti(change) + RAW)
        header, expected = read_header(path), nibabel.load(path)
        np.testing.assert_allclose(header.affine, expected.affine, atol=1e-6)
        assert (header.shape, header.dtype, header.channels) == ((4, 3, 2), "int16", 1)
        np.testing.assert_allclose(read_image(path)[0][0].numpy(), expected.get_fdata().reshape(4, 3, 2), rtol=1e-6)
    big = nibabel.Nifti2Image(VOXELS, expected.affine).as_reoriented([[0, 1], [1, 1], [2, 1]])
    big.set_sform(expected.affine, 1)
    nibabel.save(big, path)
    np.testing.assert_allclose(read_header(path).affine, expected.affine, atol=1e-6)


@pytest.mark.parametrize("name", ["promise12", "hippocampus"])
def test_real_headers_agree_with_their_readers(name: str) -> None:
    root = real_data(name)
    paths = sorted(root.rglob("*.mhd"))[:8] + sorted(root.rglob("*.nii.gz"))[:8]
    assert paths
    for path in paths:
        tensor, geometry = read_image(path)  # compares the header with what MONAI's reader says
        assert tuple(tensor.shape[1:]) == geometry.shape
        assert read_header(path).channels == 1
