"""Unpack zip and tar archives safely: every entry is checked before the first byte is written."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from oasis_monai.utils.errors import DataError, Fault

LARGEST_READ = 2**22  # bytes per read: tarfile would read a header of any length that the archive claims
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, UnicodeError)
TWICE = (FileExistsError, NotADirectoryError, IsADirectoryError)
REFUSE = "do not use this archive"


@dataclass(frozen=True)
class Limits:
    """What an honest archive stays below.

    Args:
        count: entries.
        total: bytes unpacked.
        ratio: bytes unpacked per byte of the archive; archives of less than ``small`` bytes unpacked may be denser.
    """

    count: int = 100_000
    total: int = 2**36
    ratio: int = 200
    small: int = 2**24


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> None:
    """Write the content of a zip, tar or tar.gz below ``folder``, which is made; modes, owners and times stay behind.

    Raises:
        DataError: an entry that leaves ``folder`` or is neither file nor folder, an encrypted or damaged archive, more than
            ``limits`` allow, or too little room. Nothing is written but in the case of damage.
    """
    try:
        with _opened(archive) as opened:
            check_room(folder, _checked_size(archive, opened, limits), "the archive's content")
            folder.mkdir(parents=True)
            if isinstance(opened, zipfile.ZipFile):
                opened.extractall(folder)
            else:
                opened.extractall(folder, filter=lambda entry, to: tarfile.data_filter(entry, to).replace(mode=None, mtime=None))  # type: ignore[arg-type]
    except TWICE as error:
        raise _fault(archive, "entries", "every path once", "a file in the place of another entry", REFUSE) from error
    except DAMAGED as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise _fault(archive, "archive", "a complete archive", text, "remove it and download it again") from error


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DataError: fewer than ``needed`` bytes are free where ``folder`` is or will be.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        expected = f"{needed / 1e9:.2f} GB free for {what}"
        raise DataError(Fault("", str(folder), expected, f"{free / 1e9:.2f} GB", "free some or give another output=DIR"))


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """An archive, its kind told by its first bytes."""
    with archive.open("rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        if start == b"PK":
            with zipfile.ZipFile(raw) as opened:
                yield opened
            return
        stream: Any = gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw
        with tarfile.open(fileobj=_Bounded(stream), mode="r:") as tar:  # type: ignore[call-overload]
            yield tar


class _Bounded:
    """A stream for tarfile that refuses the gigabytes a forged header asks for at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)


def _checked_size(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> int:
    """Bytes unpacked, of an archive of which every entry is one we want."""
    entries: Iterable[Any] = opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened
    packed, total, files = archive.stat().st_size, 0, set()
    for count, entry in enumerate(entries, 1):
        if isinstance(entry, zipfile.ZipInfo):
            name, size, folder = entry.filename, entry.file_size, entry.is_dir()
            plain, secret = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR), entry.flag_bits & 1
        else:
            name, size, folder = entry.name, entry.size, entry.isdir()
            plain, secret = folder or entry.isreg(), False
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        outside = name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or "".join(parts[:1])[1:2] == ":"
        total += size
        for wrong, field, expected, found in (
            (not plain, name, "a file or a folder", "a link, device or pipe"),
            (secret, name, "a file that is not encrypted", "an encrypted one"),
            (outside or not (parts or folder), name, "a path within the archive", "one that leads out of it"),
            (parts in files, name, "every path once", "it twice"),
            (count > limits.count, "size", f"at most {limits.count} entries", "more, as in a decompression bomb"),
            (total > limits.total, "size", f"at most {limits.total / 1e9:.3g} GB unpacked", "more, as in a decompression bomb"),
            (
                total > max(limits.small, limits.ratio * packed),
                "size",
                f"at most {limits.ratio} bytes unpacked for a byte of the archive",
                "more, as in a decompression bomb",
            ),
        ):
            if wrong:
                raise _fault(archive, field, expected, found, REFUSE)
        if not folder:
            files.add(parts)
    return total


def _fault(archive: Path, entry: str, expected: str, found: str, remedy: str) -> DataError:
    shown = entry if entry.isprintable() else ascii(entry)
    return DataError(Fault(archive.name, shown[:120], expected, found, remedy))
