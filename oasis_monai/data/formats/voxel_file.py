"""The file that holds a scan's voxels: found beside its header, measured and read by numpy.

MetaImage and NRRD share it: a header of text, and an array in the same file or in one beside it. Their modules check the header;
ITK and pynrrd read the same values (the tests compare), but importing ITK takes longer than segmenting a scan.
"""

from __future__ import annotations

import bz2
import contextlib
import math
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oasis_monai.data.formats.header import Faults, Stored

MAX_NUMBER = 40  # characters of a voxel that is stored as text, with the space behind it
TEXT_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CHUNK = 1 << 20
DAMAGED = (OSError, ValueError, OverflowError, EOFError, zlib.error)
"""What reading a damaged or changed data file raises."""


def read_stored(stored: Stored, shape: tuple[int, int, int], channels: int, dtype: type) -> np.ndarray:
    """(C, x, y, z) array of ``dtype``, contiguous in that order.

    Raises:
        OSError, ValueError, EOFError, zlib.error: the data file is no longer what the header's check found.
    """
    count = math.prod(shape) * channels
    sizes = [*shape]
    sizes.insert(stored.channel_axis, channels)
    kind = np.dtype(stored.dtype)
    with open(stored.file, "rb") as stream:
        stream.seek(stored.start)
        if stored.packing in ("zlib", "bzip2"):
            data = b"".join(_unpacked(stream, stored.packing, stored.skip + count * kind.itemsize))[stored.skip :]
        else:
            data = stream.read(-1 if stored.packing else count * kind.itemsize)
    if stored.packing == "text":
        values = np.array(data.split()).astype(kind)
    else:
        values = np.frombuffer(data, kind.newbyteorder(">" if stored.big_endian else "<"), count)
    array = values.reshape(sizes, order="F")  # the file's fastest axis comes first
    return np.ascontiguousarray(np.moveaxis(array, stored.channel_axis, 0), dtype)


def _unpacked(stream: BinaryIO, packing: str, need: int) -> Iterator[bytes]:
    """Pieces of a zlib, gzip or bzip2 stream, to its end and no further than just beyond ``need`` bytes.

    Raises:
        EOFError: it ends before its own end.
        OSError, zlib.error: it is damaged.
    """
    count, ended = 0, False
    unpack = zlib.decompressobj(47) if packing == "zlib" else bz2.BZ2Decompressor()  # 32 + 15: zlib or gzip
    rest = b""
    while not ended and count <= need:
        feed = isinstance(unpack, bz2.BZ2Decompressor) and not unpack.needs_input
        rest = rest or (b"" if feed else stream.read(CHUNK))
        if not rest and not feed:
            raise EOFError(f"it ends after {count} bytes")
        piece = unpack.decompress(rest, CHUNK)
        rest = b"" if isinstance(unpack, bz2.BZ2Decompressor) else unpack.unconsumed_tail
        count, ended = count + len(piece), unpack.eof
        yield piece


def unpacked_bytes(data: Path, start: int, packing: str, need: int) -> int:
    """Length of the packed stream at ``start`` once unpacked, counted in pieces and no further than just beyond ``need``.

    Raises:
        OSError, EOFError, zlib.error: it is damaged or cut short.
    """
    with open(data, "rb") as stream:
        stream.seek(start)
        return sum(map(len, _unpacked(stream, packing, need)))


def count_numbers(data: Path, start: int, need: int) -> int | str:
    """How many numbers a text holds, read in pieces and no further than just beyond ``need``; ``"other text"`` if it is none."""
    count, rest = 0, b""
    with open(data, "rb") as stream:
        stream.seek(start)
        while count <= need and (piece := stream.read(CHUNK)):
            text = rest + piece
            words = text.split()
            rest = words.pop() if words and not text[-1:].isspace() else b""
            if len(rest) > MAX_NUMBER or not all(len(w) <= MAX_NUMBER and TEXT_NUMBER.fullmatch(w) for w in words):
                return "other text"
            count += len(words)
    if rest and not TEXT_NUMBER.fullmatch(rest):
        return "other text"
    return count + bool(rest)


def _spellings(name: str) -> Iterator[str]:
    """A file's name as it stands in a header, and as other systems may have spelt it: in Windows' letters, with accents apart."""
    if any(c in name for c in "/\\:") or name in ("", ".", ".."):
        return
    yield name
    for encoding in ("utf-8", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeDecodeError):
            for form in ("NFC", "NFD"):
                yield unicodedata.normalize(form, os.fsencode(name).decode(encoding))  # type: ignore[arg-type]


def find_data_file(path: Path, name: str, field: str, faults: Faults, or_inside: str = "") -> Path | None:
    """The regular file beside a header that holds its voxels; nothing else on the disk is ever opened.

    Args:
        path: the header.
        name: the data file's name as it stands in the header.
        field: the header's field for it.
        faults: takes what is wrong with it.
        or_inside: what else the field may hold, for the message.
    """
    plain = "the name of one file beside the header" + or_inside
    name = re.sub(r"^(\./+)+", "", name)
    several = re.fullmatch(r"LIST(\s+\d+)?", name, re.IGNORECASE) is not None
    data = next((path.parent / n for n in _spellings(name) if "\0" not in n and (path.parent / n).is_file()), path.parent / name)
    several |= ("%" in name or name.upper().startswith("LIST")) and not data.is_file()
    if not name or name in (".", "..") or any(c in name for c in "/\\:") or several:
        remedy = "join the slices into one raw file" if several else "put the data file beside the header"
        faults.add(field, plain, name or "nothing", remedy)
        return None
    home = path.resolve().parent  # a header that is itself a link has its data where it points
    if data.is_symlink() and not data.resolve().is_relative_to(home):
        faults.add(field, plain, f"{name}, a link that leaves the folder", "put the data file itself there")
        return None
    try:
        mode = os.stat(data).st_mode
    except OSError:
        faults.add(field, plain, f"{name}, which is absent or unreadable", "put the data file beside the header")
        return None
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        faults.add(field, plain, f"{name}, which is no regular file", "put the data file itself there")
        return None
    return data
