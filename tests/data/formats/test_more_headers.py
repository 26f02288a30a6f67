"""Headers of NRRD, FreeSurfer and image files: every fault is named before a library opens the file."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from oasis_monai.data.formats.dispatch import read_header
from oasis_monai.data.formats.header import MAX_VOXELS
from oasis_monai.data.io import read_image
from oasis_monai.utils.errors import DataError
from tests.data.formats.test_second_readers import SHAPE, VOXELS, nrrd_file, nrrd_text, turned

RAW = VOXELS.tobytes(order="F")
NRRD_FAULTS: list[tuple[dict[str, str | None], str]] = [
    ({"type": "block"}, "type: expected a number of at most 64 bits"),
    ({"type": None}, "type: .*found nothing"),
    ({"dimension": "2"}, "dimension: expected 3, or 4 with one of channels, found 2"),
    ({"dimension": "5", "sizes": "4 5 6 1 1"}, "dimension: expected 3, or 4"),
    ({"dimension": None}, "dimension: .*found nothing"),
    ({"sizes": "4 5"}, "sizes: expected 3 whole numbers, found 4 5"),
    ({"sizes": "4 5 -6"}, "sizes: expected 3 whole numbers"),
    ({"sizes": "4 5 0"}, "sizes: expected three sizes of at least 1"),
    ({"sizes": "4 5 6.5"}, "sizes: expected 3 whole numbers"),
    ({"sizes": "512 512 2049"}, f"sizes: expected at most {MAX_VOXELS} voxels"),
    ({"sizes": "99999999999999999999 9 9"}, "sizes: expected at most"),
    ({"sizes": "4 5 7"}, "voxels: expected 280 bytes .sizes x type., found 240 in x.nrrd, shorter"),
    ({"sizes": "4 5 5"}, "voxels: expected 200 bytes .sizes x type., found 240 in x.nrrd, longer"),
    ({"dimension": "4", "sizes": "4 5 6 2", "kinds": "domain domain domain domain"}, "kinds: expected three of kind domain"),
    (
        {"dimension": "4", "sizes": "4 5 6 2", "kinds": None, "space_directions": None},
        "kinds: .*found nothing; say in the header",
    ),
    (
        {"dimension": "4", "sizes": "4 5 6 90", "kinds": "domain domain domain time"},
        "sizes: expected 1 to 16 channels or volumes",
    ),
    ({"space": "left-posterior-superior-time"}, "space: expected right-anterior-superior"),
    ({"space": "anywhere"}, "space: .*found anywhere"),
    ({"space": None, "space_dimension": "2"}, "space: .*found 2 dimensions"),
    ({"space": None}, "space directions: expected these, or spacings, of every axis, found nothing"),
    ({"space": None, "spacings": "1 nan 1"}, "spacings: expected three finite spacings"),
    ({"space_directions": None}, "space directions: expected three vectors of three numbers, none for channels, found nothing"),
    ({"space_directions": "(1,0,0) (0,1,0)"}, "space directions: expected three vectors"),
    ({"space_directions": "(1,0,0) none (0,1,0)"}, "space directions: expected three vectors"),
    ({"space_directions": "(1,0,0) (0,1,0) (0,0,0)"}, "space directions: expected three finite spacings above 0 mm"),
    ({"space_directions": "(1,0,0) (0,1,0) (0,0,nan)"}, "space directions: expected three finite spacings above 0 mm"),
    ({"space_directions": "(1,0,0) (0,1,0) (0,0.1,1)"}, "space directions: expected orthonormal axes"),
    ({"space_directions": "(1,0,0) (0,1,0) (0,0,1e400)"}, "space directions: expected three finite"),
    ({"space_directions": "(1 0 0) (0 1 0) (0 0 1)"}, "space directions: expected three vectors"),
    ({"space_origin": "(0,inf,0)"}, "space origin: expected .x,y,z. of finite numbers"),
    ({"space_origin": "none"}, "space origin: expected"),
    ({"space_origin": ""}, "space origin: .*found nothing"),
    ({"space_units": '"m" "m" "m"'}, 'space units: expected "mm", found m m m'),
    ({"endian": None}, "endian: expected little or big, found nothing"),
    ({"endian": "middle"}, "endian: expected little or big, found middle"),
    ({"encoding": "hex"}, "encoding: expected raw, .*found hex"),
    ({"encoding": None}, "encoding: .*found nothing"),
    ({"encoding": "gzip"}, "voxels: expected 240 bytes .*, found a damaged zlib stream"),
    ({"encoding": "bzip2"}, "voxels: expected 240 bytes .*, found a damaged bzip2 stream"),
    ({"encoding": "ascii"}, "voxels: expected 120 numbers as text .sizes., found other text in x.nrrd"),
    ({"byte_skip": "-2"}, "byte skip: expected a number from 0 to 16777216, or -1, found -2"),
    ({"byte_skip": "999999999"}, "byte skip: expected a number"),
    ({"byte_skip": "-1", "encoding": "gzip"}, "byte skip: expected a number from 0 to 16777216, found -1"),
    ({"byte_skip": "1"}, "voxels: expected 240 bytes .* found 239 in x.nrrd, shorter"),
    ({"line_skip": "-1"}, "line skip: expected a number from 0"),
    ({"line_skip": "300"}, "voxels: expected 240 bytes .* found 0 in x.nrrd, shorter"),
    ({"data_file": "../x.raw"}, "data file: expected the name of one file beside the header, found ../x.raw"),
    ({"data_file": "sub/x.raw"}, "data file: expected the name"),
    ({"data_file": "/etc/hostname"}, "data file: expected the name"),
    ({"data_file": "C:\\x.raw"}, "data file: expected the name"),
    ({"data_file": ".."}, "data file: expected the name"),
    ({"data_file": "LIST"}, "data file: .*found LIST; join the slices"),
    ({"data_file": "x%03d.raw 1 6 1"}, "data file: .*join the slices"),
    ({"data_file": "gone.raw"}, "gone.raw, which is absent"),
    ({"data_file": "pipe.raw"}, "pipe.raw, which is no regular file"),
    ({"data_file": "link.raw"}, "link.raw, a link that leaves the folder"),
    ({"datafile": "pipe.raw"}, "pipe.raw, which is no regular file"),
]


@pytest.mark.parametrize(("changes", "match"), NRRD_FAULTS)
def test_nrrd_fault(tmp_path: Path, changes: dict[str, str | None], match: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "pipe.raw")
    (tmp_path / "secret.raw").write_bytes(RAW)
    (home / "link.raw").symlink_to(tmp_path / "secret.raw")
    with pytest.raises(DataError, match=match) as caught:
        read_header(nrrd_file(home, **changes))
    for row in str(caught.value).splitlines():
        assert row.startswith("x.nrrd: ")
        assert row.isascii()
        assert len(row) < 500


NRRD_TEXTS = [
    (b"", "magic: expected NRRD0001 to NRRD0005"),
    (b"NRRD0009\n" + nrrd_text()[9:] + RAW, "magic: expected"),
    (b"\x7fELF" + bytes(300), "magic: expected"),
    (nrrd_text()[:-1], "header: expected an empty line as its end"),
    (nrrd_text().replace(b"endian", b"type: short\nendian"), "type: expected one line, found two: short"),
    (nrrd_text().replace(b"endian", b"no field\nendian") + RAW, "header: expected 'field: value' lines"),
    (nrrd_text().replace(b"endian", b"a\x00b: c\nendian") + RAW, "header: expected 'field: value' lines"),
    (nrrd_text().replace(b"endian", b"a: " + b"x" * 70_000 + b"\nendian") + RAW, "header: expected 'field: value' lines"),
    (b"NRRD0004\n" + b"key:=value " * 10 + b"\n" + b"key:=value value value value value\n" * 40_000, "within 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "match"), NRRD_TEXTS)
def test_nrrd_text_fault(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "x.nrrd").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_header(tmp_path / "x.nrrd")


def test_all_faults_of_a_nrrd_header_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_header(nrrd_file(tmp_path, type="x", encoding="y", space_origin="z", data_file=".."))
    assert [fault.field for fault in caught.value.faults] == ["type", "encoding", "space origin", "data file"]


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_damaged_streams_of_nrrd(tmp_path: Path, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else bz2.compress
    good = pack(RAW)
    np.testing.assert_array_equal(read_image(nrrd_file(tmp_path, good, encoding=encoding))[0][0].numpy(), VOXELS)
    for data, match in [
        (good[:-9], "a damaged"),
        (good[:40], "a damaged"),
        (good[:60] + b"\x55\x55\x55" + good[63:], "a damaged"),
        (pack(RAW[:-2]), "found 238 after decompression"),
        (pack(RAW + b"xx"), "found more than 240 after decompression"),
    ]:
        with pytest.raises(DataError, match=f"voxels: expected 240 bytes .*{match}"):
            read_header(nrrd_file(tmp_path, data, encoding=encoding))


def mgh(folder: Path, *changes: tuple[int, str, object], name: str = "x.mgh", end: bytes = b"", cut: int = 0) -> Path:
    nibabel.save(nibabel.MGHImage(VOXELS.astype(np.int32), turned()), folder / "good.mgh")
    block = bytearray((folder / "good.mgh").read_bytes())
    for at, code, value in changes:
        struct.pack_into(">" + code, block, at, value)
    content = bytes(block[: len(block) - cut]) + end
    (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("mgz") else content)
    return folder / name


MGH_FAULTS = [
    ([(0, "i", 2)], "version: expected 1, found 2"),
    ([(4, "i", 0)], "width, height, depth: expected three sizes of at least 1"),
    ([(4, "i", -4)], "width, height, depth: expected three sizes"),
    ([(4, "i", 2**31 - 1), (8, "i", 2**31 - 1)], "width, height, depth: expected at most"),
    ([(16, "i", 0)], "nframes: expected 1 to 16 channels or volumes, found 0"),
    ([(16, "i", 200)], "nframes: expected 1 to 16 channels or volumes, found 200; extract"),
    ([(16, "i", 2)], "voxels: expected 1244 bytes and up to"),
    ([(20, "i", 2)], r"type: expected 0 \(uint8\), .* found 2"),
    ([(28, "h", 0)], "goodRASFlag: expected 1"),
    ([(30, "f", 0.0)], "spacing: expected three finite spacings"),
    ([(34, "f", float("nan"))], "spacing: expected three finite spacings"),
    ([(42, "f", 3.0)], "x_ras, y_ras, z_ras: expected orthonormal"),
    ([(42, "f", float("inf"))], "x_ras, y_ras, z_ras: expected nine finite"),
    ([(78, "f", float("inf"))], "c_ras: expected three finite"),
]


@pytest.mark.parametrize("name", ["x.mgh", "x.mgz"])
@pytest.mark.parametrize(("changes", "match"), MGH_FAULTS)
def test_mgh_fault(tmp_path: Path, changes: list[tuple[int, str, object]], match: str, name: str) -> None:
    with pytest.raises(DataError, match=match):
        read_header(mgh(tmp_path, *changes, name=name))


def test_mgh_length(tmp_path: Path) -> None:
    """FreeSurfer writes times and commands behind the voxels; nothing may be missing, and nothing huge may follow."""
    np.testing.assert_array_equal(read_image(mgh(tmp_path, end=b"x" * 5000))[0][0].numpy(), VOXELS)
    for cut, match in ((25, "found 759"), (500, "found 284"), (600, "file: expected a header of 284 bytes, found 184")):
        with pytest.raises(DataError, match=match):
            read_header(mgh(tmp_path, cut=cut))
    with pytest.raises(DataError, match="found more"):
        read_header(mgh(tmp_path, name="x.mgz", end=bytes(17 << 20)))
    (tmp_path / "x.mgz").write_bytes(mgh(tmp_path).read_bytes())
    with pytest.raises(DataError, match=r"BadGzipFile.*name it \.mgh: it is not compressed"):
        read_header(tmp_path / "x.mgz")
    (tmp_path / "x.mgz").write_bytes(gzip.compress(mgh(tmp_path).read_bytes())[:-20])
    with pytest.raises(DataError, match="a whole gzip file, found EOFError"):
        read_header(tmp_path / "x.mgz")


def png(size: tuple[int, int], data: bytes, kind: int = 0, bits: int = 8) -> bytes:
    """A PNG file, chunk by chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_image_faults(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes(range(9)) for _ in range(7))
    (tmp_path / "good.png").write_bytes(png((9, 7), rows))
    np.testing.assert_array_equal(read_image(tmp_path / "good.png")[0][0, :, 3, 0].numpy(), np.arange(9))
    stack = [Image.fromarray(np.full((7, 9), k, np.uint8)) for k in range(3)]
    stack[0].save(tmp_path / "stack.tif", save_all=True, append_images=stack[1:])
    stack[0].convert("CMYK").save(tmp_path / "cmyk.tif")
    stack[0].save(tmp_path / "whole.tif")
    stack[0].save(tmp_path / "gif.png", format="GIF")
    good = (tmp_path / "good.png").read_bytes()
    tracemalloc.start()
    try:
        for name, content, match in [
            ("a.png", b"", "file: expected a whole PNG or TIFF image that Pillow reads"),
            ("a.png", good[:60], "file: expected a whole PNG"),
            ("a.png", good.replace(b"IDAT", b"IDAX"), "file: expected a whole PNG"),
            ("a.png", png((9, 7), rows[:-30]), "file: expected a whole PNG"),
            ("a.png", png((60_000, 60_000), b""), "file: expected a whole PNG .*DecompressionBomb"),
            ("a.png", png((2**31 - 1, 2**31 - 1), b""), "file: expected a whole PNG"),
            ("a.png", (tmp_path / "gif.png").read_bytes(), "file: expected a whole PNG"),
            ("a.tif", good, "file: expected a whole PNG or TIFF"),
            ("a.tif", (tmp_path / "whole.tif").read_bytes()[:50], "file: expected a whole PNG or TIFF"),
            ("a.tif", (tmp_path / "stack.tif").read_bytes(), "pages: expected one image, found 3; save each as a file"),
            ("a.tif", (tmp_path / "cmyk.tif").read_bytes(), "pixels: expected grey values, a palette or RGB, found CMYK"),
        ]:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=match) as caught:
                read_header(tmp_path / name)
            assert str(caught.value).isascii()
            assert len(str(caught.value)) < 500
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_pair_and_its_names(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, turned()), tmp_path / "x.hdr")
    whole = (tmp_path / "x.hdr").read_bytes()
    (tmp_path / "y.hdr").write_bytes(whole.replace(b"ni1\0", b"n+1\0"))
    (tmp_path / "y.img").write_bytes(RAW)
    with pytest.raises(DataError, match=r"magic: expected ni1 or ni2 .*name the file \.nii"):
        read_header(tmp_path / "y.hdr")
    (tmp_path / "y.nii").write_bytes(whole + RAW)
    with pytest.raises(DataError, match=r"magic: expected n\+1 or n\+2 .*name the file \.hdr"):
        read_header(tmp_path / "y.nii")
    for raw, found in ((RAW[:-1], "found 239"), (RAW + b"x", "found more .241 or above.")):
        (tmp_path / "x.img").write_bytes(raw)
        with pytest.raises(DataError, match=f"voxels: expected a file of 240 bytes .*{found}"):
            read_header(tmp_path / "x.hdr")
    (tmp_path / "x.img").unlink()
    os.mkfifo(tmp_path / "x.img")
    with pytest.raises(DataError, match=r"x\.img, which is no regular file"):
        read_header(tmp_path / "x.img")
    (tmp_path / "z.img").write_bytes(RAW)
    with pytest.raises(DataError, match="No such file"):
        read_header(tmp_path / "z.img")
    assert VOXELS.shape == SHAPE
