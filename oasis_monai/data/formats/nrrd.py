"""Check NRRD headers (.nrrd, .nhdr, .seg.nrrd) before the voxels are read, and write NRRD files.

Here too libraries guess in silence: ITK takes a missing spacing as 1 mm, and opens whatever path ``data file`` names.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    split_affine,
)
from oasis_monai.data.formats.segments import segments_of
from oasis_monai.data.formats.voxel_file import count_numbers, find_data_file, unpacked_bytes
from oasis_monai.data.types import Geometry

MAX_HEADER_BYTES = 1024 * 1024  # Slicer writes terminology and colour of every segment into it
MAX_LINE = 64 * 1024
MAX_SKIPPED = 2**24
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity)"
VECTOR = re.compile(rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\)|none", re.IGNORECASE)
TYPES = {
    "int8": "signed char|int8|int8_t",
    "uint8": "uchar|unsigned char|uint8|uint8_t",
    "int16": "short|short int|signed short|signed short int|int16|int16_t",
    "uint16": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "int32": "int|signed int|int32|int32_t",
    "uint32": "uint|unsigned int|uint32|uint32_t",
    "int64": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "uint64": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "float32": "float",
    "float64": "double",
}
PACKINGS = {
    **{"raw": "", "txt": "text", "text": "text", "ascii": "text"},
    **{"gz": "zlib", "gzip": "zlib", "bz2": "bzip2", "bzip2": "bzip2"},
}
SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
"""Signs that turn a space's coordinates into RAS."""
UNKNOWN = ("scanner-xyz", "scanner-xyz-", "3d-right-handed", "3d-left-handed")
SPATIAL = ("domain", "space")
SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "spaceunits": "space units"}


def read_nrrd(path: Path, faults: Faults) -> Header | None:
    """Check one NRRD header and the length of its data, without holding more than about 1 MiB of it.

    Args:
        path: an existing regular file.
        faults: takes every fault found.

    Returns:
        The header, or None when a fault leaves nothing to return.
    """
    before = len(faults.all)
    text = _read_text(path, faults)
    if text is None:
        return None
    fields = text.fields
    kind = fields.get("type", "nothing").lower()
    dtype = next((name for name, names in TYPES.items() if kind in names.split("|")), None)
    if dtype is None:
        faults.add("type", "a number of at most 64 bits, such as short or uchar", kind, AGAIN)
    encoding = fields.get("encoding", "nothing").lower()
    packing = PACKINGS.get(encoding)
    if packing is None:
        faults.add("encoding", ", ".join(dict.fromkeys(PACKINGS)), encoding, "save the scan again, raw or as gzip")
    if dtype and np.dtype(dtype).itemsize > 1 and packing != "text" and fields.get("endian") not in ("little", "big"):
        faults.add("endian", "little or big", fields.get("endian", "nothing"), "add the line: a reader would guess in silence")
    axes = _axes(fields, faults)
    affine = None if axes is None else _affine(fields, axes, faults)
    name = fields.get("data file")
    data = path if name is None else find_data_file(path, name, "data file", faults)
    skips = [_skip(fields, key, faults) for key in ("line skip", "byte skip")]
    if len(faults.all) > before or axes is None or dtype is None or packing is None or data is None or affine is None:
        return None
    start = _start(data, text.end if data == path else 0, skips[0])
    need = math.prod(axes.shape) * axes.channels * np.dtype(dtype).itemsize
    stored = Stored(data, start, dtype, packing, fields.get("endian") == "big", axes.channel_axis, max(skips[1], 0))
    if packing in ("", "text"):
        start = os.stat(data).st_size - need if skips[1] == -1 and not packing else start + max(skips[1], 0)
        stored = Stored(data, start, dtype, packing, stored.big_endian, axes.channel_axis)
    _check_length(stored, need, math.prod(axes.shape) * axes.channels, faults)
    segments = segments_of(text.keys, axes.channels)
    files = (path,) if data == path else (path, data)
    return Header(axes.shape, affine, dtype, axes.channels, files, stored, segments=segments)


@dataclass(frozen=True)
class _Text:
    """A header's fields, its own keys and values, and the offset of the byte after it."""

    fields: Mapping[str, str]
    keys: Mapping[str, str]
    end: int


def _read_text(path: Path, faults: Faults) -> _Text | None:
    """The lines up to the first empty one."""
    with open(path, "rb") as stream:
        head = stream.read(MAX_HEADER_BYTES + 1)
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        faults.add("magic", "NRRD0001 to NRRD0005 in the first line", repr(head[:12])[2:-1], "check that this is a NRRD file")
        return None
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    bad: list[bytes] = []
    at, ended = head.find(b"\n") + 1, False
    while at < len(head) and not ended:
        end = head.find(b"\n", at)
        end = len(head) if end < 0 else end
        line, at = head[at:end].rstrip(b"\r"), end + 1
        ended = not line
        if ended or line.startswith(b"#"):
            continue
        printable = len(line) <= MAX_LINE and all((byte >= 32 and byte != 127) or byte == 9 for byte in line)
        match = re.fullmatch(r"([^:]+):([= ]|$)\s*(.*?)\s*", os.fsdecode(line)) if printable else None
        if match is None:
            bad.append(line)
            continue
        key, value = match[1].strip(), match[3]
        if match[2] == "=":
            keys[_plain(key)] = _plain(value)
            continue
        key = SYNONYMS.get(key.lower(), key.lower())
        if key in fields:
            faults.add(key, "one line", f"two: {fields[key]} | {value}", "keep the true one")
        fields[key] = value.lower() if key in ("endian", "space") else value
    if bad:
        found = f"{len(bad)} other line(s), first {bad[0][:60].decode('latin-1')!a}"
        expected = f"'field: value' lines of printable characters, at most {MAX_LINE}"
        faults.add("header", expected, found, "remove them, or check that this is a NRRD file")
    if not ended and "data file" not in fields:
        faults.add("header", f"an empty line as its end, within {MAX_HEADER_BYTES} bytes", "none", "copy the file again")
        return None
    return _Text(fields, keys, at)


def _plain(text: str) -> str:
    r"""What stands for itself where \n and \\ are written for a new line and a backslash."""
    return re.sub(r"\\(n|\\)", lambda match: "\n" if match[1] == "n" else "\\", text)


@dataclass(frozen=True)
class _Axes:
    """Which of the file's axes are x, y, z, and which is that of the channels."""

    shape: tuple[int, int, int]
    channels: int
    spatial: tuple[int, ...]
    channel_axis: int
    count: int


def _axes(fields: Mapping[str, str], faults: Faults) -> _Axes | None:
    sizes = fields.get("sizes", "").split()
    dimension = fields.get("dimension", "nothing")
    if dimension not in ("3", "4"):
        faults.add("dimension", "3, or 4 with one of channels", dimension, "only scans of three dimensions are read")
        return None
    if len(sizes) != int(dimension) or not all(re.fullmatch(r"\d{1,20}", size) for size in sizes):
        faults.add("sizes", f"{dimension} whole numbers", fields.get("sizes", "nothing"), AGAIN)
        return None
    spatial = [0, 1, 2]
    if len(sizes) == 4:
        kinds = fields.get("kinds", "").lower().split()
        vectors = _vectors(fields, 4)
        if len(kinds) == 4 and sum(kind in SPATIAL for kind in kinds) == 3:
            spatial = [axis for axis in range(4) if kinds[axis] in SPATIAL]
        elif vectors is not None and sum(vector is not None for vector in vectors) == 3:
            spatial = [axis for axis in range(4) if vectors[axis] is not None]
        else:
            expected = "three of kind domain or space, the other of channels"
            faults.add("kinds", expected, " ".join(kinds) or "nothing", "say in the header which axis counts the channels")
            return None
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    shape = [int(sizes[axis]) for axis in spatial]
    channels = int(sizes[others[0]]) if others else 1
    if not check_shape(faults, "sizes", shape) or not check_channels(faults, "sizes", shape, channels):
        return None
    return _Axes((shape[0], shape[1], shape[2]), channels, tuple(spatial), others[0] if others else 3, len(sizes))


def _vectors(fields: Mapping[str, str], count: int) -> list[list[float] | None] | None:
    """The space directions, None for an axis that has none; None altogether where there are not ``count``."""
    text = fields.get("space directions", "").strip()
    found = list(VECTOR.finditer(text))
    if len(found) != count or VECTOR.sub("", text).strip():
        return None
    return [None if match[1] is None else [float(v) for v in match.groups()] for match in found]


def _affine(fields: Mapping[str, str], axes: _Axes, faults: Faults) -> np.ndarray | None:
    """RAS+ affine; None with a fault where it cannot be had."""
    space = fields.get("space")
    units = [u.lower() for u in re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))]
    if any(unit not in ("", "mm", "millimeter", "millimetre", "?", "n/a", "none") for unit in units):
        faults.add("space units", '"mm"', " ".join(units), "state the geometry in millimetres")
        return None
    if space is None and "space dimension" not in fields:
        return _without_space(fields, axes, faults)
    signs = SPACES.get(space or "")
    if signs is None:
        if space not in (None, *UNKNOWN) or fields.get("space dimension", "3") != "3":
            found = space or f"{fields.get('space dimension') or 'no'} dimensions"
            faults.add("space", ", ".join(list(SPACES)[::2]), found, "save the scan in one of these")
            return None
        signs = SPACES["lps"]
        remedy = "taken as left-posterior-superior, as by ITK; write the true one into the header"
        faults.warn("space", ", ".join(list(SPACES)[::2]), space or "nothing", remedy)
    vectors = _vectors(fields, axes.count)
    used = [] if vectors is None else [vectors[axis] for axis in axes.spatial]
    if len(used) != 3 or any(vector is None for vector in used):
        found = fields.get("space directions", "nothing")
        faults.add("space directions", "three vectors of three numbers, none for channels", found, AGAIN)
        return None
    matrix = np.array(used, float).T
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.linalg.norm(matrix, axis=0)
    good = check_spacing(faults, "space directions", [float(s) for s in spacing])
    good = good and check_direction(faults, "space directions", matrix / spacing)
    origin = VECTOR.fullmatch(fields.get("space origin", "(0,0,0)").strip())
    if origin is None or origin[1] is None or not all(math.isfinite(float(v)) for v in origin.groups()):
        faults.add("space origin", "(x,y,z) of finite numbers", fields["space origin"] or "nothing", "correct the line")
        return None
    affine = affine_from(matrix / spacing, [float(s) for s in spacing], [float(v) for v in origin.groups()]) if good else None
    return None if affine is None else np.asarray(np.diag([*signs, 1.0]) @ affine)


def _without_space(fields: Mapping[str, str], axes: _Axes, faults: Faults) -> np.ndarray | None:
    """Voxel sizes alone: the axes are taken as ITK takes them."""
    values = fields.get("spacings", "").split()
    if len(values) != axes.count or not all(re.fullmatch(NUMBER, v, re.IGNORECASE) for v in values):
        found = fields.get("spacings", "nothing")
        faults.add(
            "space directions", "these, or spacings, of every axis", found, "add the line: ITK would assume 1 mm in silence"
        )
        return None
    spacing = [float(values[axis]) for axis in axes.spatial]
    if not check_spacing(faults, "spacings", spacing):
        return None
    remedy = "the axes are taken to run to the left, the back and the top, as by ITK; write the true ones into the header"
    faults.warn("space", "one, with space directions and space origin", "spacings alone", remedy)
    return flip_lps_ras(affine_from(np.eye(3), spacing, [0, 0, 0]))


def _skip(fields: Mapping[str, str], key: str, faults: Faults) -> int:
    text = fields.get(key, "0")
    whole = re.fullmatch(r"-1|\d{1,9}", text) is not None and int(text) <= MAX_SKIPPED
    packed = PACKINGS.get(fields.get("encoding", "").lower()) != ""
    if not whole or (text == "-1" and (packed or key == "line skip")):
        last = "" if packed or key == "line skip" else ", or -1"
        faults.add(key, f"a number from 0 to {MAX_SKIPPED}{last}", text or "nothing", AGAIN)
        return 0
    return int(text)


def _start(data: Path, first: int, lines: int) -> int:
    """Offset of the byte after so many lines, which are no longer than :data:`MAX_SKIPPED` together."""
    with open(data, "rb") as stream:
        stream.seek(first)
        left = MAX_SKIPPED
        for _ in range(lines):
            left -= len(stream.readline(max(left, 0)))
        return stream.tell()


def _check_length(stored: Stored, need: int, count: int, faults: Faults) -> None:
    """The data must hold exactly the voxels, once unpacked."""
    field, remedy = "voxels", "copy the data file again or correct sizes and type"
    expected = f"{need} bytes (sizes x type)"
    if stored.packing == "text":
        if (numbers := count_numbers(stored.file, stored.start, count)) != count:
            faults.add(field, f"{count} numbers as text (sizes)", f"{numbers} in {stored.file.name}", remedy)
        return
    if not stored.packing:
        size = os.stat(stored.file).st_size - stored.start
        # pynrrd and Slicer end nothing with a line, some editors do
        if stored.start < 0 or size != need:
            found = f"{max(size, 0)} in {stored.file.name}, {'shorter' if size < need or stored.start < 0 else 'longer'}"
            faults.add(field, expected, found, remedy)
        return
    try:
        found_bytes = unpacked_bytes(stored.file, stored.start, stored.packing, need + stored.skip) - stored.skip
    except (OSError, EOFError, zlib.error) as error:
        faults.add(field, expected, f"a damaged {stored.packing} stream ({error})", "copy the data file again")
        return
    if found_bytes != need:
        text = f"more than {need}" if found_bytes > need else f"{max(found_bytes, 0)}"
        faults.add(field, expected, f"{text} after decompression", remedy)


def write_nrrd(
    path: Path, array: np.ndarray, geometry: Geometry, keys: Mapping[str, str] | None = None, channel_kind: str = "vector"
) -> None:
    """Write (x, y, z) or (x, y, z, C) as one file, packed, in the space left-posterior-superior as ITK and Slicer do.

    ``keys``: further lines ``key:=value``; ``channel_kind``: what the header calls the axis of C.
    """
    direction, spacing, origin = split_affine(flip_lps_ras(geometry.affine))
    channels = array.shape[3:]
    little = np.moveaxis(array, -1, 0) if channels else array  # channels vary fastest, then x
    data = little.astype(little.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    fields = {
        "type": {"float32": "float", "float64": "double"}.get(array.dtype.name, array.dtype.name),
        "dimension": str(array.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, little.shape)),
        "space directions": "none " * len(channels) + " ".join(_vector(step) for step in (direction * spacing).T),
        "kinds": f"{channel_kind} " * len(channels) + "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(origin),
    }
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items())
    text += "".join(f"{key}:={value}\n" for key, value in (keys or {}).items()) + "\n"
    path.write_bytes(text.encode("utf-8") + gzip.compress(data, 2, mtime=0))


def _vector(values: Sequence[float] | np.ndarray) -> str:
    """Every number to its last bit; + 0.0 turns -0 into 0."""
    return "(" + ",".join(repr(float(v) + 0.0).removesuffix(".0") for v in values) + ")"
