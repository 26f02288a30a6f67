"""Corrected scans teach the model: they become atlases, or train its networks further."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oasis_monai.data.types import Case
from oasis_monai.review.drawings import CORRECTED, Drawings
from oasis_monai.review.jobs import Job
from oasis_monai.review.worklist import Worklist
from oasis_monai.utils.errors import DataError, Fault, OasisError
from oasis_monai.utils.files import file_digest, write_text
from oasis_monai.workflows.library import add_atlas, remove_atlas
from oasis_monai.workflows.model_folder import ModelRecord

TABLE = "corrected.csv"
"""In the folder of the results: the corrected scans with their labels, as ``data.root`` takes them."""
ADAPTED = "adapted_model"
"""In the folder of the results: the model that was trained further."""


@dataclass(frozen=True)
class Teacher:
    """What teaches one model.

    Args:
        model: its folder.
        worklist, drawings: of the results.
        device, batch, cache: as for the commands ``library`` and ``adapt``.
        minutes: of the further training.
    """

    model: Path
    worklist: Worklist
    drawings: Drawings
    device: str = "auto"
    batch: int = 8
    cache: str = "outputs/cache"
    minutes: float = 2.0

    def corrected(self) -> list[tuple[Case, Path]]:
        """The scans whose correction was saved and stands, with its file."""
        found = []
        for entry in self.worklist.entries():
            if entry.record and self.drawings.state(entry.id).verdict == CORRECTED:
                case = self.worklist.case(entry.id)
                label = self.drawings.corrected_file(case, self.worklist.label_file(entry.id))
                if label.is_file():
                    found.append((case, label))
        return sorted(found, key=lambda one: one[0].id)

    def add_atlases(self, job: Job) -> str:
        """Make every corrected scan an atlas of the model; one that was corrected again replaces the atlas made of it before.

        Raises:
            OasisError: one or more cannot be atlases; the others are.
        """
        added, faults = [], list[str]()
        scans = self.corrected()
        job.total = len(scans)
        for case, label in scans:
            try:
                if self._add(case, label, job.log):
                    added.append(case.id)
            except OasisError as error:
                faults.append(str(error))
            job.done += 1
        told = f"{len(added)} new atlases" + (f": {', '.join(added)}" if added else "; the others are atlases already")
        if faults:
            raise OasisError("\n".join([*faults, told]) if added else "\n".join(faults))
        return told

    def _add(self, case: Case, label: Path, log: Callable[[str], None]) -> bool:
        """Whether the scan has become an atlas now."""
        state, content = self.drawings.state(case.id), file_digest(label)
        there = state.atlas in ModelRecord.read(self.model).values["cases"]
        if there and state.taught == content:
            return False
        if there:
            remove_atlas(self.model, state.atlas, self.device, self.batch, log)
            self.drawings.note_atlas(case.id, "", "")
        taken = ModelRecord.read(self.model).values["cases"]
        name = case.id if case.id not in taken else f"{case.id}-corrected"
        person = case.patient if case.patient != case.id else None
        images = [source[0] for source in case.sources]
        atlas = add_atlas(self.model, images, label, name, self.device, self.batch, log, person)
        self.drawings.note_atlas(case.id, atlas, content)
        return True

    def adapt(self, job: Job) -> str:
        """Train the model further with the corrected scans that are no atlases of it yet, into a new model.

        Raises:
            OasisError: there is none, or one of :func:`oasis_monai.adapt`.
        """
        from oasis_monai.workflows.api import adapt

        atlases = ModelRecord.read(self.model).values["cases"]
        scans = [(case, label) for case, label in self.corrected() if self.drawings.state(case.id).atlas not in atlases]
        if not scans:
            remedy = "correct and save one, or take its atlas away: library model=DIR remove=CASE"
            raise DataError(Fault("", "scans to learn from", "a corrected one that is no atlas of the model", "none", remedy))
        table = self.write_table(scans)
        data = {"root": str(table), "layout": "table", "labels": dict(self.worklist.labels)}
        options: dict[str, Any] = {"data": data, "cache": self.cache, "device": self.device, "align_batch": self.batch}
        target = self.worklist.output / ADAPTED
        job.log(f"training for {self.minutes:g} minutes with {len(scans)} scans")
        adapt(self.model, target, {**options, "training.minutes": self.minutes}, overwrite=True)
        return f"{target}: trained further with {', '.join(case.id for case, _ in scans)}"

    def write_table(self, scans: list[tuple[Case, Path]]) -> Path:
        """Write the table of corrected scans that ``adapt data.root=`` takes."""
        channels = ModelRecord.read(self.model).channels
        several = any(case.channels for case, _ in scans)
        heads = list(channels) if several else ["image"]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["case", *heads, "label", "patient"])
        for case, label in scans:
            images = [str(source[0].resolve()) for source in case.sources]
            writer.writerow([case.id, *images, str(label.resolve()), "" if case.patient == case.id else case.patient])
        path = self.worklist.output / TABLE
        write_text(path, out.getvalue())
        return path
