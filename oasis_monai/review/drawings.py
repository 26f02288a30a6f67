"""What was drawn and decided of each scan, on disk before the page is told so.

Of a scan X of a ``segment`` folder, ``review/X.json`` holds the verdict and a version, ``review/X_draft.nii.gz`` what is drawn
and not saved, and ``X_corrected.*`` beside the result what was saved. Every file is written whole or not at all, and in an order
that loses nothing when the process dies between two of them. The model's result itself is never touched.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from oasis_monai.data.formats.dispatch import map_ending, remove_array, result_ending
from oasis_monai.data.types import Case, Geometry
from oasis_monai.review import grids
from oasis_monai.utils.files import write_json

FOLDER = "review"
"""The folder of the review's own files, in that of the results."""
ACCEPTED, REJECTED, CORRECTED = "accepted", "rejected", "corrected"
VERDICTS = (ACCEPTED, REJECTED, CORRECTED)
RESULT, DRAFT, SAVED = "result", "draft", "corrected"
"""Where a drawing comes from: the model, what is not saved yet, what was saved."""


class StaleVersionError(Exception):
    """Another page has changed the scan since this one read it.

    Args:
        version: the scan's version now.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(f"another tab has changed this scan (version {version} now)")


@dataclass(frozen=True)
class State:
    """What is decided of one scan.

    Args:
        version: counts every change of verdict or drawing; 0: none yet.
        verdict: one of :data:`VERDICTS`, ``""`` for none.
        atlas: the id that its correction has in the model's library, ``""`` for none.
        taught: digest of the label that this atlas was made of.
    """

    version: int = 0
    verdict: str = ""
    atlas: str = ""
    taught: str = ""


class Drawings:
    """The drawings and verdicts of a folder of results. One process at a time may have it.

    Args:
        output: the folder of ``segment``'s results.
        label_values: value in label files of each class, the background first.
    """

    def __init__(self, output: Path, label_values: Sequence[int]) -> None:
        self.output, self.folder, self.label_values = output, output / FOLDER, tuple(label_values)
        self._lock = threading.Lock()

    def state(self, case: str) -> State:
        """What is decided of a scan; a damaged file counts as none."""
        try:
            found = json.loads(self._state_file(case).read_text(encoding="utf-8"))
            state = State(found["version"], found["verdict"], found["atlas"], found["taught"])
        except (OSError, ValueError, KeyError, TypeError):
            return State()
        fits = isinstance(state.version, int) and isinstance(state.atlas, str) and isinstance(state.taught, str)
        return state if fits and state.verdict in ("", *VERDICTS) else State()

    def draft_file(self, case: Case) -> Path:
        """Where a scan's unsaved drawing lies."""
        return self.folder / f"{case.id}_draft.nii.gz"

    def corrected_file(self, case: Case, label: Path) -> Path:
        """Where a scan's corrected label goes: beside its result ``label``, in the format of it where that can be written."""
        return label.with_name(f"{case.id}_corrected{map_ending(result_ending(label))}")

    def source(self, case: Case, label: Path) -> tuple[str, Path]:
        """The latest drawing of a scan: :data:`DRAFT`, else :data:`SAVED`, else :data:`RESULT`, and its file."""
        for name, path in ((DRAFT, self.draft_file(case)), (SAVED, self.corrected_file(case, label))):
            if path.is_file():
                return name, path
        return RESULT, label

    def read(self, case: Case, label: Path, geometry: Geometry, of: str = "") -> tuple[np.ndarray, str, int]:
        """The class indices to show on the page's grid, where they come from, and the version.

        Args:
            of: :data:`RESULT` for the model's, whatever was drawn since.

        Raises:
            DataError: a fault of the file.
        """
        with self._lock:
            version = self.state(case.id).version
            name, path = (RESULT, label) if of == RESULT else self.source(case, label)
            classes = grids.read_classes(case, path, self.label_values, geometry)
        return grids.to_page(classes, geometry), name, version

    def keep_draft(self, case: Case, drawn: np.ndarray, geometry: Geometry, version: int) -> State:
        """Keep a drawing that is not saved.

        Args:
            drawn: class indices on the page's grid.
            version: the one that the page has read.

        Raises:
            StaleVersionError: the scan has another one by now.
            OSError: it cannot be written; what was there stays.
        """
        with self._lock:
            state = self._checked(case.id, version)
            grids.write_classes(self.draft_file(case), drawn, geometry, self.label_values)
            return self._write(case.id, replace(state, version=state.version + 1))

    def save(self, case: Case, label: Path, drawn: np.ndarray, geometry: Geometry, version: int) -> State:
        """Save a drawing as the scan's corrected label; arguments and errors as of :meth:`keep_draft`.

        The draft goes last: a process that dies before leaves a draft of the same voxels.
        """
        with self._lock:
            state = self._checked(case.id, version)
            grids.write_classes(self.corrected_file(case, label), drawn, geometry, self.label_values)
            new = self._write(case.id, replace(state, version=state.version + 1, verdict=CORRECTED))
            remove_array(self.draft_file(case))
            return new

    def decide(self, case: str, verdict: str, version: int) -> State:
        """Set a scan's verdict, ``""`` for none; errors as of :meth:`keep_draft`."""
        with self._lock:
            state = self._checked(case, version)
            return self._write(case, replace(state, version=state.version + 1, verdict=verdict))

    def note_atlas(self, case: str, atlas: str, taught: str) -> State:
        """Note which atlas of the model a corrected scan has become. It is no change of what a page shows of the scan.

        Args:
            case: the scan.
            atlas: the atlas's id, ``""`` for none.
            taught: digest of the label it was made of.
        """
        with self._lock:
            return self._write(case, replace(self.state(case), atlas=atlas, taught=taught))

    def touched(self, case: Case) -> bool:
        """Whether somebody has decided or drawn anything: then the result must stay."""
        return self.state(case.id) != State() or self.draft_file(case).is_file()

    def _checked(self, case: str, version: int) -> State:
        state = self.state(case)
        if state.version != version:
            raise StaleVersionError(state.version)
        return state

    def _write(self, case: str, state: State) -> State:
        write_json(self._state_file(case), asdict(state))
        return state

    def _state_file(self, case: str) -> Path:
        return self.folder / f"{case}.json"
