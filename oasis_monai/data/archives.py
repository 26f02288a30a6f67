"""Unpack an archive that may be hostile: every entry is looked at before the first byte is written."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from oasis_monai.utils.errors import DataError, Fault

CHUNK = 2**20
LARGEST_READ = 2**22  # tarfile reads long headers whole, and as long as they say they are
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, UnicodeError)


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


@dataclass(frozen=True)
class _Entry:
    """One entry: its path as in the archive, None for the bytes of a folder."""

    name: str
    size: int
    open: Callable[[], IO[bytes]] | None


def unpack(archive: Path, folder: Path, limits: Limits = Limits()) -> None:
    """Write the content of a zip, tar or tar.gz below ``folder``, which is made; modes, owners and times stay behind.

    Raises:
        DataError: an entry that leaves ``folder`` or is neither file nor folder, an encrypted or damaged archive, more than
            ``limits`` allow, or too little room. Nothing is written but in the case of damage.
    """
    try:
        total = 0
        with _entries(archive) as entries:
            for number, entry in enumerate(entries, 1):
                _parts(archive, entry)
                total += entry.size
                _check_limits(archive, number, total, limits)
        check_room(folder, total, "the archive's content")
        folder.mkdir(parents=True)
        with _entries(archive) as entries:
            for entry in entries:
                _write(archive, entry, folder.joinpath(*_parts(archive, entry)))
    except DAMAGED as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise _fault(archive, "an archive", "one that is whole", text, "remove it and download it again") from error


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
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    """The entries of an archive, its kind told by its first bytes."""
    with archive.open("rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        if start == b"PK":
            with zipfile.ZipFile(raw) as opened:
                yield _zip_entries(archive, opened)
            return
        stream: Any = gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw
        with tarfile.open(fileobj=_Bounded(stream), mode="r:") as tar:  # type: ignore[call-overload]
            yield _tar_entries(archive, tar)


def _zip_entries(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in opened.infolist():
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_a_file(archive, info.filename)
        if info.flag_bits & 1:
            raise _fault(archive, info.filename, "a file that is not encrypted", "an encrypted one", "ask who made it")
        yield _Entry(info.filename, info.file_size, None if info.is_dir() else lambda info=info: opened.open(info))  # type: ignore[misc]


def _tar_entries(archive: Path, tar: tarfile.TarFile) -> Iterator[_Entry]:
    for member in tar:
        if not (member.isreg() or member.isdir()):
            raise _not_a_file(archive, member.name)

        def content(member: tarfile.TarInfo = member) -> IO[bytes]:
            opened = tar.extractfile(member)
            assert opened is not None
            return opened

        yield _Entry(member.name, member.size, None if member.isdir() else content)


class _Bounded:
    """A stream for tarfile that refuses the gigabytes a forged header asks for at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)


def _parts(archive: Path, entry: _Entry) -> list[str]:
    """The path of an entry as its parts, all below the folder; only a folder may have none."""
    name = entry.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    outside = name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or "".join(parts[:1])[1:2] == ":"
    if outside or not (parts or entry.open is None):
        raise _fault(archive, name, "a path within the archive", "one that leads out of it", "do not use this archive")
    return parts


def _check_limits(archive: Path, count: int, total: int, limits: Limits) -> None:
    dense = total > limits.small and total > limits.ratio * archive.stat().st_size
    for wrong, expected, found in (
        (count > limits.count, f"at most {limits.count} entries", "more"),
        (total > limits.total, f"at most {limits.total / 1e9:.0f} GB unpacked", "more"),
        (dense, f"at most {limits.ratio} bytes unpacked for a byte of the archive", "more"),
    ):
        if wrong:
            raise _fault(archive, "size", expected, found, "do not use this archive: it looks like a bomb")


def _write(archive: Path, entry: _Entry, path: Path) -> None:
    try:
        if entry.open is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, path.open("xb") as target:
            shutil.copyfileobj(source, target, CHUNK)
            written = target.tell()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _fault(archive, entry.name, "every path once", "it twice", "do not use this archive") from error
    if written != entry.size:
        raise _fault(archive, entry.name, f"{entry.size} bytes", str(written), "remove the archive and download it again")


def _not_a_file(archive: Path, name: str) -> DataError:
    return _fault(archive, name, "a file or a folder", "a link, device or pipe", "do not use this archive")


def _fault(archive: Path, entry: str, expected: str, found: str, remedy: str) -> DataError:
    shown = entry if entry.isprintable() else ascii(entry)
    return DataError(Fault(archive.name, shown[:120], expected, found, remedy))
