"""Pictures of the atlases that a result was made with, to be seen beside it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oasis_monai.atlases.library import AtlasLibrary
from oasis_monai.review.drawings import FOLDER
from oasis_monai.utils.files import digest
from oasis_monai.workflows.model_folder import ModelRecord, retry_once

SHOWN = 6
"""Atlases of a result that are shown."""


@dataclass
class AtlasPictures:
    """Draws atlases of one model's library.

    Args:
        model: its folder.
        output: of the results; pictures are kept there.
    """

    model: Path
    output: Path
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _read: tuple[str, AtlasLibrary, ModelRecord] | None = None

    def used(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The atlases of a result, nearest first: case, slice (-1 for a volume), distance, and weight or None. Of a result that
        was made slice by slice, those of its middle slice."""
        images = record.get("atlases") or []
        if not images:
            return []
        middle = len(images) // 2
        weights = (record.get("weights") or [[]] * len(images))[middle]
        return [
            {**{key: one[key] for key in ("case", "slice", "distance")}, "weight": weights[i] if i < len(weights) else None}
            for i, one in enumerate(images[middle][:SHOWN])
        ]

    def picture(self, record: Mapping[str, Any], number: int) -> Path | None:
        """The PNG of one of :meth:`used`; None where there is none, or the library does not have it any more.

        Raises:
            OasisError: a fault of the model folder.
        """
        used = self.used(record)
        if number >= len(used):
            return None
        case, slice_ = str(used[number]["case"]), int(used[number]["slice"])
        with self._lock:
            version, library, model = self._library()
            rows = [i for i, own in enumerate(library.cases) if own == case and int(library.slices[i]) == slice_]
            if not rows:
                return None
            path = self.output / FOLDER / "atlases" / f"{digest([version, case, slice_])}.png"
            if not path.is_file():
                self._draw(path, library, model, rows[0], case)
        return path

    def _library(self) -> tuple[str, AtlasLibrary, ModelRecord]:
        """The library as it is now: it is edited while the page is open."""
        record = ModelRecord.read(self.model)
        if self._read is None or self._read[0] != record.version:
            record, library = retry_once(lambda: (own := ModelRecord.read(self.model), own.library()))
            self._read = (record.version, library, record)
        return self._read

    def _draw(self, path: Path, library: AtlasLibrary, model: ModelRecord, row: int, case: str) -> None:
        from oasis_monai.evaluation.contours import overlay

        settings = model.settings()
        image, label = library.images[row, 0].float().numpy(), library.labels[row, 0].numpy()
        if image.ndim == 2:
            image, label = image[..., None], label[..., None]
        spacing = [*(settings.preprocessing.spacing_mm or ()), 1.0, 1.0, 1.0]
        names = dict(enumerate(settings.data.labels, 1))
        overlay(path, image, None, label, (spacing[0], spacing[1], spacing[2]), f"atlas {case}", slices=3, labels=names)
