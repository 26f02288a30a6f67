"""Download a public data set: show its licence, resume an interrupted download, check the archive, unpack it.

An incomplete download stays as ``FILE.part`` and is continued. An archive that a person downloaded and put beside it is used as
it is. The data set's folder appears only when it is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from oasis_monai import __version__
from oasis_monai.data.archives import check_room, unpack
from oasis_monai.utils.errors import ConfigError, DataError, Fault, OasisError
from oasis_monai.utils.files import atomic_folder, locked, with_path_in_errors, write_json

TIMEOUT_S = 30.0
WAITS_S = (1.0, 2.0, 4.0)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes of temporary failures
RECORD = "source.json"
CHUNK = 2**13  # bytes; an interrupted connection loses the unfinished chunk
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
        DataError: the archive is not the published one or cannot be unpacked, or the folder holds something else.
        OasisError: the download failed.
    """
    from pooch import file_hash

    folder = output / source.folder
    if _there(folder, source):
        log(f"{source.name} is already in {folder}")
        return folder
    _accept(source, accept_license, log)
    with locked(output):
        if _there(folder, source):  # another process was faster
            return folder
        by_hand = output / source.file
        archive = by_hand
        if by_hand.is_file():
            log(f"using {by_hand}")
            found = file_hash(str(by_hand), alg="md5")
            if found != source.md5:
                remedy = f"remove it and run again, or download it again from {source.page}"
                raise DataError(Fault("", str(by_hand), f"md5 {source.md5}", found, remedy))
        else:
            archive = output / f"{source.file}.part"
            _fetch(source, archive, Resuming(archive, waits_s, progress, log), log)
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
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["md5"] == source.md5:
            return True
        found = f"{record['name']} (md5 {record['md5']})"
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
        remedy = "read the licence, and if you accept it, add accept_license=true"
        raise ConfigError("accept_license", f"true, to accept the licence of {source.name}", False, remedy)


def _fetch(source: Source, part: Path, downloader: Resuming, log: Log) -> None:
    """Bring ``part`` to the whole, verified archive."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")  # pooch would repeat on stderr what is logged here
    resumed = part.is_file() and part.stat().st_size > 0
    for last in (not resumed, True):
        try:
            with with_path_in_errors(part):
                pooch.retrieve(source.url, f"md5:{source.md5}", part.name, part.parent, downloader=downloader)
            return
        except RequestException as error:
            raise OasisError(
                f"download of {source.url} failed: {_reason(error)}. Check the network and run the command again to continue. "
                f"Or download {source.file} from {source.page} yourself, put it into {part.parent} and run again."
            ) from error
        except ValueError as error:  # another checksum: pooch has deleted the file
            if last:
                found = str(error).rpartition("but got ")[2].partition(".")[0]
                remedy = f"run again, or download it from {source.page} yourself and put it into {part.parent}"
                raise DataError(Fault("", str(part.with_name(source.file)), f"md5 {source.md5}", found, remedy)) from error
            log(f"{part.name} was not the beginning of this file; downloading it again")


class Resuming:
    """A downloader for pooch, whose own always begins at the first byte: it goes on with what an earlier one left in ``part``.

    Args:
        part: the file so far; it goes to pooch once it is complete.
        waits_s: seconds before each new try; bytes that arrived in between start the row anew.
        progress: show a bar where stderr is a terminal.
    """

    def __init__(self, part: Path, waits_s: Sequence[float], progress: bool, log: Log) -> None:
        self.part, self.waits_s, self.progress, self.log = part, waits_s, progress and sys.stderr.isatty(), log

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        from requests import RequestException

        failures = 0
        while True:
            with self.part.open("ab") as stream:
                have = stream.tell()
                try:
                    self._receive(url, stream, have)
                    break
                except RequestException as error:
                    if error.response is not None and error.response.status_code == 416:
                        break  # nothing is missing, or it is another file: its checksum tells
                    failures = 0 if stream.tell() > have else failures
                    passing = error.response is None or error.response.status_code in PASSING
                    if not passing or failures == len(self.waits_s):
                        raise
                    self.log(f"{_reason(error)}; next try in {self.waits_s[failures]:g} s")
            time.sleep(self.waits_s[failures])
            failures += 1
        os.replace(self.part, output_file)

    def _receive(self, url: str, stream: BinaryIO, have: int) -> None:
        """One request for what is missing. A server that knows no ranges sends all of it."""
        from pooch import HTTPDownloader
        from requests import Response

        def begin(answer: Response, **_: Any) -> None:
            if answer.status_code == 200:
                stream.truncate(0)
            if answer.ok and (length := answer.headers.get("Content-Length", "")).isdecimal():
                whole = int(length) + (have if answer.status_code == 206 else 0)
                check_room(self.part, int(length) + whole, f"{self.part.stem} and its content")

        headers = {"User-Agent": f"oasis-monai/{__version__}", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={have}-"} if have else {}
        HTTPDownloader(self.progress, CHUNK, timeout=TIMEOUT_S, headers=headers, hooks={"response": begin})(url, stream, None)


def _reason(error: BaseException) -> str:
    """What stopped a request, in few words."""
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, ChunkedEncodingError):
        return "the connection ended too early"
    if (answer := getattr(error, "response", None)) is not None:
        return f"HTTP {answer.status_code} {answer.reason}"
    while error.__context__ is not None:  # requests and urllib3 wrap the system's error several times
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


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
