"""3,300 damaged scans: each is read, or refused in words that name case and field; no crash, no hang, no more than 1 GiB.

All run in one process of their own, whose address space may grow by no more than 1 GiB and which an alarm ends when a file takes
longer than it may. What a mutation touched is known, so that the field that is named can be the right one.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.formats.test_headers import HEADER, RAW, VOXELS, nifti

COUNT = 600  # of each file type, and fewer of the types that share a check
SECONDS = 10  # for one file; the slowest takes milliseconds
GROWTH = 1 << 30
NUMBERS = [
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-308",
    "4294967296",
    "99999999999999999999",
    "2.5",
    "0x10",
    "1,5",
    "",
    "1_0",
]
WORDS = ["LIST", "LOCAL", "..", "../scan.raw", "/etc/passwd", "C:\\x", "s%d.raw 1 2 1", "True", "maybe", "MET_CUBE", "MET_DOUBLE"]
BYTES = [b"\0", b"\xff\xfe", "\u00e9\u4e2d".encode(), b"=", b"\r", b"\n", b"\t", b" " * 3000]

# what a wrong value of one key may rightly be told by: it changes how many bytes there have to be, or which line is the last
TOLD_BY = {
    "DimSize": {"ElementDataFile", "NDims"},
    "NDims": {"DimSize", "ElementSpacing", "Offset", "TransformMatrix"},
    "ElementType": {"ElementDataFile"},
    "CompressedData": {"ElementDataFile", "CompressedDataSize"},
    "CompressedDataSize": {"ElementDataFile"},
}
LINES = HEADER.splitlines()
KEYS = [row.split(" = ")[0] for row in LINES]


def lines_of(rng: random.Random) -> tuple[list[str], str]:
    """The good header with one line wrong, and that line's key."""
    rows, at = list(LINES), rng.randrange(len(LINES))
    key, value = rows[at].split(" = ")
    match rng.randrange(7):
        case 0:
            del rows[at]
        case 1:
            rows.insert(rng.randrange(len(rows)), f"{key} = {rng.choice(NUMBERS + WORDS)}")
        case 2:
            rows.insert(rng.randrange(len(rows)), rows.pop(at))
        case 3:
            rows[at] = f"{key} = {rng.choice(WORDS)}"
        case 4:
            parts = value.split()
            parts[rng.randrange(len(parts))] = rng.choice(NUMBERS)
            rows[at] = f"{key} = {' '.join(parts)}"
        case 5:
            rows[at] = f"{key} = {' '.join(value.split()[:-1])}"
        case _:
            rows[at] = f"{key} = {value} {rng.choice(NUMBERS)}"
    return rows, key


def bytes_of(good: bytes, header: int, rng: random.Random) -> bytes:
    """``good`` with one to three changes of bytes, mostly inside its first ``header``."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at = rng.randrange(min(header, len(data)) if rng.random() < 0.9 else len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randint(1, 20)]
            case 2:
                data[at:at] = rng.choice(BYTES)
            case _:
                del data[max(at, 1) :]
    return bytes(data or b"x")


def metaimage(folder: Path, name: str, rng: random.Random) -> str | None:
    """Write a damaged MetaImage; -> the key that is wrong, None where any may be."""
    raw = rng.choice([RAW] * 8 + [RAW[:-1], RAW + b"\0", b"", RAW * 3])
    key: str | None = None if raw != RAW else "?"
    rows = list(LINES)
    if key and rng.random() < 0.7:
        rows, key = lines_of(rng)
    ends = rng.choice(["\n", "\n", "\n", "\r\n", "\r"])
    key = None if ends == "\r" else key
    text = ends.join(rows) + ends
    if name.endswith(".mha"):
        packed = rng.random() < 0.5
        stream = zlib.compress(raw) if packed else raw
        size = len(stream) if rng.random() < 0.9 else rng.choice([0, -1, 2**40])
        text = text.replace("scan.raw", "LOCAL")
        if packed:
            text = text.replace("CompressedData = False", f"CompressedData = True{ends}CompressedDataSize = {size}")
        if packed and size != len(stream):
            key = None
        content = text.encode("latin-1") + stream
    else:
        (folder / "scan.raw").write_bytes(raw)
        content = text.encode("latin-1")
    if key == "?":
        content, key = bytes_of(content, len(text), rng), None
    (folder / name).write_bytes(content)
    return key


# offset, struct code and count of the fields of a NIfTI-1 header that are looked at, and the name they are told by
FIELDS = {
    "sizeof_hdr": (0, "i", 1),
    "dim": (40, "h", 4),
    "datatype": (70, "h", 1),
    "bitpix": (72, "h", 1),
    "pixdim": (76, "f", 4),
    "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1),
    "xyzt_units": (123, "B", 1),
    "qform_code": (252, "h", 1),
    "sform_code": (254, "h", 1),
    "quatern_b": (256, "f", 3),
    "srow_x": (280, "f", 4),
    "magic": (344, "B", 4),
}
WRONG = {
    "f": [0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-38, 2.5],
    "h": [0, -1, 32767, -32768, 7, 128],
    "i": [0, -1, 347, 2**31 - 1],
    "B": [0, 1, 3, 255],
}


def nifti_file(folder: Path, name: str, rng: random.Random) -> str | None:
    """Write a damaged NIfTI file; -> the field that is wrong, None where any may be."""
    block, field = bytearray(nifti()), None
    raw = RAW
    choice = rng.random()
    if choice < 0.6:
        field, (offset, code, count) = rng.choice(list(FIELDS.items()))
        at = offset + struct.calcsize(code) * rng.randrange(count)
        struct.pack_into("<" + code, block, at, rng.choice(WRONG[code]))
    elif choice < 0.7:
        raw = rng.choice([RAW[:-1], RAW + b"\0", b""])
    content = bytes(block) + raw
    if choice >= 0.7:
        content = bytes_of(content, 352, rng)
    if name.endswith(".gz"):
        content = gzip.compress(content, 1)
        if rng.random() < 0.1:
            content, field = bytes_of(content, len(content), rng), None
    (folder / name).write_bytes(content)
    return field


NIFTI_TOLD_BY = {
    "sizeof_hdr": {"sizeof_hdr"},
    "dim": {"dim", "voxels", "sform, qform"},
    "datatype": {"datatype", "bitpix", "voxels"},
    "bitpix": {"bitpix"},
    "pixdim": {"pixdim", "sform, qform"},
    "vox_offset": {"vox_offset", "voxels"},
    "scl_slope": {"scl_slope", "voxels", "image"},
    "xyzt_units": {"xyzt_units"},
    "qform_code": {"sform_code, qform_code"},
    "sform_code": {"sform_code, qform_code"},
    "quatern_b": {"quatern_b", "sform, qform", "qform"},
    "srow_x": {"srow_x", "pixdim", "sform, qform"},
    "magic": {"magic"},
}

NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 3 2
space directions: (0.3,0,0) (0,0.7,0) (0,0,2.2)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (1.5,-2,3)
"""
NRRD_WORDS = [
    "none",
    "(0,0,0)",
    "(1,2)",
    "gzip",
    "bzip2",
    "ascii",
    "hex",
    "block",
    "uchar",
    "list",
    "RAS",
    "left",
    *WORDS,
    *NUMBERS,
]


def nrrd(folder: Path, name: str, rng: random.Random) -> str | None:
    """Write a damaged NRRD file: a line wrong, bytes wrong, or too many or too few voxels."""
    rows = NRRD.splitlines()
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(1, len(rows))
        key, _, value = rows[at].partition(": ")
        parts = value.split() or [""]
        parts[rng.randrange(len(parts))] = rng.choice(NRRD_WORDS)
        new = rng.choice([[], [f"{key}: {rng.choice(NRRD_WORDS)}"], [f"{key}: {' '.join(parts)}"], [rows[at]] * 2])
        rows[at : at + 1] = new
    if rng.random() < 0.3:
        rows.insert(
            rng.randrange(1, len(rows)), f"{rng.choice(['data file', 'byte skip', 'line skip'])}: {rng.choice(NRRD_WORDS)}"
        )
    content = "\n".join(rows).encode() + b"\n\n" + rng.choice([RAW] * 8 + [RAW[:-1], RAW + b"\0", b"", gzip.compress(RAW, 1)])
    (folder / name).write_bytes(bytes_of(content, len(NRRD), rng) if rng.random() < 0.3 else content)
    return None


def damaged(content: bytes, header: int, packed: bool = False) -> Callable[[Path, str, random.Random], str | None]:
    """A maker of files with wrong bytes, half of them packed after that."""

    def make(folder: Path, name: str, rng: random.Random) -> str | None:
        data = bytes_of(content, header, rng) if rng.random() < 0.9 else content
        if packed:
            data = gzip.compress(data, 1)
            data = bytes_of(data, len(data), rng) if rng.random() < 0.1 else data
        (folder / name).write_bytes(data)
        return None

    return make


def others() -> dict[str, bytes]:
    """Whole files of the formats whose headers are bytes."""
    import io

    import nibabel
    from PIL import Image

    image = nibabel.MGHImage(VOXELS.astype(np.int16), np.diag([0.3, 0.7, 2.2, 1]))
    pair = bytearray(nifti())
    pair[344:348], pair[108:112] = b"ni1\0", bytes(4)
    files = {"scan.mgz": image.to_bytes(), "scan.hdr": bytes(pair[:348])}
    for kind in ("PNG", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).save(stream, kind, dpi=(254, 254))
        files[f"scan.{kind.lower()[:4]}"] = stream.getvalue()
    return files


OTHERS = others()
MAKERS: dict[str, Callable[[Path, str, random.Random], str | None]] = {
    "scan.mhd": metaimage,
    "scan.mha": metaimage,
    "scan.nii": nifti_file,
    "scan.nii.gz": nifti_file,
    "scan.nrrd": nrrd,
    "scan.mgz": damaged(OTHERS["scan.mgz"], 92, packed=True),
    "scan.hdr": damaged(OTHERS["scan.hdr"], 348),
    "scan.png": damaged(OTHERS["scan.png"], 70),
    "scan.tiff": damaged(OTHERS["scan.tiff"], 150),
}
FEWER = {"scan.nrrd": 300, "scan.mgz": 150, "scan.hdr": 150, "scan.png": 150, "scan.tiff": 150}


def read_all(folder: Path, report: Path) -> None:
    """In a process of its own: make and read all files; what came of each goes into ``report``."""
    import resource

    from oasis_monai.data.io import read_image
    from oasis_monai.data.types import Case
    from oasis_monai.workflows.check import check_cases

    for name in MAKERS:  # the readers' libraries are loaded, and counted, before
        if name in ("scan.mhd", "scan.nii", *OTHERS):
            content = OTHERS.get(name) or (HEADER.encode() if "mh" in name else nifti() + RAW)
            (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
            (folder / "scan.raw").write_bytes(RAW)
            (folder / "scan.img").write_bytes(RAW)
            read_image(folder / name)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        limit = pages * os.sysconf("SC_PAGE_SIZE") + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the end of the process, also where no Python code runs
    told = []
    for name, make in MAKERS.items():
        rng = random.Random(name)
        for number in range(FEWER.get(name, COUNT)):
            key = make(folder, name, rng)
            signal.alarm(SECONDS)
            faults = check_cases([Case("Case07", folder / name)], (0, 1))
            signal.alarm(0)
            rows = [[f.case, f.field, f.expected, f.found, f.remedy, f.severity, str(f)] for f in faults]
            told.append([name, number, key, rows])
            report.write_text(json.dumps([name, number])) if number % 50 == 0 else None
    report.write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str | None, list[list[str]]]]:
    if not hasattr(os, "fork"):
        pytest.skip("needs POSIX limits and alarms")
    folder = tmp_path_factory.mktemp("fuzz")
    process = multiprocessing.get_context("fork").Process(target=read_all, args=(folder, folder / "report.json"))
    process.start()
    process.join(300)
    last = (folder / "report.json").read_text()[:200] if (folder / "report.json").exists() else "nothing"
    assert process.exitcode == 0, f"ended with {process.exitcode} (alarm: {-signal.SIGALRM}) some files after {last}"
    return [(name, number, key, rows) for name, number, key, rows in json.loads((folder / "report.json").read_text())]


def test_no_crash_no_hang_and_both_roads_are_walked(told: list[tuple[str, int, str | None, list[list[str]]]]) -> None:
    assert len(told) == sum(FEWER.get(name, COUNT) for name in MAKERS) >= 3300
    for name in MAKERS:
        refused = [any(row[5] == "error" for row in rows) for other, _, _, rows in told if other == name]
        assert len(refused) == (count := FEWER.get(name, COUNT))
        assert count / 20 < sum(refused) < count * 19 / 20, (name, sum(refused))


def test_every_refusal_is_a_line_that_names_case_and_field_and_what_to_do(
    told: list[tuple[str, int, str | None, list[list[str]]]],
) -> None:
    for name, number, _, rows in told:
        for case, field, expected, found, remedy, severity, line in rows:
            where = f"{name} {number}: {line}"
            assert case == "Case07", where
            assert severity in ("error", "warning"), where
            assert all((field, expected, found, remedy)), where
            assert line.startswith(f"Case07: {field}: expected "), where
            assert line.isascii(), where
            assert line.isprintable(), where
            assert len(line) < 500, where


def test_the_field_that_is_named_is_the_one_that_is_wrong(told: list[tuple[str, int, str | None, list[list[str]]]]) -> None:
    """Where one line or one field was changed, a refusal names that one, or what it decides."""
    looked, wrong = 0, []
    for name, number, key, rows in told:
        errors = [row for row in rows if row[5] == "error"]
        if key is None or not errors:
            continue
        looked += 1
        moved = [row[3] for row in errors if row[2] == "the last line"]  # a line behind the last one is shown, as ITK ignores it
        fields = " ".join([*(row[1] for row in errors), *moved])
        allowed = {key} | TOLD_BY.get(key, set()) if key in KEYS else NIFTI_TOLD_BY[key]
        if name == "scan.mha":  # a line behind the last one belongs to the voxels there, and is missed
            allowed = allowed | {"ElementDataFile", *(KEYS if key == "ElementDataFile" else ())}
        if not any(word in fields for word in allowed):
            wrong.append(f"{name} {number}: {key} was wrong, told: {[r[6] for r in errors]}")
    assert wrong == []
    assert looked > 500
