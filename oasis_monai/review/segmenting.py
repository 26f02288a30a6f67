"""Segment scans in the background: those of a folder, and those that somebody drops on the page."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.data.archives import Limits, unpack
from oasis_monai.data.formats.dispatch import VOLUMES, ending
from oasis_monai.data.scans import find_scans, one_scan
from oasis_monai.data.types import Case
from oasis_monai.review.drawings import FOLDER, Drawings
from oasis_monai.review.grids import scan_geometry
from oasis_monai.review.jobs import Job, Jobs
from oasis_monai.review.worklist import Worklist
from oasis_monai.utils.errors import DataError, Fault, OasisError
from oasis_monai.workflows.model_folder import ModelRecord
from oasis_monai.workflows.segment import SegmentOptions, segment_scans

DROPPED = "dropped"
"""In the review's folder: the files that were dropped on the page."""
TAKEN = tuple(e for e in VOLUMES if e not in (".mhd", ".nhdr", ".hdr", ".img", ".hdr.gz", ".img.gz"))
"""Endings of scans in one file."""
ARCHIVE = ".zip"
"""Of one scan in several files, such as a DICOM series."""
FILES = 20_000
"""An archive may hold so many files."""
UNPACKED = 4
"""They may have so many times the bytes that a dropped file may have."""


class TooLargeError(Exception):
    """More bytes than are taken.

    Args:
        limit: that many are.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit / 2**20:g} MiB; start the command with input=FILE, or with a larger review.upload_mb")


@dataclass
class Segmenting:
    """What segments scans with one model into one folder.

    Args:
        model: its folder.
        output: of the results.
        worklist, drawings, jobs: of the review.
        options: of :func:`.segment_scans`.
        upload_bytes: of a dropped file, at most.
    """

    model: Path
    output: Path
    worklist: Worklist
    drawings: Drawings
    jobs: Jobs
    options: SegmentOptions = field(default_factory=lambda: SegmentOptions())
    upload_bytes: int = 2**31

    @property
    def inbox(self) -> Path:
        """The folder of dropped files."""
        return self.output / FOLDER / DROPPED

    def start(self, scans: Path | None) -> None:
        """Segment the scans of ``scans``, and go on with dropped files that a process before had no time for.

        Raises:
            OasisError: no scans, or a fault of their folder.
        """
        if scans is not None:
            channels = ModelRecord.read(self.model).channels
            cases = find_scans(scans, self.options.get("data"), channels, lambda fault: print(f"warning: {fault}"))
            self.worklist.add(cases)
            ids = [case.id for case in cases]
            self.jobs.add("segment", f"Segment {scans.name}", lambda job: self._segment(job, scans, ids), len(ids))
        for path in sorted(self.inbox.glob("*")):
            if (ending(path) in TAKEN or path.is_dir()) and not path.name.startswith("."):
                self._queue(path)

    async def take(self, name: str, stream: AsyncIterator[bytes]) -> Case:
        """Keep a dropped file, or what a dropped archive holds, and queue it.

        Args:
            name: as the browser calls it.
            stream: its bytes.

        Raises:
            DataError: it is no scan, or holds several; nothing is kept.
            TooLargeError: it is too long; nothing is kept.
        """
        path = self._place(name)
        size = 0
        self.inbox.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".arriving-", dir=self.inbox) as folder:
            arriving = Path(folder) / (path.name if ending(name) in TAKEN else f"{path.name}{ARCHIVE}")
            with open(arriving, "wb") as file:
                async for part in stream:
                    size += len(part)
                    if size > self.upload_bytes:
                        raise TooLargeError(self.upload_bytes)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            arriving = await asyncio.to_thread(self._checked, arriving)  # whether it is a scan, before it is one of ours
            path = self._place(name)  # another tab may have dropped one of this name meanwhile
            os.replace(arriving, path)
        return await asyncio.to_thread(self._queue, path)

    def _checked(self, arriving: Path) -> Path:
        """A dropped file, or the folder of what it holds, once it is known to be one scan.

        Raises:
            DataError: it is not; an archive that leads out of its folder, is encrypted, damaged or too large; or a series of a
                name that another scan has.
        """
        if arriving.suffix != ARCHIVE:
            scan_geometry(one_scan([arriving]))
            return arriving
        folder = arriving.with_suffix("")
        unpack(arriving, folder, Limits(FILES, UNPACKED * self.upload_bytes))
        case = one_scan([folder])
        scan_geometry(case)
        if any(entry.id == case.id for entry in self.worklist.entries()):
            remedy = "segment it by input=FOLDER output=ANOTHER"
            raise DataError(Fault(case.id, "name", "a series of a name that no scan here has", case.id, remedy))
        return folder

    def _place(self, name: str) -> Path:
        """Where a dropped file goes, or the folder of an archive: under its own name, or a numbered one where that is taken."""
        kind = ARCHIVE if name.lower().endswith(ARCHIVE) else ending(name)
        if kind not in (*TAKEN, ARCHIVE) or Path(name).name != name or name.startswith(".") or not name.isprintable():
            found = name.rpartition("/")[2][:80] or "no name"
            raise DataError(
                Fault(
                    found,
                    "file",
                    f"a scan in one file ({', '.join((*TAKEN, ARCHIVE))})",
                    found,
                    "convert it, or give its folder by input=",
                )
            )
        stem = re.sub(r"[^\w.+-]+", "_", name[: -len(kind)]) or "scan"
        known = {entry.id for entry in self.worklist.entries()}
        free, number, kind = stem, 1, "" if kind == ARCHIVE else kind
        while free in known or (self.inbox / f"{free}{kind}").exists():
            number += 1
            free = f"{stem}-{number}"
        return self.inbox / f"{free}{kind}"

    def _queue(self, path: Path) -> Case:
        channels = ModelRecord.read(self.model).channels
        case = one_scan([path], channels)
        self.worklist.add([case])
        self.jobs.add("upload", f"Segment {path.name}", lambda job: self._segment(job, path, [case.id]), 1)
        return case

    def _segment(self, job: Job, scans: Path, ids: Sequence[str]) -> str:
        """Segment what is not finished; results that somebody has worked on stay, whatever became of the model since."""
        leave = set(ids) - set(self.worklist.unfinished(self.drawings))
        done = {entry.id for entry in self.worklist.entries() if entry.record}
        left = [case for case in ids if case not in leave | done]
        job.total = len(left)

        def log(line: str) -> None:
            job.log(line)
            case = line.partition(":")[0]
            if case in left:
                left.remove(case)
                job.done += 1
                self.worklist.end([case], {})
                self.worklist.begin(left[:1])

        self.worklist.begin(left[:1])
        reasons: dict[str, str] = {}
        try:
            if leave != set(ids):
                faults = segment_scans(self.model, scans, self.output, log, **self._options(leave))
                for fault in faults:
                    reasons.setdefault(fault.case, str(fault))
        finally:
            self.worklist.end(ids, reasons)
        if reasons and len(reasons) == len(ids) == 1:
            raise OasisError(next(iter(reasons.values())))
        return f"{len(ids) - len(reasons)} of {len(ids)} scans have results"

    def _options(self, leave: set[str]) -> Any:
        return {**self.options, "save_uncertainty": True, "leave": leave}
