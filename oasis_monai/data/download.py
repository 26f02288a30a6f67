"""Fetch a public data set: licence first, resumed where it was cut off, checked before it is unpacked, there whole or not at all.

A cut download stays as ``FILE.part`` and is gone on with. An archive that a person fetched and put beside it is used as it is.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oasis_monai import __version__
from oasis_monai.data.archives import check_room, unpack
from oasis_monai.utils.errors import ConfigError, DataError, Fault
from oasis_monai.utils.files import atomic_folder, locked, write_json

TIMEOUT_S = 30.0
WAITS_S = (1.0, 2.0, 4.0)  # before each new try; bytes that arrived in between start the row anew
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP states that a new try may mend
NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
RECORD = "source.json"
CHUNK = 2**20
Log = Callable[[str], None]


def download(
    source: Source,
    output: Path,
    accept_license: bool = False,
    waits_s: Sequence[float] = WAITS_S,
    progress: bool = True,
    log: Log = print,
) -> Path:
    """Put a data set into ``output/FOLDER``, with a ``source.json`` that says where it is from. One that is there already stays.

    Args:
        accept_license: the licence was read and accepted; else a person at a terminal is asked.
        waits_s: seconds before each new try.

    Raises:
        ConfigError: the licence is not accepted.
        DataError: the archive cannot be fetched, is not the published one, cannot be unpacked, or something else is in its
            place.
    """
    folder = output / source.folder
    if _there(folder, source):
        log(f"{source.name} is in {folder} already")
        return folder
    _accept(source, accept_license, log)
    with locked(output):
        if _there(folder, source):  # another process was faster
            return folder
        by_hand = output / source.file
        archive = by_hand
        if by_hand.is_file():
            log(f"{by_hand} is there already")
            _verify(source, by_hand, f"remove it and run again, or fetch it again from {source.page}")
        else:
            archive = output / f"{source.file}.part"
            _fetch_and_verify(source, archive, waits_s, progress, log)
        log(f"unpacking into {folder}")
        with atomic_folder(folder) as made:
            _unpack_into(archive, made)
            write_json(made / RECORD, asdict(source))
        if archive != by_hand:
            archive.unlink()
    return folder


def _there(folder: Path, source: Source) -> bool:
    if not folder.exists():
        return False
    try:
        told = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if told["md5"] == source.md5:
            return True
        found = f"{told['name']} (md5 {told['md5']})"
    except (OSError, ValueError, KeyError, TypeError):
        found = f"a folder without {RECORD}"
    remedy = "use it as data.root, or move it away, or give another output=DIR"
    raise DataError(Fault("", str(folder), f"nothing, or {source.name} as it was downloaded", found, remedy))


def _accept(source: Source, accepted: bool, log: Log) -> None:
    log(f"{source.name}: {source.page}\nlicence: {source.licence}\ncite: {source.citation}")
    if not accepted and sys.stdin is not None and sys.stdin.isatty():
        try:
            accepted = input("Do you accept this licence? [y/n] ").strip().lower() in ("y", "yes")
        except EOFError:  # the terminal was closed: no answer is no
            accepted = False
    if not accepted:
        remedy = "read the licence, and if you accept it add accept_license=true"
        raise ConfigError("accept_license", f"true: the licence of {source.name} accepted", False, remedy)


def _fetch_and_verify(source: Source, part: Path, waits_s: Sequence[float], progress: bool, log: Log) -> None:
    resumed = part.is_file() and part.stat().st_size > 0
    for last in (not resumed, True):
        _fetch(source, part, waits_s, progress, log)
        try:
            _verify(source, part, f"run again, or fetch it by hand from {source.page} and put it into {part.parent}")
            return
        except DataError:
            part.unlink()
            if last:
                raise
            log("what was there was not the beginning of this file; it is downloaded anew")


def _verify(source: Source, archive: Path, remedy: str) -> None:
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != source.md5:
        raise DataError(Fault("", str(archive.with_name(source.file)), f"md5 {source.md5}", found, remedy))


def _fetch(source: Source, part: Path, waits_s: Sequence[float], progress: bool, log: Log) -> None:
    """Bring ``part`` to its full length."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(source, part, have, progress):
                return
            reason = "a connection that ended too early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code not in PASSING:
                raise _unreachable(source, part, reason) from error
        except NETWORK as error:
            reason = " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__
        if part.exists() and part.stat().st_size > have:
            failures = 0
        if failures == len(waits_s):
            raise _unreachable(source, part, reason)
        log(f"{reason}; next try in {waits_s[failures]:g} s")
        time.sleep(waits_s[failures])
        failures += 1


def _unreachable(source: Source, part: Path, reason: str) -> DataError:
    remedy = f"check the network and run again (it goes on where it stopped), or fetch {source.file} by hand from {source.page}, "
    remedy += f"put it into {part.parent} and run again"
    return DataError(Fault("", "download", f"the file at {source.url}", reason, remedy))


def _transfer(source: Source, part: Path, have: int, progress: bool) -> bool:
    """One request for what is missing of ``part``; whether it is complete now. A server that knows no ranges sends all of it."""
    headers = {"User-Agent": f"oasis-monai/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(source.url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):  # nothing was missing
            return True
        part.unlink()
        return False
    with answer:
        start = have if answer.status == 206 else 0
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            return False
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            check_room(part, 2 * total - start, f"{source.file} and its content")
        return _receive(answer, part, start, total, progress)


def _receive(answer: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: bool) -> bool:
    from tqdm import tqdm

    shown = {"unit": "B", "unit_scale": True, "desc": part.stem, "disable": None if progress else True}
    with part.open("ab" if start else "wb") as stream, tqdm(total=total, initial=start, **shown) as bar:
        while chunk := answer.read(CHUNK):
            try:
                stream.write(chunk)
                stream.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                remedy = "free some and run again: the download goes on where it stopped"
                raise DataError(Fault("", str(part), "room on the disk", "a full one", remedy)) from error
            bar.update(len(chunk))
        received = stream.tell()
    return total is None or received == total


def _unpack_into(archive: Path, folder: Path) -> None:
    """Unpack; an archive that holds one folder only gives that folder's content."""
    held = folder / ".unpacked"
    unpack(archive, held)
    top = held
    seen = [path for path in held.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    if len(seen) == 1 and seen[0].is_dir():
        top = seen[0]
    for path in top.iterdir():
        os.replace(path, folder / path.name)
    shutil.rmtree(held)


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MSD_PAGE = "http://medicaldecathlon.com"


@dataclass(frozen=True)
class Source:
    """One archive of a data set.

    Args:
        name: what it is called.
        url: of the archive; its last part is the file's name.
        md5: checksum as published, 32 hex digits.
        page: where a person finds it.
        licence, citation: shown before anything is fetched, and kept beside the data.
    """

    name: str
    url: str
    md5: str
    page: str
    licence: str
    citation: str

    @property
    def file(self) -> str:
        """The archive's file name."""
        return urlsplit(self.url).path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder its content goes to: the file name without its ending."""
        return next(self.file.removesuffix(end) for end in sorted(ARCHIVES, key=len, reverse=True) if self.file.endswith(end))


_ZENODO = "https://zenodo.org/records/8026660"
_PROMISE12 = {
    "page": _ZENODO,
    "licence": "research use only, no redistribution; results must cite the paper",
    "citation": "Litjens et al., Evaluation of prostate segmentation algorithms for MRI: the PROMISE12 challenge. Medical Image "
    "Analysis 18 (2014) 359-373, doi 10.1016/j.media.2013.12.002",
}
SOURCES = {
    "promise12": Source("PROMISE12", f"{_ZENODO}/files/training_data.zip", "f6d23994117c989daf07e5291edd0aea", **_PROMISE12),
    "promise12-test": Source(
        "PROMISE12 test cases", f"{_ZENODO}/files/test_data.zip", "823ef560f4a54083348e58d67403e4bb", **_PROMISE12
    ),
}


def find_source(name: Any, mirror: Mapping[str, Any] | None = None) -> Source:
    """The data set ``name``: a key of :data:`SOURCES`, or a task of the Medical Segmentation Decathlon, whose addresses and
    checksums are MONAI's (:class:`monai.apps.DecathlonDataset`).

    Args:
        mirror: ``url``: the archive somewhere else, or a folder with a file of the archive's name; ``md5``: another checksum.

    Raises:
        ConfigError: no such data set, or a mirror that is none.
    """
    mirror = {} if mirror is None else mirror
    if not isinstance(mirror, Mapping):
        raise ConfigError("download", "url and md5", mirror)
    if isinstance(name, str) and name in SOURCES:
        return _mirrored(SOURCES[name], mirror)
    from monai.apps.datasets import DecathlonDataset

    if not isinstance(name, str) or name not in DecathlonDataset.resource:
        known = ", ".join([*SOURCES, *DecathlonDataset.resource])
        remedy = "add data=promise12 or data=hippocampus, msd=TASK, or write data.source=NAME into your data set's YAML file"
        raise ConfigError("data.source", f"a data set to download, one of {known}", name, remedy)
    citation = "Antonelli et al., The Medical Segmentation Decathlon. Nature Communications 13 (2022) 4128, "
    citation += "doi 10.1038/s41467-022-30695-9"
    address, md5 = DecathlonDataset.resource[name], DecathlonDataset.md5[name]
    found = Source(f"Medical Segmentation Decathlon {name}", address, md5, MSD_PAGE, "CC-BY-SA 4.0", citation)
    return _mirrored(found, mirror)


def _mirrored(source: Source, mirror: Mapping[str, Any]) -> Source:
    unknown = sorted(set(mirror) - {"url", "md5"})
    if unknown:
        raise ConfigError(f"download.{unknown[0]}", "url or md5", "an unknown key", "correct or remove it")
    url, md5 = mirror.get("url"), mirror.get("md5")
    if md5 is not None:
        if not isinstance(md5, str) or not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
            raise ConfigError("download.md5", "32 hex digits", md5)
        source = replace(source, md5=md5.lower())
    if url is not None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError("download.url", "an address that starts with http:// or https://", url)
        source = replace(source, url=url if url.endswith(ARCHIVES) else f"{url.rstrip('/')}/{source.file}")
    return source
