"""Check MetaImage headers (.mhd, .mha) before the voxels are read.

ITK 5.4.7 silently accepts these faults: missing spacing becomes 1 mm; ``ElementDataFile`` with ``/`` or ``..`` reads any file;
``LIST``, a wrong ``CompressedDataSize`` or a damaged zlib stream give uninitialised memory; a raw file longer than the header
says is read from its start; intensity slope and distance units are ignored. ``NDims = 100`` aborts the process.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.header import (
    AGAIN,
    Faults,
    Header,
    Stored,
    affine_from,
    check_channels,
    check_direction,
    check_shape,
    check_spacing,
    flip_lps_ras,
)
from oasis_monai.data.formats.voxel_file import count_numbers, find_data_file, unpacked_bytes

MAX_HEADER_BYTES = 1024 * 1024  # ITK writes every tag of a DICOM file into it
MAX_LINE, MAX_KEY = 64 * 1024, 250  # MetaIO reads names into fixed buffers
ELEMENT_TYPES = {
    "MET_CHAR": "int8",
    "MET_UCHAR": "uint8",
    "MET_SHORT": "int16",
    "MET_USHORT": "uint16",
    "MET_INT": "int32",
    "MET_UINT": "uint32",
    "MET_LONG": "int32",  # MetaIO's LONG is 4 bytes on every machine
    "MET_ULONG": "uint32",
    "MET_LONG_LONG": "int64",
    "MET_ULONG_LONG": "uint64",
    "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}
SYNONYMS = (
    ("Offset", "Position", "Origin"),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
)
LINE = re.compile(r"\s*([^=:]*[^=:\s])\s*[=:]\s*(.*?)\s*", re.DOTALL)  # MetaIO takes both signs
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)
MAX_SKIPPED = 2**24


def read_metaimage(path: Path, faults: Faults) -> Header | None:
    """Check one MetaImage header and the length of its data, without holding more than about 1 MiB of it.

    Args:
        path: an existing regular file.
        faults: takes every fault found.

    Returns:
        The header, or None when a fault leaves nothing to return.
    """
    fields, data_at = _fields(path, faults)
    if not fields:
        return None
    for names in SYNONYMS:
        values = {fields[n] for n in names if n in fields}
        if len(values) > 1:
            faults.add(names[0], f"one value among {', '.join(names)}", " | ".join(sorted(values)), "keep one of these lines")
    _check_constants(fields, faults)

    dtype = ELEMENT_TYPES.get(fields.get("ElementType", ""))
    if dtype is None:
        faults.add("ElementType", "one of " + ", ".join(ELEMENT_TYPES), fields.get("ElementType", "nothing"), AGAIN)
    shape, affine = _grid(fields, faults)
    channels = _channels(fields, shape, faults)
    local = fields["ElementDataFile"].upper() == "LOCAL"
    data = path if local else find_data_file(path, fields["ElementDataFile"], "ElementDataFile", faults, ", or LOCAL")
    if dtype and shape and data and channels:
        _check_length(path, data, data_at, fields, math.prod(shape) * channels, np.dtype(dtype).itemsize, faults)
    if dtype is None or shape is None or affine is None or data is None or channels is None:
        return None
    big_endian = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    need = math.prod(shape) * channels * np.dtype(dtype).itemsize
    start = _start(data, data_at if data == path else 0, fields, need)
    packing = "zlib" if _compressed(fields) else "" if _binary(fields) else "text"
    stored = Stored(data, start, dtype, packing, big_endian)
    return Header(shape, affine, dtype, channels, (path,) if data == path else (path, data), stored)


def _channels(fields: Mapping[str, str], shape: tuple[int, int, int] | None, faults: Faults) -> int | None:
    key = "ElementNumberOfChannels"
    values = _numbers(fields.get(key, "1"))
    if values is None or len(values) != 1 or not math.isfinite(values[0]) or values[0] != int(values[0]):
        faults.add(key, "a whole number", fields[key] or "nothing", "correct the line")
        return None
    return int(values[0]) if check_channels(faults, key, shape or (1, 1, 1), int(values[0])) else None


def _times(fields: Mapping[str, str]) -> str:
    return " x channels" if fields.get("ElementNumberOfChannels", "1") != "1" else ""


def _compressed(fields: Mapping[str, str]) -> bool:
    return fields.get("CompressedData", "False").lower() == "true"


def _binary(fields: Mapping[str, str]) -> bool:
    return fields.get("BinaryData", "True").lower() == "true"


def _start(data: Path, first: int, fields: Mapping[str, str], need: int) -> int:
    """Where the voxels begin in a file whose own part begins at ``first``: HeaderSize bytes on; -1: they are its end."""
    skipped = _skipped(fields) or 0
    return os.stat(data).st_size - need if skipped == -1 else first + skipped


def _skipped(fields: Mapping[str, str]) -> int | None:
    """HeaderSize; None where it is none."""
    values = _numbers(fields.get("HeaderSize", "0"))
    if values is None or len(values) != 1 or not -1 <= values[0] <= MAX_SKIPPED or values[0] != int(values[0]):
        return None
    return int(values[0])


def _fields(path: Path, faults: Faults) -> tuple[dict[str, str], int]:
    """The ``key = value`` lines up to ElementDataFile, and the offset of the byte after them."""
    with open(path, "rb") as stream:
        head = stream.read(MAX_HEADER_BYTES + 1)
    fields: dict[str, str] = {}
    bad: list[bytes] = []
    at = 0
    while at < len(head) and "ElementDataFile" not in fields:
        end = head.find(b"\n", at)
        end = len(head) if end < 0 else end
        line, at = head[at:end].rstrip(b"\r"), end + 1
        if not line.strip(b" \t"):
            continue
        printable = all((byte >= 32 and byte != 127) or byte in (9, 13) for byte in line[: MAX_LINE + 1])
        # as the system decodes names: a data file is found whatever its letters
        match = LINE.fullmatch(os.fsdecode(line)) if printable and len(line) <= MAX_LINE else None
        if match is None or len(match[1]) > MAX_KEY:
            bad.append(line)
        elif match[1] in fields:
            faults.add(match[1], "one line", f"two: {fields[match[1]]} | {match[2]}", "keep the true one")
        else:
            fields[match[1]] = match[2]
    if bad:
        expected = f"'Key = value' lines of printable characters, at most {MAX_LINE}"
        found = f"{len(bad)} other line(s), first {bad[0][:60].decode('latin-1')!a}"
        faults.add("header", expected, found, "remove them, or check that this is a MetaImage header")
    if "ElementDataFile" not in fields:
        expected = f"this key within the first {MAX_HEADER_BYTES} bytes"
        faults.add("ElementDataFile", expected, "none", "check that this is a complete MetaImage header")
        return {}, 0
    if fields["ElementDataFile"].upper() != "LOCAL" and head[at:].strip():
        faults.add(
            "ElementDataFile", "the last line", f"{head[at : at + 40]!r} after it", "move it to the end: ITK ignores what follows"
        )
    return fields, at


def _check_constants(fields: Mapping[str, str], faults: Faults) -> None:
    """Keys that have one admissible value here; ITK would ignore, misread or crash on another."""
    numbers = {
        "NDims": (3.0, "only 3D scans are supported"),
        "ElementToIntensityFunctionSlope": (1.0, "apply the scaling to the voxels: ITK ignores it"),
        "ElementToIntensityFunctionOffset": (0.0, "apply the scaling to the voxels: ITK ignores it"),
    }
    for key, (value, remedy) in numbers.items():
        if (key in fields or key == "NDims") and _numbers(fields.get(key, "")) != [value]:
            faults.add(key, f"{value:g}", fields.get(key, "nothing"), remedy)
    plain = not _compressed(fields) and _binary(fields)
    if _skipped(fields) is None or (_skipped(fields) != 0 and not plain):
        expected = "the bytes before the voxels, or -1" if plain else "0"
        faults.add("HeaderSize", expected, fields["HeaderSize"] or "nothing", AGAIN)
    words = {
        "ObjectType": (("Image",), AGAIN),
        "BinaryData": (("True", "False", "true", "false"), AGAIN),
        "BinaryDataByteOrderMSB": (("True", "False", "true", "false"), AGAIN),
        "ElementByteOrderMSB": (("True", "False", "true", "false"), AGAIN),
        "CompressedData": (("True", "False", "true", "false"), AGAIN),
        "DistanceUnits": (("mm", "?"), "state spacing and offset in millimetres: ITK ignores the unit"),
    }
    for key, (allowed, remedy) in words.items():
        if key in fields and fields[key] not in allowed:
            faults.add(key, " or ".join(allowed[:2]), fields[key] or "nothing", remedy)


def _numbers(text: str) -> list[float] | None:
    """The numbers in ``text``; None unless there is nothing else. (float() also takes 1_0, which MetaIO reads as 1.)"""
    parts = text.split()
    return [float(p) for p in parts] if parts and all(NUMBER.fullmatch(p) for p in parts) else None


def _vector(
    fields: Mapping[str, str], names: tuple[str, ...], count: int, faults: Faults, default: list[float] | None
) -> list[float] | None:
    """The ``count`` numbers under the first of ``names`` that is there; ``default`` if none is, a fault if that is None."""
    name = next((n for n in names if n in fields), None)
    if name is None:
        if default is None:
            faults.add(names[0], f"{count} numbers", "nothing", "add the line: ITK would assume a value in silence")
        return default
    keys = list(fields)
    if "NDims" in fields and keys.index(name) < keys.index("NDims"):
        faults.add(name, "this line after NDims", "it before NDims", "move NDims to the top")
    values = _numbers(fields[name])
    if values is None or len(values) != count:
        faults.add(name, f"{count} numbers", fields[name] or "nothing", "correct the line")
        return None
    return values


def _grid(fields: Mapping[str, str], faults: Faults) -> tuple[tuple[int, int, int] | None, np.ndarray | None]:
    """Shape and RAS affine, each None when it cannot be had."""
    if _numbers(fields.get("NDims", "")) != [3.0]:
        return None, None  # said already; a vector of another length would only repeat it
    shape: tuple[int, int, int] | None = None
    sizes = _vector(fields, ("DimSize",), 3, faults, None)
    if sizes is not None:
        if not all(math.isfinite(s) and s == int(s) for s in sizes):
            faults.add("DimSize", "three whole numbers", fields["DimSize"], "correct the line")
        elif check_shape(faults, "DimSize", [int(s) for s in sizes]):
            shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    name = "ElementSize" if "ElementSize" in fields and "ElementSpacing" not in fields else "ElementSpacing"  # as MetaIO
    spacing = _vector(fields, (name,), 3, faults, None)
    good = spacing is not None and check_spacing(faults, name, spacing)
    offset = _vector(fields, SYNONYMS[0], 3, faults, [0.0, 0.0, 0.0])
    if offset is not None and not all(math.isfinite(o) for o in offset):
        faults.add("Offset", "three finite numbers", " ".join(f"{o:g}" for o in offset), "correct the line")
        good = False
    matrix = _vector(fields, SYNONYMS[1], 9, faults, [1.0, 0, 0, 0, 1, 0, 0, 0, 1])
    direction = None
    if matrix is not None:
        direction = np.array(matrix).reshape(3, 3).T  # the file lists one axis after the other
        good = check_direction(faults, "TransformMatrix", direction) and good
    if not good or spacing is None or offset is None or direction is None:
        return shape, None
    return shape, flip_lps_ras(affine_from(direction, spacing, offset))


def _check_length(
    path: Path, data: Path, data_at: int, fields: Mapping[str, str], count: int, itemsize: int, faults: Faults
) -> None:
    """The data must hold exactly ``count`` voxels, after decompression where the header says so."""
    need = count * itemsize
    start = max(_start(data, data_at if data == path else 0, fields, need), 0)
    size = max(os.stat(data).st_size - start, 0)
    expected = f"{need} bytes of voxels (DimSize x ElementType{_times(fields)})"
    if not _binary(fields):
        if _compressed(fields):
            faults.add("CompressedData", "False where BinaryData is False", "True", AGAIN)
        elif (found := count_numbers(data, start, count)) != count:
            remedy = "copy the data file again or correct DimSize"
            faults.add("ElementDataFile", f"{count} numbers as text (DimSize)", f"{found} in {data.name}", remedy)
        return
    if not _compressed(fields):
        if size != need:
            kind = "shorter" if size < need else "longer"
            faults.add(
                "ElementDataFile",
                expected,
                f"{size} in {data.name}, {kind}",
                "copy the data file again or correct DimSize and ElementType",
            )
        return
    # without it ITK takes a data file whole, but behind a header it reads nothing
    stated = _numbers(fields.get("CompressedDataSize", str(size) if data != path else ""))
    if stated != [float(size)]:
        remedy = "compress the scan again: ITK would return uninitialised memory"
        faults.add("CompressedDataSize", f"{size}, the bytes there are", fields.get("CompressedDataSize", "nothing"), remedy)
    try:
        found = unpacked_bytes(data, start, "zlib", need)
    except (OSError, EOFError, zlib.error) as error:
        faults.add("ElementDataFile", expected, f"a damaged zlib stream ({error})", "copy the data file again")
        return
    if found != need:
        found_text = f"more than {need}" if found > need else f"{found}"
        faults.add(
            "ElementDataFile", expected, f"{found_text} after decompression", "copy the data file again or correct DimSize"
        )
