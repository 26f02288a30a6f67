"""Write files and folders atomically, lock folders, and compute digests of files and values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from oasis_monai.utils.errors import ConfigError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same ending, so writers that look at it are content) and rename it into
    place on success; on any error the temporary file goes away and an older ``path`` stays as it was.

    Raises:
        OSError: it cannot be written; names ``path``, not the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    with with_path_in_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as done:
                os.fsync(done.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files only their owner can read
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def with_path_in_errors(path: Path) -> Iterator[None]:
    """Make an OSError raised inside name ``path``: a full disk names no file, and a temporary file means nothing to the user."""
    try:
        yield
    except OSError as error:
        if error.errno and (error.filename is None or f".{path.name}." in str(error.filename)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """:func:`atomic_path` for a folder: yield a new folder beside ``path`` and rename it into place on success.

    It replaces an older folder. An error of a full disk names ``path``.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        inner = outer / path.name
        inner.mkdir()
        yield inner
        older = outer / "older"
        if path.exists():
            os.replace(path, older)
        try:
            os.replace(inner, path)
        except OSError:
            if older.exists():
                os.replace(older, path)
            raise
    except OSError as error:
        if error.filename is None:  # a write says nothing about its file
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all. Tensors, paths and other objects are a TypeError, not text."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def digest(value: Any, length: int = 16) -> str:
    """Stable hex digest of a JSON-able value: the key of everything we cache."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(*paths: str | Path) -> str:
    """sha256 over the bytes of the files, in order."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in ``folder``. The lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path, key: str) -> Iterator[None]:
    """Make this process the only one that writes results into ``folder``, so that two runs do not mix their files.

    The claim ends with the process, however it ends.

    Args:
        folder: created if it is absent, and removed again if it stays empty.
        key: the setting that names it.

    Raises:
        ConfigError: another process holds it.
        OSError: it cannot be written.
    """
    absent = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".running"
    lock = FileLock(path, blocking=False, on_acquired=_write_process_id)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout:
            found = f"{folder}, in use by process {_process_id(path)}"
            remedy = f"wait for that run to end or give another {key}=DIR"
            raise ConfigError(key, "a folder no other run writes to", found, remedy) from None
        except OSError as error:
            if error.filename is not None:  # else the file is there, and its file system knows no locks: work without
                error.filename = str(folder)  # the user knows nothing of the file in it
                raise
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if absent:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _write_process_id(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())


def _process_id(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:20].strip() or "unknown"
    except OSError:  # its run has just ended, or this system lets nobody else read a locked file
        return "unknown"
